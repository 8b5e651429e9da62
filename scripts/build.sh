#!/usr/bin/env bash
# colcon build of the package, after checking that colcon really sees it as a ROS package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/activate.sh

mkdir -p build install log out
touch build/COLCON_IGNORE install/COLCON_IGNORE log/COLCON_IGNORE out/COLCON_IGNORE

# An invalid package.xml makes colcon treat the package as plain python, silently: no ament index, no `ros2 run`.
seen=$(colcon --log-base log list --base-paths . 2>&1)
if ! grep -q $'^coopnet_ros\t.*(ros.ament_python)' <<< "$seen"; then
    printf '[build] error: colcon does not see coopnet_ros as a package of type ros.ament_python. It says:\n%s\n' "${seen:-(nothing)}" >&2
    printf '[build] Check package.xml (format 3, <build_type>ament_python</build_type>) and that no COLCON_IGNORE stands beside it.\n' >&2
    exit 1
fi
echo "[build] $(grep '^coopnet_ros' <<< "$seen")"
# colcon never removes what it installed earlier: a preset or a module of a version before would still be found.
rm -rf install/coopnet_ros/share/coopnet_ros/{config,launch,models} install/coopnet_ros/lib/python3*/site-packages/coopnet_{core,ros} build/coopnet_ros/build
colcon build --base-paths . --packages-select coopnet_ros --event-handlers console_stderr- desktop_notification- "$@"
