#!/bin/sh
# install.sh LOCK: a virtual environment with what LOCK names, each file checked against its hash.
# Wheels in ./wheels take the place of any index. With TORCH_INDEX, torch and torchvision come from there in the
# locked versions, without hashes (that index builds them anew), and what only a CUDA build needs is left out.
set -eu
lock=$1 venv=${VENV:-/opt/venv}
python3 -m venv "$venv"
pip() {
  if ls wheels/*.whl >/dev/null 2>&1; then
    "$venv/bin/python" -m pip --no-cache-dir install --no-deps --no-index --find-links wheels "$@"
  else
    "$venv/bin/python" -m pip --no-cache-dir install --no-deps "$@"
  fi
}
if [ -z "${TORCH_INDEX:-}" ]; then
  pip --require-hashes --requirement "$lock"
else
  # An entry is a line that begins with a name, and the indented or commented lines after it.
  awk '/^[a-z]/ { kept = $0 !~ /^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)(\[[a-z,]*\])?==/ } kept' "$lock" >others.lock
  pip --require-hashes --requirement others.lock
  pip --index-url "$TORCH_INDEX" $(sed -n 's/^\(torch\|torchvision\)==\([^ ;]*\).*/\1==\2/p' "$lock")
fi
