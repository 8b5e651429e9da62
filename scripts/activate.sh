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
        export ROS_DISTRO=jazzy
    fi
fi

export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
# Without this profile Fast DDS loses nearly every image over 0.5 MB (README, "Fast DDS"). The first name is Jazzy's, the
# second Kilted's.
_profile="$_repository/config/fastdds_image_profile.xml"
if [ -f "$_profile" ]; then
    export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_profile}"
    export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$_profile}"
fi
unset _repository _profile
