#!/usr/bin/env bash
# runs/performer_transfer.sh [TEXT]: weights trained with softmax in a Performer: what they are worth at once, and after
# a fraction of the steps more, with features redrawn or not, positive, of one length (SMREG) and trigonometric. TEXT: a
# file or folder; without it this machine's Python library.
#                                                  (Rethinking Attention with Performers, 2021, section 4.3, figure 5)
# Sizes: STEPS and TUNE (steps of both trainings), LAYERS, WIDTH, CONTEXT, FEATURES, REDRAW (steps).
. "$(dirname "$0")/common.sh"

steps=${STEPS:-600} tune=${TUNE:-120} layers=${LAYERS:-3} width=${WIDTH:-96} context=${CONTEXT:-256}
m=${FEATURES:-64} redraw=${REDRAW:-20}
models=(
  "attention=attention"
  "positive, redrawn=performer(num_features=$m,redraw_interval=$redraw)"
  "positive=performer(num_features=$m)"
  "SMREG, redrawn=performer(num_features=$m,row_norms=sqrt,redraw_interval=$redraw)"
  "trig=performer(feature_map=trig,num_features=$m)"
  "trig, redrawn=performer(feature_map=trig,num_features=$m,redraw_interval=$redraw)"
)

say "text"
"$python" runs/demo.py gather "$out/text" "${1:-}"
shape=(--hidden-size "$width" --intermediate-size $((3 * width)))
learn=("$out/text/train" -c "$context" --batch-size 8 --eval-batches 8 --log-every $((tune / 12 + 1))
       --eval-every $((tune / 6 + 1)) --schedule constant --json)

# measure MODEL RESULT: loss and accuracy on the same tokens; what goes wrong is the result.
measure() {
  if "$lineal" eval -m "$1" "$out/text/validation" --max-context "$context" --json >"$2" 2>"$2.error"; then
    rm "$2.error"
  fi
}
# learns NAME ARGUMENTS: a run; one that stops being finite is a result too.
learns() {
  local run=$out/$1
  shift
  "$lineal" train "${learn[@]}" -o "$run" "$@" >"$run.jsonl" 2>"$run.error" || tail -1 "$run.error"
}

say "softmax: $steps steps"
learns softmax --layers "attention*$layers" "${shape[@]}" --steps "$steps" --save-every "$steps"
measure "$out/softmax" "$out/softmax.measured"
say "a Performer from nothing: $tune steps"
learns scratch --layers "performer(num_features=$m,redraw_interval=$redraw)*$layers" "${shape[@]}" --steps "$tune" \
  --save-every "$tune"
measure "$out/scratch" "$out/scratch.measured"
for model in "${models[@]}"; do
  name=${model%%=*}
  say "$name: converted, then $tune steps"
  "$lineal" convert -m "$out/softmax" --layers "${model#*=}*$layers" -o "$out/$name.converted" --json >/dev/null
  measure "$out/$name.converted" "$out/$name.at_once"
  learns "$name" --init "$out/$name.converted" --steps "$tune" --warmup 0 --lr 5e-4 --save-every "$tune"
  measure "$out/$name" "$out/$name.measured"
done
"$python" runs/performer.py transfer "$out" "$steps" "$tune" "${models[@]%%=*}"
"$python" runs/plot.py "$out/curves.csv" "$out/transfer.png" --x step --y validation_loss --by model \
  --title "weights of softmax in a Performer: nats per byte while training on"
