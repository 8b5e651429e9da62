"""Training from one bag, starting from the shipped weights. `ros2 run coopnet_ros train_from_bags` has more options."""

from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from launch import LaunchDescription

ARGUMENTS = [
    DeclareLaunchArgument("bag", description="Recording to train on (rosbag2: folder, .mcap or .db3)."),
    DeclareLaunchArgument("output", description="New folder for checkpoints, curves and the configuration."),
    DeclareLaunchArgument("preset", default_value="small", description="Shipped preset: small (CPU) or resnet18."),
    DeclareLaunchArgument("device", default_value="auto", description="auto, cpu, cuda or cuda:N."),
    DeclareLaunchArgument(
        "init",
        default_value=PathJoinSubstitution([FindPackageShare("coopnet_ros"), "models", "small_rendered.safetensors"]),
        description="Weights to start from, of the same preset.",
    ),
]


def generate_launch_description() -> LaunchDescription:
    """One process; Ctrl-C saves the state."""
    train = ExecuteProcess(
        cmd=[
            ExecutableInPackage("train_from_bags", "coopnet_ros"),
            LaunchConfiguration("bag"),
            "--output",
            LaunchConfiguration("output"),
            "--preset",
            LaunchConfiguration("preset"),
            "--device",
            LaunchConfiguration("device"),
            "--init",
            LaunchConfiguration("init"),
        ],
        output="screen",
        # the last checkpoint is written after Ctrl-C
        sigterm_timeout="60",
    )
    return LaunchDescription([*ARGUMENTS, train])
