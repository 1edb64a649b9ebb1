#!/bin/sh
# expect.sh CODE TEXT COMMAND...: runs the command and shows its output; fails unless it ends with that exit code and TEXT
# is in its output or errors.
expected=$1 text=$2
shift 2
output=$("$@" 2>&1)
code=$?
printf '%s\n' "$output"
[ $code -eq "$expected" ] || { echo "exit code $code, expected $expected" >&2; exit 1; }
case $output in
  *"$text"*) ;;
  *) echo "expected in the output: $text" >&2; exit 1 ;;
esac
