"""What was found in a recording: values only, made by `inspection`, judged by `inspection_advice`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coopnet_core.data.clips import PrepareOptions
from coopnet_core.data.prepare import DEFAULT_PIXELS

STILL, TOO_FAST, DARK, BRIGHT, EXPOSURE = "still", "too fast", "dark", "bright", "exposure jump"
MARKS = (STILL, TOO_FAST, EXPOSURE, DARK, BRIGHT)
"""What an image can be marked as."""

MATCHED_ENOUGH = 1 / 3
"""Share of the pixels that the matches of `cotraining.matches` find there and back, below which two neighbours are too
far apart. Measured on six real recordings of driving (10 Hz, 137 pairs): never below 0.50 at the recorded rate. The
medians of the recordings: 0.66-0.90 at this rate, 0.53-0.81 with every second image, 0.41-0.72 with every third,
0.30-0.66 with every fourth, 0.14-0.45 with every eighth. Textures that have nothing to do with each other reach 0.27.
The length of the flow is no such measure: the more there is that cannot be matched, the less it says, and its median
stays within 0.4-6 % of the width."""

BRIGHTNESS_JUMP = 0.15
"""Relative change of the mean brightness between neighbours. In ten real recordings (3286 images) 15 are above 0.1."""

DARKEST, BRIGHTEST = 25.0, 230.0
"""Mean grey levels beyond which little can be seen. The same recordings lie between 48 and 155."""


@dataclass(frozen=True)
class InspectionOptions:
    """How to look.

    Attributes:
        prepare: what the training would take; `fov_degrees` None here means `assumed_fov` and a remark.
        offsets: sources of a target, in frames.
        pixels: wished area of the networks' input where no size is given.
        assumed_fov: horizontal field of view, degrees, to go on with where there is no calibration.
        sample: images to decode, of each camera; None: up to 1000, fewer where they are large.
        pairs: neighbours to match, of each camera: this costs ten times what the rest does.
        everything: decode every image and match every pair.
        pictures: whether small pictures are kept for a contact sheet.
    """

    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    offsets: tuple[int, ...] = (-1, 1)
    pixels: int = DEFAULT_PIXELS
    assumed_fov: float = 70.0
    sample: int | None = None
    pairs: int = 150
    everything: bool = False
    pictures: bool = False


@dataclass(frozen=True)
class TopicFacts:
    """A recorded topic.

    Attributes:
        name, type, count: as recorded.
        rate_hz: of a camera that was gone through from the median of its periods, of others about, from the number of
            messages and the length of the recording; None where that is not known.
        role: "camera", "calibration", "image" (not used) or "other".
        width, height: of the first image, pixels; 0 where it cannot be read.
        encoding: or format, of the first image.
        frame_id: of the first image or CameraInfo.
        problem: why the first image cannot be read; "" where it can.
    """

    name: str
    type: str
    count: int
    rate_hz: float | None = None
    role: str = "other"
    width: int = 0
    height: int = 0
    encoding: str = ""
    frame_id: str = ""
    problem: str = ""


@dataclass(frozen=True)
class CalibrationFacts:
    """What is known of a camera.

    Attributes:
        topic: its CameraInfo; None where there is none.
        state: "calibrated", "uncalibrated" (K[0] = 0), "missing" (no CameraInfo, or none that can be read).
        width, height: as CameraInfo says, pixels.
        k, d, p: as CameraInfo says (9, any number, 12).
        distortion_model: as CameraInfo says.
        frame_id: as CameraInfo says.
        rectified: whether the name of the image topic says that distortion is undone (then p holds, not k and d).
        used: width, height, fx, fy, cx, cy of the images as the training takes them, pixels; empty where unknown.
        fov_degrees: their horizontal field of view; None where unknown.
        assumed: whether they are a guess for want of a calibration.
    """

    topic: str | None
    state: str
    width: int = 0
    height: int = 0
    k: tuple[float, ...] = ()
    d: tuple[float, ...] = ()
    p: tuple[float, ...] = ()
    distortion_model: str = ""
    frame_id: str = ""
    rectified: bool = False
    used: tuple[float, ...] = ()
    fov_degrees: float | None = None
    assumed: bool = False


@dataclass(frozen=True)
class StampFacts:
    """The times of the images of a camera.

    Attributes:
        rate_hz: from the median period.
        duration_s: from the first to the last, without jumps back.
        period_ms: the median.
        jitter_ms: 95 % of the periods differ less from the median (gaps and missing images left out).
        gaps: pauses at which the training ends a clip.
        longest_pause_s: the longest step from one image to the next.
        missing: images that are missing in pauses too short for a gap.
        jumps_back: stamps before the one that was recorded before them.
        repeated: stamps equal to it.
        zero: stamps of zero.
        recording_times: whether all are zero, so that the times of recording are used.
        delay_ms: median of recording time minus header stamp; None where there are no stamps.
        delay_spread_ms: from its 5th to its 95th percentile.
    """

    rate_hz: float = 0.0
    duration_s: float = 0.0
    period_ms: float = 0.0
    jitter_ms: float = 0.0
    gaps: int = 0
    longest_pause_s: float = 0.0
    missing: int = 0
    jumps_back: int = 0
    repeated: int = 0
    zero: int = 0
    recording_times: bool = False
    delay_ms: float | None = None
    delay_spread_ms: float | None = None


@dataclass(frozen=True)
class PictureFacts:
    """What the images show. Shares are of the images or pairs that were looked at.

    Attributes:
        images: gone through.
        looked_at: decoded.
        pairs: neighbours that were matched.
        still_share: of the images, dropped as the training drops them.
        too_fast_share: of the pairs, see MATCHED_ENOUGH.
        exposure_jump_share: of the neighbours, see BRIGHTNESS_JUMP.
        dark_share, bright_share: of the images, see DARKEST and BRIGHTEST.
        brightness: mean grey level, 0-255.
        motion: median over the pairs of the median length of the flow where it is matched, as a share of the width;
            None without a pair.
        matched: median over the pairs of the share of matched pixels; None without a pair.
        marked: for each of MARKS (with _ for blanks) the images looked at that have it, as ranges [first, last + 1] of
            their numbers.
        best: the longest stretch without a mark other than "still", as such a range; None where there is no mark.
        moving: the images between standing at the start and at the end, as such a range; None where nothing moves.
    """

    images: int = 0
    looked_at: int = 0
    pairs: int = 0
    still_share: float = 0.0
    too_fast_share: float = 0.0
    exposure_jump_share: float = 0.0
    dark_share: float = 0.0
    bright_share: float = 0.0
    brightness: float = 0.0
    motion: float | None = None
    matched: float | None = None
    marked: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    best: tuple[int, int] | None = None
    moving: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """What the training would make of it.

    Attributes:
        exact: whether every image was looked at; else `still` and what follows from it is estimated.
        width, height: of the networks' input, pixels; 0 where there is no frame.
        usable, still, short: images that are frames; that are dropped because nothing moved; in clips too short.
        gaps, changes: clip boundaries at pauses and jumps of the clock; at a change of size or calibration.
        train_clips, validation_clips: clips.
        train_images, validation_images: images in them.
        targets: training images that have all their neighbours (triplets).
        frames_mb: of the prepared images, kept in the cache on disk and mapped from there; in memory with --no-cache.
    """

    exact: bool = True
    width: int = 0
    height: int = 0
    usable: int = 0
    still: int = 0
    short: int = 0
    gaps: int = 0
    changes: int = 0
    train_clips: int = 0
    validation_clips: int = 0
    train_images: int = 0
    validation_images: int = 0
    targets: int = 0
    frames_mb: float = 0.0


@dataclass(frozen=True)
class CameraInspection:
    """One camera of a bag.

    Attributes:
        topic: of the images.
        why: why this topic and this CameraInfo.
        calibration, stamps, pictures, training: what was found.
        unusable: images looked at that give no frame, by reason.
        examples: the first of each reason, in words.
        notes: how the training settled pairing, stamps and size.
        problem: why it cannot be trained on; "" where it can.
    """

    topic: str
    why: str
    calibration: CalibrationFacts
    stamps: StampFacts = StampFacts()
    pictures: PictureFacts = PictureFacts()
    training: TrainingFacts = TrainingFacts()
    unusable: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def usable(self) -> bool:
        """Whether the training would find a clip in it."""
        return not self.problem


@dataclass(frozen=True)
class BagInspection:
    """One recording.

    Attributes:
        path: as given.
        topics: by name.
        cameras: all that may be the camera; the training wants one of several chosen.
        unread: what of the files cannot be read.
        problem: why there is no camera to look at; "" where there is.
        wrong_path: whether there is no recording at all at this path.
    """

    path: str
    topics: tuple[TopicFacts, ...] = ()
    cameras: tuple[CameraInspection, ...] = ()
    unread: tuple[str, ...] = ()
    problem: str = ""
    wrong_path: bool = False

    @property
    def best(self) -> CameraInspection | None:
        """The usable camera with the most targets."""
        usable = [camera for camera in self.cameras if camera.usable]
        return max(usable, key=lambda camera: camera.training.targets, default=None)


@dataclass(frozen=True)
class Look:
    """One image that was looked at.

    Attributes:
        index: its number among the images of its topic.
        seconds: since the first image.
        marks: of MARKS.
        picture: (H, W, 3) uint8 RGB, small, as the networks see it; None where it was not kept.
    """

    index: int
    seconds: float
    marks: tuple[str, ...]
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Looks:
    """What a contact sheet is drawn from.

    Attributes:
        topic: of the images.
        images: gone through.
        looks: those that were looked at, in recorded order.
        cuts: numbers of the images that begin a clip after a gap or a change.
    """

    topic: str
    images: int
    looks: tuple[Look, ...]
    cuts: tuple[int, ...] = ()
