"""What every recording offers, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coopnet_core.data.frames import Frame
from coopnet_core.data.image_files import absolute
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.decoding import Decoding

FRAME_ID = "camera_optical_frame"
"""Frame of the images of sources that name none."""
CLOCK_JUMP_NS = 1_000_000_000
"""A stamp that goes back by less is out of order, by more a second recording (as in bags)."""

UNREADABLE = "the file is no readable image"
OUT_OF_ORDER, OTHER_SIZE, ABSENT = "stamp not increasing", "the calibration is for another size", "file missing"
"""Reasons why an image gives no frame, as they are counted and shown."""


@dataclass(frozen=True)
class SourceOptions:
    """How to read recordings.

    Attributes:
        topics: image topics to choose from; for each bag the first that it has; empty: found automatically.
        info: CameraInfo topic; None: found beside the image topic.
        calibration: a file with the intrinsics of the recordings that carry none.
        fov_degrees: horizontal field of view to assume where there is no calibration at all.
        frames: first image and the one to stop before, counted in each recording.
    """

    topics: tuple[str, ...] = ()
    info: str | None = None
    calibration: Path | None = None
    fov_degrees: float | None = None
    frames: tuple[int, int | None] = (0, None)

    def selected(self, count: int) -> int:
        """How many of `count` images `frames` leaves."""
        first, stop = self.frames
        return max(0, (count if stop is None else min(count, stop)) - first)


class Source(Protocol):
    """A recording, open for one pass over its frames. Only the frame at hand is held, never the recording.

    Attributes:
        name: short, for tables and clips.
        label: kind and path, for the beginning of a sentence.
        kind: the format in a few words.
        camera: which images of the recording: a topic, a folder, a stream.
        why: what was recognised and chosen, and by what, for people.
        uncalibrated: why frames may come without a camera, and what to do; a whole message.
        count: images announced, before `SourceOptions.frames`; some of them may turn out unusable.
        report: filled while reading; its notes say how stamps and cameras were settled.
        decoding: decodes the images; whoever goes on with an earlier pass replaces it before reading.
    """

    name: str
    label: str
    kind: str
    camera: str
    why: str
    uncalibrated: str
    count: int
    report: ReadReport
    decoding: Decoding

    def frames(self) -> Iterator[Frame]:
        """The usable frames in order, those that cannot be used counted in the report.

        Frames of different `Frame.sequence` are no neighbours; within one, stamps increase, except where a clock
        jumped back. Their camera is None where nothing is known of it.

        Raises:
            UsageError: a calibration or a file of stamps that cannot be right; names the file.
        """
        ...

    def identity(self) -> list[str]:
        """All that decides the frames besides the options and this package, nothing decoded: see `describe_file`."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


def describe_file(path: Path) -> str:
    """A file by its place, size and time of change: another text where it is another file."""
    found = path.stat() if path.exists() else None
    return f"{absolute(path)} {(found.st_size, found.st_mtime_ns) if found else 'missing'}"


def uncalibrated(label: str, camera: str, found: str) -> str:
    """The message for a camera without intrinsics.

    Args:
        label: `Source.label`.
        camera: `Source.camera`.
        found: what is there instead, and what was expected.
    """
    return (
        f"{label}: the camera of {camera} is not calibrated ({found}). Calibrate it (camera_calibration) and pass the "
        "file with --calibration, or pass --fov DEGREES to assume a centred pinhole of that horizontal field of view, "
        "or --learn-intrinsics."
    )


def describe_nothing_usable(label: str, camera: str, count: int, report: ReadReport, options: SourceOptions) -> str:
    """The message for a source whose images all had to be skipped.

    Args:
        label, camera, count: as in `Source`.
        report: after reading.
        options: that it was read with.
    """
    lost = "".join(f" {problem}." for problem in report.unread)
    if not report.messages:
        chosen = f"--frames {options.frames[0]}:{'' if options.frames[1] is None else options.frames[1]}"
        return f"{label}: {chosen} selects none of the {count} images of {camera}.{lost}"
    reasons = "; ".join(
        f"{count} x {reason} (first: {report.examples[reason]})" for reason, count in report.skipped.most_common()
    )
    return f"{label}: none of the {report.messages} images of {camera} can be used: {reasons}.{lost}"
