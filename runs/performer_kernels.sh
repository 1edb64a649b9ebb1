#!/usr/bin/env bash
# runs/performer_kernels.sh [TEXT]: every kernel f(w . x), with and without renormalisation, trained from nothing for the
# same steps, beside the features of softmax and attention itself. TEXT: lines of amino acids, or any text; without it
# this machine's Python library.           (Rethinking Attention with Performers, 2021, section 4.4, appendix D.2)
# Sizes: STEPS, LAYERS, WIDTH, CONTEXT, FEATURES, SEEDS.
. "$(dirname "$0")/common.sh"

steps=${STEPS:-200} layers=${LAYERS:-2} width=${WIDTH:-64} context=${CONTEXT:-256} m=${FEATURES:-64} seeds=${SEEDS:-1}
kernels=(relu sigmoid exp abs gelu cos tanh identity)

say "text"
"$python" runs/demo.py gather "$out/text" "${1:-}"
# learns NAME PLAN: a run and its evaluation; one that stops being finite is a result too.
learns() {
  local run
  for ((seed = 0; seed < seeds; ++seed)); do
    run="$out/$1.$seed"
    "$lineal" train "$out/text/train" -o "$run" --layers "$2*$layers" --hidden-size "$width" --intermediate-size \
      $((3 * width)) -c "$context" --batch-size 8 --steps "$steps" -s "$seed" --validation 0 --clip 0.5 \
      --log-every $((steps / 4 + 1)) --save-every "$steps" --json >"$run.jsonl" 2>"$run.error" &&
      "$lineal" eval -m "$run" "$out/text/validation" --max-context "$context" --json >"$run.json" 2>"$run.error" ||
      tail -1 "$run.error"
  done
}
say "$((2 * ${#kernels[@]} + 3)) models, $steps steps of 8 x $context bytes"
for f in "${kernels[@]}"; do
  for renormalize in true false; do
    learns "$f,$renormalize" "performer(feature_map=$f,renormalize=$renormalize,num_features=$m)"
  done
done
learns "softmax features,true" "performer(num_features=$m)"
learns "softmax,true" attention
learns "no attention,false" identity
"$python" runs/performer.py kernels "$out"
"$python" runs/plot.py "$out/kernels.csv" "$out/kernels.png" --x kernel --y nats_per_byte --by renormalisation --bars \
  --title "validation loss by kernel, $steps steps"
