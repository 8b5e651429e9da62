"""The renderer as a recording: `render:SEED[:FRAMES]`, an endless supply of streets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from coopnet_core.data import rendered
from coopnet_core.data.frames import Frame
from coopnet_core.data.rendered import SceneConfig, iter_images
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.decoding import Decoding
from coopnet_core.data.sources.interface import SourceOptions
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

PREFIX = "render:"
_WIDTH, _HEIGHT, _FOV_DEGREES, _DEFAULT_FRAMES = 416, 128, 80.0, 200


class RenderedSource:
    """A rendered street as a `Source`; its camera is known, and drives."""

    def __init__(self, spec: str, options: SourceOptions) -> None:
        """Understand `render:SEED[:FRAMES]`.

        Raises:
            UsageError: something else.
        """
        match = re.fullmatch(r"render:(\d+)(?::(\d+))?", spec)
        if match is None or (match[2] is not None and int(match[2]) < 1):
            raise UsageError(
                f"{spec} is no rendered scene: render:SEED or render:SEED:FRAMES was expected, such as render:3:500. "
                f"(A file of that name is ./{spec}.)"
            )
        camera = Camera.from_field_of_view(_WIDTH, _HEIGHT, _FOV_DEGREES)
        self._config = SceneConfig(int(match[1]), int(match[2] or _DEFAULT_FRAMES), camera, camera_moves=True)
        self.name = self.label = spec
        self.kind, self.camera = "rendered street", f"seed {match[1]}"
        self.why = f"{self._config.frames} images rendered now, {_WIDTH}x{_HEIGHT}, {_FOV_DEGREES:g} degrees"
        self.uncalibrated = ""
        self.count = self._config.frames
        self.report = ReadReport()
        self.decoding = Decoding()
        self._range = options.frames

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        numbers = range(self._config.frames)[slice(*self._range)]
        for frame in iter_images(self._config, numbers, self.decoding):
            self.report.messages += 1
            self.report.frames += 1
            yield replace(frame, sequence=self.camera)

    def identity(self) -> list[str]:
        """See `Source.identity`; the renderer has no version, it is known by its code."""
        code = sorted(Path(rendered.__file__).parent.glob("rendered*.py"))
        return [repr(self._config), *(hashlib.sha256(file.read_bytes()).hexdigest() for file in code)]

    def close(self) -> None:
        """Nothing is held open."""
