"""What became of the images of a recording while it was read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ReadReport:
    """What became of the images of one recording; filled while reading.

    Attributes:
        messages: images gone through (within the chosen range).
        frames: images that became frames.
        skipped: images that did not, by reason.
        examples: the first case of each reason, in words.
        notes: how pairing and stamps were settled.
        unread: what of the recording cannot be read.
    """

    messages: int = 0
    frames: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def skip(self, reason: str, detail: str) -> None:
        """Count an image that gives no frame."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, detail)

    def note(self, text: str) -> None:
        """Remember a decision once."""
        if text not in self.notes:
            self.notes.append(text)
