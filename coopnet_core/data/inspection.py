"""What a recording holds for training: all that the training would find, and what it does not look for.

The frames are read, fitted, dropped and cut by the code that prepares them for training (`bag`, `clips`), so that what
is counted here is what is trained on there. What the facts mean is said in `inspection_advice`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coopnet_core.data.bag import (
    CAMERA_INFO_TYPE,
    COMPRESSED_TYPE,
    Bag,
    BrokenMessageError,
    CameraTopics,
    RecordedImage,
    TopicInfo,
    decode_message,
    deserialize,
    open_bag,
    read_images,
)
from coopnet_core.data.bag_camera import camera_choices, image_topics
from coopnet_core.data.clips import (
    Cuts,
    PrepareOptions,
    count_targets,
    cut,
    no_clip,
    tempo,
)
from coopnet_core.data.inspection_facts import (
    BagInspection,
    CalibrationFacts,
    CameraInspection,
    InspectionOptions,
    Looks,
    StampFacts,
    TopicFacts,
    TrainingFacts,
)
from coopnet_core.data.inspection_watch import Watch, median, plan_looks
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.bags import choose_topics, expected_images, nothing_usable
from coopnet_core.data.sources.cameras import CameraChooser
from coopnet_core.errors import CoopnetError, UsageError
from coopnet_core.geometry.camera import Camera

_SAMPLED_IMAGES, _SAMPLED_PIXELS, _FEWEST_IMAGES = 1000, 600_000_000, 100
_LATE = 1.5

Progress = Callable[[Path, int, int], None]
"""Called while reading with the bag, the images gone through and their number."""


def inspect_bag(
    path: Path,
    size: tuple[int, int] | None = None,
    options: InspectionOptions | None = None,
    progress: Progress | None = None,
) -> tuple[BagInspection, list[Looks], tuple[int, int] | None]:
    """Look into a recording.

    Args:
        path: bag folder, .mcap or .db3 file.
        size: (width, height) of the networks' input; None: chosen from the first camera, as for training.
        options: how to look.
        progress: called after each image.

    Returns:
        What was found, the images for a contact sheet (one entry for each camera), and the size to go on with for the
        next bag. Bags and calibrations that cannot be used are no error here: the result says why.
    """
    options = options or InspectionOptions()
    try:
        bag = open_bag(path)
    except CoopnetError as error:
        wrong = isinstance(error, UsageError)
        return BagInspection(str(path), problem=_without_path(str(error), path), wrong_path=wrong), [], size
    with bag:
        try:
            choices = _choices(bag, options.prepare)
        except CoopnetError as error:
            problem = _without_path(str(error), path)
            return BagInspection(str(path), _topic_facts(bag, [], []), (), tuple(bag.problems), problem), [], size
        seen = [_inspect_camera(bag, topics, size, options, progress) for topics in choices]
        cameras = tuple(camera for camera, _, _ in seen)
        found = BagInspection(str(path), _topic_facts(bag, choices, cameras), cameras, tuple(bag.problems))
        # As in training, the first camera decides on the size of all: of several, the one that will be chosen.
        sizes = {camera.topic: chosen for camera, _, chosen in seen}
        size = sizes[found.best.topic] if found.best is not None else size or next(iter(sizes.values()))
        return found, [looks for _, looks, _ in seen], size


def _choices(bag: Bag, options: PrepareOptions) -> list[CameraTopics]:
    """The camera that the options choose, or all that may be meant.

    Raises:
        UsageError, NoUsableDataError: as for training.
    """
    return [choose_topics(bag, options)] if options.topics else camera_choices(bag, options.info)


def _topic_facts(
    bag: Bag, choices: Sequence[CameraTopics], cameras: Sequence[CameraInspection]
) -> tuple[TopicFacts, ...]:
    """All topics; the images among them with what their first message says."""
    seconds = max((camera.stamps.duration_s for camera in cameras), default=0.0)
    rates = {camera.topic: camera.stamps.rate_hz for camera in cameras if camera.stamps.rate_hz}
    used = {topics.image for topics in choices}
    infos = {topics.info for topics in choices}
    images = {info.name for info in image_topics(bag)}
    frames = {camera.calibration.topic: camera.calibration.frame_id for camera in cameras}
    facts = []
    for info in sorted(bag.topics.values(), key=lambda info: info.name):
        about = (info.count - 1) / seconds if seconds and info.count > 1 else None
        fact = TopicFacts(info.name, info.msgtype, info.count, rates.get(info.name, about))
        if info.name in images:
            fact = _with_first_image(bag, info, replace(fact, role="camera" if info.name in used else "image"))
        elif info.name in infos:
            fact = replace(fact, role="calibration", frame_id=frames.get(info.name, ""))
        facts.append(fact)
    return tuple(facts)


def _with_first_image(bag: Bag, info: TopicInfo, fact: TopicFacts) -> TopicFacts:
    """Size, encoding and frame of the first image of a topic."""
    first = next(bag.messages({info.name}), None)
    if first is None:
        return replace(fact, problem="no message of it can be read")
    try:
        message = deserialize(info.msgtype, first.data)
    except BrokenMessageError as error:
        return replace(fact, problem=str(error))
    frame_id = str(message.header.frame_id)
    if info.msgtype != COMPRESSED_TYPE:
        fact = replace(fact, width=int(message.width), height=int(message.height), encoding=str(message.encoding))
    else:
        fact = replace(fact, encoding=str(message.format))
    fact = replace(fact, frame_id=frame_id)
    try:
        height, width = decode_message(first.data, info.msgtype)[0].shape[:2]
    except CoopnetError as error:
        return replace(fact, problem=str(error))
    return replace(fact, width=width, height=height)


def _inspect_camera(
    bag: Bag,
    topics: CameraTopics,
    size: tuple[int, int] | None,
    options: InspectionOptions,
    progress: Progress | None,
) -> tuple[CameraInspection, Looks, tuple[int, int] | None]:
    """One pass over the images of a camera."""
    prepare = options.prepare
    expected = expected_images(bag, topics, prepare)
    plan = plan_looks(prepare.frames[0], expected, _wished_images(bag, topics, options))
    report = ReadReport()
    watch = Watch(size, plan, options)
    problem = ""
    fov_degrees = options.assumed_fov if prepare.fov_degrees is None else prepare.fov_degrees
    try:
        stand_in = CameraChooser(replace(prepare, fov_degrees=fov_degrees), report)
        for image in read_images(bag, topics, report, None, prepare.frames, plan.wants):
            watch.add(_with_camera(image, stand_in))
            if progress is not None:
                progress(bag.path, report.messages, expected)
    except UsageError as error:  # a calibration that cannot be used
        problem = str(error)
    cuts = cut(watch.timeline_with_kept(), bag.path, prepare)
    if not problem and not watch.timeline.met_ns:
        problem = nothing_usable(bag, topics, report, prepare)
    elif not problem and not (cuts.train or cuts.validation):
        problem = no_clip(bag.path, watch.timeline, cuts, prepare)
    looks = watch.looks(cuts)
    camera = CameraInspection(
        topics.image,
        topics.why,
        _calibration_facts(bag, topics, watch.camera),
        stamp_facts(watch.header_ns, watch.bag_ns, prepare.gap_factor),
        watch.picture_facts(looks),
        _training_facts(watch, cuts, options),
        dict(report.skipped),
        dict(report.examples),
        tuple(report.notes),
        _without_path(problem, bag.path),
    )
    return camera, Looks(topics.image, len(watch.header_ns), looks, watch.cut_images(cuts)), watch.size


def _without_path(text: str, path: Path) -> str:
    """A message without the name of the bag, which is said above it."""
    return text.removeprefix("Bag ").removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _with_camera(image: RecordedImage, stand_in: CameraChooser) -> RecordedImage:
    """The image with another camera where it has none of its own."""
    if image.frame is None or image.frame.camera is not None:
        return image
    height, width = image.frame.image.shape[:2]
    return replace(image, frame=replace(image.frame, camera=stand_in.camera(None, width, height)))


def _wished_images(bag: Bag, topics: CameraTopics, options: InspectionOptions) -> int:
    """How many images to decode: the cost of an image grows with its pixels."""
    if options.everything:
        return bag.topics[topics.image].count
    if options.sample is not None:
        return options.sample
    fact = _with_first_image(bag, bag.topics[topics.image], TopicFacts("", "", 0))
    pixels = max(1, fact.width * fact.height)
    return max(_FEWEST_IMAGES, min(_SAMPLED_IMAGES, _SAMPLED_PIXELS // pixels))


def stamp_facts(header_ns: Sequence[int | None], bag_ns: Sequence[int], gap_factor: float) -> StampFacts:
    """What the stamps of a camera say.

    Args:
        header_ns: of all its images in recorded order, nanoseconds; 0 where it is not set, None where it is broken.
        bag_ns: when they were recorded, nanoseconds.
        gap_factor: a pause longer than this many median periods is a gap.
    """
    stamped = [(stamp, recorded) for stamp, recorded in zip(header_ns, bag_ns, strict=True) if stamp]
    recording_times = bool(bag_ns) and not stamped
    times = np.array([stamp for stamp, _ in stamped] if stamped else list(bag_ns), np.int64)
    steps = np.diff(times) / 1e6
    forward = steps[steps > 0]
    period = float(np.median(forward)) if len(forward) else 0.0
    regular = forward[forward <= _LATE * period]
    late = forward[(forward > _LATE * period) & (forward <= gap_factor * period)]
    delays = np.array([recorded - stamp for stamp, recorded in stamped], np.float64) / 1e6
    rate_hz, duration_s = tempo(times.tolist())
    return StampFacts(
        rate_hz=rate_hz,
        duration_s=duration_s,
        period_ms=period,
        jitter_ms=float(np.percentile(np.abs(regular - period), 95)) if len(regular) else 0.0,
        gaps=int((forward > gap_factor * period).sum()),
        longest_pause_s=float(forward.max()) / 1e3 if len(forward) else 0.0,
        missing=int((np.rint(late / period) - 1).sum()) if len(late) else 0,
        jumps_back=int((steps < 0).sum()),
        repeated=int((steps == 0).sum()),
        zero=sum(stamp == 0 for stamp in header_ns),
        recording_times=recording_times,
        delay_ms=median(delays),
        delay_spread_ms=float(np.ptp(np.percentile(delays, [5, 95]))) if len(delays) else None,
    )


def _calibration_facts(bag: Bag, topics: CameraTopics, camera: Camera | None) -> CalibrationFacts:
    """The first CameraInfo that can be read, and the camera as the training takes it."""
    message = _first_info(bag, topics.info)
    facts = CalibrationFacts(topics.info, "missing", rectified=topics.rectified)
    if message is not None:
        facts = replace(
            facts,
            state="calibrated" if float(message.k[0]) else "uncalibrated",
            width=int(message.width),
            height=int(message.height),
            k=tuple(map(float, message.k)),
            d=tuple(map(float, message.d)),
            p=tuple(map(float, message.p)),
            distortion_model=str(message.distortion_model),
            frame_id=str(message.header.frame_id),
        )
    if camera is None:
        return facts
    return replace(
        facts,
        used=(camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy),
        fov_degrees=float(np.degrees(2 * np.arctan(camera.width / (2 * camera.fx)))),
        assumed=camera.assumed,
    )


def _first_info(bag: Bag, topic: str | None) -> Any | None:
    """The first CameraInfo of a topic that can be read."""
    for message in bag.messages({topic}) if topic else ():
        try:
            return deserialize(CAMERA_INFO_TYPE, message.data)
        except BrokenMessageError:
            continue
    return None


def _training_facts(watch: Watch, cuts: Cuts, options: InspectionOptions) -> TrainingFacts:
    """The counts of `train_from_bags`."""
    timeline, (width, height) = watch.timeline, watch.size or (0, 0)
    train, validation = ([stop - start for start, stop in pieces] for pieces in (cuts.train, cuts.validation))
    return TrainingFacts(
        exact=watch.plan.complete,
        width=width,
        height=height,
        usable=len(timeline.met_ns),
        still=len(timeline.met_ns) - len(timeline.kept),
        short=cuts.short,
        gaps=len(cuts.gaps),
        changes=len(timeline.changes),
        train_clips=len(train),
        validation_clips=len(validation),
        train_images=sum(train),
        validation_images=sum(validation),
        targets=count_targets(train, options.offsets),
        frames_mb=(sum(train) + sum(validation)) * width * height * 3 / 1e6,
    )
