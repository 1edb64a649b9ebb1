#!/usr/bin/env bash
# Every source file is as clang-format writes it; `clang-format -i FILE` mends one.
set -euo pipefail
cd "$(dirname "$0")/.."
find src python examples -name '*.cc' -o -name '*.h' | sort | xargs clang-format --dry-run -Werror
