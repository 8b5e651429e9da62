"""Training on one recording, from the shipped weights. `ros2 run coopnet_ros train_from_bags` has more options."""

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.events.process import ProcessExited
from launch.launch_context import LaunchContext
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from launch import LaunchDescription

ARGUMENTS = [
    DeclareLaunchArgument(
        "bag",
        description="Recording to train on: a bag (folder, .mcap or .db3), a video, a folder of images, or a data set, "
        "as docs/data.md lists them.",
    ),
    DeclareLaunchArgument(
        "output",
        description="New folder for checkpoints, curves and the configuration. After Ctrl-C "
        "`ros2 run coopnet_ros train_from_bags <bag> --output <output> --resume` goes on in it.",
    ),
    DeclareLaunchArgument(
        "adapt",
        default_value="false",
        choices=["true", "false"],
        description="A short run with the settings of config/adapt.yaml, made for a robot's own recording.",
    ),
    DeclareLaunchArgument(
        "preset",
        default_value="",
        description="Networks and schedule: cityscapes, cpu-small, edge, kitti-640 or kitti-paper. Empty: the networks "
        "of the weights in `init`, trained as in cpu-small. Others than those of the weights need init:=''.",
    ),
    DeclareLaunchArgument("steps", default_value="", description="Optimiser steps. Empty: those of the preset."),
    DeclareLaunchArgument("device", default_value="auto", description="auto, cpu, cuda or cuda:N."),
    DeclareLaunchArgument(
        "init",
        default_value=PathJoinSubstitution([FindPackageShare("coopnet_ros"), "models", "small_rendered.safetensors"]),
        description="Weights to start from. Empty: random ones, of the preset.",
    ),
]


def fail_where_training_failed(event: ProcessExited, context: LaunchContext) -> None:
    """Hand the failure on.

    Raises:
        RuntimeError: training ended by itself with an error; launch shows the text and ends with code 1.
    """
    if event.returncode != 0 and not context.is_shutdown:
        raise RuntimeError(f"Training ended with code {event.returncode}; train_from_bags says why above.")


def training(context: LaunchContext) -> list[ExecuteProcess]:
    """One process, with the options that are not empty."""
    options = {
        "--output=": LaunchConfiguration("output"),
        "--preset=": LaunchConfiguration("preset"),
        "--steps=": LaunchConfiguration("steps"),
        "--device=": LaunchConfiguration("device"),
        "--init=": LaunchConfiguration("init"),
    }
    train = ExecuteProcess(
        cmd=[
            ExecutableInPackage("train_from_bags", "coopnet_ros"),
            LaunchConfiguration("bag"),
            *([option, value] for option, value in options.items() if value.perform(context)),
            *(["--adapt"] if LaunchConfiguration("adapt").perform(context) == "true" else []),
        ],
        on_exit=fail_where_training_failed,
        output="screen",
        # the last checkpoint is written after Ctrl-C
        sigterm_timeout="60",
    )
    return [train]


def generate_launch_description() -> LaunchDescription:
    """Arguments, then the training; Ctrl-C saves its state."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=training)])
