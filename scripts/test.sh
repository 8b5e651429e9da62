#!/usr/bin/env bash
# colcon test and its result. Fails on a failing test, on an error of colcon, and on zero tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/activate.sh
set +u
. install/setup.bash
set -u

# Tests of two checkouts on one machine must not hear each other.
export ROS_DOMAIN_ID="${ROS_DOMAIN_ID:-$((RANDOM % 100 + 1))}"
rm -f build/coopnet_ros/pytest.xml

# Two files of tests at a time, one thread each: twice as fast where there are two cores. A file stays in one process.
# More would not be faster (the longest files decide) and needs memory.
arguments=()
if [ "$(nproc)" -gt 1 ] && python -c 'import xdist' 2>/dev/null; then
    arguments+=(-n 2 --dist loadfile --no-loadscope-reorder)
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
# shellcheck disable=SC2206
arguments+=(${PYTEST_ARGS:-})

status=0
colcon test --base-paths . --packages-select coopnet_ros --return-code-on-test-failure \
    --event-handlers console_direct+ desktop_notification- \
    ${arguments:+--pytest-args "${arguments[@]}"} || status=$?
echo
colcon test-result --test-result-base build --verbose || status=1

count=$(colcon test-result --test-result-base build 2>/dev/null | sed -n 's/^Summary: \([0-9]*\) tests.*/\1/p' || true)
if [ "${count:-0}" -eq 0 ]; then
    echo "[test] error: no test was run. setup.py needs extras_require={'test': ['pytest']}, and test/ its test_*.py files." >&2
    exit 1
fi
# pytest's own closing line once more, last: it holds the numbers of passed, failed and skipped tests.
grep -h -E '^=+ .*(passed|failed|error).* in [0-9.]+s' log/latest_test/coopnet_ros/stdout.log | tail -n 1 || true
if [ "$status" -ne 0 ]; then
    echo "[test] FAILED (colcon's exit code $status)" >&2
    exit 1
fi
