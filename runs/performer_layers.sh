#!/usr/bin/env bash
# runs/performer_layers.sh [TEXT]: random features in place of softmax, block by block: how the error of the hidden
# states grows, in a network of random weights and in one trained on TEXT (without it: this machine's Python library).
#                                                    (Rethinking Attention with Performers, 2021, section 4.2, appendix)
# MODEL=path takes a trained model of attention layers instead; STEPS, LAYERS, WIDTH, FEATURES and SEEDS are sizes.
. "$(dirname "$0")/common.sh"

steps=${STEPS:-300} layers=${LAYERS:-6} width=${WIDTH:-96} context=${CONTEXT:-512} seeds=${SEEDS:-3}
IFS=, read -ra features <<<"${FEATURES:-16,64,256,1024}"

say "text"
"$python" runs/demo.py gather "$out/text" "${1:-}"
model=(--layers "attention*$layers" --hidden-size "$width" --intermediate-size $((3 * width)))
learn=("$out/text/train" -c 256 --batch-size 8 --validation 0 --log-every 100)
say "a network of random weights"
"$lineal" train "${learn[@]}" -o "$out/random" "${model[@]}" --steps 1 --lr 0
trained=${MODEL:-$out/trained}
if [[ -z ${MODEL:-} ]]; then
  say "a trained one"
  "$lineal" train "${learn[@]}" -o "$trained" "${model[@]}" --steps "$steps" --save-every "$steps"
else
  layers=$("$python" runs/performer.py layers_of "$trained")
fi

say "conversions, $seeds draws each"
for network in random trained; do
  from=$out/random count=${LAYERS:-6}
  [[ $network == trained ]] && from=$trained count=$layers
  for m in "${features[@]}"; do
    for ((seed = 0; seed < seeds; ++seed)); do
      name=$out/converted/$network-$m-$seed
      "$lineal" convert -m "$from" --layers "performer(num_features=$m)*$count" -o "$name" -s "$seed" --json >/dev/null
      "$lineal" bench propagation "$out/text/validation" -m "$from" --other "$name" -c "$context" --json >"$name.json"
    done
  done
done
"$python" runs/performer.py layers "$out/layers.csv" "$out"/converted/*.json
"$python" runs/plot.py "$out/layers.csv" "$out/layers.png" --x block --y error --by num_features --panel network \
  --deviation deviation --log y --title "error of hidden states, features in place of softmax in all blocks up to this"
