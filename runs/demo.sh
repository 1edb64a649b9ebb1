#!/usr/bin/env bash
# make demo [DATA=path]: train a small TTT-Linear model, measure it, plot it, sample from it. Under six minutes on two
# cores. Without DATA the text is the Python library of this machine. Everything printed is computed in this run.
. "$(dirname "$0")/common.sh"

context=512   # tokens that a gradient reaches back
stream=8192   # tokens that the state is then carried in training
batch=2  # small: on few tokens, more steps learn more than larger batches
seconds=${DEMO_SECONDS:-240}  # of training
model=(--layers 'ttt_linear*5' --hidden-size 128 --intermediate-size 352 --pre-conv true)

say "text"
"$python" runs/demo.py gather "$out/text" "${1:-}"

rate() { "$lineal" bench model "${model[@]}" "$@" --json; }
steps=$(rate --batch-size "$batch" --context "$context" --steps 8 | "$python" runs/demo.py steps "$((seconds / 2))")
streamed=$(rate --batch-size 1 --context "$stream" --segment "$context" --steps 2 |
  "$python" runs/demo.py steps "$((seconds / 2))")
learn=(--validation 0 --min-lr 2e-4)
say "training: $steps steps of $batch x $context bytes, about $((seconds / 2)) s on this machine"
"$lineal" train "$out/text/train" -o "$out/first" "${model[@]}" -c "$context" --batch-size "$batch" --steps "$steps" \
  --lr 2e-3 "${learn[@]}" --log-every $((steps / 4 + 1)) --save-every "$steps"

say "training on: $streamed steps of $stream bytes, the state carried over every $context"
"$lineal" train "$out/text/train" -o "$out/run" --init "$out/first" -c "$stream" --segment "$context" --batch-size 1 \
  --steps "$streamed" --lr 1e-3 "${learn[@]}" --log-every $((streamed / 4 + 1)) --save-every "$streamed"

say "loss"
"$lineal" eval -m "$out/run" "$out/text/validation" --json >"$out/eval.json"
"$lineal" eval -m "$out/run" "$out/text/validation" --max-context "$context" --json >"$out/forgetful.json"
"$python" runs/demo.py compare "$out/text/validation" "$out/eval.json" "$out/forgetful.json" "$context"
"$python" runs/demo.py plot "$out/eval.json" "$context" "$stream" "$out/loss_by_position.png"

say "a sample"
"$lineal" generate -m "$out/run" -p 'def ' -n 300 --temp 0.7 -s 1

say "read a document into a state, go on from it in another process"
document=$(find "$out/text/validation" -type f -printf '%s %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
"$lineal" read "$document" -m "$out/run" -o "$out/document.state"
stat -c '%s bytes  %n' "$document" "$out/document.state"
"$lineal" generate -m "$out/run" --state "$out/document.state" -n 150 --temp 0.7 -s 1
