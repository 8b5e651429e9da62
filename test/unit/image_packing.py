"""Images packed as sensor_msgs/Image stores them, in every encoding, with the picture that comes out.

Independent of the decoder: colours and planes are laid out by hand, YUV is computed from the standard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BAYER = {"rggb": "RGGB", "bggr": "BGGR", "gbrg": "GBRG", "grbg": "GRBG"}
PADDING_BYTE = 0xEE


@dataclass(frozen=True)
class PackedImage:
    """The fields of an image message, and what they show.

    Attributes:
        encoding, height, width, step, is_bigendian, data: as in sensor_msgs/Image.
        picture: (H, W, 3) RGB, 0-255, that must come out.
        tolerance: largest difference, grey levels.
        margin: pixels at the border that are not looked at (they have too few neighbours to be interpolated).
    """

    encoding: str
    height: int
    width: int
    step: int
    is_bigendian: int
    data: bytes
    picture: np.ndarray
    tolerance: float = 0.0
    margin: int = 0

    def difference(self, image: np.ndarray) -> float:
        """Largest difference to a decoded image."""
        inner = slice(self.margin, self.height - self.margin), slice(self.margin, self.width - self.margin)
        return float(np.abs(image[inner].astype(float) - self.picture[inner]).max())


def pack(
    encoding: str,
    height: int,
    width: int,
    padding: int = 0,
    bigendian: bool = False,
    picture: np.ndarray | None = None,
) -> PackedImage:
    """A picture in an encoding.

    Args:
        encoding: any of `encodings.KNOWN_ENCODINGS`.
        height, width: even.
        padding: bytes behind each row, even; they hold 0xEE.
        bigendian: byte order of 16 bit values.
        picture: (height, width, 3) uint8 RGB; None for one in which every pixel counts. What must come out is this
            picture as far as the encoding can hold it; a Bayer mosaic of it holds one channel in each pixel.
    """
    if encoding.startswith("nv"):
        return _two_planes(encoding, _yuv_planes(height, width, picture), padding)
    if "yuv" in encoding or "uyvy" in encoding or "yuyv" in encoding:
        planes = _yuv_planes(height, width, picture)
        pixels, picture, tolerance, margin = *_yuv422(encoding, planes), 2.0, 0
    elif encoding.startswith("bayer"):
        picture = colour_ramp(height, width) if picture is None else picture
        pixels, tolerance, margin = mosaic(BAYER[encoding[6:10]], picture), 1.0, 2
    else:
        if picture is None:
            picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        if encoding.startswith("mono"):
            picture = np.repeat(picture[..., :1], 3, axis=2)
        pixels, tolerance, margin = _channels(encoding, picture), 0.0, 0
    if encoding.endswith("16"):
        pixels = _to_16_bit(pixels).astype(">u2" if bigendian else "<u2")
    rows = padded(np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8), padding)
    is_bigendian = int(bigendian)
    return PackedImage(encoding, height, width, rows.shape[1], is_bigendian, rows.tobytes(), picture, tolerance, margin)


def _to_16_bit(pixels: np.ndarray) -> np.ndarray:
    """Values that are rounded to `pixels`, of the full range; their two bytes differ, so that their order counts."""
    rest = np.random.default_rng(1).integers(-100, 101, pixels.shape)
    return np.clip(pixels.astype(int) * 257 + rest, 0, 65535).astype(np.uint16)


def padded(rows: np.ndarray, padding: int) -> np.ndarray:
    """(H, n) bytes -> (H, n + padding)."""
    return np.pad(rows, ((0, 0), (0, padding)), constant_values=PADDING_BYTE)


def colour_ramp(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, a plane in x and y in each channel: bilinear interpolation of it is exact."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([20 + 3 * x, 30 + 4 * y, 40 + x + 2 * y], axis=-1).astype(np.uint8)


def mosaic(pattern: str, picture: np.ndarray) -> np.ndarray:
    """(H, W) of a Bayer sensor whose first two rows are the four letters of `pattern`."""
    values = np.empty(picture.shape[:2], picture.dtype)
    for position, letter in enumerate(pattern):
        part = (slice(position // 2, None, 2), slice(position % 2, None, 2))
        values[part] = picture[(*part, "RGB".index(letter))]
    return values


def _channels(encoding: str, picture: np.ndarray) -> np.ndarray:
    """The picture's channels in the order of the name, with an alpha of 7."""
    if encoding.startswith("mono"):
        return picture[..., 0]
    ordered = picture[..., ::-1] if encoding.startswith("bgr") else picture
    return np.dstack([ordered, np.full(picture.shape[:2], 7, np.uint8)]) if encoding[3] == "a" else ordered


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """BT.601, limited range, from the standard's luma coefficients."""
    kr, kb = 0.299, 0.114
    luma, cb, cr = (y.astype(float) - 16) / 219, (u.astype(float) - 128) / 224, (v.astype(float) - 128) / 224
    r, b = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.stack([r, g, b], axis=-1) * 255, 0, 255)


def _yuv_planes(height: int, width: int, picture: np.ndarray | None) -> list[np.ndarray]:
    """Y, Cb and Cr of a picture at full resolution; random ones that are colours without a picture."""
    if picture is not None:
        return _rgb_to_yuv(picture)
    random = np.random.default_rng(2)
    bounds = ((40, 200), (100, 156), (100, 156))
    return [random.integers(low, high, (height, width), dtype=np.uint8) for low, high in bounds]


def _rgb_to_yuv(picture: np.ndarray) -> list[np.ndarray]:
    """BT.601, limited range: the inverse of `yuv_to_rgb`, rounded."""
    kr, kb = 0.299, 0.114
    r, g, b = np.moveaxis(picture / 255, -1, 0)
    luma = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - luma) / (2 * (1 - kb)), (r - luma) / (2 * (1 - kr))
    return [np.rint(plane).astype(np.uint8) for plane in (16 + 219 * luma, 128 + 224 * cb, 128 + 224 * cr)]


def _yuv422(encoding: str, planes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 2) packed, and the picture."""
    y, u, v = planes
    u, v = u[:, ::2], v[:, ::2]
    values = np.empty((*y.shape, 2), np.uint8)
    luma, chroma = (0, 1) if encoding in ("yuv422_yuy2", "yuyv") else (1, 0)
    values[..., luma] = y
    values[:, 0::2, chroma], values[:, 1::2, chroma] = u, v
    return values, yuv_to_rgb(y, np.repeat(u, 2, axis=1), np.repeat(v, 2, axis=1))


def _two_planes(encoding: str, planes: list[np.ndarray], padding: int) -> PackedImage:
    y, u, v = planes
    height, width = y.shape
    factor = 1 if encoding == "nv24" else 2
    u, v = u[::factor, ::factor], v[::factor, ::factor]
    chroma = np.stack([v, u] if encoding == "nv21" else [u, v], axis=-1).reshape(len(u), -1)
    step = width + padding
    chroma_step = step * (2 if encoding == "nv24" else 1)
    data = padded(y, padding).tobytes() + padded(chroma, chroma_step - chroma.shape[1]).tobytes()
    full = [np.repeat(np.repeat(c, factor, axis=0), factor, axis=1) for c in (u, v)]
    return PackedImage(encoding, height, width, step, 0, data, yuv_to_rgb(y, *full), tolerance=2.0)
