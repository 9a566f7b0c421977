#!/usr/bin/env bash
# Makes .venv and installs envs/dev.txt: by uv where it is there, PyTorch's CPU build where there is no GPU.
# TORCH_INDEX, or settings of your own for pip or uv, decide instead. `envs/install.sh --print` only says what it would run.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
CPU_INDEX=https://download.pytorch.org/whl/cpu

has_gpu() { [ -e /dev/nvidiactl ] || nvidia-smi -L >/dev/null 2>&1; }
has_settings() { "$@" config list 2>/dev/null | grep -Eq "(index-url|find-links|no-index)="; }

uv_settings=${UV_INDEX:-}${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}${UV_EXTRA_INDEX_URL:-}${UV_FIND_LINKS:-}${UV_TORCH_BACKEND:-}
pip_settings=${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}${PIP_FIND_LINKS:-}
if [ -z "$pip_settings" ] && has_settings "$PYTHON" -m pip; then pip_settings=file; fi

# uv does not read pip's settings: who has only those gets pip.
if uv --version >/dev/null 2>&1 && { [ -n "$uv_settings" ] || [ -z "$pip_settings" ]; }; then
    tool=uv own=$uv_settings
    make=(uv venv --quiet --allow-existing --python "$PYTHON" .venv)
    install=(uv pip install --python .venv/bin/python --compile-bytecode)
else
    tool=pip own=$pip_settings
    make=("$PYTHON" -m venv .venv)
    install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
fi

torch=()
if [ -n "${TORCH_INDEX:-}" ]; then
    build="from $TORCH_INDEX"
    torch=(--extra-index-url "$TORCH_INDEX")
    if [ $tool = uv ]; then torch+=(--index-strategy unsafe-best-match); fi
elif [ -n "$own" ]; then
    build="from where your settings for $tool say"
elif [ "$(uname -s)" != Linux ]; then
    build="as PyPI has it"
elif has_gpu; then
    build="with CUDA, some GB more, since there is a GPU"
elif [ $tool = uv ]; then
    build="for the CPU, since there is no GPU"
    torch=(--torch-backend cpu)
else
    build="for the CPU, since there is no GPU"
    torch=(--extra-index-url "$CPU_INDEX")
fi

count=$(cat envs/base.lock.txt envs/cpu.txt envs/dev.txt | grep -c ==)
echo "Installing $count packages into .venv by $tool, PyTorch $build: about 2 GB on disk."
run() { if [ "$print" = --print ]; then echo "$*"; else "$@"; fi; }
print=${1:-}
run "${make[@]}"
run "${install[@]}" ${torch[@]+"${torch[@]}"} -r envs/dev.txt
run "${install[@]}" --no-deps --editable .
