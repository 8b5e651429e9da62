"""Every parameter of the node, declared once: name, type, default, range or choices, description, dynamic or not."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from coopnet_core.errors import UsageError
from coopnet_core.inference.prediction import REFINE_CHOICES

ParameterValue = bool | int | float | str | tuple[float, ...]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter.

    Attributes:
        name: name as in `ros2 param`, with dots for groups.
        default: its value when nothing is given; its type is the parameter's type (a tuple is a list of numbers).
        description: what it does, with its unit; shown by `ros2 param describe` and in the README.
        minimum, maximum: inclusive range of a number, None where open.
        choices: the allowed strings, empty where any is.
        length: number of elements of a list, None for the others.
        read_only: whether it can only be given at start.
    """

    name: str
    default: ParameterValue
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None
    read_only: bool = False

    @property
    def type_name(self) -> str:
        """`bool`, `int`, `double`, `string` or `double_array`, as ROS names the types."""
        names = {bool: "bool", int: "int", float: "double", str: "string", tuple: "double_array"}
        return names[type(self.default)]

    @property
    def constraint(self) -> str:
        """The range or the choices in words, empty where there is none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.length is not None:
            return f"{self.length} numbers"
        low = "" if self.minimum is None else f"at least {self.minimum:g}"
        high = "" if self.maximum is None else f"at most {self.maximum:g}"
        return ", ".join(part for part in (low, high) if part)

    def refusal(self, value: object) -> str | None:
        """Why `value` cannot be this parameter's, or None when it can."""
        if not _has_type(value, self.default):
            return f"parameter {self.name}={value!r}: a {self.type_name} was expected"
        numbers = list(value) if isinstance(value, (tuple, list)) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            return f"parameter {self.name}={value!r}: finite numbers were expected"
        if self.choices and value not in self.choices:
            return f"parameter {self.name}={value!r}: {self.constraint} was expected"
        if self.length is not None and len(numbers) != self.length:
            return f"parameter {self.name} has {len(numbers)} numbers: {self.length} were expected"
        if self.minimum is not None and any(number < self.minimum for number in numbers):
            return f"parameter {self.name}={value!r}: {self.constraint} was expected"
        if self.maximum is not None and any(number > self.maximum for number in numbers):
            return f"parameter {self.name}={value!r}: {self.constraint} was expected"
        return None


PARAMETERS: tuple[ParameterSpec, ...] = (
    ParameterSpec(
        "autostart",
        True,
        "Configure and activate at start; false leaves the transitions to a lifecycle manager.",
        read_only=True,
    ),
    ParameterSpec(
        "checkpoint",
        "",
        "Path of the networks (.safetensors); empty: the shipped models/small_rendered.safetensors. A change takes "
        "effect with the service ~/load_checkpoint.",
    ),
    ParameterSpec(
        "device",
        "auto",
        "Where the networks run: auto (cuda if there is one, else cpu), cpu, cuda or cuda:N.",
        read_only=True,
    ),
    ParameterSpec(
        "input_width",
        0,
        "Width the images are resized to for the networks, pixels; 0: the checkpoint's. Lower it when memory runs out.",
        minimum=0,
        maximum=4096,
        read_only=True,
    ),
    ParameterSpec(
        "input_height",
        0,
        "Height the images are resized to for the networks, pixels; 0: the checkpoint's.",
        minimum=0,
        maximum=4096,
        read_only=True,
    ),
    ParameterSpec(
        "refine",
        "static",
        "Make the camera motion agree with depth and flow: on pixels that do not move (static), on all (all: half the "
        "flow to compute, but movers disturb), or not at all (off).",
        choices=REFINE_CHOICES,
        read_only=True,
    ),
    ParameterSpec(
        "image_transport",
        "raw",
        "raw subscribes `image` (sensor_msgs/Image), compressed subscribes `image`/compressed (CompressedImage).",
        choices=("raw", "compressed"),
        read_only=True,
    ),
    ParameterSpec(
        "image_reliability",
        "best_effort",
        "Reliability asked of the publisher of `image`; best_effort receives from both kinds.",
        choices=("best_effort", "reliable"),
        read_only=True,
    ),
    ParameterSpec(
        "camera_info_reliability",
        "best_effort",
        "Reliability asked of the publisher of `camera_info`; best_effort receives from both kinds.",
        choices=("best_effort", "reliable"),
        read_only=True,
    ),
    ParameterSpec(
        "rectified",
        "auto",
        "Whether the images are rectified already, so that P of camera_info holds, not K and D; auto: when the name "
        "of their topic starts with image_rect.",
        choices=("auto", "always", "never"),
        read_only=True,
    ),
    ParameterSpec(
        "max_pair_gap",
        0.5,
        "Longest time between two frames that are still a pair, seconds; beyond it a frame gives depth only.",
        minimum=0.001,
        maximum=60.0,
    ),
    ParameterSpec(
        "time_jump_threshold",
        1.0,
        "A stamp that lies back by more than this is a new start (bag loop), by less it is out of order, seconds. "
        "Three images in a row behind the newest are a new start too.",
        minimum=0.0,
        maximum=3600.0,
    ),
    ParameterSpec(
        "no_data_timeout",
        5.0,
        "After so long without an image a warning says what is known of its publishers, seconds.",
        minimum=0.5,
        maximum=3600.0,
    ),
    ParameterSpec(
        "always_integrate",
        True,
        "Compute the camera's motion even when nobody subscribes, so that odometry does not lose its place; false "
        "saves the work.",
    ),
    ParameterSpec(
        "scale_source",
        "none",
        "Where the metre comes from: none (as the checkpoint states it), fixed (times `scale`), camera_height (the "
        "ground in the depth, and the height of the camera above it) or odometry (the distances of wheel_odom).",
        choices=("none", "fixed", "camera_height", "odometry"),
    ),
    ParameterSpec(
        "scale",
        1.0,
        "Metres per unit of the networks, used with scale_source fixed.",
        minimum=1e-6,
        maximum=1e6,
    ),
    ParameterSpec(
        "camera_height",
        0.0,
        "Height of the camera above the ground, metres, used with scale_source camera_height; 0: its z in base_frame, "
        "which must then lie on the ground.",
        minimum=0.0,
        maximum=1000.0,
    ),
    ParameterSpec(
        "scale_window",
        10.0,
        "A measured scale (camera_height, odometry) is the median over the samples of so many seconds.",
        minimum=0.1,
        maximum=3600.0,
    ),
    ParameterSpec(
        "scale_max_age",
        30.0,
        "So long after its newest sample a measured scale counts as unknown again, seconds.",
        minimum=0.1,
        maximum=1e6,
    ),
    ParameterSpec(
        "scale_min_motion",
        0.1,
        "Distance by wheel_odom from which its motion and the camera's are compared, metres (scale_source odometry).",
        minimum=1e-3,
        maximum=100.0,
    ),
    ParameterSpec(
        "max_depth",
        100.0,
        "Metric depth beyond this becomes far_value, metres; 0: no limit.",
        minimum=0.0,
        maximum=10000.0,
    ),
    ParameterSpec("far_value", "nan", "What stands for a depth beyond max_depth.", choices=("nan", "inf")),
    ParameterSpec(
        "motion_threshold",
        0.5,
        "Probability from which a pixel counts as moving in ~/motion/mask, and for points.remove_moving.",
        minimum=0.0,
        maximum=1.0,
    ),
    ParameterSpec("odom_frame", "odom", "Frame of the poses in ~/odom.", read_only=True),
    ParameterSpec("base_frame", "base_link", "Frame of the robot: child frame of ~/odom.", read_only=True),
    ParameterSpec(
        "publish_tf",
        False,
        "Broadcast odom_frame -> base_frame on /tf as well (needs tf2_ros).",
        read_only=True,
    ),
    ParameterSpec(
        "base_to_camera.source",
        "auto",
        "Where the mounting of the camera comes from: tf (refused where tf2_ros is not installed), parameters, or auto "
        "(TF where it is installed and has it, else parameters).",
        choices=("auto", "tf", "parameters"),
        read_only=True,
    ),
    ParameterSpec(
        "base_to_camera.translation",
        (0.0, 0.0, 0.0),
        "Position of the camera's optical frame in base_frame (x y z), metres; used where TF is not.",
        length=3,
        read_only=True,
    ),
    ParameterSpec(
        "base_to_camera.rotation",
        (-0.5, 0.5, -0.5, 0.5),
        "Orientation of the camera's optical frame in base_frame, quaternion x y z w; the default looks ahead.",
        length=4,
        read_only=True,
    ),
    ParameterSpec(
        "base_to_camera.timeout",
        5.0,
        "How long to wait for TF before the parameters are used instead, seconds (source auto); TF takes over when it "
        "comes later.",
        minimum=0.0,
        maximum=3600.0,
        read_only=True,
    ),
    ParameterSpec(
        "max_speed",
        0.0,
        "Speed that the robot cannot have, m/s: a faster motion is an error of the networks, and ~/odom is lost for "
        "that image. Judged where the scale is known; 0: no limit.",
        minimum=0.0,
        maximum=1e3,
    ),
    ParameterSpec(
        "max_turn_rate",
        0.0,
        "Likewise its rate of turn, rad/s; 0: no limit.",
        minimum=0.0,
        maximum=1e3,
    ),
    ParameterSpec(
        "covariance.source",
        "networks",
        "Uncertainty of a motion: how well depth and flow agree on it (networks; needs refine static or all), beside "
        "translation_fraction and translation_floor; or those two and rotation alone (parameters).",
        choices=("networks", "parameters"),
    ),
    ParameterSpec(
        "covariance.translation_fraction",
        0.05,
        "Standard deviation of the translation of one pair, as a fraction of its length: errors of the depth's unit, "
        "which nothing else contains.",
        minimum=1e-6,
        maximum=10.0,
    ),
    ParameterSpec(
        "covariance.translation_floor",
        0.005,
        "Standard deviation of the translation of one pair at standstill, metres.",
        minimum=1e-6,
        maximum=10.0,
    ),
    ParameterSpec(
        "covariance.rotation",
        0.002,
        "Standard deviation of the rotation of one pair, radians; where the networks do not say it themselves.",
        minimum=1e-6,
        maximum=3.2,
    ),
    ParameterSpec(
        "color.depth_near",
        1.0,
        "Depth shown as the nearest colour in ~/depth/color, metres. Relative depth: the range of the first image.",
        minimum=1e-3,
        maximum=1e4,
    ),
    ParameterSpec(
        "color.depth_far",
        80.0,
        "Depth shown as the farthest colour in ~/depth/color, metres. Relative depth: the range of the first image.",
        minimum=1e-3,
        maximum=1e4,
    ),
    ParameterSpec(
        "color.flow_max",
        20.0,
        "Flow shown with full saturation in ~/flow/color, pixels of the output.",
        minimum=0.1,
        maximum=1000.0,
    ),
    ParameterSpec(
        "points.color",
        True,
        "Give the points of ~/points the colours of the image; false: x y z only, a quarter fewer bytes.",
    ),
    ParameterSpec(
        "points.remove_moving",
        False,
        "Leave pixels that move (motion_threshold) out of ~/points, as NaN. The mask is then computed as well.",
    ),
    ParameterSpec(
        "points.stride",
        1,
        "Pixels from one point of ~/points to the next, along rows and columns; 1: every pixel.",
        minimum=1,
        maximum=16,
    ),
)

_BY_NAME = {spec.name: spec for spec in PARAMETERS}


def spec_of(name: str) -> ParameterSpec:
    """The declaration of one parameter.

    Raises:
        UsageError: there is none of this name; the message names the nearest.
    """
    if name not in _BY_NAME:
        raise UsageError(f"Unknown parameter {name!r}.{nearest_hint(name)}")
    return _BY_NAME[name]


def nearest_hint(name: str) -> str:
    """` Did you mean 'x'?` for a mistyped name, empty when nothing is near."""
    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def combination_refusal(values: Mapping[str, object]) -> str | None:
    """Why these values (by name, all of them) do not go together, or None when they do."""
    near, far = values["color.depth_near"], values["color.depth_far"]
    if not near < far:
        return f"color.depth_near={near} must be smaller than color.depth_far={far}"
    rotation = values["base_to_camera.rotation"]
    norm = math.sqrt(sum(value * value for value in rotation))
    if abs(norm - 1.0) > 0.01:
        return f"base_to_camera.rotation has norm {norm:.3f}: a unit quaternion x y z w was expected"
    if bool(values["input_width"]) != bool(values["input_height"]):
        return "input_width and input_height must both be given, or both be 0"
    if values["scale_source"] == "camera_height" and not _may_know_height(values):
        return (
            "scale_source=camera_height needs the height of the camera above the ground: set camera_height (metres), "
            "or a z above 0 in base_to_camera.translation"
        )
    return None


def _may_know_height(values: Mapping[str, object]) -> bool:
    """Whether the height of the camera is given, or may still come from TF."""
    by_parameters = values["base_to_camera.source"] == "parameters"
    return values["camera_height"] > 0 or not by_parameters or values["base_to_camera.translation"][2] > 0


def check_values(values: Mapping[str, object]) -> None:
    """Check a whole set of values, such as a parameter file's.

    Raises:
        UsageError: an unknown name, a wrong type, a value out of range, or values that do not go together.
    """
    for name, value in values.items():
        reason = spec_of(name).refusal(value)
        if reason:
            raise UsageError(reason + ".")
    defaults = {spec.name: spec.default for spec in PARAMETERS}
    reason = combination_refusal({**defaults, **values})
    if reason:
        raise UsageError(reason + ".")


def _has_type(value: object, like: object) -> bool:
    """Whether value has the ROS type of `like` (a bool is not an int; an int is not a double)."""
    if isinstance(like, tuple):
        return isinstance(value, (tuple, list)) and all(type(item) is float for item in value)
    return type(value) is type(like)
