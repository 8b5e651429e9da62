"""What the facts of a recording mean for training: remarks with what to do, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coopnet_core.config import TrainConfig
from coopnet_core.data.bag import OTHER_SIZE
from coopnet_core.data.inspection_facts import BagInspection, CameraInspection, PictureFacts, TrainingFacts
from coopnet_core.data.prepare import DEFAULT_PIXELS

READY, BUT, UNUSABLE = "ready", "usable, but", "not usable"
"""The states of a verdict."""

_SMALL_SHARE, _LARGE_SHARE, _MOST = 0.05, 0.2, 0.5
_JUMPS_SHARE, _MANY_SHORT = 0.03, 0.1
_FEW_TARGETS = 200
"""20 s at 10 Hz. The weights of the README were trained on five times as many."""
_OFF_CENTRE = 0.2
"""Share of the size by which the principal point may be off the centre: K of an image half or twice as large is off by
at least 0.25, cameras are not."""
_ASPECT_ERROR = 0.05
_FIELDS_OF_VIEW = (15.0, 150.0)
_LONG_DELAY_MS = 1000.0
_SECONDS_PER_TARGET = {"scratch": 0.068, "checkpoint": 0.115}
"""Of the preset `cpu-small` at 416x128 on two cores of a server without GPU: a run of all stages, one with --init."""
_RUN_FOLDER_MB = 36.0
"""Weights twice, the state of the optimiser and the logs of such a run."""


@dataclass(frozen=True)
class Remark:
    """Something to know about a recording.

    Attributes:
        kind: a short name that does not change.
        serious: whether it costs training data or quality; else it is only said.
        text: what was seen, a clause without a full stop.
        advice: what to do, a sentence; "" where nothing need be done.
    """

    kind: str
    serious: bool
    text: str
    advice: str = ""

    @property
    def sentence(self) -> str:
        """What was seen and what to do."""
        return f"{self.text[:1].upper()}{self.text[1:]}. {self.advice}".rstrip()


@dataclass(frozen=True)
class Verdict:
    """Whether a recording can be trained on.

    Attributes:
        state: READY, BUT or UNUSABLE.
        text: in words, beginning with the state.
        remarks: everything to know, the serious ones first.
        options: what `train_from_bags` must be told to use it.
    """

    state: str
    text: str
    remarks: tuple[Remark, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it can be trained on, perhaps with the options."""
        return self.state != UNUSABLE


@dataclass(frozen=True)
class TrainingCost:
    """What a default run on several recordings takes.

    Attributes:
        targets: of all of them.
        steps, batch_size: of the preset.
        passes: over the targets.
        minutes_from_nothing, minutes_from_weights: without and with --init; estimated.
        frames_mb: of the prepared frames, kept in the cache on disk and mapped from there; in memory with --no-cache.
        disk_mb: of the run folder.
        how: how the times were estimated.
    """

    targets: int
    steps: int
    batch_size: int
    passes: float
    minutes_from_nothing: float
    minutes_from_weights: float
    frames_mb: float
    disk_mb: float
    how: str


def training_cost(config: TrainConfig, found: Sequence[TrainingFacts]) -> TrainingCost:
    """What a default run takes on recordings that are trained on together.

    Args:
        config: of the preset `cpu-small`.
        found: of each of them.
    """
    targets = sum(facts.targets for facts in found)
    pixels = max((facts.width * facts.height for facts in found), default=0) or DEFAULT_PIXELS
    seen = config.steps * config.batch_size
    minutes = {name: seen * seconds * pixels / DEFAULT_PIXELS / 60 for name, seconds in _SECONDS_PER_TARGET.items()}
    return TrainingCost(
        targets,
        config.steps,
        config.batch_size,
        seen / targets if targets else 0.0,
        minutes["scratch"],
        minutes["checkpoint"],
        sum(facts.frames_mb for facts in found),
        _RUN_FOLDER_MB,
        f"{config.steps} steps of {config.batch_size} targets, each {_SECONDS_PER_TARGET['scratch']:g} s "
        f"({_SECONDS_PER_TARGET['checkpoint']:g} s with --init) as measured on 2 CPU cores at 416x128, in proportion "
        "to the pixels of the input; a GPU is faster",
    )


def judge_bag(bag: BagInspection, fov_given: bool) -> Verdict:
    """The verdict on a recording: that of its camera, or of the best of several.

    Args:
        bag: what was found.
        fov_given: whether the user names a field of view, learns it or gives a calibration, so that none need have been
            recorded.
    """
    if not bag.cameras:
        return Verdict(UNUSABLE, f"{UNUSABLE}: {bag.problem}")
    verdicts = [judge_camera(camera, fov_given) for camera in bag.cameras]
    if len(verdicts) == 1:
        return _with_lost_parts(verdicts[0], bag)
    if bag.best is None:
        return Verdict(UNUSABLE, f"{UNUSABLE}: none of its {len(verdicts)} cameras is, see each")
    best, topic = bag.cameras.index(bag.best), bag.best.topic
    choice = Remark(
        "several cameras",
        True,
        f"{len(verdicts)} topics may be the camera: {', '.join(camera.topic for camera in bag.cameras)}",
        f"Choose one, such as --topic {topic}, which has the most targets.",
    )
    remarks = (choice, *verdicts[best].remarks)
    found = Verdict(BUT, "", remarks, ("--topic", topic, *verdicts[best].options))
    return _with_lost_parts(found, bag)


def judge_camera(camera: CameraInspection, fov_given: bool) -> Verdict:
    """The verdict on one camera; arguments as of `judge_bag`."""
    remarks = tuple(sorted(_remarks(camera, fov_given), key=lambda remark: not remark.serious))
    if not camera.usable:
        return Verdict(UNUSABLE, f"{UNUSABLE}: {camera.problem}", remarks)
    learn = ("--learn-intrinsics",) if camera.calibration.assumed and not fov_given else ()
    return _worded(remarks, learn)


def _with_lost_parts(verdict: Verdict, bag: BagInspection) -> Verdict:
    """The verdict on a bag: what cannot be read of its files comes to the remarks."""
    lost = tuple(
        Remark("damaged file", True, text.rstrip("."), "Copy the file again, or try 'ros2 bag reindex'.")
        for text in bag.unread
    )
    if not verdict.usable:
        return Verdict(verdict.state, verdict.text, (*lost, *verdict.remarks), verdict.options)
    return _worded((*lost, *verdict.remarks), verdict.options)


def _worded(remarks: tuple[Remark, ...], options: tuple[str, ...]) -> Verdict:
    """The verdict on what is usable."""
    serious = [remark.text for remark in remarks if remark.serious]
    if not serious:
        return Verdict(READY, READY, remarks, options)
    return Verdict(BUT, f"{BUT} {'; '.join(serious)}", remarks, options)


def _remarks(camera: CameraInspection, fov_given: bool) -> Iterator[Remark]:
    """Everything to know about a camera."""
    yield from _of_calibration(camera, fov_given)
    yield from _of_messages(camera)
    yield from _of_stamps(camera)
    yield from _of_pictures(camera.pictures, camera.stamps.rate_hz)
    yield from _of_clips(camera.training)


def _of_calibration(camera: CameraInspection, fov_given: bool) -> Iterator[Remark]:
    facts = camera.calibration
    if facts.assumed and not fov_given:
        found = f"{facts.topic} says K[0] = 0" if facts.state == "uncalibrated" else "there is no CameraInfo"
        yield Remark(
            "not calibrated",
            True,
            f"the camera is not calibrated ({found})",
            "Calibrate it (camera_calibration) and record camera_info with the images; for this recording pass "
            "--calibration FILE, or --fov DEGREES if you know its horizontal field of view, or --learn-intrinsics.",
        )
    if facts.rectified and any(facts.d):
        yield Remark("rectified", False, "the images are rectified by their name, so CameraInfo.p is used and d is not")
    if not facts.used or facts.assumed:
        return
    width, height, fx, fy, cx, cy = facts.used
    off = max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5))
    if off > _OFF_CENTRE:
        yield Remark(
            "principal point",
            True,
            f"K looks made for another image size: its centre ({cx:.0f}, {cy:.0f}) is {100 * off:.0f} % of the size "
            f"off the middle of the {width:.0f}x{height:.0f} images",
            "Check that CameraInfo has the width, height and K of these images (resizing needs K scaled too).",
        )
    if abs(fx / fy - 1) > _ASPECT_ERROR:
        yield Remark(
            "focal lengths",
            True,
            f"the focal lengths differ by {100 * abs(fx / fy - 1):.0f} % (fx {fx:.0f}, fy {fy:.0f})",
            "Pixels are square in nearly all cameras: calibrate again, or check how the images were resized.",
        )
    if facts.fov_degrees is not None and not _FIELDS_OF_VIEW[0] < facts.fov_degrees < _FIELDS_OF_VIEW[1]:
        yield Remark(
            "field of view",
            True,
            f"K says a horizontal field of view of {facts.fov_degrees:.0f} degrees",
            f"Between {_FIELDS_OF_VIEW[0]:g} and {_FIELDS_OF_VIEW[1]:g} was expected of a pinhole camera: check K.",
        )


def _of_messages(camera: CameraInspection) -> Iterator[Remark]:
    looked_at = max(1, camera.pictures.looked_at + sum(camera.unusable.values()))
    for reason, count in sorted(camera.unusable.items(), key=lambda item: -item[1]):
        advice = "They are left out."
        if reason == OTHER_SIZE:
            advice = "Record the CameraInfo that belongs to these images, or name its topic with --camera-info."
        first = _clause(camera.examples[reason])
        yield Remark(
            f"unusable: {reason}",
            count / looked_at >= _SMALL_SHARE,
            f"{count} of the {looked_at} images looked at give no frame: {reason} (first: {first})",
            advice,
        )


def _of_stamps(camera: CameraInspection) -> Iterator[Remark]:
    facts, images = camera.stamps, max(1, camera.pictures.images)
    if facts.recording_times:
        yield Remark(
            "zero stamps",
            True,
            "all header stamps are zero, so that the times of recording are used",
            "Let the driver set header.stamp to the time of exposure.",
        )
    if facts.jumps_back:
        yield Remark(
            "jumps back",
            facts.jumps_back / images >= _SMALL_SHARE,
            f"the stamps jump back {facts.jumps_back} times",
            "Jumps of more than a second begin a new clip, others cost an image: check that one driver publishes here.",
        )
    if facts.repeated:
        yield Remark(
            "repeated stamps",
            facts.repeated / images >= _SMALL_SHARE,
            f"{facts.repeated} images have the stamp of the one before",
            "They are left out: check for a driver or converter that repeats images.",
        )
    if facts.missing:
        yield Remark(
            "missing images",
            facts.missing / images >= _SMALL_SHARE,
            f"{facts.missing} images are missing between others, a step there is twice as long",
            "Record to a faster disk, or compressed images; see that nothing is dropped (reliable QoS, larger queue).",
        )
    if facts.delay_ms is not None and abs(facts.delay_ms) > _LONG_DELAY_MS:
        yield Remark(
            "clock",
            False,
            f"header stamps lie {facts.delay_ms / 1000:.1f} s before the time of recording",
            "This does no harm to the training; for use with other sensors the clocks must agree.",
        )


def _of_pictures(facts: PictureFacts, rate_hz: float) -> Iterator[Remark]:
    if facts.too_fast_share >= _SMALL_SHARE:
        matched = f", {100 * facts.matched:.0f} % of the pixels are matched in the median" if facts.matched else ""
        yield Remark(
            "too fast",
            facts.too_fast_share >= _LARGE_SHARE,
            f"{_percent(facts.too_fast_share)} of the neighbouring images are too far apart to be matched "
            f"({rate_hz:.1f} Hz{matched})",
            "Record at a higher rate (twice or more) or drive more slowly, with a short exposure against blur."
            + _part(facts),
        )
    if facts.exposure_jump_share >= _JUMPS_SHARE:
        yield Remark(
            "exposure jumps",
            True,
            f"the brightness jumps between {_percent(facts.exposure_jump_share)} of the neighbouring images",
            "Fix exposure, gain and white balance, or let them change slowly." + _part(facts),
        )
    for kind, share, what in (
        ("dark", facts.dark_share, "dark"),
        ("bright", facts.bright_share, "overexposed"),
    ):
        if share >= _SMALL_SHARE:
            yield Remark(
                kind,
                share >= _LARGE_SHARE,
                f"{_percent(share)} of the images are {what}",
                "Record in better light, or with a longer exposure." + _part(facts)
                if kind == "dark"
                else "Record with a shorter exposure." + _part(facts),
            )
    if facts.still_share >= _SMALL_SHARE:
        yield Remark(
            "still",
            facts.still_share >= _MOST,
            f"the camera stands still in {_percent(facts.still_share)} of the images",
            "They are dropped, which does no harm; record while the camera moves." + _moving_part(facts),
        )


def _of_clips(facts: TrainingFacts) -> Iterator[Remark]:
    kept = facts.usable - facts.still
    if facts.gaps:
        yield Remark("gaps", False, f"{facts.gaps} pauses or jumps of the clock, at each of which a clip ends")
    if facts.changes:
        yield Remark("changes", False, f"size or calibration changes {facts.changes} times, a clip ends at each")
    if facts.train_clips and facts.short / max(1, kept) >= _MANY_SHORT:
        yield Remark(
            "short clips",
            True,
            f"{facts.short} of {kept} images are lost in clips too short for a triplet",
            "Record without pauses, or loosen --gap-factor.",
        )
    if not facts.train_clips and not facts.validation_clips and kept < _FEW_TARGETS:
        yield Remark("few images", True, f"it has only {kept} images in which something moves", "Record longer.")
    if 0 < facts.targets < _FEW_TARGETS:
        yield Remark(
            "few targets",
            True,
            f"it has only {facts.targets} targets (images with both neighbours)",
            f"Record longer ({_FEW_TARGETS} targets are 20 s at 10 Hz), give several recordings, and start from "
            "weights (--init).",
        )
    if facts.train_clips and not facts.validation_clips:
        yield Remark(
            "no validation", False, "nothing is left for validation", "Record longer, or give a --validation-bag."
        )


def _part(facts: PictureFacts) -> str:
    """The advice to use a good part, where there is a long one."""
    if facts.best is None or facts.best[1] - facts.best[0] < max(_FEW_TARGETS // 2, 0.2 * facts.images):
        return ""
    return f" The longest good part: --frames {facts.best[0]}:{facts.best[1]}."


def _moving_part(facts: PictureFacts) -> str:
    """Where to cut off standing at the start and the end."""
    if facts.moving is None or facts.moving[1] - facts.moving[0] > (1 - _SMALL_SHARE) * facts.images:
        return ""
    return f" It moves in --frames {facts.moving[0]}:{facts.moving[1]}, the rest need not be read."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _clause(text: str) -> str:
    """The first sentence of an example, without its full stop."""
    return text.split(". ")[0].rstrip(".")
