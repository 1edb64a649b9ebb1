#!/usr/bin/env bash
# Compiles the CPU kernels for ARM's NEON with a cross compiler (Debian: g++-aarch64-linux-gnu), running nothing.
# check_arm.sh [FOLDER]: FOLDER has hwy/highway.h, by default /usr/include.
set -euo pipefail
cd "$(dirname "$0")/.."
compiler=aarch64-linux-gnu-g++
if ! command -v $compiler >/dev/null; then
  echo "check_arm: no $compiler; type: sudo apt-get install -y g++-aarch64-linux-gnu" >&2
  exit 77
fi
include=$(mktemp -d)  # Highway alone: the rest of /usr/include is another machine's
trap 'rm -rf "$include"' EXIT
ln -s "$(realpath "${1:-/usr/include}/hwy")" "$include/hwy"
compile() {
  $1 -std=c++20 -O2 -Wall -Wextra -Wno-missing-field-initializers -Werror -Isrc -isystem "$2" -c "$3" -o /dev/null \
    '-DHWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128|HWY_RVV)'
}
export -f compile
# parallel.cc is LibTorch's threads.
find src/kernels/cpu -name '*.cc' ! -name '*_test.cc' ! -name parallel.cc -print0 |
  xargs -0 -P "$(nproc)" -I{} bash -c "compile $compiler '$include' {} || { echo 'check_arm: {} does not compile' >&2; exit 1; }"
