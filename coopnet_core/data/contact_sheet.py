"""A recording at a glance: images over time, framed and captioned by what was found wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from coopnet_core.data.inspection_facts import BRIGHT, DARK, EXPOSURE, STILL, TOO_FAST, Look, Looks
from coopnet_core.visualization import tile

_GOOD = "used"
_COLORS = {
    _GOOD: (70, 170, 90),
    STILL: (90, 140, 255),
    TOO_FAST: (235, 60, 60),
    EXPOSURE: (255, 165, 0),
    DARK: (160, 90, 210),
    BRIGHT: (240, 230, 80),
}
_WORST_FIRST = (TOO_FAST, EXPOSURE, DARK, BRIGHT, STILL)
_BACKGROUND, _UNSEEN, _TEXT, _FAINT = (24, 24, 24), (70, 70, 70), (235, 235, 235), (170, 170, 170)
_COLUMNS, _FRAME, _MARGIN, _LINE, _BAND = 6, 4, 10, 24, 28


def contact_sheet(looks: Looks, title: str, verdict: str, evenly: int = 24, marked: int = 18) -> np.ndarray | None:
    """Images over time under a band that shows the whole recording.

    Args:
        looks: the images that were looked at.
        title: of the recording.
        verdict: in one line; what does not fit is left out.
        evenly: images spread evenly over the recording.
        marked: images besides these that are marked, other than still.

    Returns:
        (H, W, 3) uint8 RGB; None where no picture was kept.
    """
    chosen = choose_looks(looks.looks, evenly, marked)
    if not chosen:
        return None
    # A narrow sheet would cut the text off: always the full number of columns.
    pictures = [_framed(look) for look in chosen]
    grid = tile(pictures, [_caption(look) for look in chosen], _COLUMNS)
    return np.vstack([_header(grid.shape[1], looks, title, verdict), grid])


def choose_looks(looks: Sequence[Look], evenly: int, marked: int) -> list[Look]:
    """The images to show, in order: some spread evenly, and some of each mark but still; only those with a picture."""
    shown = [look for look in looks if look.picture is not None]
    chosen = {look.index: look for look in _spread(shown, evenly)}
    rest = [look for look in shown if _name(look) not in (_GOOD, STILL) and look.index not in chosen]
    names = {_name(look) for look in rest}
    for name in names:
        alike = [look for look in rest if _name(look) == name]
        chosen |= {look.index: look for look in _spread(alike, marked // len(names))}
    return [chosen[index] for index in sorted(chosen)]


def _spread(looks: Sequence[Look], most: int) -> list[Look]:
    if len(looks) <= most:
        return list(looks)
    return [looks[index] for index in np.linspace(0, len(looks) - 1, most).round().astype(int)]


def _name(look: Look) -> str:
    """The worst mark of an image."""
    return next((mark for mark in _WORST_FIRST if mark in look.marks), _GOOD)


def _caption(look: Look) -> str:
    return f"#{look.index}  {look.seconds:.2f} s  {', '.join(look.marks)}"


def _framed(look: Look) -> np.ndarray:
    """The picture in a frame of the colour of its worst mark."""
    assert look.picture is not None, "only looks with a picture are chosen"
    inner = look.picture[_FRAME:-_FRAME, _FRAME:-_FRAME]
    return cv2.copyMakeBorder(inner, *(4 * (_FRAME,)), cv2.BORDER_CONSTANT, value=_COLORS[_name(look)])


def _header(width: int, looks: Looks, title: str, verdict: str) -> np.ndarray:
    """Title, verdict, legend, and a band over all images of the recording."""
    height = 3 * _LINE + _BAND + _LINE + 2 * _MARGIN
    header = np.full((height, width, 3), _BACKGROUND, np.uint8)
    _write(header, title, _MARGIN, _LINE, 0.6)
    _write(header, verdict, _MARGIN, 2 * _LINE, 0.5)
    x = _MARGIN
    found = {_name(look) for look in looks.looks}
    for name in (name for name in _COLORS if name in found):
        cv2.rectangle(header, (x, 3 * _LINE - 12), (x + 14, 3 * _LINE + 2), _COLORS[name], -1)
        x = _write(header, name, x + 20, 3 * _LINE, 0.45, _FAINT) + 20
    _draw_band(header[3 * _LINE + _MARGIN :], looks)
    return header


def _draw_band(place: np.ndarray, looks: Looks) -> None:
    """A band from the first to the last image: those looked at in their colours, white where a clip begins."""
    first = looks.looks[0].index
    count = max(1, looks.images)
    left, right = _MARGIN, place.shape[1] - _MARGIN
    band = place[:_BAND, left:right]
    band[:] = _UNSEEN
    scale = (right - left) / count
    # The worst is drawn last: where several images share a column, it is what is seen.
    order = [_GOOD, *reversed(_WORST_FIRST)]
    for look in sorted(looks.looks, key=lambda look: order.index(_name(look))):
        start = int((look.index - first) * scale)
        band[:, start : max(start + 1, int((look.index - first + 1) * scale))] = _COLORS[_name(look)]
    for cut in looks.cuts:
        band[:, int((cut - first) * scale)] = 255
    labels = _spread(looks.looks, 7)
    for position, look in enumerate(labels):
        text = f"#{look.index}  {look.seconds:.1f} s"
        size = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0]
        x = left + int((look.index - first) * scale)
        # The last label ends where the band ends.
        x = min(x, right - size) if position else left
        _write(place, text, x, _BAND + 16, 0.42, _FAINT)


def _write(image: np.ndarray, text: str, x: int, y: int, size: float, color: tuple[int, int, int] = _TEXT) -> int:
    """Write a line, cut off at the edge; returns where it ends. The font has no other letters than ASCII."""
    plain = text.encode("ascii", "replace").decode()
    room = image.shape[1] - x - _MARGIN
    while plain and cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] > room:
        plain = plain[:-4].rstrip(".") + "..." if len(plain) > 4 else ""
    cv2.putText(image, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)
    return x + cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0]
