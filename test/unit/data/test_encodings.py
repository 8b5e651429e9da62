"""Every encoding against values written out here or computed by another route."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from coopnet_core.data.encodings import (
    KNOWN_ENCODINGS,
    MalformedImageError,
    UnsupportedEncodingError,
    decode_array,
    decode_compressed,
    decode_image,
)

H, W = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
BAYER = {"rggb": "RGGB", "bggr": "BGGR", "gbrg": "GBRG", "grbg": "GRBG"}


def decode(encoding: str, pixels: np.ndarray, bigendian: bool = False, padding: int = 0) -> np.ndarray:
    """Pack rows with padding of 0xEE and decode."""
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1).view(np.uint8)
    padded = np.full((rows.shape[0], rows.shape[1] + padding), 0xEE, np.uint8)
    padded[:, : rows.shape[1]] = rows
    return decode_image(encoding, pixels.shape[0], pixels.shape[1], padded.shape[1], bigendian, padded.tobytes())


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full(pixels.shape[:2], 7, pixels.dtype)])


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", with_alpha(RGB)),
        ("bgra8", with_alpha(RGB[..., ::-1])),
        ("rgb16", RGB.astype(np.uint16) * 257),
        ("bgr16", RGB[..., ::-1].astype(np.uint16) * 257),
        ("rgba16", with_alpha(RGB.astype(np.uint16) * 257)),
        ("bgra16", with_alpha(RGB[..., ::-1].astype(np.uint16) * 257)),
    ],
)
def test_colour_comes_out_exactly(encoding: str, pixels: np.ndarray, padding: int):
    np.testing.assert_array_equal(decode(encoding, pixels, padding=2 * padding), RGB)


def test_grey_fills_all_channels():
    np.testing.assert_array_equal(decode("mono8", RGB[..., 0]), np.repeat(RGB[..., :1], 3, axis=2))


def test_16_bits_are_scaled_from_the_full_range_and_rounded():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [round(value * 255 / 65535) for value in values[0].tolist()]
    assert decode("mono16", values)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bayer_rggb16"])
def test_big_endian_is_the_same_picture(encoding: str):
    shape = (H, W, 3) if encoding == "rgb16" else (H, W)
    values = np.random.default_rng(1).integers(0, 65536, shape).astype(np.uint16)
    np.testing.assert_array_equal(decode(encoding, values), decode(encoding, values.astype(">u2"), bigendian=True))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", sorted(BAYER))
def test_bayer_gives_a_flat_colour_back(pattern: str, bits: int):
    colour = {"R": 200, "G": 100, "B": 50}
    scale = 1 if bits == 8 else 257
    mosaic = np.empty((8, 10), np.uint8 if bits == 8 else np.uint16)
    for position, letter in enumerate(BAYER[pattern]):
        mosaic[position // 2 :: 2, position % 2 :: 2] = colour[letter] * scale
    result = decode(f"bayer_{pattern}{bits}", mosaic)
    assert (result == [200, 100, 50]).all()


@pytest.mark.parametrize("pattern", sorted(BAYER))
def test_bayer_of_a_colour_ramp_is_bilinear(pattern: str):
    """On a plane in x and y bilinear interpolation is exact away from the border."""
    y, x = np.mgrid[0:12, 0:16]
    truth = np.stack([20 + 4 * x, 30 + 4 * y, 40 + 2 * x + 2 * y], axis=-1).astype(np.uint8)
    mosaic = np.empty((12, 16), np.uint8)
    for position, letter in enumerate(BAYER[pattern]):
        part = (slice(position // 2, None, 2), slice(position % 2, None, 2))
        mosaic[part] = truth[(*part, "RGB".index(letter))]
    difference = decode(f"bayer_{pattern}8", mosaic).astype(int) - truth
    assert np.abs(difference[2:-2, 2:-2]).max() <= 1


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """BT.601, limited range, from the standard's luma coefficients."""
    kr, kb = 0.299, 0.114
    luma, cb, cr = (y.astype(float) - 16) / 219, (u.astype(float) - 128) / 224, (v.astype(float) - 128) / 224
    r, b = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.stack([r, g, b], axis=-1) * 255, 0, 255)


def planes(seed: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return tuple(
        random.integers(low, high, (H, W), dtype=np.uint8) for low, high in ((40, 200), (100, 156), (100, 156))
    )


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv422(encoding: str, padding: int):
    y, u, v = planes()
    u, v = u[:, ::2], v[:, ::2]
    packed = np.empty((H, W, 2), np.uint8)
    luma, chroma = (0, 1) if encoding in ("yuv422_yuy2", "yuyv") else (1, 0)
    packed[..., luma] = y
    packed[:, 0::2, chroma], packed[:, 1::2, chroma] = u, v
    expected = yuv_to_rgb(y, np.repeat(u, 2, axis=1), np.repeat(v, 2, axis=1))
    assert np.abs(decode(encoding, packed, padding=padding) - expected).max() <= 2


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24"])
def test_two_planes(encoding: str, padding: int):
    y, u, v = planes()
    factor = 1 if encoding == "nv24" else 2
    u, v = u[::factor, ::factor], v[::factor, ::factor]
    chroma = np.stack([v, u] if encoding == "nv21" else [u, v], axis=-1).reshape(len(u), -1)
    step = W + padding
    chroma_step = step * (2 if encoding == "nv24" else 1)
    luma_rows = np.pad(y, ((0, 0), (0, padding)), constant_values=238)
    chroma_rows = np.pad(chroma, ((0, 0), (0, chroma_step - chroma.shape[1])), constant_values=238)
    result = decode_image(encoding, H, W, step, 0, luma_rows.tobytes() + chroma_rows.tobytes())
    repeat = [np.repeat(np.repeat(c, factor, axis=0), factor, axis=1) for c in (u, v)]
    assert np.abs(result - yuv_to_rgb(y, *repeat)).max() <= 2


def test_result_owns_its_memory():
    data = bytearray(RGB.tobytes())
    result = decode_image("rgb8", H, W, 3 * W, 0, data)
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(result, RGB)
    result[:] = 0  # and is writable


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_buffer(wrap):
    np.testing.assert_array_equal(decode_image("rgb8", H, W, 3 * W, 0, wrap(RGB.tobytes())), RGB)


@pytest.mark.parametrize(
    ("height", "width", "step", "size", "words"),
    [
        (480, 640, 1920, 30, "needs 921600 bytes, the message holds 30"),
        (H, W, 3 * W, 3 * W * H - 1, f"needs {3 * W * H} bytes"),
        (H, W, 3 * W - 1, 1000, f"step is {3 * W - 1}"),
        (H, W, 0, 1000, "step is 0"),
        (0, W, 3 * W, 0, "both must be positive"),
        (H, 0, 0, 0, "both must be positive"),
    ],
)
def test_sizes_that_contradict_are_refused(height: int, width: int, step: int, size: int, words: str):
    with pytest.raises(MalformedImageError, match=words):
        decode_image("rgb8", height, width, step, 0, bytes(size))


def test_more_data_than_needed_is_fine():
    np.testing.assert_array_equal(decode_image("rgb8", H, W, 3 * W, 0, RGB.tobytes() + b"rest"), RGB)


@pytest.mark.parametrize(("encoding", "width"), [("yuyv", 7), ("nv12", 7), ("bayer_rggb8", 2)])
def test_sizes_an_encoding_cannot_have(encoding: str, width: int):
    with pytest.raises(MalformedImageError):
        decode_image(encoding, 6, width, 2 * width, 0, bytes(1000))


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24"])
def test_short_second_plane_is_refused(encoding: str):
    with pytest.raises(MalformedImageError, match="the message holds"):
        decode_image(encoding, H, W, W, 0, bytes(H * W + 3))


def test_unknown_encoding_lists_the_known():
    with pytest.raises(UnsupportedEncodingError) as caught:
        decode_image("x264", H, W, W, 0, bytes(100))
    assert all(name in str(caught.value) for name in KNOWN_ENCODINGS)


@pytest.mark.parametrize(("encoding", "words"), [("32FC1", "holds depth"), ("8UC3", "bgr8")])
def test_encodings_that_are_no_picture_say_what_to_do(encoding: str, words: str):
    with pytest.raises(UnsupportedEncodingError, match=words):
        decode_image(encoding, H, W, 4 * W, 0, bytes(1000))


def packed(extension: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(f".{extension}", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


SMOOTH = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("name", ["png", "rgb8; png compressed bgr8", ""])
def test_png_is_exact(name: str):
    np.testing.assert_array_equal(decode_compressed(name, packed("png", RGB)), RGB)


def test_jpeg_is_close_and_its_channels_are_in_order():
    result = decode_compressed("jpeg", packed("jpg", SMOOTH))
    assert np.abs(result.astype(int) - SMOOTH).mean() < 6


def test_grey_files_become_three_channels():
    grey = SMOOTH[..., 0]
    np.testing.assert_array_equal(decode_compressed("mono8; png compressed ", packed("png", grey))[..., 2], grey)
    sixteen = decode_compressed("png", packed("png", grey.astype(np.uint16) * 257))
    assert np.abs(sixteen[..., 0].astype(int) - grey).max() <= 1


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.995])
def test_cut_off_files_are_refused_not_filled_with_grey(extension: str, part: float):
    content = packed(extension, SMOOTH)
    with pytest.raises(MalformedImageError):
        decode_compressed(extension, content[: int(part * len(content))])


def test_padding_behind_a_jpeg_is_fine():
    decode_compressed("jpeg", packed("jpg", SMOOTH) + bytes(500))


def test_ten_bytes_that_claim_to_be_jpeg():
    with pytest.raises(MalformedImageError, match="neither JPEG nor PNG"):
        decode_compressed("jpeg", bytes(range(10)))


@pytest.mark.parametrize(
    "name", ["16UC1; compressedDepth png", "32FC1; compressedDepth", "16UC1; compressed_depth rvl"]
)
def test_compressed_depth_is_refused_clearly(name: str):
    with pytest.raises(UnsupportedEncodingError, match="holds depth"):
        decode_compressed(name, bytes(12) + packed("png", RGB[..., 0]))


def test_other_containers_are_refused():
    with pytest.raises(UnsupportedEncodingError, match="JPEG and PNG are"):
        decode_compressed("h264", b"\x00\x00\x00\x01" + bytes(50))


def test_orientation_of_exif_is_not_applied():
    content = packed("jpg", SMOOTH)
    tag = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"  # orientation 6: turn by 90 degrees
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + tag + bytes(4)
    turned = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (64, 48, 3)
    assert decode_compressed("jpeg", turned).shape == (48, 64, 3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_value_images_come_out_unchanged(order: str):
    depth = np.array([[1.5, np.nan], [np.inf, 0.0]], np.float32)
    data = np.pad(depth.astype(f"{order}f4").view(np.uint8).reshape(2, 8), ((0, 0), (0, 3))).tobytes()
    result = decode_array("32FC1", 2, 2, 11, order == ">", data)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, depth)
    flow = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    result = decode_array("32FC2", 2, 3, 24, order == ">", flow.astype(f"{order}f4").tobytes())
    np.testing.assert_array_equal(result, flow)


def test_value_images_of_whole_numbers():
    np.testing.assert_array_equal(decode_array("mono8", H, W, W, 0, RGB[..., 0].tobytes()), RGB[..., 0])
    millimetres = np.array([[1, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_array("16UC1", 1, 2, 4, 0, millimetres.tobytes()), millimetres)
    with pytest.raises(UnsupportedEncodingError):
        decode_array("rgb8", H, W, 3 * W, 0, RGB.tobytes())
    with pytest.raises(MalformedImageError):
        decode_array("32FC1", H, W, 4 * W, 0, bytes(10))
