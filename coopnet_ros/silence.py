"""Why no image arrives: what is known of a topic's publishers, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Where Fast DDS looks for a profile: Jazzy's name, and that of later distributions."""


@dataclass(frozen=True)
class Endpoint:
    """One publisher as discovery shows it.

    Attributes:
        node: full name of its node.
        type_name: e.g. `sensor_msgs/msg/Image`.
        reliable: whether it offers reliable delivery.
        transient_local: whether it offers its last messages to late subscribers.
    """

    node: str
    type_name: str
    reliable: bool
    transient_local: bool = False


def explain_silence(
    topic: str,
    type_name: str,
    wants_reliable: bool,
    publishers: Sequence[Endpoint],
    wants_transient_local: bool = False,
    came_before: bool = False,
    has_profile: bool = False,
) -> str:
    """One sentence on why nothing arrives on a topic, and what to do.

    Args:
        topic: the resolved name subscribed.
        type_name: the type subscribed.
        wants_reliable: whether the subscription asks for reliable delivery.
        publishers: the publishers of the topic.
        wants_transient_local: whether the subscription asks for messages from before it was made.
        came_before: whether something arrived, until it fell silent.
        has_profile: whether this process has a profile of Fast DDS.
    """
    if not publishers and came_before:
        return f"{topic}: its publisher is gone. Was it stopped, or is the recording over?"
    if not publishers:
        return (
            f"{topic}: no publisher. Start it, remap the topic (-r image:=/your/topic -r camera_info:=... -r "
            "wheel_odom:=...), or check ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE."
        )
    others = sorted({p.type_name for p in publishers if p.type_name != type_name})
    if len(others) == len({p.type_name for p in publishers}):
        return f"{topic}: its publishers send {', '.join(others)}, {type_name} was expected.{_transport_hint(others)}"
    names = ", ".join(sorted(p.node for p in publishers))
    if wants_reliable and not any(p.reliable for p in publishers):
        return (
            f"{topic}: QoS mismatch. {names} publishes best effort, this node asks for reliable. Set "
            f"image_reliability (or camera_info_reliability, or qos_overrides.{topic}.subscription.reliability) to "
            "best_effort."
        )
    if wants_transient_local and not any(p.transient_local for p in publishers):
        return (
            f"{topic}: QoS mismatch. {names} publishes volatile, this node asks for transient_local. Leave "
            f"qos_overrides.{topic}.subscription.durability away."
        )
    if came_before:
        return f"{topic}: {names} is still there, but sends nothing more. Is the recording paused, the camera stopped?"
    here = "of the publisher (this node has one)" if has_profile else "of the publisher and of this node"
    return (
        f"{topic}: {len(publishers)} publisher(s) ({names}) with matching type and QoS, but nothing arrives. Is it "
        "publishing, or paused? Large best-effort images are lost without the shipped Fast DDS profile: set "
        f"{PROFILE_VARIABLES[0]} (Jazzy) or {PROFILE_VARIABLES[1]} (Kilted) to "
        f"config/fastdds_image_profile.xml in the environment {here}."
    )


def explain_clock(waited_s: float, publishers: Sequence[str]) -> str:
    """Why there is no time although the node is told to follow /clock, and what to do.

    Args:
        waited_s: how long nothing has come, seconds.
        publishers: full names of the nodes that publish /clock.
    """
    seen = f"{', '.join(sorted(publishers))} publishes it, but nothing arrives" if publishers else "it has no publisher"
    return (
        f"use_sim_time is true, but no time has come on /clock for {waited_s:g} s: {seen}. Images are processed all "
        "the same; diagnostics carry wall time and no stamp_age_s. Start the bag with --clock (ros2 bag play --clock, "
        "ros2 run coopnet_ros play_bag --clock) or the simulator, or set use_sim_time to false."
    )


def _transport_hint(types: Sequence[str]) -> str:
    if "sensor_msgs/msg/CompressedImage" in types:
        return " Set image_transport to compressed."
    if "sensor_msgs/msg/Image" in types:
        return " Set image_transport to raw."
    return " Remap to a topic of that type."
