"""The node on a rendered street: the bag is made first, unless it is already there."""

import os
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction
from launch.events.process import ProcessExited
from launch.launch_context import LaunchContext
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from launch import LaunchDescription


def can_show() -> bool:
    """Whether RViz is installed, and there is a display for its window."""
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        return False
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


ARGUMENTS = [
    DeclareLaunchArgument(
        "bag",
        default_value="coopnet_demo_bag",
        description="Folder of the demo bag; it is rendered there when it does not exist.",
    ),
    DeclareLaunchArgument(
        "frames",
        default_value="200",
        description="Images to render where the bag does not exist: ten for a second, about a minute for 200.",
    ),
    DeclareLaunchArgument("checkpoint", default_value="", description="Trained networks; empty: those shipped."),
    DeclareLaunchArgument("device", default_value="", description="auto, cpu, cuda or cuda:N; empty: auto."),
    DeclareLaunchArgument("bag_rate", default_value="1.0", description="Speed of the replay."),
    DeclareLaunchArgument(
        "bag_loop",
        default_value="true",
        choices=["true", "false"],
        description="Start the replay again at its end; the pose goes on from where it was.",
    ),
    DeclareLaunchArgument(
        "rviz",
        default_value="true" if can_show() else "false",
        choices=["true", "false"],
        description="Show all outputs in RViz; the default is true where RViz is installed and there is a display.",
    ),
]

# What the demo bag is: its topics, and a camera 1.5 m above the ground, which gives the metre. The time is the bag's,
# so that RViz forgets the transforms of the round before when the replay starts again.
DEMO = {
    "image": "/camera/image_raw",
    "camera_info": "/camera/camera_info",
    "use_sim_time": "true",
    "scale_source": "camera_height",
    "camera_height": "1.5",
    "publish_tf": "true",
}


def node_with_bag() -> IncludeLaunchDescription:
    """coopnet.launch.py on the demo bag."""
    source = PathJoinSubstitution([FindPackageShare("coopnet_ros"), "launch", "coopnet.launch.py"])
    handed_on = {argument.name: LaunchConfiguration(argument.name) for argument in ARGUMENTS}
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(source), launch_arguments=[*DEMO.items(), *handed_on.items()]
    )


def after_rendering(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node and the replay, where there is a bag now.

    Raises:
        RuntimeError: rendering failed; launch shows the text and ends with code 1.
    """
    if context.is_shutdown:  # Ctrl-C
        return []
    if event.returncode != 0:
        raise RuntimeError(
            f"The demo bag could not be rendered (make_demo_bag ended with code {event.returncode}, it says why "
            "above), so that the node is not started. Name another folder with bag:=..."
        )
    return [node_with_bag()]


def demo(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node and the replay, or the rendering that has to come first."""
    # make_demo_bag gives the folder its name when all is written: what is there is a whole bag
    if (Path(LaunchConfiguration("bag").perform(context)) / "metadata.yaml").is_file():
        return [node_with_bag()]
    render = ExecuteProcess(
        cmd=[
            ExecutableInPackage("make_demo_bag", "coopnet_ros"),
            ["--output=", LaunchConfiguration("bag")],
            ["--frames=", LaunchConfiguration("frames")],
        ],
        on_exit=after_rendering,
        output="screen",
    )
    return [render]


def generate_launch_description() -> LaunchDescription:
    """Arguments, then what the demo needs."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=demo)])
