"""The decoding of the images of a recording, as something that can be broken off and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Size = tuple[int, int]
"""(height, width) of an image, pixels."""


class Decoding:
    """Decodes the images of one pass over a recording, and keeps account of them.

    A pass that was broken off hands its account to the next one, which goes through the same images with the same
    decisions (order, calibration, counts), but decodes none of those again: a blank image of the same size stands for
    each. Whoever hands over an account must not look into those images.

    Attributes:
        account: one entry per image so far: its size, or None where it could not be decoded.
    """

    def __init__(self, known: Sequence[Size | None] = ()) -> None:
        """`known`: the account of an earlier pass over the same images."""
        self._known = known
        self.account: list[Size | None] = []

    def __call__(self, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The next image, (H, W, 3) uint8: what `decode` gives, or a blank one that cannot be written to.

        Raises:
            What `decode` raises. An image that failed is tried again: that is rare, and the reason is in the error.
        """
        position = len(self.account)
        size = self._known[position] if position < len(self._known) else None
        if size is not None:
            self.account.append(size)
            return np.broadcast_to(np.uint8(0), (*size, 3))
        self.account.append(None)
        image = decode()
        self.account[position] = image.shape[:2]
        return image
