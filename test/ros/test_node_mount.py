"""Where the node takes the mounting of the camera from, and what it broadcasts on /tf."""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros import rig_tf
from ros.rig import CAMERA, SECOND, StubPredictor, shift, turn
from ros.rig_tf import stamped
from ros.test_node_events import adds_up
from ros.test_node_life import change, state

from coopnet_core.errors import UsageError
from coopnet_ros import mount
from coopnet_ros.messages import header_at
from coopnet_ros.mount import LOOK_EVERY_S, LOOK_FIRST_EVERY_S, CameraMount
from coopnet_ros.odometry import inverse, logarithm, scaled, transform

AHEAD = transform((1.0, 0.0, 1.5), (-0.5, 0.5, -0.5, 0.5))
BEHIND = transform((-1.0, 0.2, 1.0), (-0.5, -0.5, 0.5, 0.5))
_AHEAD_IN_WORDS = "translation (1, 0, 1.5), rotation (-0.5, 0.5, -0.5, 0.5)"
_BEHIND_IN_WORDS = "translation (-1, 0.2, 1), rotation (-0.5, -0.5, 0.5, 0.5)"
FRAME = "camera_optical_frame"
MOTION = shift(0.1, 0.0, 0.5) @ turn("y", 10)
"""Of the camera, from image to image."""


def pose_of(odometry) -> np.ndarray:
    p, q = odometry.pose.pose.position, odometry.pose.pose.orientation
    return transform((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def after(steps: int, T_base_camera: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The robot's motion in so many steps of a camera that is mounted so."""
    return T_base_camera @ np.linalg.matrix_power(scaled(MOTION, scale), steps) @ inverse(T_base_camera)


class Ears:
    """A CameraMount that hears TF, without a node, at a time of the test's own."""

    def __init__(self, monkeypatch, source: str, fallback: np.ndarray = AHEAD, timeout_s: float = 5.0):
        rig_tf.install(monkeypatch)
        self.now = 100.0
        self.said = []
        node = types.SimpleNamespace(create_subscription=lambda *_, **__: None, destroy_subscription=lambda _: None)
        self.mount = CameraMount(
            node, source, "base_link", fallback, timeout_s, self.said.append, clock=lambda: self.now
        )
        self.buffer, self.listener = self.mount._buffer, self.mount._heard

    def hear(self, T: np.ndarray, child: str = FRAME, seconds: float | None = None) -> None:
        """A mounting; of a time, where there is one."""
        if seconds is None:
            self.listener.set_transform_static(stamped(T, child), "test")
        else:
            self.listener.set_transform(stamped(T, child, stamp_ns=round(seconds * SECOND)), "test")

    def ask(self, seconds: float = 0.0, frame: str = FRAME, aloud: bool = True) -> np.ndarray | None:
        """Ask after this time, for an image of now."""
        self.now += seconds
        mounting = self.mount.at(frame, round(self.now * SECOND), aloud)
        return None if mounting is None else mounting.T_base_camera


def test_each_camera_frame_has_its_own_mounting(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    ears.hear(AHEAD, "front")
    np.testing.assert_allclose(ears.ask(frame="front"), AHEAD, atol=1e-12)
    assert ears.mount.state == "tf"
    assert ears.ask(frame="rear") is None
    assert ears.mount.state == "waiting"
    ears.hear(BEHIND, "rear")
    np.testing.assert_allclose(ears.ask(LOOK_FIRST_EVERY_S, frame="rear"), BEHIND, atol=1e-12)
    np.testing.assert_allclose(ears.ask(frame="front"), AHEAD, atol=1e-12)
    assert ears.said == []


def test_frames_of_ros_1_and_images_without_a_frame(monkeypatch):
    ears = Ears(monkeypatch, "auto", fallback=BEHIND, timeout_s=1.0)
    ears.hear(AHEAD)
    np.testing.assert_allclose(ears.ask(frame=f"/{FRAME}"), AHEAD, atol=1e-12)
    assert ears.ask(frame="") is None
    np.testing.assert_array_equal(ears.ask(1.1, frame=""), BEHIND)
    assert [("the images have no frame_id" in text, "parameters" in text) for text in ears.said] == [(True, True)]


def test_images_that_bear_the_robots_own_frame_are_said_to(monkeypatch):
    ears = Ears(monkeypatch, "auto")
    for frame in ("base_link", "/base_link", "base_link"):
        np.testing.assert_allclose(ears.ask(frame=frame), np.eye(4), atol=1e-12)
    assert ears.mount.state == "tf"
    assert [("base_frame too" in text, "optical frame" in text) for text in ears.said] == [(True, True)] * 2


def test_tf_is_looked_at_now_and_then_and_not_with_every_image(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    for _ in range(50):
        ears.ask(0.02)
    assert len(ears.buffer.lookups) == pytest.approx(1.0 / LOOK_FIRST_EVERY_S, abs=2)
    ears.hear(AHEAD)
    first = ears.ask(LOOK_FIRST_EVERY_S)
    ears.buffer.lookups.clear()
    assert all(ears.ask(0.01) is first for _ in range(1000))
    assert len(ears.buffer.lookups) == pytest.approx(10.0 / LOOK_EVERY_S, abs=1)


def test_auto_waits_then_takes_the_parameters_and_tf_takes_over_when_it_comes(monkeypatch):
    ears = Ears(monkeypatch, "auto", timeout_s=5.0)
    assert ears.ask() is None
    assert ears.ask(5.0) is None
    assert (ears.mount.state, ears.said) == ("waiting", [])
    np.testing.assert_array_equal(ears.ask(0.2), AHEAD)
    assert ears.mount.state == "parameters"
    assert len(ears.said) == 1
    for words in ("TF has no base_link -> camera_optical_frame", "does not exist)", "base_to_camera.translation"):
        assert words in ears.said[0]
    for _ in range(20):
        np.testing.assert_array_equal(ears.ask(1.0), AHEAD)
    ears.hear(BEHIND)
    np.testing.assert_allclose(ears.ask(LOOK_EVERY_S), BEHIND, atol=1e-12)
    assert ears.mount.state == "tf"
    assert len(ears.said) == 2
    for words in ("takes over", _BEHIND_IN_WORDS, _AHEAD_IN_WORDS):
        assert words in ears.said[1]
    ears.ask(10.0)
    assert len(ears.said) == 2


def test_tf_that_says_the_same_as_the_parameters_takes_over_without_a_word(monkeypatch):
    ears = Ears(monkeypatch, "auto", timeout_s=0.0)
    ears.ask()
    ears.ask(0.2)
    ears.hear(AHEAD @ shift(0.0, 0.0, 1e-4))
    ears.ask(LOOK_EVERY_S)
    assert ears.mount.state == "tf"
    assert len(ears.said) == 1


def test_a_mounting_that_changes_in_tf_is_followed_and_said_once(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    ears.hear(AHEAD)
    ears.ask()
    for index in range(1, 4):
        ears.hear(AHEAD @ turn("y", 10.0 * index))
        np.testing.assert_allclose(ears.ask(LOOK_EVERY_S), AHEAD @ turn("y", 10.0 * index), atol=1e-12)
    assert len(ears.said) == 1
    assert "TF has changed base_link -> camera_optical_frame" in ears.said[0]


def test_a_camera_on_joints_is_looked_up_at_the_time_of_each_image(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    for index in range(3):
        ears.hear(turn("z", 10.0 * index) @ AHEAD, seconds=100.0 + 0.1 * index)
    for ahead, degrees in ((0.0, 0.0), (0.05, 5.0), (0.1, 15.0), (0.05, 20.0)):
        np.testing.assert_allclose(ears.ask(ahead)[:3, :3], (turn("z", degrees) @ AHEAD)[:3, :3], atol=1e-6)
    np.testing.assert_allclose(ears.ask(0.05), turn("z", 20.0) @ AHEAD, atol=1e-12)  # the newest: late, not very
    assert ears.said == []
    for _ in range(10):
        np.testing.assert_allclose(ears.ask(0.25), turn("z", 20.0) @ AHEAD, atol=1e-12)
    assert len(ears.said) == 1
    for words in ("camera_optical_frame moves on the robot", "1.30 s older", "clocks"):
        assert words in ears.said[0]


def test_a_camera_on_joints_of_another_clock_is_said_to_be(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    ears.hear(AHEAD, seconds=1_000_000.0)
    for _ in range(2):
        assert ears.said == []
        np.testing.assert_allclose(ears.ask(1.0), AHEAD, atol=1e-12)
    assert [("s newer" in text, "clocks" in text) for text in ears.said] == [(True, True)]


def test_joints_that_fall_silent_or_are_broken_leave_the_last_mounting(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    ears.hear(AHEAD, seconds=100.0)
    kept = ears.ask()
    broken = stamped(AHEAD, stamp_ns=101 * SECOND)
    broken.transform.translation.x = np.inf
    ears.buffer.set_transform(broken, "test")
    np.testing.assert_allclose(ears.ask(1.0), kept, atol=1e-12)
    ears.buffer.links.clear()
    np.testing.assert_allclose(ears.ask(1.0), kept, atol=1e-12)
    assert ears.mount.state == "tf"


def test_a_loop_of_the_recording_is_followed(monkeypatch):
    """tf2 would ignore ten seconds of joints, each with a word; the last image of a turn comes after the new joints."""
    ears = Ears(monkeypatch, "tf")
    ears.hear(BEHIND, "rear")
    mountings = []
    for turns in range(2):
        for index in range(300):
            ears.hear(turn("z", 0.2 * index) @ AHEAD, seconds=100.0 + 0.1 * index)
            if turns == 1 and index == 0:
                ears.mount.at(FRAME, 130 * SECOND)
            mounting = ears.mount.at(FRAME, round((100.0 + 0.1 * index) * SECOND))
            np.testing.assert_allclose(mounting.T_base_camera, turn("z", 0.2 * index) @ AHEAD, atol=1e-9)
            mountings.append(mounting)
    carries_on = [after.carries_on(before) for before, after in itertools.pairwise(mountings)]
    assert [index for index, one in enumerate(carries_on) if not one] == [299]
    assert ears.buffer.ignored == 0
    assert ears.said == []
    np.testing.assert_allclose(ears.ask(frame="rear"), BEHIND, atol=1e-12)


def test_stamps_of_tf_that_are_missing_or_a_little_late_are_no_new_start(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    for seconds in (100.0, 100.5, 100.2, 0.0, 101.0):
        ears.hear(AHEAD, seconds=seconds)
    assert ears.listener.turns == 0
    np.testing.assert_allclose(ears.mount.at(FRAME, 100 * SECOND).T_base_camera, AHEAD, atol=1e-12)


def test_a_mounting_with_a_time_and_one_without_are_two(monkeypatch):
    """A static link that takes the place of a joint says where the camera is, not where it went."""
    ears = Ears(monkeypatch, "tf")
    ears.hear(AHEAD, seconds=100.0)
    on_joint = ears.mount.at(FRAME, 100 * SECOND)
    ears.hear(BEHIND)
    ears.now += LOOK_EVERY_S
    fixed = ears.mount.at(FRAME, 101 * SECOND)
    assert (on_joint.moves, fixed.moves, fixed.carries_on(on_joint)) == (True, False, False)
    assert "without a time" in ears.said[-1]
    ears.hear(AHEAD, seconds=103.0)
    ears.now += LOOK_EVERY_S
    again = ears.mount.at(FRAME, 103 * SECOND)
    assert (again.moves, again.carries_on(fixed), again.carries_on(on_joint)) == (True, False, True)


def test_what_tf_had_is_kept_while_it_has_nothing_usable(monkeypatch):
    ears = Ears(monkeypatch, "auto", fallback=BEHIND, timeout_s=0.0)
    ears.hear(AHEAD)
    ears.ask()
    ears.buffer.links.clear()
    np.testing.assert_allclose(ears.ask(10.0), AHEAD, atol=1e-12)
    broken = stamped(AHEAD)
    broken.transform.translation.x = np.inf
    ears.buffer.set_transform_static(broken, "test")
    np.testing.assert_allclose(ears.ask(10.0), AHEAD, atol=1e-12)
    assert (len(ears.said), ears.mount.state) == (1, "tf")
    assert "What was known before is kept" in ears.said[0]


def test_nothing_is_said_to_whom_does_not_need_the_mounting(monkeypatch):
    ears = Ears(monkeypatch, "auto", timeout_s=1.0)
    ears.ask(aloud=False)
    np.testing.assert_array_equal(ears.ask(2.0, aloud=False), AHEAD)
    assert ears.said == []
    ears.ask(LOOK_EVERY_S)
    assert len(ears.said) == 1
    silent = Ears(monkeypatch, "auto", timeout_s=1.0)
    silent.ask(aloud=False)
    silent.ask(2.0, aloud=False)
    silent.hear(BEHIND)
    np.testing.assert_allclose(silent.ask(LOOK_EVERY_S), BEHIND, atol=1e-12)
    assert silent.said == []


def test_frame_ids_that_change_with_every_image_do_not_fill_the_memory(monkeypatch):
    ears = Ears(monkeypatch, "tf")
    for index in range(1000):
        ears.ask(frame=f"camera_{index}")
    assert len(ears.mount._cameras) < 100


# ---------------------------------------------------------------------- the node


@pytest.fixture
def tf(monkeypatch):
    """The stand-in for tf2_ros; whatever is heard is looked at with the next image."""
    monkeypatch.setattr(mount, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(mount, "LOOK_FIRST_EVERY_S", 0.0)
    return rig_tf.install(monkeypatch)


class Robot:
    """What publishes /tf_static, and sends images of one or more cameras."""

    def __init__(self, rig):
        self.rig = rig
        self.publisher = rig.peer.create_publisher(rig_tf.TransformStamped, "/tf_static", rig_tf.latched())
        self.index = 0

    def tell(self, T: np.ndarray, child: str = FRAME, message=None) -> None:
        """Publish a mounting, and wait until the node has heard it."""
        message = message or stamped(T, child)
        self.publisher.publish(message)
        links = self.rig.node._mount._buffer.links
        self.rig.wait(lambda: links.get(("base_link", child)) == message, "the transform")

    def send(self, frame: str = FRAME) -> int:
        self.index += 1
        stamp_ns = self.index * SECOND // 10
        return self.rig.send(0.0, header=header_at(stamp_ns, frame))

    def pose(self, frame: str = FRAME) -> np.ndarray:
        """Of the next image."""
        return pose_of(self.rig.get("odom", self.send(frame)))


class JointedRobot(Robot):
    """One whose camera turns on it while it drives: 6 degrees and `STEP` from image to image."""

    STEP = shift(0.5, 0.0, 0.0) @ turn("z", 4)

    def __init__(self, rig):
        super().__init__(rig)
        self.publisher = rig.peer.create_publisher(rig_tf.TransformStamped, "/tf", 10)

    def mounting(self, index: int) -> np.ndarray:
        return turn("z", 6.0 * index) @ AHEAD

    def look(self) -> int:
        """The next image, as the networks see it; nothing is said of its mounting. Its stamp."""
        before, after = self.mounting(self.index), self.mounting(self.index + 1)
        self.rig.stub.motion = inverse(before) @ self.STEP @ after
        return self.send()

    def joint(self, index: int) -> None:
        """What TF says of the mounting at the time of an image."""
        self.tell(None, message=stamped(self.mounting(index), stamp_ns=index * SECOND // 10))


def on_robot(make_rig, **parameters) -> Robot:
    return Robot(make_rig(StubPredictor(motion=MOTION), topics=["odom"], **parameters))


def same(pose: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(pose, expected, atol=1e-9)


def test_odometry_waits_for_tf_and_then_has_the_whole_path(make_rig, tf):
    robot = on_robot(make_rig)
    robot.send()
    robot.send()
    assert robot.rig.status()["mount"] == "waiting"
    assert robot.rig.received["odom"] == []
    robot.tell(BEHIND)
    same(robot.pose(), after(2, BEHIND))
    assert robot.rig.status()["mount"] == "tf"


def test_the_pose_goes_on_where_tf_takes_over_from_the_parameters(make_rig, tf, monkeypatch):
    rig = make_rig(
        StubPredictor(motion=MOTION),
        start=False,
        base_to_camera__timeout=0.0,
        base_to_camera__translation=BEHIND[:3, 3].tolist(),
        base_to_camera__rotation=[-0.5, -0.5, 0.5, 0.5],
    )
    said = []
    monkeypatch.setattr(rig.node.get_logger(), "warning", said.append)
    assert rig.node.start()
    rig.listen("odom")
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    rig.wait(lambda: rig.node._outputs.is_wanted("~/odom"))
    rig.send_info(CAMERA)
    robot = Robot(rig)
    robot.send()
    same(robot.pose(), after(1, BEHIND))
    assert rig.status()["mount"] == "parameters"
    robot.tell(AHEAD)
    same(robot.pose(), after(1, BEHIND) @ after(1, AHEAD))
    robot.tell(AHEAD @ turn("x", 20))
    same(robot.pose(), after(1, BEHIND) @ after(1, AHEAD) @ after(1, AHEAD @ turn("x", 20)))
    assert [("taken from the parameters" in text, "takes over" in text, "TF has changed" in text) for text in said] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert adds_up(rig)


def test_a_camera_that_turns_on_the_robot_does_not_turn_the_robot(make_rig, tf, warnings):
    robot = JointedRobot(make_rig(StubPredictor(), topics=["odom"]))
    for index in range(1, 7):
        robot.joint(index)
        message = robot.rig.get("odom", robot.look())
        same(pose_of(message), np.linalg.matrix_power(robot.STEP, index - 1))
        if index > 1:
            twist = message.twist.twist
            expected = logarithm(robot.STEP) / 0.1
            same([twist.linear.x, twist.linear.y, twist.angular.z], [expected[0], expected[1], expected[5]])
    assert warnings == []
    assert adds_up(robot.rig)


def test_a_camera_on_joints_in_a_recording_that_loops(make_rig, tf, monkeypatch):
    """The joints begin again from where they began: nothing of that is the robot's motion."""
    rig = make_rig(StubPredictor(), topics=["odom"])
    said = []
    monkeypatch.setattr(rig.node._mount, "_warn", said.append)
    robot, poses = JointedRobot(rig), []
    for first in (200, 0):
        for index in range(first, first + 3):
            robot.index = index
            robot.joint(index + 1)
            robot.look()
            rig.wait(lambda: len(rig.received["odom"]) > len(poses), "the odometry")
            poses.append(pose_of(rig.received["odom"][-1]))
    for pose, steps in zip(poses, (0, 1, 2, 2, 3, 4), strict=True):  # the jump of time itself is lost
        same(pose, np.linalg.matrix_power(robot.STEP, steps))
    assert rig.node._mount._buffer.ignored == 0
    assert said == []


def test_what_tf_says_while_the_networks_are_at_work_is_in_time(make_rig, tf):
    robot = JointedRobot(make_rig(StubPredictor(), topics=["odom"]))
    robot.joint(1)
    robot.look()
    robot.rig.stub.delay_s = 0.5
    robot.rig.stub.motion = inverse(robot.mounting(1)) @ robot.STEP @ robot.mounting(2)
    stamp_ns = robot.rig.send(0.2, settle=False)
    robot.rig.wait(lambda: len(robot.rig.stub.calls) == 2, "the image in the worker")
    robot.joint(2)
    same(pose_of(robot.rig.get("odom", stamp_ns)), robot.STEP)


def test_images_of_another_camera_are_no_pair_and_have_their_own_mounting(make_rig, tf, warnings):
    robot = on_robot(make_rig)
    robot.tell(AHEAD, "front")
    robot.tell(BEHIND, "rear")
    robot.send("front")
    same(robot.pose("front"), after(1, AHEAD))
    same(robot.pose("rear"), after(1, AHEAD))
    same(robot.pose("rear"), after(1, AHEAD) @ after(1, BEHIND))
    assert len([text for text in warnings if "changed from 'front' to 'rear'" in text]) == 1
    assert robot.rig.received["odom"][-2].pose.covariance[0] == 9999.0
    assert adds_up(robot.rig)


def test_metres_that_come_after_a_change_of_camera_multiply_the_whole_path(make_rig, tf):
    robot = Robot(make_rig(StubPredictor(motion=MOTION, metric=False), topics=["odom"]))
    robot.tell(AHEAD, "front")
    robot.tell(BEHIND, "rear")
    for frame in ("front", "front", "rear"):
        robot.pose(frame)
    assert robot.rig.status()["metric"] == "false"
    robot.rig.node.set_parameters([Parameter("scale", value=0.5), Parameter("scale_source", value="fixed")])
    same(robot.pose("rear"), after(1, AHEAD, 0.5) @ after(1, BEHIND, 0.5))


def test_a_path_that_nobody_listened_to_is_of_the_camera_that_made_it(make_rig, tf):
    robot = Robot(make_rig(StubPredictor(motion=MOTION)))
    robot.tell(AHEAD, "front")
    robot.tell(BEHIND, "rear")
    for frame in ("front", "front", "rear", "rear"):
        robot.send(frame)
    robot.rig.listen("odom")
    robot.rig.wait(lambda: robot.rig.node._outputs.is_wanted("~/odom"))
    same(robot.pose("rear"), after(1, AHEAD) @ after(2, BEHIND))


def test_the_mounting_is_asked_for_once_per_image(make_rig, tf, monkeypatch):
    asked = []
    ask = CameraMount.at

    def spying(self, frame, stamp_ns, aloud=True):
        asked.append((stamp_ns, aloud))
        return ask(self, frame, stamp_ns, aloud)

    monkeypatch.setattr(CameraMount, "at", spying)
    robot = on_robot(make_rig, scale_source="camera_height")
    robot.tell(AHEAD)
    for _ in range(3):
        robot.pose()
    assert asked == [(index * SECOND // 10, True) for index in (1, 2, 3)]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"rotation": (0.0, 0.0, 0.0, 0.0)}, "TF has no base_link"),  # tf2 takes no notice of such
        ({"rotation": (0.0, np.nan, 0.0, 1.0)}, "TF has no base_link"),
        ({"translation": (np.inf, 0.0, 0.0)}, "finite numbers"),
    ],
)
def test_a_mounting_from_tf_that_is_none_costs_no_depth(make_rig, tf, monkeypatch, broken, says):
    message = stamped(np.eye(4))
    for part, values in broken.items():
        for axis, value in zip("xyzw", values, strict=False):
            setattr(getattr(message.transform, part), axis, value)
    said = []
    rig = make_rig(start=False, base_to_camera__source="tf", base_to_camera__timeout=0.0)
    monkeypatch.setattr(rig.node.get_logger(), "warning", said.append)
    assert rig.node.start()
    for name in ("depth/image", "odom"):
        rig.listen(name)
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    rig.wait(lambda: all(rig.node._outputs.is_wanted(f"~/{name}") for name in ("depth/image", "odom")))
    rig.send_info(CAMERA)
    robot = Robot(rig)
    rig.node._mount._buffer.set_transform_static(message, "test")
    for stamp in [robot.send(), robot.send()]:
        rig.get("depth/image", stamp)
    assert rig.received["odom"] == []
    assert rig.counts.processed == 2
    assert len([text for text in said if "base_link -> camera_optical_frame" in text and says in text]) == 1
    robot.tell(AHEAD)
    robot.pose()
    assert adds_up(rig)


def test_a_mounting_from_tf_that_stays_none_gives_way_to_the_parameters(make_rig, tf):
    robot = on_robot(make_rig, base_to_camera__source="auto", base_to_camera__timeout=0.0)
    message = stamped(np.eye(4))
    message.transform.rotation.w = 0.0
    robot.rig.node._mount._buffer.set_transform_static(message, "test")
    robot.send()
    robot.pose()
    assert robot.rig.status()["mount"] == "parameters"
    assert adds_up(robot.rig)


def test_without_tf2_the_mounting_comes_from_parameters_and_it_is_said_once(make_rig, monkeypatch):
    monkeypatch.setattr(mount, "import_tf2_ros", lambda: None)
    said = []
    rig = make_rig(start=False, publish_tf=True)
    monkeypatch.setattr(rig.node.get_logger(), "warning", said.append)
    assert rig.node.start()
    assert len([text for text in said if "base_to_camera.translation" in text]) == 1
    assert len([text for text in said if "publish_tf" in text]) == 1
    assert rig.status()["mount"] == "parameters"


def test_tf_that_is_demanded_and_not_installed_is_refused(make_rig, monkeypatch):
    monkeypatch.setattr(mount, "import_tf2_ros", lambda: None)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    loads, said = [], []
    rig = make_rig(start=False, load=lambda request: loads.append(request), base_to_camera__source="tf")
    monkeypatch.setattr(rig.node.get_logger(), "error", said.append)
    assert not rig.node.start()
    assert loads == []
    assert len(said) == 1
    for words in ("base_to_camera.source is tf", "ros-jazzy-tf2-ros", "parameters or auto"):
        assert words in said[0]
    assert rig.node._outputs is None
    assert state(rig) == "unconfigured"


def test_configuring_again_leaves_no_listener_and_no_broadcaster_behind(make_rig, tf):
    rig = make_rig(start=False, autostart=False, publish_tf=True)

    def on_tf() -> tuple[int, int]:
        return (
            sum(one.topic_name in ("/tf", "/tf_static") for one in rig.node.subscriptions),
            sum(one.topic_name == "/tf" for one in rig.node.publishers),
        )

    assert on_tf() == (0, 0)
    for _ in range(3):
        assert change(rig, Transition.TRANSITION_CONFIGURE)
        assert on_tf() == (2, 1)
        assert change(rig, Transition.TRANSITION_CLEANUP)
        assert on_tf() == (0, 0)
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    parts = rig.node._mount, rig.node._transforms
    for _ in range(2):
        for part in parts:
            part.close()
    assert on_tf() == (0, 0)


def test_networks_that_cannot_be_loaded_leave_no_listener_behind(make_rig, tf):
    def load(request):
        raise UsageError("no such file")

    rig = make_rig(start=False, load=load, publish_tf=True)
    assert not rig.node.start()
    assert not [one for one in rig.node.subscriptions if one.topic_name.startswith("/tf")]
    assert not [one for one in rig.node.publishers if one.topic_name == "/tf"]


def test_nothing_is_broadcast_while_the_node_is_inactive(make_rig, tf):
    robot = on_robot(make_rig, publish_tf=True, base_to_camera__source="parameters")
    robot.send()
    last = robot.pose()
    assert len(tf.sent) == 2
    t, q = tf.sent[-1].transform.translation, tf.sent[-1].transform.rotation
    same(transform((t.x, t.y, t.z), (q.x, q.y, q.z, q.w)), last)
    robot.rig.stub.delay_s = 0.5
    worked_on = len(robot.rig.stub.calls)
    robot.rig.send(0.3, settle=False)
    robot.rig.wait(lambda: len(robot.rig.stub.calls) > worked_on, "the image in the worker")
    assert robot.rig.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert robot.rig.counts.pending == 1
    robot.rig.wait(lambda: robot.rig.counts.pending == 0, "the end of processing")
    assert robot.rig.counts.processed == 3
    assert len(tf.sent) == 2
