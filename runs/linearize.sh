#!/usr/bin/env bash
# runs/linearize.sh [TEXT]: a model trained with softmax attention gets mixers of linear time in its place and learns from
# itself: layer by layer, then by what it expects next. Quality before, during and after; bytes of a session's state and
# tokens/s before and after; beside it the same steps on the text alone. TEXT: a file or folder; without it this
# machine's Python library.                                          (Transformers to SSMs, 2024; LoLCATs, 2024)
# MODEL=path takes a trained model of attention layers instead, a published one too; its text is TEXT's. MIXERS, with ';'
# between them, STEPS and TUNE (steps of both trainings), LAYERS, WIDTH, CONTEXT, BATCH and LONG (bytes that a session
# reads) are sizes.
. "$(dirname "$0")/common.sh"

steps=${STEPS:-600} tune=${TUNE:-200} layers=${LAYERS:-3} width=${WIDTH:-96} context=${CONTEXT:-256} batch=${BATCH:-8}
long=${LONG:-8192}
IFS=';' read -ra mixers <<<"${MIXERS:-performer(num_features=64);linear_attention;ttt_linear;gated_delta_net}"

say "text"
"$python" runs/demo.py gather "$out/text" "${1:-}"
head -c "$long" < <(cat "$out"/text/validation/*) >"$out/long"
learn=("$out/text/train" -c "$context" --batch-size "$batch" --eval-batches 8 --log-every $((tune / 20 + 1))
       --eval-every $((tune / 10 + 1)) --json)
model=${MODEL:-$out/softmax}
if [[ -z ${MODEL:-} ]]; then
  say "softmax: $steps steps"
  "$lineal" train "${learn[@]}" -o "$model" --layers "attention*$layers" --hidden-size "$width" \
    --intermediate-size $((3 * width)) --steps "$steps" --save-every "$steps" >"$model.jsonl"
fi

# measure MODEL NAME: loss on the validation text, and what a session of it costs
measure() {
  "$lineal" eval -m "$1" "$out/text/validation" --max-context "$context" --json >"$2.eval"
  "$lineal" read "$out/long" -m "$1" -o "$2.state" >/dev/null
  "$lineal" eval -m "$1" "$out/long" --json >"$2.long"
}
measure "$model" "$out/softmax"
for i in "${!mixers[@]}"; do
  at=$out/$i
  say "${mixers[i]}: converted, $tune steps from the teacher, $tune steps from the text alone"
  "$lineal" convert -m "$model" --mixer "${mixers[i]}" -o "$at.converted" --json >"$at.conversion"
  measure "$at.converted" "$at.before"
  for how in distilled alone; do
    teacher=()
    [[ $how == distilled ]] && teacher=(--distill "$model")
    "$lineal" train "${learn[@]}" -o "$at.$how" --init "$at.converted" "${teacher[@]}" --steps "$tune" \
      --save-every "$tune" >"$at.$how.jsonl"
    measure "$at.$how" "$at.$how"
  done
  echo "${mixers[i]}" >"$at.name"
done
"$python" runs/linearize.py "$out"
"$python" runs/plot.py "$out/linearize.csv" "$out/linearize.png" --x step --y nats_per_token --by mixer --panel from \
  --title "validation loss of linear-time mixers in place of attention"
