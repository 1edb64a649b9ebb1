#!/usr/bin/env bash
# Installs what the build needs and the machine lacks: Debian packages, and PyTorch 2.11 to 2.13 for its LibTorch.
# A PyTorch that python3 finds is used as it is; otherwise .venv gets one, and matplotlib for the scripts that draw. Nothing missing: a fraction of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ cmake ninja-build ccache mold python3 python3-dev python3-venv python3-pip zlib1g-dev
          nlohmann-json3-dev libcli11-dev libgtest-dev libhwy-dev libbenchmark-dev libsentencepiece-dev libonig-dev
          libutf8proc-dev clang-format)
torch=2.13.0

install_packages() {
  local missing=() package sudo=()
  for package in "${packages[@]}"; do
    [[ $installed == *" $package=installed "* ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return
  if [[ $(id -u) -ne 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
      echo "setup: packages are missing and only root may install them; type:" >&2
      echo "sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
      exit 2
    fi
    sudo=(sudo -n)
  fi
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
}

if command -v dpkg-query >/dev/null; then
  installed=" $(dpkg-query -W -f='${Package}=${db:Status-Status} ' "${packages[@]}" 2>/dev/null || true)"
  install_packages
fi  # elsewhere CMake names what it does not find

if ! cmake/find_torch.sh .venv/bin/python python3 >/dev/null; then
  echo "setup: installing PyTorch $torch into .venv"
  [[ -x .venv/bin/python ]] || python3 -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check "torch==$torch" numpy matplotlib
fi
