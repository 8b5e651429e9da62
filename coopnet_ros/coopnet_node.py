"""The node: images in; depth, odometry, flow and a moving mask out. Lifecycle, subscriptions, services, diagnostics."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import rclpy
from nav_msgs.msg import Odometry
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockChange, ClockType, JumpHandle, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.event_handler import QoSMessageLostInfo, SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from rclpy.time import Time
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from coopnet_core.data.camera_info import is_rectified_topic
from coopnet_core.data.frames import Frame
from coopnet_core.errors import UsageError
from coopnet_core.inference.prediction import Predictor
from coopnet_core.resources import SHIPPED_WEIGHTS
from coopnet_ros.calibration import NO_CAMERA_INFO, calibration_of, derive_camera, fits
from coopnet_ros.diagnostics import Statistics, assess
from coopnet_ros.interface import SERVICES, load_type, topic_type
from coopnet_ros.messages import diagnostics_message, to_nanoseconds
from coopnet_ros.mount import CameraMount, TransformPublisher
from coopnet_ros.notifier import Notifier
from coopnet_ros.odometry import transform
from coopnet_ros.outputs import Outputs
from coopnet_ros.parameter_server import declare, read
from coopnet_ros.pipeline import Pipeline
from coopnet_ros.predictor import (
    PredictorFactory,
    PredictorRequest,
    blank_frame,
    load_failure,
    load_predictor,
    try_out,
)
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
from coopnet_ros.sequence import NANOSECONDS, Arrival, ArrivalOrder, Companions
from coopnet_ros.silence import PROFILE_VARIABLES, Endpoint, explain_clock, explain_silence
from coopnet_ros.transitions import refuse_impossible_transitions, spoken
from coopnet_ros.wheel_odometry import WheelPoses
from coopnet_ros.worker import Worker, run_in_thread

_UNSTAMPED = (
    "Images without a stamp (0, or before 0) are ignored: pairs are made by stamp. Let the driver set header.stamp."
)

_STOP_S = 3.0
"""How long the networks are waited for, seconds, when they must go."""
_STUCK_S = 10.0
"""Networks that have not come back for so long do not keep a service waiting."""

_Result = TypeVar("_Result")


class CoopnetNode(LifecycleNode):
    """Depth, odometry, flow and a moving mask from one camera.

    Transitions: `configure` loads the networks and opens the publishers; `activate` subscribes to the images;
    `deactivate` unsubscribes, the networks stay loaded; `cleanup` frees them. A pause by `~/enable` lasts until it is
    taken back or the node is deactivated: a node that has just been activated works.
    """

    def __init__(
        self,
        parameter_overrides: Sequence[Parameter] = (),
        load: PredictorFactory = load_predictor,
        stop: threading.Event | None = None,
        namespace: str | None = None,
    ) -> None:
        """Declare parameters, services and diagnostics; everything else waits for the transitions.

        Args:
            parameter_overrides: values that win over those of the command line.
            load: opens the networks.
            stop: set from outside to give up waiting for the networks.
            namespace: of the node; that of the command line where None.

        Raises:
            UsageError: a parameter is refused.
        """
        super().__init__("coopnet", namespace=namespace, parameter_overrides=list(parameter_overrides))
        self._load = load
        self._stop = stop or threading.Event()
        self.statistics = Statistics()
        self._notifier = Notifier(lambda text: self.get_logger().warning(text))
        self._worker: Worker[ImageItem] | None = None
        self._processor: Processor | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: Outputs | None = None
        self._mount: CameraMount | None = None
        self._transforms: TransformPublisher | None = None
        self._subscriptions_by_topic: dict[str, Subscription] = {}
        self._wheels = WheelPoses()
        self._wheel_subscription: Subscription | None = None
        self._camera_state = NO_CAMERA_INFO
        self._camera_source: tuple | None = None
        self._cameras: Companions[CameraState] = Companions()
        self._derived: dict[tuple, CameraState] = {}
        self._rectified = False
        self._waiting: ImageItem | None = None
        self._order = ArrivalOrder()
        self._frame_id = ""
        self._state = "unconfigured"
        self._enabled = True
        self._active_since = 0.0
        self._checkpoint = self._device = ""
        self._reloading: concurrent.futures.Future[Predictor] | None = None
        self._left_behind: list[Worker[ImageItem]] = []
        self._clock_awaited_since: float | None = None
        self._clock_jumps: JumpHandle | None = None
        for warning in declare(self):
            self.get_logger().warning(warning)
        self.add_post_set_parameters_callback(self._apply_parameters)
        answers = {
            "~/reset": self._on_reset,
            "~/enable": self._on_enable,
            "~/load_checkpoint": self._on_load_checkpoint,
        }
        # not the group of the rest: whoever waits for the networks here must not keep images and diagnostics waiting
        group = ReentrantCallbackGroup()
        for service in SERVICES:
            kind = load_type(service.type_name)
            self.create_service(kind, service.name, answers[service.name], callback_group=group)
        refuse_impossible_transitions(self)
        with refusals_in_words(self.resolve_topic_name("/diagnostics")):
            self._diagnostics = self.create_publisher(
                topic_type("/diagnostics"), "/diagnostics", diagnostics_qos(), qos_overriding_options=overridable()
            )
        # steady, not ROS time: with use_sim_time and a bag that has stopped the node must still speak
        self.create_timer(1.0, self._every_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        any_jump_back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._clock_jumps = self.get_clock().create_jump_callback(any_jump_back, post_callback=self._on_clock_jump)

    # ------------------------------------------------------------------ lifecycle

    def start(self) -> bool:
        """Configure and activate; False when the networks could not be loaded."""
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            return False
        return self.trigger_activate() == TransitionCallbackReturn.SUCCESS

    @spoken
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker, let it load the networks, open the publishers."""
        values = read(self)
        self._outputs = Outputs(self)
        try:
            self._open_transforms(values)
        except UsageError:
            self._release()
            raise
        self._worker = Worker(lambda item: self._processor.handle(item), self._on_failure)
        try:
            request = self._predictor_request()
            predictor = self._in_worker(lambda: self._load(request))
        except Exception as error:
            if not self._stop.is_set():
                self.get_logger().error(load_failure(error))
                self.get_logger().debug(traceback.format_exc())
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._pipeline = Pipeline(predictor, self.statistics, pipeline_settings(values), self._wheels)
        self._processor = Processor(
            self._pipeline,
            self._outputs,
            self.statistics,
            self._notifier,
            self._mount,
            self._transforms,
            self._camera_of,
        )
        self._processor.apply(values)
        self._describe_predictor(predictor, request)
        self._state = "inactive"
        return super().on_configure(state)

    @spoken
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
        self._notifier.forget("no_camera_info_yet")
        self._enabled = True
        self._state = "active"
        for warning in unused_overrides(self, later=(self.resolve_topic_name("wheel_odom"),)):
            self._notifier.once(warning, warning)
        topics = " and ".join(self._subscriptions_by_topic)
        self.get_logger().info(f"Active: waiting for images on {topics}.")
        return super().on_activate(state)

    @spoken
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and disable the publishers; the networks stay loaded."""
        self._unsubscribe()
        self._state = "inactive"
        return super().on_deactivate(state)

    @spoken
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the networks and close the publishers."""
        self._release()
        return super().on_cleanup(state)

    @spoken
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
        """End the worker before what it publishes on goes away, and leave the graph at once.

        rclpy leaves the state machine to the garbage collector: until it comes by, the graph shows a node that is no
        more. From version 9 (Kilted) on, a context that is shut down destroys its nodes, half-made ones too.
        """
        self._release()
        if self._clock_jumps is not None:
            self._clock_jumps.unregister()
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    def _release(self) -> None:
        self._unsubscribe()
        worker, self._worker = self._worker, None
        if worker is not None and not worker.stop(_STOP_S):
            self._left_behind.append(worker)
            self.get_logger().warning(
                f"The networks have not come back within {_STOP_S:g} s from what they were given: they are left to "
                "themselves, and hold their memory until they do."
            )
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        for part in (self._mount, self._transforms):
            if part is not None:
                part.close()
        self._mount = self._transforms = None
        self._processor = None
        self._pipeline = None
        self._camera_state, self._camera_source = NO_CAMERA_INFO, None
        self._cameras.clear()
        self._derived = {}
        self._state = "unconfigured"

    @property
    def is_loading_or_stuck(self) -> bool:
        """Whether a thread of the node is still in the networks, which nobody can take it out of."""
        is_loading = self._reloading is not None and not self._reloading.done()
        return is_loading or any(worker.is_alive for worker in self._left_behind)

    def _on_failure(self, error: Exception) -> None:
        """An image met an error nobody foresaw. Runs in the worker."""
        processor = self._processor
        if processor is None:  # freed meanwhile, and its publishers with it
            self.statistics.drop("inactive")
        else:
            processor.fail(error)

    def _open_transforms(self, values: dict) -> None:
        """Listen to TF for the mounting, and open /tf, where that is wanted.

        Raises:
            UsageError: TF is demanded, and not installed.
        """
        warn = self.get_logger().warning
        self._mount = CameraMount(
            self,
            values["base_to_camera.source"],
            values["base_frame"],
            transform(values["base_to_camera.translation"], values["base_to_camera.rotation"]),
            values["base_to_camera.timeout"],
            warn,
        )
        self._transforms = TransformPublisher(self, values["publish_tf"], lambda: self._state == "active", warn)

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
        info_qos.depth = Companions.KEPT  # while the node is busy each is kept for its image
        self._subscriptions_by_topic[image_topic] = self._listen_to_images(image_type, image_topic, image_qos)
        self._subscriptions_by_topic[info_topic] = self._listen(
            topic_type("camera_info"), info_topic, self._on_camera_info, info_qos
        )

    def _listen(
        self,
        kind: type,
        topic: str,
        callback: Callable,
        qos: QoSProfile,
        events: SubscriptionEventCallbacks | None = None,
    ) -> Subscription:
        """Subscribe to a resolved topic; parameters may override its QoS.

        Raises:
            UsageError: such an override is refused.
        """
        with refusals_in_words(topic):
            return self.create_subscription(
                kind, topic, callback, qos, qos_overriding_options=overridable(), event_callbacks=events
            )

    def _listen_to_images(self, kind: type, topic: str, qos: QoSProfile) -> Subscription:
        """Subscribe, and count what the middleware knows to be lost, where it tells."""
        events = SubscriptionEventCallbacks(message_lost=self._on_message_lost)
        try:
            return self._listen(kind, topic, self._on_image, qos, events)
        except UnsupportedEventTypeError:
            return self._listen(kind, topic, self._on_image, qos)

    def _on_message_lost(self, event: QoSMessageLostInfo) -> None:
        self.statistics.lose(event.total_count_change)

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
        item = ImageItem(message, arrived, self._order.epoch, self._cameras.at(stamp_ns) or self._camera_state)
        self._frame_id = message.header.frame_id
        if self._camera_state is NO_CAMERA_INFO:
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
        """Derive the camera where the message says something new, and keep it for the image of its stamp."""
        source = (self._rectified, *calibration_of(message))
        if source != self._camera_source:
            self._camera_source, self._camera_state = source, self._derived_camera(source, message)
        self._cameras.add(to_nanoseconds(message.header.stamp), self._camera_state)
        if self._waiting is not None:
            item, self._waiting = self._waiting, None
            self._offer_held(item)

    def _derived_camera(self, source: tuple, message: CameraInfo) -> CameraState:
        """The camera of a calibration; those that come and go are worked out once."""
        if source not in self._derived:
            while len(self._derived) >= Companions.KEPT:
                del self._derived[next(iter(self._derived))]
            topic = list(self._subscriptions_by_topic)[-1]
            self._derived[source] = derive_camera(message, self._rectified, topic, self.get_logger().info)
        return self._derived[source]

    def _camera_of(self, item: ImageItem) -> CameraState:
        """That of the camera_info of exactly its stamp, else the newest. Runs in the worker."""
        state = self._cameras.of_image(to_nanoseconds(item.message.header.stamp))
        if state is not None:
            return state
        newest, at_arrival = self._camera_state, item.camera
        return at_arrival if fits(item.message, at_arrival) else newest

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

    # ------------------------------------------------------------------ services and parameters

    async def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Forget the previous frame; the pose stays."""
        if self._pipeline is None:
            response.success, response.message = False, "Not configured: there is nothing to reset."
            return response
        try:
            await _finished(self._worker.submit(self._pipeline.reset))
        except concurrent.futures.CancelledError:
            response.success, response.message = False, f"Nothing is reset: {self._why_cancelled()}"
            return response
        self._order.restart()
        response.success, response.message = True, "The next frame starts a new pair; the pose is kept."
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Switch processing off and on; images that arrive while off are counted as dropped."""
        if self._state != "active":
            response.success, response.message = False, f"{self._state}, not active: activate starts enabled."
            return response
        self._enabled = request.data
        response.success, response.message = True, "enabled" if request.data else "disabled"
        return response

    async def _on_load_checkpoint(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Load the file of the parameter `checkpoint`; the old networks go on until it is known to work."""
        response.success, response.message = await self._reload()
        if not response.success:
            self.get_logger().error(response.message)
        return response

    async def _reload(self) -> tuple[bool, str]:
        """Load and try out in a thread of its own, and replace between two frames; success, and what to answer."""
        pipeline, worker, request = self._pipeline, self._worker, self._predictor_request()
        if pipeline is None:
            return False, "Not configured: configure loads the checkpoint."
        if self._reloading is not None:
            return False, "A checkpoint is being loaded already: ask again when that request has its answer."
        frame = self._trial_frame()
        self._reloading = run_in_thread(lambda: self._load_and_try(request, frame), "coopnet-load")
        try:
            predictor = await _finished(self._reloading)
            await _finished(worker.submit(lambda: pipeline.replace_predictor(predictor)))
        except concurrent.futures.CancelledError:
            return False, f"The networks are not replaced: {self._why_cancelled()}"
        except Exception as error:
            self.get_logger().debug(traceback.format_exc())
            return False, f"{load_failure(error, beside_others=True)} The old networks are kept."
        finally:
            self._reloading = None
        self._describe_predictor(predictor, request)
        return True, f"Loaded {self._checkpoint}."

    def _load_and_try(self, request: PredictorRequest, frame: Frame) -> Predictor:
        predictor = self._load(request)
        try_out(predictor, frame)
        return predictor

    def _trial_frame(self) -> Frame:
        """The last frame of the present camera, a blank one where there is none."""
        last, camera = self._processor.last_frame, self._camera_state.camera
        return last if last is not None and last.camera == camera else blank_frame(camera)

    def _why_cancelled(self) -> str:
        """Why the worker has not taken on what it was asked for."""
        if self._worker is None or not self._worker.busy_s > _STUCK_S:
            return "the node has been cleaned up meanwhile."
        return (
            f"the networks have not come back for {self._worker.busy_s:.0f} s from an image. Ask again when "
            "diagnostics say that the node is running; if they never do, restart it and look at the device."
        )

    def _predictor_request(self) -> PredictorRequest:
        width, height = self.get_parameter("input_width").value, self.get_parameter("input_height").value
        return PredictorRequest(
            checkpoint=self.get_parameter("checkpoint").value,
            device=self.get_parameter("device").value,
            input_size=(width, height) if width else None,
            refine=self.get_parameter("refine").value,
        )

    def _describe_predictor(self, predictor: Predictor, request: PredictorRequest) -> None:
        self._checkpoint = request.checkpoint or f"{SHIPPED_WEIGHTS} (shipped)"
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

    def _on_clock_jump(self, jump: TimeJump) -> None:
        """ROS time has gone back, or is another: the next image is a new start, though its stamp be the latest."""
        switched = jump.clock_change in (ClockChange.ROS_TIME_ACTIVATED, ClockChange.ROS_TIME_DEACTIVATED)
        back_ns = -jump.delta.nanoseconds
        if not switched and back_ns <= self.get_parameter("time_jump_threshold").value * NANOSECONDS:
            return
        newest_ns = self._order.newest_ns
        # where the images have gone back before the clock, that was the new start
        follows = newest_ns is not None and newest_ns < self.get_clock().now().nanoseconds + back_ns // 2
        if switched or not follows:
            self._order.restart()

    def _watch_clock(self, timeout: float) -> None:
        """Say once why there is no time where the node is told to follow /clock."""
        if self._is_time_known():
            self._clock_awaited_since = None
            self._notifier.forget("no_clock")
            return
        now = time.monotonic()
        self._clock_awaited_since = self._clock_awaited_since or now
        if now - self._clock_awaited_since >= timeout:
            publishers = [_name_of(info) for info in self.get_publishers_info_by_topic("/clock")]
            self._notifier.once("no_clock", explain_clock(timeout, publishers))

    def _is_time_known(self) -> bool:
        """False while use_sim_time is true and /clock has not said anything."""
        return self.get_clock().now().nanoseconds > 0

    def _now(self) -> Time:
        """ROS time; wall time where there is none yet."""
        return self.get_clock().now() if self._is_time_known() else Clock(clock_type=ClockType.SYSTEM_TIME).now()

    def _every_second(self) -> None:
        values = read(self)
        self._watch_clock(values["no_data_timeout"])
        busy_s = self._worker.busy_s if self._worker is not None else 0.0
        if busy_s > _STUCK_S:
            self._worker.cancel_tasks()
        state = self._state if self._enabled or self._state != "active" else "disabled"
        snapshot = self.statistics.snapshot()
        if state == "active":
            self._watch_input(snapshot.seconds_since_input, values)
        level, text = assess(snapshot, state, values["no_data_timeout"], self._missing_scale(), busy_s)
        rows = [("state", state), *self._facts(values), *snapshot.rows()]
        name = self.get_fully_qualified_name().lstrip("/")
        now = self._now().to_msg()
        self._diagnostics.publish(diagnostics_message(name, self._frame_id, level, text, rows, now))

    def _facts(self, values: dict) -> list[tuple[str, str]]:
        """What is running, as opposed to how fast."""
        last = self._processor.last_prediction if self._processor is not None else None
        rows = [
            ("checkpoint", self._checkpoint),
            ("device", self._device),
            ("memory_mb", f"{_resident_megabytes():.0f}"),
            ("metric", "unknown" if last is None else str(last.metric).lower()),
            ("mount", "" if self._mount is None else self._mount.state),
            *_scale_rows(values["scale_source"], self._processor.last_scale if self._processor is not None else None),
        ]
        if last is not None:
            age = self.get_clock().now().nanoseconds - last.stamp_ns
            rows += [
                ("output_size", f"{last.camera.width}x{last.camera.height}"),
                ("stamp_age_s", f"{age * 1e-9:.3f}" if self._is_time_known() else ""),
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
        elif self._notifier.once("silence", self._explain(images, timeout, seconds_since_input is not None)):
            return
        if self._camera_state is not NO_CAMERA_INFO:
            self._notifier.forget("no_camera_info_yet")
        elif active_for > timeout:
            self._notifier.once("no_camera_info_yet", self._explain(infos, timeout))
        if self._wheel_subscription is not None and self._wheels.newest_ns is None and active_for > timeout:
            self._notifier.once("no_wheel_odom", self._explain(self._wheel_subscription, timeout))

    def _explain(self, subscription: Subscription, timeout: float, came_before: bool = False) -> str:
        """Why nothing arrives on a topic, or nothing more."""
        topic = subscription.topic_name
        publishers = [
            Endpoint(
                _name_of(info),
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
        has_profile = any(os.environ.get(name) for name in PROFILE_VARIABLES)
        why = explain_silence(topic, type_name, reliable, publishers, latched, came_before, has_profile)
        return f"Nothing received for {timeout:g} s. {why}"


async def _finished(future: concurrent.futures.Future[_Result]) -> _Result:
    """Wait for the work of another thread while the executor goes on.

    Raises:
        concurrent.futures.CancelledError: it has been cancelled. Whatever the work raises, otherwise.
    """
    finished = Future()
    future.add_done_callback(lambda _: finished.set_result(None))
    await finished
    return future.result()


def _name_of(endpoint: TopicEndpointInfo) -> str:
    """Full name of the node that publishes or subscribes."""
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


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


def _disorder(stamp_ns: int, newest_ns: int) -> str:
    """What is wrong with the order of two stamps."""
    back = (newest_ns - stamp_ns) * 1e-9
    return f"An image whose stamp is not after the newest one ({back:.3f} s before it) is ignored."


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
    # Before torch is loaded. Its threads would otherwise spin while they wait for each other: beside one other busy
    # process on two cores an inference took 453 ms like that, and takes 236 (168 instead of 162 with both cores free).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    code = 0
    try:
        if node.get_parameter("autostart").value and not node.start():
            code = 0 if stop.is_set() else UsageError.exit_code
        else:
            _spin(node, stop)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
        # shutting down restores the default handlers; a second signal (launch sends one after 5 s) must not turn the
        # clean end into a kill while the interpreter unloads torch
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if node.is_loading_or_stuck:
        # a thread that the interpreter would break off in the middle of the networks, which aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _spin(node: CoopnetNode, stop: threading.Event) -> None:
    """Serve the node's callbacks until asked to stop."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with contextlib.suppress(ExternalShutdownException):
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)
    executor.shutdown(timeout_sec=0.0)  # whoever still waits for an answer gets none


if __name__ == "__main__":
    sys.exit(main())
