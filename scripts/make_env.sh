#!/usr/bin/env bash
# Makes or updates .venv. Does nothing, and needs no network, when it is already what the pinned versions ask for.
#   PYTHON=...       the interpreter to use (default: the first suitable of python3, python3.13 ... python3.10)
#   ROS_WHEELS=...   the ROS 2 that comes as wheels where none is sourced: jazzy (default) or kilted
#   TORCH_INDEX=URL  an extra package index for torch, e.g. https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Called from within an environment: step out of it, what follows is about the system's python.
if [ -n "${VIRTUAL_ENV:-}" ]; then
    PATH=$(tr ':' '\n' <<< "$PATH" | grep -v -x -F "$VIRTUAL_ENV/bin" | paste -s -d ':')
    unset VIRTUAL_ENV PYTHONHOME
fi
if [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
    unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi

say() { printf '\033[1m[env]\033[0m %s\n' "$*"; }
fail() { printf '[env] error: %s\n' "$*" >&2; exit 2; }

suitable() {
    "$1" - >/dev/null 2>&1 <<'PY'
import sys
import ensurepip, venv
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PY
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" || fail "PYTHON=$PYTHON cannot be used: Python 3.10 to 3.13 with the venv module was expected."
        echo "$PYTHON"
        return
    fi
    local seen="" name
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        command -v "$name" >/dev/null || continue
        if suitable "$name"; then echo "$name"; return; fi
        seen="$seen $name ($("$name" --version 2>&1))"
    done
    fail "no usable Python was found (looked at:${seen:- nothing on the PATH}). Python 3.10 to 3.13 with the venv module" \
        "was expected. Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3.12 ..."
}

python=$(choose_python)
distribution=${ROS_WHEELS:-jazzy}
ros_pins="constraints-ros-$distribution.txt"
[ -f "$ros_pins" ] || fail "ROS_WHEELS=$distribution is not known: one of" \
    "$(printf '%s\n' constraints-ros-*.txt | sed -E 's/^constraints-ros-(.*)\.txt$/\1/' | paste -s -d ' ') was expected."
mode="wheels-$distribution"
# A ROS counts as sourced when its name is set and its rclpy is really there.
if [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] && "$python" -c 'import rclpy' >/dev/null 2>&1; then
    mode="ros-$ROS_DISTRO"
    if [ -n "${ROS_WHEELS:-}" ]; then say "ROS_WHEELS=$ROS_WHEELS is not used: the sourced ROS, $ROS_DISTRO, is"; fi
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
hash=$(cat constraints.txt "$ros_pins" requirements.txt requirements-ros-wheels.txt scripts/needed_requirements.py \
    | cat - <(echo "$mode $version") | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])')
stamp=".venv/.coopnet-$hash"
if [ -f "$stamp" ] && .venv/bin/python -c '' 2>/dev/null; then
    say "ready (.venv, Python $version, $mode)"
    exit 0
fi

started=$SECONDS
if [ -e .venv ]; then
    # Another mode or Python version means another environment; a change of pins alone is an update of this one.
    previous=$(cat .venv/.coopnet-kind 2>/dev/null || true)
    if [ "$previous" != "$mode $version" ]; then
        say "the environment was made for '${previous:-something else}', now '$mode $version': making it anew"
        rm -rf .venv
    else
        rm -f .venv/.coopnet-????????????????
    fi
fi

options=()
if [[ "$mode" != wheels-* ]]; then options+=(--system-site-packages); fi
if [ ! -d .venv ]; then
    say "making .venv with $python (Python $version), $mode"
    "$python" -m venv "${options[@]}" .venv || fail "python -m venv failed. On Debian and Ubuntu install python3-venv."
fi
touch .venv/COLCON_IGNORE
echo "$mode $version" > .venv/.coopnet-kind

# Packages that pip has to keep as they are, and those still to install.
pins=$(mktemp) && wanted=$(mktemp) && trap 'rm -f "$pins" "$wanted"' EXIT
if [[ "$mode" = wheels-* ]]; then
    echo "$distribution" > .venv/.coopnet-wheels
    cat constraints.txt "$ros_pins" > "$pins"
    "$python" scripts/needed_requirements.py requirements.txt > "$wanted"
    "$python" scripts/needed_requirements.py requirements-ros-wheels.txt >> "$wanted"
else
    "$python" scripts/needed_requirements.py requirements.txt --leave-out-importable > "$wanted"
    # The system's numpy is the one cv_bridge was compiled with: hold it, and let the pins of what needs another go.
    if "$python" -c 'import numpy' 2>/dev/null; then
        grep -v -i -E '^(numpy|opencv-python-headless|matplotlib|pillow|scipy|contourpy|pyyaml|setuptools|pytest)==' constraints.txt > "$pins"
        "$python" -c 'import numpy; print("numpy==" + numpy.__version__)' >> "$pins"
    else
        cp constraints.txt "$pins"
    fi
fi

index=()
if [ -n "${TORCH_INDEX:-}" ]; then
    index+=(--extra-index-url "$TORCH_INDEX")
elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    say "no NVIDIA driver was found here. If the torch below comes with gigabytes of CUDA libraries, stop with Ctrl-C and use"
    say "  make env TORCH_INDEX=https://download.pytorch.org/whl/cpu"
fi
say "installing $(wc -l < "$wanted") packages and what they need (once)"
PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --no-input --quiet --progress-bar on \
    "${index[@]}" -c "$pins" -r "$wanted" \
    || fail "pip could not install the packages (its message is above). What is installed stays; the same command goes on from there. " \
            "Without direct network access set PIP_INDEX_URL or PIP_FIND_LINKS."
touch "$stamp"
say "ready after $((SECONDS - started)) s"
