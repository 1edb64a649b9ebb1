#!/usr/bin/env bash
# Seconds of a forward and a backward pass against the length, for Performer, softmax attention, and layers that return
# V, which bound both.              (Rethinking Attention with Performers, 2021, section 4.1, figure 3 and appendix D.3)
# BUDGET: seconds that a cell may take by what the length before took; longer ones are left out and said.
# LENGTHS, SIZES (heads,layers,ff,width ...), STEPS (timed), and arguments for lineal bench model: -t 1.
. "$(dirname "$0")/common.sh"

lengths=${LENGTHS:-1024,2048,4096,8192,16384,32768}
sizes=${SIZES:-8,6,2048,512 1,6,64,64}
"$python" runs/performer.py speed "$lineal" "$out/speed.csv" "$lengths" "$sizes" "${STEPS:-1}" "${BUDGET:-30}" "$@"
for pass in forward backward; do
  "$python" runs/plot.py "$out/speed.csv" "$out/$pass.png" --x length --y "seconds_$pass" --by mixer --panel size \
    --log x,y --title "seconds of a $pass pass, heads,layers,ff,width"
done
