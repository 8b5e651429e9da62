"""Every encoding against values written out here or computed by another route."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from unit.image_packing import BAYER, mosaic, pack

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


def decode(encoding: str, pixels: np.ndarray) -> np.ndarray:
    """Pack rows and decode."""
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1).view(np.uint8)
    return decode_image(encoding, pixels.shape[0], pixels.shape[1], rows.shape[1], False, rows.tobytes())


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("encoding", KNOWN_ENCODINGS)
def test_every_known_encoding_gives_its_picture(encoding: str, bigendian: bool, padding: int):
    """The byte order matters to 16 bit values alone, and the padding to none."""
    packed = pack(encoding, 12, 16, padding, bigendian)
    image = decode_image(packed.encoding, 12, 16, packed.step, packed.is_bigendian, packed.data)
    assert image.dtype == np.uint8
    assert packed.difference(image) <= packed.tolerance


def test_16_bits_are_scaled_from_the_full_range_and_rounded():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [round(value * 255 / 65535) for value in values[0].tolist()]
    assert decode("mono16", values)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", sorted(BAYER))
def test_bayer_gives_a_flat_colour_back(pattern: str, bits: int):
    picture = np.full((8, 10, 3), [200, 100, 50]) * (1 if bits == 8 else 257)
    pixels = mosaic(BAYER[pattern], picture.astype(np.uint8 if bits == 8 else np.uint16))
    assert (decode(f"bayer_{pattern}{bits}", pixels) == [200, 100, 50]).all()


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


def test_compressed_data_that_is_empty():
    with pytest.raises(MalformedImageError, match="holds 0 bytes"):
        decode_compressed("jpeg", b"")


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
