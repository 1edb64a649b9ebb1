#!/usr/bin/env bash
# Training-free length extrapolation: runs/extrapolation.sh [TEXT]. Trains a model of attention and one of TTT-Linear on
# TEXT (a file or folder; without it this machine's Python library), on texts of 256 bytes, then measures every method of
# `lineal eval --position` and the recurrent model at up to 16 times that length, as a table
# (runs/extrapolation/extrapolation.csv) and a picture (extrapolation.png). LENGTH, STEPS, EVAL_TOKENS and METHODS change
# what they say. Everything printed is computed in this run.
. "$(dirname "$0")/common.sh"

length=${LENGTH:-256}
steps=${STEPS:-2000}
tokens=${EVAL_TOKENS:-65536}
methods=${METHODS:-rope,rope+log_n,linear,ntk,dynamic_ntk,yarn,ntk_by_parts,llama3,rerope,rerope+log_n,leaky_rerope,window,sink,log_n,alibi,none,key_norm,hwfa}

"$python" runs/demo.py gather "$out/text" "${1:-}"
for mixer in attention ttt_linear; do
  "$lineal" train "$out/text/train" -o "$out/$mixer" --layers "$mixer*4" --hidden-size 128 --intermediate-size 352 \
    --pre-conv true -c "$length" --batch-size 8 --steps "$steps" --lr 2e-3 --min-lr 2e-4 --validation 0 \
    --log-every $((steps / 4 + 1)) --save-every "$steps"
done
"$lineal" eval "$out/text/validation" -m "$out/attention" -m "$out/ttt_linear" --position "$methods" --factor 16 \
  --limit "$tokens" --csv "$out/extrapolation.csv"
"$python" runs/extrapolation.py "$out/extrapolation.csv" "$out/extrapolation.png"
