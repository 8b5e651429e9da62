#!/usr/bin/env bash
# Runs a command in the environment, with the built package sourced when there is one: scripts/run.sh COMMAND [ARGUMENT ...]
set -euo pipefail
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$_root/scripts/activate.sh"
if [ -f "$_root/install/setup.bash" ]; then
    set +u
    # shellcheck disable=SC1091
    . "$_root/install/setup.bash"
    set -u
    export PATH="$_root/install/coopnet_ros/lib/coopnet_ros:$PATH"
fi
exec "$@"
