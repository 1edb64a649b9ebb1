#!/bin/sh
# Checks find_torch.sh, the choice LibTorch.cmake makes with it, expect.sh and runs/common.sh. $1: cmake.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
check() { # what, expected, got
  [ "$2" = "$3" ] || { echo "$1: expected '$2', got '$3'"; failed=1; }
}

torch() { # name, version
  mkdir -p "$work/$1/include/ATen" && : >"$work/$1/include/ATen/ATen.h"
  echo "__version__ = '$2'" >"$work/$1/version.py"
}
python() { # path, folder of its torch
  mkdir -p "$(dirname "$work/$1")"
  printf '#!/bin/sh\necho "%s"\n' "$work/$2" >"$work/$1" && chmod +x "$work/$1"
}
torch old 2.3.1 && torch good 2.12.0+cpu && torch new 2.14.0 && torch bare 2.13.0 && rm "$work/bare/include/ATen/ATen.h"
python project/.venv/bin/python old && python bin/python3 good
find_torch() { "$here/find_torch.sh" "$@" || echo none; }
check "an old one before a good one" "$work/good" "$(find_torch "$work/project/.venv/bin/python" "$work/bin/python3")"
check "folders" "$work/good" "$(find_torch "$work/old" "$work/new" "$work/bare" "$work/none" "$work/good")"
check "none that fits" none "$(find_torch "$work/old" "$work/new" "$work/bare" "$work/missing" false)"

cat >"$work/project/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.25)
project(choice LANGUAGES NONE)
include($here/LibTorch.cmake)
file(WRITE "\${PROJECT_BINARY_DIR}/chosen" "\${LINEAL_TORCH}")
CMAKE
choose() { # folder of the build, flags
  PATH="$work/bin:$PATH" "$1" -S "$work/project" -B "$work/$2" $3 >"$work/log" 2>&1 && cat "$work/$2/chosen" || echo refused
}
check "CMake, an old one in .venv" "$work/good" "$(choose "$1" a "")"
check "CMake, an old one by name" refused "$(choose "$1" b "-DLINEAL_TORCH=$work/old")"
torch better 2.13.0 && python bin/python3 better
check "CMake, configured again" "$work/good" "$(choose "$1" a "")"
torch good 2.14.0
check "CMake, configured again when it fits no more" "$work/better" "$(choose "$1" a "")"
python bin/python3 old
check "CMake, none" refused "$(choose "$1" c "")"

code() { "$@" >/dev/null 2>&1 && echo 0 || echo $?; }
check "text and code" 0 "$(code "$here/expect.sh" 0 "a b" echo "x a b y")"
check "no text" 1 "$(code "$here/expect.sh" 0 "a b" echo "x")"
check "another code" 1 "$(code "$here/expect.sh" 0 "a b" sh -c 'echo "a b"; exit 3')"
check "an error, as expected" 0 "$(code "$here/expect.sh" 3 "a b" sh -c 'echo "a b" >&2; exit 3')"

# A script of runs/ in a project whose lineal and Python do nothing: it prints what it is given and what it keeps.
mkdir -p "$work/home/runs/mine" "$work/home/build" "$work/home/.venv/bin" "$work/elsewhere"
cp "$here/../runs/common.sh" "$work/home/runs"
for program in build/lineal .venv/bin/python; do
  printf '#!/bin/sh\n' >"$work/home/$program" && chmod +x "$work/home/$program"
done
cat >"$work/home/runs/mine.sh" <<'SCRIPT'
. "$(dirname "$0")/common.sh"
echo "$* ${MODEL:-} in $(pwd): $(ls "$out")"
SCRIPT
: >"$work/elsewhere/text"
script() { # folder, MODEL, arguments
  : >"$work/home/runs/mine/old"
  (cd "$work/$1" && shift && MODEL=$1 && shift && export MODEL && bash "$work/home/runs/mine.sh" "$@" 2>&1)
}
home=$(realpath "$work/home") elsewhere=$(realpath "$work/elsewhere")
check "an emptied folder" "  in $home: " "$(script home "")"
check "paths from elsewhere" "$elsewhere/text -t 1 $elsewhere in $home: " "$(script elsewhere . text -t 1)"
refusal() { # what, path
  echo "$work/home/runs/mine.sh: $1 $2 lies in runs/mine, which is emptied first; move it"
}
check "a text in the emptied folder" "$(refusal "the path" runs/mine/old)" "$(script home "" runs/mine/old || true)"
check "that folder itself" "$(refusal "the path" .)" "$(script home/runs/mine "" . || true)"
check "a MODEL in it" "$(refusal MODEL ../home/runs/mine/old)" "$(script elsewhere ../home/runs/mine/old || true)"
check "scripts of runs/ that do without it" "" "$(cd "$here/../runs" && grep -L '/common.sh"$' $(ls ./*.sh | grep -v common))"
check "what is refused is kept" old "$(ls "$work/home/runs/mine")"
exit $failed
