"""The node on a rendered street: the bag is made first, unless it is already there."""

from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, RegisterEventHandler
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from launch import LaunchDescription

ARGUMENTS = [
    DeclareLaunchArgument(
        "bag",
        default_value="coopnet_demo_bag",
        description="Folder of the demo bag; it is rendered there when it does not exist (about a minute).",
    ),
    DeclareLaunchArgument("checkpoint", default_value="", description="Trained networks; empty: those shipped."),
    DeclareLaunchArgument("device", default_value="", description="auto, cpu, cuda or cuda:N; empty: auto."),
    DeclareLaunchArgument("bag_rate", default_value="1.0", description="Speed of the replay."),
    DeclareLaunchArgument("rviz", default_value="true", choices=["true", "false"], description="Show all outputs."),
]

BAG_EXISTS = PythonExpression(["os.path.isdir(r'", LaunchConfiguration("bag"), "')"], ["os"])


def node_with_bag(**keywords: object) -> IncludeLaunchDescription:
    """coopnet.launch.py on the topics of the demo bag."""
    source = PathJoinSubstitution([FindPackageShare("coopnet_ros"), "launch", "coopnet.launch.py"])
    topics = {"image": "/camera/image_raw", "camera_info": "/camera/camera_info"}
    handed_on = {argument.name: LaunchConfiguration(argument.name) for argument in ARGUMENTS}
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(source), launch_arguments=[*topics.items(), *handed_on.items()], **keywords
    )


def generate_launch_description() -> LaunchDescription:
    """Render the bag where it is missing, then start the node and the replay."""
    render = ExecuteProcess(
        cmd=[ExecutableInPackage("make_demo_bag", "coopnet_ros"), "--output", LaunchConfiguration("bag")],
        condition=UnlessCondition(BAG_EXISTS),
        output="screen",
    )
    return LaunchDescription(
        [
            *ARGUMENTS,
            node_with_bag(condition=IfCondition(BAG_EXISTS)),
            RegisterEventHandler(OnProcessExit(target_action=render, on_exit=[node_with_bag()])),
            render,
        ]
    )
