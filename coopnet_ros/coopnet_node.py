"""The node: images in; depth, odometry, flow and a moving mask out. Lifecycle, subscriptions, services, diagnostics."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import rclpy
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from coopnet_core.data.camera_info import is_rectified_topic
from coopnet_core.data.prepare import undistortion
from coopnet_core.errors import CoopnetError, UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Predictor
from coopnet_ros.diagnostics import Statistics, assess
from coopnet_ros.interface import SERVICES, load_type, topic_type
from coopnet_ros.messages import camera_of, diagnostics_message, to_nanoseconds
from coopnet_ros.mount import CameraMount, TransformPublisher
from coopnet_ros.notifier import Notifier
from coopnet_ros.odometry import transform
from coopnet_ros.outputs import Outputs
from coopnet_ros.parameter_server import declare, read
from coopnet_ros.pipeline import Pipeline
from coopnet_ros.predictor import DEFAULT_CHECKPOINT, PredictorFactory, PredictorRequest, load_predictor
from coopnet_ros.processor import CameraState, ImageItem, Processor, pipeline_settings
from coopnet_ros.qos import (
    OVERRIDES,
    diagnostics_qos,
    input_qos,
    overridable,
    refusals_in_words,
    unused_overrides,
    wheel_qos,
)
from coopnet_ros.scale import ODOMETRY, ScaleState
from coopnet_ros.sequence import Arrival, ArrivalOrder
from coopnet_ros.silence import Endpoint, explain_silence
from coopnet_ros.wheel_odometry import WheelPoses
from coopnet_ros.worker import Worker

_NO_CAMERA_INFO = CameraState(None, "no_camera_info", "Images arrive, but no camera_info yet.")

_UNSTAMPED = (
    "Images without a stamp (0, or before 0) are ignored: pairs are made by stamp. Let the driver set header.stamp."
)

_Transition = Callable[["CoopnetNode", LifecycleState], TransitionCallbackReturn]


def _spoken(transition: _Transition) -> _Transition:
    """Log why a transition fails: rclpy swallows what its callback raises.

    What the user can mend (CoopnetError) leaves the node in the state it had; anything else frees everything.
    """

    @functools.wraps(transition)
    def run(node: CoopnetNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except CoopnetError as error:
            node.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            name = transition.__name__.removeprefix("on_")
            node.get_logger().error(f"The transition {name} failed. {type(error).__name__}: {error}")
            node.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return run


class CoopnetNode(LifecycleNode):
    """Depth, odometry, flow and a moving mask from one camera.

    Transitions: `configure` loads the networks and opens the publishers; `activate` subscribes to the images;
    `deactivate` unsubscribes, the networks stay loaded; `cleanup` frees them.
    """

    def __init__(
        self,
        parameter_overrides: Sequence[Parameter] = (),
        load: PredictorFactory = load_predictor,
        stop: threading.Event | None = None,
    ) -> None:
        """Declare parameters, services and diagnostics; everything else waits for the transitions.

        Args:
            parameter_overrides: values that win over those of the command line.
            load: opens the networks.
            stop: set from outside to give up waiting for the networks.

        Raises:
            UsageError: a parameter is refused.
        """
        super().__init__("coopnet", parameter_overrides=list(parameter_overrides))
        self._load = load
        self._stop = stop or threading.Event()
        self.statistics = Statistics()
        self._notifier = Notifier(lambda text: self.get_logger().warning(text))
        self._worker: Worker[ImageItem] | None = None
        self._processor: Processor | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: Outputs | None = None
        self._subscriptions_by_topic: dict[str, Subscription] = {}
        self._wheels = WheelPoses()
        self._wheel_subscription: Subscription | None = None
        self._camera_state = _NO_CAMERA_INFO
        self._camera_source: tuple | None = None
        self._rectified = False
        self._waiting: ImageItem | None = None
        self._order = ArrivalOrder()
        self._frame_id = ""
        self._state = "unconfigured"
        self._enabled = True
        self._active_since = 0.0
        self._checkpoint = self._device = ""
        for warning in declare(self):
            self.get_logger().warning(warning)
        self.add_post_set_parameters_callback(self._apply_parameters)
        answers = {
            "~/reset": self._on_reset,
            "~/enable": self._on_enable,
            "~/load_checkpoint": self._on_load_checkpoint,
        }
        for service in SERVICES:
            self.create_service(load_type(service.type_name), service.name, answers[service.name])
        with refusals_in_words(self.resolve_topic_name("/diagnostics")):
            self._diagnostics = self.create_publisher(
                topic_type("/diagnostics"), "/diagnostics", diagnostics_qos(), qos_overriding_options=overridable()
            )
        # steady, not ROS time: with use_sim_time and a bag that has stopped the node must still speak
        self.create_timer(1.0, self._every_second, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # ------------------------------------------------------------------ lifecycle

    def start(self) -> bool:
        """Configure and activate; False when the networks could not be loaded."""
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            return False
        return self.trigger_activate() == TransitionCallbackReturn.SUCCESS

    @_spoken
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker, let it load the networks, open the publishers."""
        values = read(self)
        self._outputs = Outputs(self)
        self._worker = Worker(lambda item: self._processor.handle(item), lambda error: self._processor.fail(error))
        try:
            predictor = self._in_worker(lambda: self._load(self._predictor_request()))
        except Exception as error:
            if not self._stop.is_set():
                self.get_logger().error(_load_failure(error))
                self.get_logger().debug(traceback.format_exc())
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._pipeline = Pipeline(predictor, self.statistics, pipeline_settings(values), self._wheels)
        fallback = transform(values["base_to_camera.translation"], values["base_to_camera.rotation"])
        mount = CameraMount(
            self,
            values["base_to_camera.source"],
            values["base_frame"],
            fallback,
            values["base_to_camera.timeout"],
            self.get_logger().warning,
        )
        transforms = TransformPublisher(self, values["publish_tf"], self.get_logger().warning)
        self._processor = Processor(
            self._pipeline,
            self._outputs,
            self.statistics,
            self._notifier,
            mount,
            transforms,
            lambda: self._camera_state,
        )
        self._processor.apply(values)
        self._describe_predictor(predictor)
        self._state = "inactive"
        return super().on_configure(state)

    @_spoken
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers and subscribe to images and camera_info."""
        values = read(self)
        try:
            self._follow_wheels(values["scale_source"] == ODOMETRY)
            self._subscribe(values)
        except UsageError:
            self._unsubscribe()
            raise
        self._active_since = time.monotonic()
        self._state = "active"
        for warning in unused_overrides(self, later=(self.resolve_topic_name("wheel_odom"),)):
            self._notifier.once(warning, warning)
        topics = " and ".join(self._subscriptions_by_topic)
        self.get_logger().info(f"Active: waiting for images on {topics}.")
        return super().on_activate(state)

    @_spoken
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and disable the publishers; the networks stay loaded."""
        self._unsubscribe()
        self._state = "inactive"
        return super().on_deactivate(state)

    @_spoken
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the networks and close the publishers."""
        self._release()
        return super().on_cleanup(state)

    @_spoken
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from whichever state."""
        self._release()
        self._state = "finalized"
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a transition that failed half way: free everything, back to unconfigured."""
        self._release()
        return super().on_error(state)

    def destroy_node(self) -> None:
        """End the worker before what it publishes on goes away."""
        self._release()
        super().destroy_node()

    def _release(self) -> None:
        self._unsubscribe()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        self._processor = None
        self._pipeline = None
        self._camera_state, self._camera_source = _NO_CAMERA_INFO, None
        self._state = "unconfigured"

    def _in_worker(self, task: Callable[[], Predictor]) -> Predictor:
        """Run a task in the worker and wait for it; a request to stop ends the waiting.

        Raises:
            UsageError: the node is asked to stop. Whatever the task raises, otherwise.
        """
        future = self._worker.submit(task)
        while not concurrent.futures.wait([future], timeout=0.1).done:
            if self._stop.is_set():
                raise UsageError("Asked to stop while the networks were being loaded.")
        return future.result()

    # ------------------------------------------------------------------ input

    def _subscribe(self, values: dict) -> None:
        image_type, image_topic = topic_type("image"), self.resolve_topic_name("image")
        if values["image_transport"] == "compressed":
            image_type = topic_type("image/compressed")
            if not image_topic.endswith("/compressed"):
                image_topic += "/compressed"
        info_topic = self.resolve_topic_name("camera_info")
        if image_topic == info_topic:
            raise UsageError(
                f"image and camera_info are both mapped to {image_topic}: each needs its own topic, e.g. "
                "-r image:=/camera/image_raw -r camera_info:=/camera/camera_info."
            )
        named = is_rectified_topic(image_topic)
        self._rectified = named if values["rectified"] == "auto" else values["rectified"] == "always"
        image_qos, info_qos = input_qos(values["image_reliability"]), input_qos(values["camera_info_reliability"])
        self._subscriptions_by_topic[image_topic] = self._listen(image_type, image_topic, self._on_image, image_qos)
        self._subscriptions_by_topic[info_topic] = self._listen(
            topic_type("camera_info"), info_topic, self._on_camera_info, info_qos
        )

    def _listen(self, kind: type, topic: str, callback: Callable, qos: QoSProfile) -> Subscription:
        """Subscribe to a resolved topic; parameters may override its QoS.

        Raises:
            UsageError: such an override is refused.
        """
        with refusals_in_words(topic):
            return self.create_subscription(kind, topic, callback, qos, qos_overriding_options=overridable())

    def _unsubscribe(self) -> None:
        for subscription in self._subscriptions_by_topic.values():
            self.destroy_subscription(subscription)
        self._subscriptions_by_topic = {}
        self._follow_wheels(False)
        if self._waiting is not None:
            self._waiting = None
            self.statistics.drop("inactive")
        if self._worker is not None and self._worker.discard():
            self.statistics.drop("inactive")

    def _follow_wheels(self, wanted: bool) -> None:
        """Subscribe to wheel_odom where the scale needs it, and only there.

        Raises:
            UsageError: it is mapped to this node's own odometry, or an override of its QoS is refused.
        """
        if not wanted and self._wheel_subscription is not None:
            self.destroy_subscription(self._wheel_subscription)
            self._wheel_subscription = None
            self._wheels.clear()
        if not wanted or self._wheel_subscription is not None:
            return
        topic = self.resolve_topic_name("wheel_odom")
        if topic == self.resolve_topic_name("~/odom"):
            raise UsageError(
                f"wheel_odom is mapped to {topic}, which this node publishes itself: a scale cannot come from its own "
                "result. Map it to the odometry of the wheels, e.g. -r wheel_odom:=/wheel/odometry."
            )
        self._notifier.forget("no_wheel_odom")
        self._wheel_subscription = self._listen(topic_type("wheel_odom"), topic, self._on_wheel_odom, wheel_qos())
        self.get_logger().info(f"The scale comes from {topic}.")

    def _on_wheel_odom(self, message: Odometry) -> None:
        """Keep the pose for the frames of its time."""
        p, q = message.pose.pose.position, message.pose.pose.orientation
        problem = self._wheels.add(to_nanoseconds(message.header.stamp), (p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        if problem:
            self._notifier.notify("wheel_odom", problem[0].upper() + problem[1:])
        base_frame = self.get_parameter("base_frame").value
        if message.child_frame_id not in ("", base_frame):
            self._notifier.once(
                "wheel_odom_frame",
                f"wheel_odom is the motion of {message.child_frame_id}, base_frame is {base_frame}: the two are taken "
                "for one, which is right where they differ in height only.",
            )

    def _on_image(self, message: Image | CompressedImage) -> None:
        """Keep the newest image for the worker and return."""
        arrived = time.perf_counter()
        self.statistics.receive()
        if not self._enabled:
            self.statistics.drop("disabled")
            return
        stamp_ns = to_nanoseconds(message.header.stamp)
        threshold = self.get_parameter("time_jump_threshold").value
        if stamp_ns <= 0:  # else every one would be a jump back, and end a pair
            self.statistics.reject("out_of_order")
            self._notifier.notify("out_of_order", _UNSTAMPED)
            return
        if self._order.judge(stamp_ns, threshold) is Arrival.OUT_OF_ORDER:
            self.statistics.reject("out_of_order")
            self._notifier.notify("out_of_order", _disorder(stamp_ns, self._order.newest_ns))
            return
        item = ImageItem(message, arrived, self._order.epoch)
        self._frame_id = message.header.frame_id
        if self._camera_state is _NO_CAMERA_INFO:
            self._hold(item)
        else:
            self._offer(item)

    def _hold(self, item: ImageItem) -> None:
        """Before the first camera_info: keep the newest image, it may be the next message."""
        if self._waiting is not None:
            self.statistics.reject("no_camera_info")
        self._waiting = item

    def _offer(self, item: ImageItem) -> None:
        if self._worker.offer(item):
            self.statistics.drop("newer_frame")

    def _on_camera_info(self, message: CameraInfo) -> None:
        """Derive the camera where the message says something new."""
        source = _calibration_of(message)
        if source == self._camera_source:
            return
        self._camera_source = source
        self._camera_state = self._derive_camera(message)
        if self._waiting is not None:
            item, self._waiting = self._waiting, None
            self._offer_held(item)

    def _offer_held(self, item: ImageItem) -> None:
        """Process the image that waited for camera_info, unless it is no longer of the present."""
        age, longest = time.perf_counter() - item.arrived, self.get_parameter("max_pair_gap").value
        if age <= longest:
            self._offer(item)
            return
        self.statistics.reject("no_camera_info")
        self._notifier.notify(
            "no_camera_info",
            f"An image waited {age:.2f} s for the first camera_info, longer than max_pair_gap={longest:g} s: it is "
            "dropped. Publish camera_info with every image.",
        )

    def _derive_camera(self, message: CameraInfo) -> CameraState:
        """The camera, or why there is none; what cannot be undistorted is found here, not on every frame."""
        topic = list(self._subscriptions_by_topic)[-1]
        try:
            camera = camera_of(message, self._rectified)
            focal = undistortion(camera)[0].fx if camera is not None and camera.is_distorted else 0.0
        except UsageError as error:
            return CameraState(None, "bad_camera_info", f"{topic} cannot be used, images are dropped. {error}")
        if camera is None:
            text = f"{topic} says K[0] = 0: an uncalibrated camera, images are dropped. Calibrate it."
            return CameraState(None, "uncalibrated", text)
        self.get_logger().info(_camera_text(camera, focal, message, self._rectified))
        return CameraState(camera)

    # ------------------------------------------------------------------ services and parameters

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Forget the previous frame; the pose stays."""
        if self._pipeline is None:
            response.success, response.message = False, "Not configured: there is nothing to reset."
            return response
        self._worker.submit(self._pipeline.reset).result()
        self._order.restart()
        response.success, response.message = True, "The next frame starts a new pair; the pose is kept."
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Switch processing off and on; images that arrive while off are counted as dropped."""
        self._enabled = request.data
        response.success, response.message = True, "enabled" if request.data else "disabled"
        return response

    def _on_load_checkpoint(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Load the file of the parameter `checkpoint`; the old networks go on where it cannot be used."""
        if self._pipeline is None:
            response.success, response.message = False, "Not configured: configure loads the checkpoint."
            return response
        try:
            predictor = self._in_worker(self._replace_predictor)
        except Exception as error:
            response.success, response.message = False, f"{_load_failure(error)} The old networks are kept."
            self.get_logger().error(response.message)
            return response
        self._describe_predictor(predictor)
        response.success, response.message = True, f"Loaded {self._checkpoint}."
        return response

    def _replace_predictor(self) -> Predictor:
        """Load, try out on the present camera, and only then replace. Runs in the worker."""
        predictor = self._load(self._predictor_request())
        if self._camera_state.camera is not None:
            predictor.warm_up(self._camera_state.camera)
        self._pipeline.replace_predictor(predictor)
        return predictor

    def _predictor_request(self) -> PredictorRequest:
        width, height = self.get_parameter("input_width").value, self.get_parameter("input_height").value
        return PredictorRequest(
            checkpoint=self.get_parameter("checkpoint").value,
            device=self.get_parameter("device").value,
            input_size=(width, height) if width else None,
        )

    def _describe_predictor(self, predictor: Predictor) -> None:
        self._checkpoint = self.get_parameter("checkpoint").value or f"{DEFAULT_CHECKPOINT} (shipped)"
        self._device = predictor.device
        self._notifier.forget("scale_unknown")
        self.get_logger().info(f"Loaded {self._checkpoint} on {self._device}.")

    def _apply_parameters(self, parameters: Sequence[Parameter]) -> None:
        # rclpy declares the QoS of a subscription as it is made: no change, and no reason to make another
        if self._processor is None or all(parameter.name.startswith(OVERRIDES) for parameter in parameters):
            return
        values = read(self)
        self._processor.apply(values)
        try:
            self._follow_wheels(self._state == "active" and values["scale_source"] == ODOMETRY)
        except UsageError as error:
            self.get_logger().error(str(error))

    # ------------------------------------------------------------------ diagnostics

    def _every_second(self) -> None:
        values = read(self)
        state = self._state if self._enabled or self._state != "active" else "disabled"
        snapshot = self.statistics.snapshot()
        if state == "active":
            self._watch_input(snapshot.seconds_since_input, values)
        level, text = assess(snapshot, state, values["no_data_timeout"], self._missing_scale())
        rows = [("state", state), *self._facts(values), *snapshot.rows()]
        name = self.get_fully_qualified_name().lstrip("/")
        now = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostics_message(name, self._frame_id, level, text, rows, now))

    def _facts(self, values: dict) -> list[tuple[str, str]]:
        """What is running, as opposed to how fast."""
        last = self._processor.last_prediction if self._processor is not None else None
        rows = [
            ("checkpoint", self._checkpoint),
            ("device", self._device),
            ("memory_mb", f"{_resident_megabytes():.0f}"),
            ("metric", "unknown" if last is None else str(last.metric).lower()),
            *_scale_rows(values["scale_source"], self._processor.last_scale if self._processor is not None else None),
        ]
        if last is not None:
            age = self.get_clock().now().nanoseconds - last.stamp_ns
            rows += [
                ("output_size", f"{last.camera.width}x{last.camera.height}"),
                ("stamp_age_s", f"{age * 1e-9:.3f}"),
            ]
        return rows

    def _missing_scale(self) -> str:
        """Why the scale that somebody asked for is not known; empty where it is, or nobody asked."""
        last = self._processor.last_scale if self._processor is not None else None
        return last.reason if last is not None and last.is_missing else ""

    def _watch_input(self, seconds_since_input: float | None, values: dict) -> None:
        """Say once per silence why no image, or no camera_info, arrives."""
        timeout = values["no_data_timeout"]
        active_for = time.monotonic() - self._active_since
        images, infos = self._subscriptions_by_topic.values()
        silent_for = min(active_for, active_for if seconds_since_input is None else seconds_since_input)
        if silent_for < timeout:
            self._notifier.forget("silence")
        elif self._notifier.once("silence", self._explain(images, timeout)):
            return
        if self._camera_state is _NO_CAMERA_INFO and active_for > timeout:
            self._notifier.once("no_camera_info_yet", self._explain(infos, timeout))
        if self._wheel_subscription is not None and self._wheels.newest_ns is None and active_for > timeout:
            self._notifier.once("no_wheel_odom", self._explain(self._wheel_subscription, timeout))

    def _explain(self, subscription: Subscription, timeout: float) -> str:
        """Why nothing arrives on a topic."""
        topic = subscription.topic_name
        publishers = [
            Endpoint(
                f"{info.node_namespace.rstrip('/')}/{info.node_name}",
                info.topic_type,
                info.qos_profile.reliability == ReliabilityPolicy.RELIABLE,
                info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
            )
            for info in self.get_publishers_info_by_topic(topic)
        ]
        kind = subscription.msg_type
        type_name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        qos = subscription.qos_profile
        reliable = qos.reliability == ReliabilityPolicy.RELIABLE
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        return f"Nothing received for {timeout:g} s. {explain_silence(topic, type_name, reliable, publishers, latched)}"


def _scale_rows(source: str, scale: ScaleState | None) -> list[tuple[str, str]]:
    """What is known of the scale; empty values where nothing is."""
    known = scale is not None and scale.value is not None
    age = None if scale is None else scale.age_s
    return [
        ("scale_source", source),
        ("scale", f"{scale.value:g}" if known else ""),
        ("scale_spread", f"{scale.spread:.3f}" if known else ""),
        ("scale_age_s", "" if age is None else f"{age:.1f}"),
        ("scale_samples", "0" if scale is None else str(scale.samples)),
    ]


def _calibration_of(message: CameraInfo) -> tuple:
    """Everything of a CameraInfo but its stamp, to compare."""
    roi = message.roi
    return (
        message.width,
        message.height,
        message.distortion_model,
        *(bytes(values) for values in (message.k, message.d, message.p)),  # as bytes NaN equals itself
        (message.binning_x, message.binning_y),
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )


def _camera_text(camera: Camera, undistorted_fx: float, message: CameraInfo, rectified: bool) -> str:
    """What is made of a CameraInfo."""
    text = f"Camera {camera.width}x{camera.height}, fx {camera.fx:.1f}: "
    if rectified:
        chosen = "P" if any(message.p) else "K, P being empty"
        return text + f"the images are taken for rectified, with {chosen} of camera_info; D is ignored."
    if camera.is_distorted:
        return text + f"the images are undistorted ({camera.distortion_model}), to fx {undistorted_fx:.1f}."
    return text + "the images are used as they are (D is zero)."


def _disorder(stamp_ns: int, newest_ns: int) -> str:
    """What is wrong with the order of two stamps."""
    back = (newest_ns - stamp_ns) * 1e-9
    return f"An image whose stamp is not after the newest one ({back:.3f} s before it) is ignored."


def _load_failure(error: Exception) -> str:
    text = str(error) if isinstance(error, CoopnetError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError):
        text += (
            f". The node runs under {sys.executable}: install PyTorch for that Python (pip install torch), or start "
            "the node from an environment that has it, made with --system-site-packages where ROS is installed."
        )
    return f"The networks could not be loaded. {text}"


def _resident_megabytes() -> float:
    """Memory of this process, MB; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    return 0.0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="coopnet_node",
        description="Depth, odometry, flow and a moving mask from one camera. Parameters and remappings follow "
        "--ros-args, e.g. --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info.",
    )
    parser.add_argument("--checkpoint", default="", help="the networks (.safetensors); default: the shipped ones")
    parser.add_argument("--device", default="", help="auto, cpu, cuda or cuda:N; default: the parameter's")
    parser.add_argument("--image-transport", default="", help="raw or compressed; default: the parameter's")
    return parser.parse_args(list(arguments))


def main(argv: Sequence[str] | None = None, load: PredictorFactory = load_predictor) -> int:
    """Run the node until SIGINT or SIGTERM.

    Args:
        argv: arguments, those of the process where None.
        load: opens the networks.

    Returns:
        0 after a request to stop, 2 when a parameter or the checkpoint cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parse(remove_ros_args(["coopnet_node", *arguments])[1:])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # our own handlers: with rclpy's the context is gone before the worker has published its last result
    rclpy.init(args=["coopnet_node", *arguments], signal_handler_options=SignalHandlerOptions.NO)
    # options given empty (by a launch file whose argument is not set) leave the parameter as it is
    overrides = [Parameter(name, value=value) for name, value in vars(options).items() if value]
    try:
        node = CoopnetNode(overrides, load, stop)
    except UsageError as error:
        rclpy.logging.get_logger("coopnet").error(str(error))
        rclpy.try_shutdown()
        return UsageError.exit_code
    try:
        if node.get_parameter("autostart").value and not node.start():
            return 0 if stop.is_set() else UsageError.exit_code
        _spin(node, stop)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
        # shutting down restores the default handlers; a second signal (launch sends one after 5 s) must not turn the
        # clean end into a kill while the interpreter unloads torch
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return 0


def _spin(node: CoopnetNode, stop: threading.Event) -> None:
    """Serve the node's callbacks until asked to stop."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with contextlib.suppress(ExternalShutdownException):
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)
    executor.shutdown()


if __name__ == "__main__":
    sys.exit(main())
