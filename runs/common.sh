# Sourced by the scripts of this folder: the program, a Python with matplotlib, an empty folder for the results in $out,
# and paths made absolute, the arguments' and MODEL, for all goes on in the project's folder.
set -euo pipefail
project=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
out=runs/$(basename "$0" .sh)
# kept WHAT PATH: the path made absolute; not one of a file that emptying $out would remove.
kept() {
  local path
  path=$(realpath "$2")
  [[ $path/ != "$project/$out"/* ]] || { echo "$0: $1 $2 lies in $out, which is emptied first; move it" >&2; exit 2; }
  echo "$path"
}
paths=()
for path in "$@"; do
  [[ -e $path ]] && path=$(kept "the path" "$path")
  paths+=("$path")
done
set -- "${paths[@]}"
[[ -e ${MODEL:-} ]] && MODEL=$(kept MODEL "$MODEL")
cd "$project"

lineal=build/lineal
[[ -x $lineal ]] || { echo "$0: no $lineal; run make first" >&2; exit 2; }
say() { printf '\n== %s\n' "$1"; }

python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
if ! "$python" -c 'import matplotlib' 2>/dev/null; then
  [[ -x .venv/bin/python ]] || python3 -m venv .venv
  python=.venv/bin/python
  "$python" -m pip install -qq --disable-pip-version-check matplotlib
fi

rm -rf "$out"
mkdir -p "$out"
