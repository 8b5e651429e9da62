"""Quality of service: the default of every topic, and the parameters `qos_overrides.*` that replace it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions

from coopnet_core.errors import UsageError

OVERRIDES = "qos_overrides."
"""Beginning of the parameters' names: `qos_overrides.<resolved topic>.publisher.reliability`, or `.subscription.`."""

# rclpy writes an override into the profile it is given: each of these returns a fresh one


def output_qos() -> QoSProfile:
    """Of every output: reliable, the newest message only."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


def diagnostics_qos() -> QoSProfile:
    """Of /diagnostics, which many nodes share: reliable, the newest ten."""
    return QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


def input_qos(reliability: str) -> QoSProfile:
    """Of image and camera_info: the newest message only.

    Args:
        reliability: `reliable` or `best_effort`.
    """
    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(depth=1, reliability=policy)


def wheel_qos() -> QoSProfile:
    """From reliable and best-effort publishers alike; deep enough for what comes while the node's thread is busy."""
    return QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)


def overridable() -> QoSOverridingOptions:
    """Let parameters replace history, depth, reliability and durability."""
    kinds = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
    return QoSOverridingOptions(kinds, callback=_judge)


def _judge(qos: QoSProfile) -> SetParametersResult:
    """Refuse what rclpy would take and no middleware can do."""
    reason = ""
    if qos.history == HistoryPolicy.KEEP_LAST and qos.depth < 1:
        reason = f"depth={qos.depth} with history=keep_last: at least 1 was expected"
    if (qos.durability, qos.reliability) == (DurabilityPolicy.TRANSIENT_LOCAL, ReliabilityPolicy.BEST_EFFORT):
        # the middleware takes it, and then delivers nothing from before: that would be a long search
        reason = "durability=transient_local needs reliability=reliable as well: old messages are sent reliably only"
    for name, policy in (("history", qos.history), ("reliability", qos.reliability), ("durability", qos.durability)):
        if policy.name == "UNKNOWN":
            reason = f"{name}=unknown is no policy"
    return SetParametersResult(successful=not reason, reason=reason)


@contextlib.contextmanager
def refusals_in_words(topic: str) -> Iterator[None]:
    """Say which override of a topic is refused, and what is possible.

    Args:
        topic: the resolved name of the publisher or subscription that is made inside.

    Raises:
        UsageError: an override is refused.
    """
    refusals = (InvalidQosOverridesError, InvalidParameterTypeException, InvalidParameterValueException, RuntimeError)
    try:
        yield
    except refusals as error:
        if isinstance(error, RuntimeError) and "QoS override" not in str(error):
            raise
        raise UsageError(
            f"The QoS asked for {topic} by {OVERRIDES}{topic}.* is refused: {error}. Possible are "
            f"history {_names(HistoryPolicy)}; depth, a whole number from 1; reliability {_names(ReliabilityPolicy)}; "
            f"durability {_names(DurabilityPolicy)}. Such parameters can only be given at start."
        ) from error


def unused_overrides(node: Node, later: Collection[str] = ()) -> list[str]:
    """Warnings: overrides given at start that nothing of the node has taken; a mistyped topic is otherwise silent.

    Args:
        node: its publishers and subscriptions are made.
        later: resolved topics that may still come.
    """
    given = node._parameter_overrides  # rclpy names them nowhere else
    unused = [name for name in given if name.startswith(OVERRIDES) and not node.has_parameter(name)]
    return [
        f"{name} is ignored: {OVERRIDES}<topic>.<publisher or subscription>.<policy> was expected, with a topic of "
        f"this node as it is called after remapping (such as {node.resolve_topic_name('~/depth/image')}), and one of "
        "history, depth, reliability, durability."
        for name in unused
        if not any(name.startswith(f"{OVERRIDES}{topic}.") for topic in later)
    ]


def _names(policies: type[HistoryPolicy] | type[ReliabilityPolicy] | type[DurabilityPolicy]) -> str:
    """The policies as a parameter spells them."""
    return ", ".join(name.lower() for name in policies.__members__ if name.isupper() and name != "UNKNOWN")
