#!/usr/bin/env bash
# Everything this project wants to know of a GPU, in one command of under nine minutes, without a network: whether it
# computes what the CPU does, training in triplets per second, latency of inference, memory. JSON in ${OUT:-out/gpu_check}.
#
#   benchmarks/gpu_check.sh                         on a GPU
#   benchmarks/gpu_check.sh --device cpu --quick    tries this script itself, in about a minute
#
# PYTHON names the interpreter; without it, the one of .venv where that exists, else python3. ROS is not needed.
# Exit code 0: all comparisons passed; 1: not all; 2: nothing could be run; 3: they passed, but a measurement is missing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$root/.venv/bin/python" ] && PYTHON="$root/.venv/bin/python"
fi
export PYTHONUNBUFFERED=1
exec "$PYTHON" "$root/benchmarks/gpu_check.py" --output "${OUT:-out/gpu_check}" "$@"
