"""Image messages to arrays: the encodings of sensor_msgs, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from coopnet_core.errors import CoopnetError

Buffer = bytes | bytearray | memoryview | np.ndarray

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


class UnsupportedEncodingError(CoopnetError):
    """The pixels are stored in a way this package does not read; the message lists the ways it does."""


class MalformedImageError(CoopnetError):
    """The sizes stated in the message and its data contradict each other, or the compressed data is broken."""


@dataclass(frozen=True)
class _Layout:
    """How one encoding stores its pixels.

    Attributes:
        channels: values per pixel of the (first) plane.
        dtype: type of a value.
        to_rgb: (H, W[, C]) of `dtype` -> (H, W, 3) uint8 RGB.
    """

    channels: int
    dtype: type[np.uint8] | type[np.uint16]
    to_rgb: Callable[[np.ndarray], np.ndarray]

    @property
    def pixel_bytes(self) -> int:
        """Bytes per pixel in a row."""
        return self.channels * np.dtype(self.dtype).itemsize


def _converter(code: int) -> Callable[[np.ndarray], np.ndarray]:
    """Cv2.cvtColor with this code, brought to 8 bits afterwards."""
    return lambda pixels: _to_8_bit(cv2.cvtColor(pixels, code))


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """The full 16 bit range mapped linearly to 8 bits (65535 -> 255), rounded; 8 bits unchanged."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _interleaved() -> dict[str, _Layout]:
    """Encodings with one plane and whole pixels: colour, grey, Bayer and 4:2:2."""
    known: dict[str, _Layout] = {}
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        known[f"rgb{bits}"] = _Layout(3, dtype, _to_8_bit)
        known[f"bgr{bits}"] = _Layout(3, dtype, _converter(cv2.COLOR_BGR2RGB))
        known[f"rgba{bits}"] = _Layout(4, dtype, _converter(cv2.COLOR_RGBA2RGB))
        known[f"bgra{bits}"] = _Layout(4, dtype, _converter(cv2.COLOR_BGRA2RGB))
        known[f"mono{bits}"] = _Layout(1, dtype, _converter(cv2.COLOR_GRAY2RGB))
        # OpenCV names a Bayer pattern by its second row, ROS by its first: RGGB is "BayerBG".
        for ros_pattern, code in (
            ("rggb", cv2.COLOR_BayerBG2RGB),
            ("bggr", cv2.COLOR_BayerRG2RGB),
            ("gbrg", cv2.COLOR_BayerGR2RGB),
            ("grbg", cv2.COLOR_BayerGB2RGB),
        ):
            known[f"bayer_{ros_pattern}{bits}"] = _Layout(1, dtype, _converter(code))
    for name in ("yuv422", "uyvy"):
        known[name] = _Layout(2, np.uint8, _converter(cv2.COLOR_YUV2RGB_UYVY))
    for name in ("yuv422_yuy2", "yuyv"):
        known[name] = _Layout(2, np.uint8, _converter(cv2.COLOR_YUV2RGB_YUYV))
    return known


_INTERLEAVED = _interleaved()
_TWO_PLANES = ("nv12", "nv21", "nv24")
_ARRAYS: dict[str, tuple[int, type]] = {
    "mono8": (1, np.uint8),
    "8UC1": (1, np.uint8),
    "mono16": (1, np.uint16),
    "16UC1": (1, np.uint16),
    "32FC1": (1, np.float32),
    "32FC2": (2, np.float32),
}

KNOWN_ENCODINGS: tuple[str, ...] = (*sorted(_INTERLEAVED), *_TWO_PLANES)
"""What `decode_image` reads."""


def decode_image(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool | int, data: Buffer
) -> np.ndarray:
    """Pixels of a sensor_msgs/Image as RGB.

    Args:
        encoding: as in the message, e.g. "rgb8" or "bayer_rggb8".
        height: rows, pixels.
        width: columns, pixels.
        step: bytes from one row to the next; may be larger than a row (padding).
        is_bigendian: byte order of 16 bit values.
        data: the bytes; more than step x height are accepted, fewer are not.

    Returns:
        (height, width, 3) uint8, RGB. 16 bit values are scaled linearly from the full range; 4:2:2 and 4:2:0 are
        BT.601 with limited range. Never a view of `data`.

    Raises:
        UnsupportedEncodingError: unknown encoding, or one that holds no image (depth).
        MalformedImageError: the data does not hold step x height bytes, or the sizes contradict each other.
    """
    name = encoding.strip().lower()
    if name in _TWO_PLANES:
        return _decode_two_planes(name, height, width, step, data)
    layout = _INTERLEAVED.get(name)
    if layout is None:
        raise UnsupportedEncodingError(_unknown_encoding(encoding))
    pixels = _rows(encoding, height, width, step, layout.pixel_bytes, data)
    pixels = pixels.view(np.dtype(layout.dtype).newbyteorder(">" if is_bigendian else "<"))
    pixels = np.ascontiguousarray(pixels, dtype=layout.dtype)
    pixels = pixels.reshape((height, width) if layout.channels == 1 else (height, width, layout.channels))
    if name.startswith("bayer") and min(height, width) < 3:
        raise MalformedImageError(f"Image {encoding} {width}x{height}: a Bayer pattern needs at least 3x3 pixels.")
    if layout.channels == 2 and width % 2:
        raise MalformedImageError(f"Image {encoding} {width}x{height}: 4:2:2 pixels come in pairs, the width is odd.")
    rgb = layout.to_rgb(pixels)
    return rgb.copy() if np.shares_memory(rgb, pixels) else rgb


def decode_compressed(image_format: str, data: Buffer) -> np.ndarray:
    """Pixels of a sensor_msgs/CompressedImage (JPEG or PNG) as RGB.

    The rotation that a JPEG may ask for (EXIF) is not applied: CameraInfo describes the stored pixels.

    Args:
        image_format: the message's `format`, e.g. "jpeg" or "bgr8; jpeg compressed bgr8".
        data: the file's bytes.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UnsupportedEncodingError: compressed depth, or another container than JPEG and PNG.
        MalformedImageError: the data is cut off or broken.
    """
    content = _as_bytes(data)
    if "compresseddepth" in image_format.lower().replace("_", ""):
        raise UnsupportedEncodingError(
            f"CompressedImage format '{image_format}' holds depth, not a picture. Choose the topic of the colour or "
            "grey image."
        )
    if not content:
        raise MalformedImageError(f"CompressedImage '{image_format}' holds 0 bytes: a JPEG or PNG was expected.")
    if not content.startswith((_JPEG_START, _PNG_START)):
        stated = image_format.lower()
        if "jpeg" in stated or "jpg" in stated or "png" in stated:
            raise MalformedImageError(
                f"CompressedImage says '{image_format}' but its {len(content)} bytes start with {content[:4].hex()}: "
                "neither JPEG nor PNG."
            )
        raise UnsupportedEncodingError(
            f"CompressedImage format '{image_format}' is not read; JPEG and PNG are. Republish the images with "
            "image_transport as 'compressed' or 'raw'."
        )
    return decode_picture(content, f"CompressedImage '{image_format}'")


def decode_picture(content: bytes, what: str) -> np.ndarray:
    """The bytes of an image file as (H, W, 3) uint8 RGB, as stored: the rotation of EXIF is not applied.

    Args:
        content: JPEG or PNG; whatever else OpenCV reads, without a check that it is complete.
        what: its name, for the error.

    Raises:
        MalformedImageError: the data is cut off or broken.
    """
    _check_complete(what, content)
    try:
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # no data, or sizes in the file that no image has
        bgr = None
    if bgr is None:
        raise MalformedImageError(f"{what} of {len(content)} bytes cannot be decoded.")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def decode_array(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool | int, data: Buffer
) -> np.ndarray:
    """Values of a sensor_msgs/Image that is no picture (depth, flow, masks), unchanged.

    Returns:
        (height, width) or (height, width, 2) of uint8, uint16 or float32, native byte order, never a view of `data`.

    Raises:
        UnsupportedEncodingError: not one of mono8, 8UC1, mono16, 16UC1, 32FC1, 32FC2.
        MalformedImageError: as in `decode_image`.
    """
    if encoding not in _ARRAYS:
        raise UnsupportedEncodingError(
            f"Encoding '{encoding}' of a value image is unknown; known: {', '.join(_ARRAYS)}."
        )
    channels, dtype = _ARRAYS[encoding]
    rows = _rows(encoding, height, width, step, channels * np.dtype(dtype).itemsize, data)
    values = rows.view(np.dtype(dtype).newbyteorder(">" if is_bigendian else "<")).astype(dtype)
    return values.reshape((height, width) if channels == 1 else (height, width, channels))


def _as_bytes(data: Buffer) -> bytes:
    """The bytes behind any buffer."""
    return data.tobytes() if isinstance(data, np.ndarray | memoryview) else bytes(data)


def _flat(data: Buffer) -> np.ndarray:
    """(n,) uint8 view of the bytes."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)


def _check_sizes(encoding: str, height: int, width: int, step: int, row_bytes: int, needed: int, have: int) -> None:
    """Refuse an image message whose numbers contradict each other.

    Raises:
        MalformedImageError: says which.
    """
    if height <= 0 or width <= 0:
        raise MalformedImageError(f"Image {encoding} of {width}x{height} pixels: both must be positive.")
    if step < row_bytes:
        raise MalformedImageError(
            f"Image {encoding} {width}x{height}: step is {step}, a row of {width} pixels takes {row_bytes} bytes."
        )
    if have < needed:
        raise MalformedImageError(
            f"Image {encoding} {width}x{height} with step {step} needs {needed} bytes, the message holds {have}."
        )


def _rows(encoding: str, height: int, width: int, step: int, pixel_bytes: int, data: Buffer) -> np.ndarray:
    """(height, width * pixel_bytes) uint8, contiguous, the padding removed."""
    flat = _flat(data)
    _check_sizes(encoding, height, width, step, width * pixel_bytes, step * height, flat.size)
    rows = flat[: step * height].reshape(height, step)[:, : width * pixel_bytes]
    return np.ascontiguousarray(rows)


def _decode_two_planes(name: str, height: int, width: int, step: int, data: Buffer) -> np.ndarray:
    """NV12, NV21 (chroma halved both ways) and NV24 (full chroma): a plane of Y, then one of interleaved chroma."""
    flat = _flat(data)
    if name != "nv24" and (height % 2 or width % 2):
        raise MalformedImageError(f"Image {name} {width}x{height}: 4:2:0 needs an even width and height.")
    chroma_rows, chroma_step = (height, 2 * step) if name == "nv24" else (height // 2, step)
    luma_bytes = step * height
    _check_sizes(name, height, width, step, width, luma_bytes + chroma_rows * chroma_step, flat.size)
    luma = flat[:luma_bytes].reshape(height, step)[:, :width]
    chroma = flat[luma_bytes : luma_bytes + chroma_rows * chroma_step].reshape(chroma_rows, chroma_step)
    if name == "nv24":
        return _yuv444(luma, chroma[:, : 2 * width].reshape(height, width, 2))
    planes = np.ascontiguousarray(np.concatenate([luma, chroma[:, :width]]))
    return cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_NV12 if name == "nv12" else cv2.COLOR_YUV2RGB_NV21)


def _yuv444(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """BT.601 limited range, (H, W) and (H, W, 2) uint8 -> (H, W, 3) uint8 RGB (OpenCV has no such conversion)."""
    y = 1.164383 * (luma.astype(np.float32) - 16)
    u, v = chroma[..., 0].astype(np.float32) - 128, chroma[..., 1].astype(np.float32) - 128
    rgb = np.stack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _check_complete(what: str, content: bytes) -> None:
    """Refuse a cut-off JPEG or PNG: the decoders would fill the rest with grey and say nothing.

    Raises:
        MalformedImageError: the end marker is missing.
    """
    complete = True
    if content.startswith(_JPEG_START):
        # Neither marker occurs within coded pixels; an embedded thumbnail has its own pair, before the picture's.
        complete = content.rfind(_JPEG_END) > content.rfind(_JPEG_SCAN) >= 0
    elif content.startswith(_PNG_START):
        complete = _PNG_END in content[-64:]
    if not complete:
        raise MalformedImageError(f"{what} of {len(content)} bytes is cut off.")


def _unknown_encoding(encoding: str) -> str:
    """The message for an encoding that `decode_image` does not read."""
    if encoding in ("16UC1", "32FC1"):
        return f"Encoding '{encoding}' holds depth, not a picture. Choose the topic of the colour or grey image."
    hint = " (use the name that says the order of the channels, such as bgr8)" if encoding.startswith("8UC") else ""
    known = ", ".join(KNOWN_ENCODINGS)
    return f"Image encoding '{encoding}' is not read{hint}. Known: {known}. Set the driver to one of them."
