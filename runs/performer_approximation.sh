#!/usr/bin/env bash
# Error of FAVOR+ attention against exact softmax attention over the number of features: iid against orthogonal rows,
# positive against trigonometric features.           (Rethinking Attention with Performers, 2021, section 4.2, figure 4)
# The paper's size: LENGTH=4096 runs/performer_approximation.sh
. "$(dirname "$0")/common.sh"

length=${LENGTH:-1024} head_size=${HEAD_SIZE:-16} samples=${SAMPLES:-15}
draws=${DRAWS:-16}  # of the projection for each sample: what orthogonal rows gain is less than one draw's spread
features=${FEATURES:-8,16,32,64,128,256}
settings=(
  'small kernel values=--deviation 0.4 --offset 1.4'  # exp(-2): where a trained softmax has most of its pairs
  'near 1=--deviation 0.25'
  'unit normal=--deviation 1'
)

for setting in "${settings[@]}"; do
  read -ra inputs <<<"${setting#*=}"
  say "$length tokens, head size $head_size, $samples samples of $draws draws; kernel values: ${setting%%=*}"
  "$lineal" bench approximation --length "$length" --head-size "$head_size" --samples "$samples" --draws "$draws" \
    --num-features "$features" "${inputs[@]}" --json >"$out/${setting%%=*}.json"
  "$python" runs/performer.py approximation "$out/${setting%%=*}.json" "$out/approximation.csv"
done
"$python" runs/plot.py "$out/approximation.csv" "$out/approximation.png" --x num_features --y squared_error \
  --by features --panel inputs --log x,y --title "squared error of the attention output relative to softmax's"
