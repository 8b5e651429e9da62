"""The node; optionally image_proc before it, a bag that is replayed into it, and RViz.

`ros2 launch coopnet_ros coopnet.launch.py --show-args` lists the arguments.
"""

import os
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.launch_context import LaunchContext
from launch.substitutions import (
    EnvironmentVariable,
    IfElseSubstitution,
    LaunchConfiguration,
    NotEqualsSubstitution,
    PathJoinSubstitution,
)
from launch.utilities import perform_substitutions
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

SHARE = FindPackageShare("coopnet_ros")

ARGUMENTS = [
    DeclareLaunchArgument(
        "image",
        default_value="image",
        description="Image topic, without /compressed. Relative names are resolved in the namespace.",
    ),
    DeclareLaunchArgument("camera_info", default_value="camera_info", description="CameraInfo topic of that camera."),
    DeclareLaunchArgument(
        "image_transport",
        default_value="",
        choices=["", "raw", "compressed"],
        description="How the images come. Empty: as in params_file.",
    ),
    DeclareLaunchArgument(
        "rectify",
        default_value="false",
        choices=["true", "false"],
        description="Let image_proc (apt package ros-<distro>-image-proc) rectify the images first; the node then "
        "listens to image_rect in the namespace. Without it the node undistorts by itself. image_proc takes the "
        "camera_info that lies beside the image topic.",
    ),
    DeclareLaunchArgument(
        "wheel_odom",
        default_value="wheel_odom",
        description="Odometry topic of the robot; heard where scale_source is odometry.",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([SHARE, "config", "coopnet_node.yaml"]),
        description="Parameters of the node; the shipped file lists all of them with their defaults. Beside it, in "
        "profiles/: laptop_cpu.yaml, jetson.yaml, datacenter_gpu.yaml (what differs there, and why). The arguments of "
        "this launch file that are not empty win over it.",
    ),
    DeclareLaunchArgument(
        "checkpoint",
        default_value="",
        description="Trained networks (.safetensors). Empty: as in params_file, else those shipped with the package.",
    ),
    DeclareLaunchArgument(
        "device",
        default_value="",
        description="Where the networks run: auto, cpu, cuda or cuda:N. Empty: as in params_file.",
    ),
    DeclareLaunchArgument(
        "scale_source",
        default_value="",
        choices=["", "none", "fixed", "camera_height", "odometry"],
        description="Where the metre comes from. Empty: as in params_file.",
    ),
    DeclareLaunchArgument(
        "scale",
        default_value="",
        description="Metres per unit of the networks, for scale_source:=fixed. Empty: as in params_file.",
    ),
    DeclareLaunchArgument(
        "camera_height",
        default_value="",
        description="Height of the camera above the ground, metres, for scale_source:=camera_height. Empty: as in "
        "params_file.",
    ),
    DeclareLaunchArgument(
        "publish_tf",
        default_value="",
        choices=["", "true", "false"],
        description="Broadcast odom -> base_link on /tf, once the scale is known. Empty: as in params_file.",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="",
        choices=["", "true", "false"],
        description="Configure and activate at start; false leaves that to a lifecycle manager. Empty: as in "
        "params_file.",
    ),
    DeclareLaunchArgument(
        "namespace",
        default_value="",
        description="Namespace of the node: one per camera or robot.",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=["true", "false"],
        description="Take the time from /clock (simulation, or a bag played with its clock).",
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="Least severity of the node's messages that is shown.",
    ),
    DeclareLaunchArgument(
        "bag",
        default_value="",
        description="A recording (rosbag2: folder, .mcap or .db3) to replay into the node, with /clock. Empty: none.",
    ),
    DeclareLaunchArgument("bag_rate", default_value="1.0", description="Speed of the replay."),
    DeclareLaunchArgument("bag_start", default_value="0.0", description="Leave out so many seconds at its beginning."),
    DeclareLaunchArgument(
        "bag_loop",
        default_value="false",
        choices=["true", "false"],
        description="Start the replay again at its end; the pose goes on from where it was.",
    ),
    DeclareLaunchArgument(
        "rviz",
        default_value="false",
        choices=["true", "false"],
        description="Show all outputs in RViz. Points need publish_tf:=true and a known scale, or a fixed frame that "
        "is the camera's.",
    ),
    DeclareLaunchArgument(
        "rviz_config",
        default_value=PathJoinSubstitution([SHARE, "config", "coopnet.rviz"]),
        description="RViz configuration. Its topics are relative to the namespace, /camera/image_raw there is the "
        "image topic.",
    ),
]

# Without these buffers Fast DDS loses most images above 0.5 MB. A profile of the user's own is kept. Jazzy knows the
# first name only; later ones warn of it in every process.
PROFILE_VARIABLE = (
    "FASTRTPS_DEFAULT_PROFILES_FILE" if os.environ.get("ROS_DISTRO") == "jazzy" else "FASTDDS_DEFAULT_PROFILES_FILE"
)
IMAGE_PROFILE = PathJoinSubstitution([SHARE, "config", "fastdds_image_profile.xml"])
ENVIRONMENT = [
    SetEnvironmentVariable(PROFILE_VARIABLE, EnvironmentVariable(PROFILE_VARIABLE, default_value=[IMAGE_PROFILE]))
]

RECTIFY = LaunchConfiguration("rectify")

# Parameters of the node that have an argument here; None: the type is that of the text (2.5 is a number, true a bool).
PARAMETERS = {
    "image_transport": (IfElseSubstitution(RECTIFY, "raw", LaunchConfiguration("image_transport")), str),
    "checkpoint": (LaunchConfiguration("checkpoint"), str),
    "device": (LaunchConfiguration("device"), str),
    "scale_source": (LaunchConfiguration("scale_source"), str),
    "scale": (LaunchConfiguration("scale"), None),
    "camera_height": (LaunchConfiguration("camera_height"), None),
    "publish_tf": (LaunchConfiguration("publish_tf"), None),
    "autostart": (LaunchConfiguration("autostart"), None),
}


def coopnet_node(context: LaunchContext) -> list[Node]:
    """The node, with the parameters whose arguments are not empty: the others are left to params_file.

    Raises:
        RuntimeError: there is no params_file; launch_ros would start the node with the defaults instead.
    """
    params_file = LaunchConfiguration("params_file").perform(context)
    if not Path(params_file).is_file():
        raise RuntimeError(f"params_file:={params_file}: there is no such file.")
    given = {
        name: ParameterValue(value, value_type=kind)
        for name, (value, kind) in PARAMETERS.items()
        if perform_substitutions(context, [value])
    }
    node = Node(
        package="coopnet_ros",
        executable="coopnet_node",
        name="coopnet",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            params_file,
            {"use_sim_time": LaunchConfiguration("use_sim_time"), **given},
        ],
        remappings=[
            ("image", IfElseSubstitution(RECTIFY, "image_rect", LaunchConfiguration("image"))),
            ("camera_info", LaunchConfiguration("camera_info")),
            ("wheel_odom", LaunchConfiguration("wheel_odom")),
        ],
        # what the layers below tell at debug (every topic, every service) would bury what the node does
        ros_arguments=[
            "--log-level",
            LaunchConfiguration("log_level"),
            "--log-level",
            "rcl:=info",
            "--log-level",
            "rmw_fastrtps_cpp:=info",
        ],
        output="screen",
        # Ctrl-C waits for the inference under way, which takes seconds on a slow computer
        sigterm_timeout="15",
    )
    return [node]


def installed(package: str) -> bool:
    """Whether a package is there to be started."""
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def refuse_to_rectify(context: LaunchContext) -> None:
    """End the launch, since images that are not rectified are not what was asked for.

    Raises:
        RuntimeError: always; launch shows its text and ends with code 1.
    """
    raise RuntimeError(
        "rectify:=true needs image_proc, which is not installed: sudo apt install ros-$ROS_DISTRO-image-proc. "
        "Or leave rectify out: the node undistorts the images by itself."
    )


if installed("image_proc"):
    RECTIFIER = Node(
        package="image_proc",
        executable="rectify_node",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            {
                "use_sim_time": LaunchConfiguration("use_sim_time"),
                "image_transport": IfElseSubstitution(
                    NotEqualsSubstitution(LaunchConfiguration("image_transport"), ""),
                    LaunchConfiguration("image_transport"),
                    "raw",
                ),
            }
        ],
        remappings=[("image", LaunchConfiguration("image"))],
        condition=IfCondition(RECTIFY),
        output="screen",
    )
else:
    RECTIFIER = OpaqueFunction(function=refuse_to_rectify, condition=IfCondition(RECTIFY))

if installed("rviz2"):
    RVIZ = Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", LaunchConfiguration("rviz_config")],
        parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
        remappings=[("/camera/image_raw", LaunchConfiguration("image"))],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
else:
    RVIZ = LogInfo(
        msg="rviz:=true, but rviz2 is not installed: everything else is started without it. To see the outputs: "
        "sudo apt install ros-$ROS_DISTRO-rviz2.",
        condition=IfCondition(LaunchConfiguration("rviz")),
    )

REPLAY = Node(
    package="coopnet_ros",
    executable="play_bag",
    arguments=[
        LaunchConfiguration("bag"),
        "--clock",
        "--wait-for-subscribers=2",
        ["--rate=", LaunchConfiguration("bag_rate")],
        ["--start=", LaunchConfiguration("bag_start")],
        IfElseSubstitution(LaunchConfiguration("bag_loop"), "--loop", "--no-loop"),
    ],
    condition=IfCondition(NotEqualsSubstitution(LaunchConfiguration("bag"), "")),
    output="screen",
)


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the environment of all processes, then the processes."""
    node = OpaqueFunction(function=coopnet_node)
    return LaunchDescription([*ARGUMENTS, *ENVIRONMENT, RECTIFIER, node, REPLAY, RVIZ])
