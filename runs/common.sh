# Sourced by the scripts of this folder: the program, a Python with matplotlib, an empty folder for the results in $out,
# and arguments that are paths made absolute, for all goes on in the project's folder.
set -euo pipefail
paths=()
for path in "$@"; do
  [[ -e $path ]] && path=$(realpath "$path")
  paths+=("$path")
done
set -- "${paths[@]}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

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

out=runs/$(basename "$0" .sh)
rm -rf "$out"
mkdir -p "$out"
