#!/bin/sh
# find_torch.sh CANDIDATE...: prints the first folder of a torch package that is PyTorch 2.11 to 2.13 with its headers.
# A candidate is such a folder, or a Python that has it; nothing is imported. Fails when none fits.
for candidate in "$@"; do
  folder=$candidate
  if [ ! -d "$candidate" ]; then
    folder=$("$candidate" -c "
import importlib.util, os
print(os.path.dirname(importlib.util.find_spec('torch').origin))" 2>/dev/null) || continue
  fi
  [ -e "$folder/include/ATen/ATen.h" ] || continue
  case $(sed -n "s/^__version__ = '\([0-9]*\.[0-9]*\).*/\1/p" "$folder/version.py" 2>/dev/null) in
    2.11 | 2.12 | 2.13) printf '%s\n' "$folder" && exit 0 ;;
  esac
done
exit 1
