# Sourced by the other scripts (bash): enters .venv and sets what ROS needs. `. scripts/activate.sh` works by hand too.

_repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The ROS wheels re-execute python once with their own LD_LIBRARY_PATH and mark it. Inherited from a shell of another
# environment, the mark would keep this one from doing so.
if [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
    unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi

if [ -f "$_repository/.venv/bin/activate" ]; then
    # shellcheck disable=SC1091
    . "$_repository/.venv/bin/activate"
    if [ -f "$VIRTUAL_ENV/.coopnet-wheels" ]; then
        export AMENT_PREFIX_PATH="$VIRTUAL_ENV"
        # empty where the environment was made before there was a choice
        read -r ROS_DISTRO < "$VIRTUAL_ENV/.coopnet-wheels" || ROS_DISTRO=jazzy
        export ROS_DISTRO
    fi
fi

export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
# Without this profile Fast DDS loses nearly every image over 0.5 MB (README, "Images do not arrive?"). Jazzy knows the first
# name only; later ones warn of it in every process.
_profile="$_repository/config/fastdds_image_profile.xml"
if [ -f "$_profile" ]; then
    if [ "${ROS_DISTRO:-jazzy}" = jazzy ]; then
        export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_profile}"
    else
        export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$_profile}"
    fi
fi
unset _repository _profile
