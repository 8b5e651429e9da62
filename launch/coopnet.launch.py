"""The node; optionally a bag that is replayed into it, and RViz. `ros2 launch coopnet_ros coopnet.launch.py -s`."""

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import (
    EnvironmentVariable,
    LaunchConfiguration,
    NotEqualsSubstitution,
    PathJoinSubstitution,
)
from launch_ros.actions import Node
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
        "wheel_odom",
        default_value="wheel_odom",
        description="Odometry topic of the robot; heard where the parameter scale_source is odometry.",
    ),
    DeclareLaunchArgument(
        "checkpoint",
        default_value="",
        description="Trained networks (.safetensors). Empty: as in params_file, else those shipped with the package.",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([SHARE, "config", "coopnet_node.yaml"]),
        description="Parameters of the node; the shipped file lists all of them with their defaults. Beside it, in "
        "profiles/: laptop_cpu.yaml, jetson.yaml, datacenter_gpu.yaml (what differs there, and why).",
    ),
    DeclareLaunchArgument(
        "device",
        default_value="",
        description="Where the networks run: auto, cpu, cuda or cuda:N. Empty: as in params_file.",
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="",
        description="raw or compressed. Empty: as in params_file.",
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
        "bag",
        default_value="",
        description="A recording (rosbag2: folder, .mcap or .db3) to replay into the node, with /clock. Empty: none.",
    ),
    DeclareLaunchArgument("bag_rate", default_value="1.0", description="Speed of the replay."),
    DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="Show all outputs."),
    DeclareLaunchArgument(
        "rviz_config",
        default_value=PathJoinSubstitution([SHARE, "config", "coopnet.rviz"]),
        description="RViz configuration (its topics are those of a node without a namespace).",
    ),
]

# Without these buffers Fast DDS loses most images above 0.5 MB. A profile of the user's own is kept.
IMAGE_PROFILE = PathJoinSubstitution([SHARE, "config", "fastdds_image_profile.xml"])
ENVIRONMENT = [
    SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=[IMAGE_PROFILE]))
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
]

PROCESSES = [
    Node(
        package="coopnet_ros",
        executable="coopnet_node",
        name="coopnet",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {"use_sim_time": LaunchConfiguration("use_sim_time")},
        ],
        remappings=[
            ("image", LaunchConfiguration("image")),
            ("camera_info", LaunchConfiguration("camera_info")),
            ("wheel_odom", LaunchConfiguration("wheel_odom")),
        ],
        arguments=[
            ["--checkpoint=", LaunchConfiguration("checkpoint")],
            ["--device=", LaunchConfiguration("device")],
            ["--image-transport=", LaunchConfiguration("image_transport")],
        ],
        output="screen",
    ),
    Node(
        package="coopnet_ros",
        executable="play_bag",
        arguments=[
            LaunchConfiguration("bag"),
            "--clock",
            "--wait-for-subscribers=2",
            ["--rate=", LaunchConfiguration("bag_rate")],
        ],
        condition=IfCondition(NotEqualsSubstitution(LaunchConfiguration("bag"), "")),
        output="screen",
    ),
    Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", LaunchConfiguration("rviz_config")],
        parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the environment of all processes, then the processes."""
    return LaunchDescription([*ARGUMENTS, *ENVIRONMENT, *PROCESSES])
