"""Every encoding through the node: what the networks see is the picture that was packed."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from ros.rig import CAMERA, SECOND
from ros.test_node_events import adds_up
from sensor_msgs.msg import Image
from unit.image_packing import PackedImage, pack

from coopnet_core.data.encodings import KNOWN_ENCODINGS
from coopnet_ros.messages import header_at


@pytest.fixture(scope="module")
def rig(ros):
    """One node for all: an encoding may change from image to image."""
    from ros.rig import Rig

    opened = Rig()
    yield opened
    opened.close()


def send(rig, packed: PackedImage):
    """Publish it and return the frame that the networks got."""
    stamp_ns = SECOND * (10 + rig.counts.received)
    message = Image(header=header_at(stamp_ns, "camera_optical_frame"), encoding=packed.encoding)
    message.height, message.width, message.step = packed.height, packed.width, packed.step
    message.is_bigendian, message.data = packed.is_bigendian, packed.data
    rig.send_message(message)
    seen_ns, _, frame = rig.stub.calls[-1]
    assert seen_ns == stamp_ns
    return frame


@pytest.mark.parametrize("layout", ["plain", "padded", "big endian and padded"])
@pytest.mark.parametrize("encoding", KNOWN_ENCODINGS)
def test_the_networks_see_the_picture(rig, encoding, layout):
    packed = pack(encoding, CAMERA.height, CAMERA.width, 0 if layout == "plain" else 10, "big" in layout)
    frame = send(rig, packed)
    assert frame.image.shape == (CAMERA.height, CAMERA.width, 3)
    assert packed.difference(frame.image) <= packed.tolerance
    assert adds_up(rig)
    assert rig.counts.processed == rig.counts.received


@pytest.fixture
def bridge(monkeypatch):
    """A cv_bridge that knows one encoding more, with the interface and the errors of the real one."""

    class CvBridgeError(TypeError):
        pass

    class CvBridge:
        def imgmsg_to_cv2(self, message, desired_encoding="passthrough"):
            assert desired_encoding == "rgb8"
            if message.encoding != "gbr8":
                raise CvBridgeError("Unrecognized image encoding")
            planes = np.ndarray((message.height, message.width, 3), np.uint8, bytes(message.data))
            return planes[..., [2, 0, 1]]

    module = ModuleType("cv_bridge")
    module.CvBridge, module.CvBridgeError = CvBridge, CvBridgeError
    monkeypatch.setitem(sys.modules, "cv_bridge", module)


def test_what_only_cv_bridge_reads_goes_through_it(make_rig, bridge, warnings):
    rig = make_rig()
    picture = np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), np.uint8)
    packed = picture[..., [1, 2, 0]]
    rig.send(1.0, packed, encoding="gbr8")
    _, _, frame = rig.stub.calls[-1]
    np.testing.assert_array_equal(frame.image, picture)
    warnings.clear()

    rig.send(1.1, packed, encoding="x264")  # cv_bridge does not know it either
    rig.send(1.2, packed, encoding="gbr8", data=b"1234")
    assert (rig.counts.rejected["unknown_encoding"], rig.counts.rejected["malformed"]) == (1, 1)
    assert "'x264'" in warnings[0]
    assert "4 bytes in 'gbr8'" in warnings[1]

    rig.send(1.3, packed, encoding="gbr8")
    assert (rig.counts.processed, rig.counts.received) == (2, 4)
    assert adds_up(rig)
