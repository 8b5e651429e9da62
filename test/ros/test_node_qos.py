"""Parameters `qos_overrides.*`: what the middleware really uses, and what is refused."""

from __future__ import annotations

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from ros.rig import CAMERA
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from coopnet_core.errors import UsageError
from coopnet_ros.messages import camera_info_message

PUBLISHER = "qos_overrides./coopnet/depth/image.publisher."


def change(rig, transition: int) -> bool:
    return rig.call(ChangeState, "change_state", ChangeState.Request(transition=Transition(id=transition))).success


def offered(rig, topic: str) -> QoSProfile:
    """The QoS of the node's publisher as another participant sees it."""
    rig.wait(lambda: rig.peer.get_publishers_info_by_topic(topic), f"the publisher of {topic}")
    (info,) = rig.peer.get_publishers_info_by_topic(topic)
    return info.qos_profile


def asked(rig, topic: str) -> QoSProfile:
    """The QoS of the node's subscription as another participant sees it."""
    found = []

    def look() -> bool:
        infos = rig.peer.get_subscriptions_info_by_topic(topic)
        found[:] = [info.qos_profile for info in infos if info.node_name == "coopnet"]
        return bool(found)

    rig.wait(look, f"the subscription of {topic}")
    return found[0]


def test_outputs_are_reliable_and_volatile_unless_asked_otherwise(make_rig):
    rig = make_rig(
        **{
            f"{PUBLISHER}reliability": "best_effort",
            "qos_overrides./coopnet/odom.publisher.durability": "transient_local",
        }
    )
    usual = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
    expected = {
        "/coopnet/depth/image": (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        "/coopnet/odom": (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
        # an override is of its own topic: the profile of the others is not touched
        "/coopnet/depth/camera_info": usual,
        "/coopnet/points": usual,
        "/diagnostics": usual,
    }
    qos = {topic: offered(rig, topic) for topic in expected}
    assert {topic: (found.reliability, found.durability) for topic, found in qos.items()} == expected


def test_a_best_effort_output_arrives(make_rig):
    rig = make_rig(**{f"{PUBLISHER}reliability": "best_effort"})
    images = []
    rig.peer.create_subscription(
        Image, "/coopnet/depth/image", images.append, QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    rig.wait(lambda: rig.node._outputs.is_wanted("~/depth/image"), "the subscription")
    rig.send(1.0)
    rig.wait(lambda: images, "the depth")


def test_history_and_depth_of_outputs_and_diagnostics(make_rig):
    rig = make_rig(
        **{
            f"{PUBLISHER}depth": 7,
            "qos_overrides./coopnet/odom.publisher.history": "keep_all",
            "qos_overrides./diagnostics.publisher.depth": 3,
        }
    )
    publishers = {publisher.topic_name: publisher for publisher in rig.node.publishers}
    # discovery does not tell history and depth
    assert publishers["/coopnet/depth/image"].qos_profile.depth == 7
    assert publishers["/coopnet/odom"].qos_profile.history == HistoryPolicy.KEEP_ALL
    assert publishers["/diagnostics"].qos_profile.depth == 3
    assert publishers["/coopnet/flow/image"].qos_profile.depth == 1


def test_a_camera_info_that_was_published_before_the_node_came(make_rig):
    rig = make_rig(
        start=False,
        camera_info_reliability="reliable",
        **{"qos_overrides./camera_info.subscription.durability": "transient_local"},
    )
    rig.peer.destroy_publisher(rig.infos)
    latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = rig.peer.create_publisher(CameraInfo, "camera_info", latched)
    publisher.publish(camera_info_message(CAMERA, Header(frame_id="camera_optical_frame")))
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    for _ in range(2):  # and once more for the subscription after a pause
        assert change(rig, Transition.TRANSITION_ACTIVATE)
        rig.wait(lambda: rig.node._camera_state.camera is not None, "the camera")
        assert asked(rig, "/camera_info").durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert change(rig, Transition.TRANSITION_DEACTIVATE)


def test_inputs_and_a_wheel_odometry_that_must_not_miss_a_message(make_rig):
    rig = make_rig(
        scale_source="odometry",
        **{
            "qos_overrides./image.subscription.reliability": "reliable",
            "qos_overrides./wheel_odom.subscription.reliability": "reliable",
        },
    )
    assert asked(rig, "/image").reliability == ReliabilityPolicy.RELIABLE
    assert asked(rig, "/camera_info").reliability == ReliabilityPolicy.BEST_EFFORT
    assert asked(rig, "/wheel_odom").reliability == ReliabilityPolicy.RELIABLE
    # declaring the QoS of one subscription neither ends another nor makes a second one
    assert len([s for s in rig.node.subscriptions if s.msg_type is Odometry]) == 1
    assert rig.node._wheel_subscription is not None


def test_overrides_hold_after_cleanup_and_another_configure(make_rig):
    rig = make_rig(start=False, **{f"{PUBLISHER}reliability": "best_effort"})
    for _ in range(2):
        assert change(rig, Transition.TRANSITION_CONFIGURE)
        assert change(rig, Transition.TRANSITION_ACTIVATE)
        publishers = {publisher.topic_name: publisher for publisher in rig.node.publishers}
        assert publishers["/coopnet/depth/image"].qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        assert publishers["/coopnet/odom"].qos_profile.reliability == ReliabilityPolicy.RELIABLE
        assert change(rig, Transition.TRANSITION_DEACTIVATE)
        assert change(rig, Transition.TRANSITION_CLEANUP)
        assert [p.topic_name for p in rig.node.publishers if p.topic_name.startswith("/coopnet/depth")] == []


@pytest.mark.parametrize(
    ("policy", "value", "says"),
    [
        ("reliability", "certain", "reliable, best_effort"),
        ("reliability", "unknown", "no policy"),
        ("depth", "ten", "a whole number from 1"),
        ("depth", 0, "at least 1"),
        ("depth", -1, "at least 1"),
    ],
)
def test_a_refused_override_of_an_output_is_said_and_nothing_is_left(make_rig, errors, policy, value, says):
    rig = make_rig(start=False, **{f"{PUBLISHER}{policy}": value})
    before = len(list(rig.node.publishers))
    for _ in range(2):
        assert not change(rig, Transition.TRANSITION_CONFIGURE)
        assert "qos_overrides./coopnet/depth/image" in errors[-1]
        assert says in errors[-1]
        assert len(list(rig.node.publishers)) == before


@pytest.mark.parametrize(("durability", "says"), [("for_ever", "volatile"), ("transient_local", "reliable as well")])
def test_a_refused_override_of_an_input_leaves_the_node_inactive(make_rig, errors, durability, says):
    rig = make_rig(start=False, **{"qos_overrides./camera_info.subscription.durability": durability})
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    assert not change(rig, Transition.TRANSITION_ACTIVATE)
    assert "qos_overrides./camera_info" in errors[-1]
    assert says in errors[-1]
    assert [s.topic_name for s in rig.node.subscriptions if s.topic_name in ("/image", "/camera_info")] == []


def test_a_refused_override_of_diagnostics_is_refused_at_start(make_rig):
    with pytest.raises(UsageError, match=r"qos_overrides\./diagnostics"):
        make_rig(**{"qos_overrides./diagnostics.publisher.reliability": "certain"})


@pytest.mark.parametrize(
    "name", ["/coopnet/deth/image.publisher.reliability", "/coopnet/odom.publisher.deadline", "/image.publisher.depth"]
)
def test_an_override_that_nothing_takes_is_said_once(make_rig, warnings, name):
    rig = make_rig(
        info=False,
        **{
            f"qos_overrides.{name}": 1,
            "qos_overrides./wheel_odom.subscription.depth": 9,  # taken when scale_source becomes odometry
            "qos_overrides./image.subscription.depth": 2,
        },
    )
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    ignored = [text for text in warnings if "is ignored" in text]
    assert len(ignored) == 1
    assert ignored[0].startswith(f"qos_overrides.{name} is ignored")
    assert "/coopnet/depth/image" in ignored[0]


@pytest.fixture
def errors(monkeypatch):
    """What the node logged as errors, in order."""
    from rclpy.impl.rcutils_logger import RcutilsLogger

    texts = []
    original = RcutilsLogger.error
    monkeypatch.setattr(RcutilsLogger, "error", lambda self, text, **more: (texts.append(text), original(self, text)))
    return texts
