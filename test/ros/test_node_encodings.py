"""Every encoding through the node: what the networks see is the picture that was packed."""

from __future__ import annotations

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
