"""Recordings that are image files: one pass over them, whatever layout they come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from coopnet_core.data.calibration import Calibration
from coopnet_core.data.encodings import MalformedImageError, decode_picture
from coopnet_core.data.frames import Frame
from coopnet_core.data.image_files import absolute
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.cameras import FrameMaker
from coopnet_core.data.sources.decoding import Decoding
from coopnet_core.data.sources.interface import ABSENT, UNREADABLE, SourceOptions, describe_file, uncalibrated
from coopnet_core.errors import NoUsableDataError


@dataclass(frozen=True)
class ImageSequence:
    """Images that follow one another.

    Attributes:
        name: unique in its recording.
        files: in order.
        stamps_ns: (N,) int64.
        calibration: of all of them; None: not known.
    """

    name: str
    files: tuple[Path, ...]
    stamps_ns: np.ndarray
    calibration: Calibration | None


@dataclass(frozen=True)
class ImageLayout:
    """What a layout module found at a path.

    Attributes:
        kind: the layout in a few words.
        camera: which images, for tables.
        why: what was recognised and chosen, and by what.
        sequences: the images.
        notes: how stamps were settled, what was left out.
        expected: the calibration that this layout has its camera from, for people.
    """

    kind: str
    camera: str
    why: str
    sequences: tuple[ImageSequence, ...]
    notes: tuple[str, ...] = ()
    expected: str = "a calibration file beside the images (meta.json, camera.yaml)"


class ImageSource:
    """Image files as a `Source`."""

    def __init__(self, path: Path, layout: ImageLayout, options: SourceOptions) -> None:
        """Take over what was found; nothing is decoded yet.

        Raises:
            NoUsableDataError: there is no image.
            UsageError: from the user's calibration file.
        """
        self.name = absolute(path).name
        self.label = f"{layout.kind} {path}"
        self.kind, self.camera, self.why = layout.kind, layout.camera, layout.why
        self.uncalibrated = uncalibrated(self.label, layout.camera, f"{layout.expected} was expected and is not there")
        self.count = sum(len(sequence.files) for sequence in layout.sequences)
        self.report = ReadReport(notes=list(layout.notes))
        self.decoding = Decoding()
        if not self.count:
            raise NoUsableDataError(f"{self.label} holds no image. Is the copy complete?")
        self._sequences = layout.sequences
        self._range = options.frames
        self._maker = FrameMaker(options, self.report)

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        images = (
            (sequence, file, stamp)
            for sequence in self._sequences
            for file, stamp in zip(sequence.files, sequence.stamps_ns.tolist(), strict=True)
        )
        for sequence, file, stamp in islice(images, *self._range):
            self.report.messages += 1
            if self._maker.is_in_order(stamp, sequence.name, str(file)):
                image = self._read(file)
                frame = None if image is None else self._maker.frame(image, stamp, sequence.calibration, str(file))
                if frame is not None:
                    yield frame

    def identity(self) -> list[str]:
        """See `Source.identity`."""
        facts = [f"{self.kind} {self.camera} {self.report.notes}"]
        for sequence in self._sequences:
            facts.append(f"{sequence.name} {sequence.stamps_ns.tolist()} {sequence.calibration}")
            facts += map(describe_file, sequence.files)
        return facts

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self, file: Path) -> np.ndarray | None:
        """The image, or None (counted)."""
        try:
            return self.decoding(lambda: decode_picture(file.read_bytes(), str(file)))
        except MalformedImageError as error:
            self.report.skip(UNREADABLE, str(error))
        except FileNotFoundError:
            self.report.skip(ABSENT, str(file))
        except OSError as error:
            self.report.skip(UNREADABLE, f"{file}: {error.strerror or error}")
        return None


def cut(
    name: str, files: Sequence[Path], stamps_ns: np.ndarray, starts: Sequence[int], calibration: Calibration | None
) -> tuple[ImageSequence, ...]:
    """Sequences of files that begin at 0 and at each of `starts` (indices, increasing)."""
    edges = [0, *starts, len(files)]
    return tuple(
        ImageSequence(
            name if len(edges) == 2 else f"{name}:{first}", tuple(files[first:stop]), stamps_ns[first:stop], calibration
        )
        for first, stop in pairwise(edges)
    )
