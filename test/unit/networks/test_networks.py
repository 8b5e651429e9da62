import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from coopnet_core.config import DepthConfig, EncoderConfig, NetworksConfig, PoseConfig, load_config
from coopnet_core.networks.bundle import CoopNetworks
from coopnet_core.networks.correlation import local_correlation
from coopnet_core.networks.depth import depth_from_disparity
from coopnet_core.networks.encoder import BasicBlock, ResNetEncoder

SMALL = load_config("cpu-small", [], {}).networks
MATRIX = torch.tensor([[[100.0, 0, 63.5], [0, 100.0, 31.5], [0, 0, 1]]])


def _correlation_loop(first, second, r):
    batch, _, height, width = first.shape
    out = torch.zeros(batch, (2 * r + 1) ** 2, height, width)
    for y in range(height):
        for x in range(width):
            for dy in range(-r, r + 1):
                for dx in range(-r, r + 1):
                    v, u = y + dy, x + dx
                    if 0 <= v < height and 0 <= u < width:
                        value = (first[:, :, y, x] * second[:, :, v, u]).mean(1)
                        out[:, (dy + r) * (2 * r + 1) + dx + r, y, x] = value
    return out


def test_correlation_equals_the_loop():
    first, second = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(local_correlation(first, second, 2), _correlation_loop(first, second, 2))


def test_correlation_gradient():
    first = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    second = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: local_correlation(a, b, 1), (first, second))


def test_resnet18_has_the_parameter_names_and_count_of_torchvision():
    encoder = ResNetEncoder(EncoderConfig())
    names = set(encoder.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.conv2.weight"} <= names
    # ResNet-18 has 11,689,512 parameters, of which 513,000 are its classifier.
    assert sum(p.numel() for p in encoder.parameters()) == 11_689_512 - 513_000


@pytest.mark.parametrize("channels", [8, 16])
def test_the_shortcut_of_a_strided_block_is_a_strided_convolution(channels):
    block = BasicBlock(channels, 24, 2).double()
    assert block.step == (2 if channels < 16 else 1)
    x = torch.randn(2, channels, 7, 9, dtype=torch.float64)
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.zeros_(convolution.weight)  # the shortcut alone is left
    block.eval()
    expected = F.relu(block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2)))
    torch.testing.assert_close(block(x), expected)


def test_narrow_networks_can_be_trained_with_many_threads():
    """oneDNN corrupts the heap, or crashes, in the backward pass of a strided 1x1 convolution of few channels."""
    code = """if True:
        import torch
        from coopnet_core.networks.encoder import BasicBlock
        torch.set_num_threads(4)
        block = BasicBlock(8, 16, 2).to(memory_format=torch.channels_last)
        for _ in range(40):
            x = torch.randn(2, 8, 24, 40).contiguous(memory_format=torch.channels_last).requires_grad_()
            block(x).square().mean().backward()
        print("done")
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_WAIT_POLICY": "PASSIVE"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


def test_depth_scales_and_range():
    config = DepthConfig(encoder=EncoderConfig(layers=(1, 1, 1, 1), widths=(8, 8, 8, 8, 8)), finest_scale=0, scales=4)
    networks = CoopNetworks(NetworksConfig(depth=config, pose=SMALL.pose, flow=SMALL.flow))
    disparities, depth = networks.depths(torch.rand(2, 3, 64, 128))
    assert [tuple(d.shape) for d in disparities] == [(2, 1, 64 >> s, 128 >> s) for s in range(4)]
    assert depth.shape == (2, 1, 64, 128)
    assert depth_from_disparity(torch.tensor(0.0), config).item() == pytest.approx(100.0)
    assert depth_from_disparity(torch.tensor(1.0), config).item() == pytest.approx(0.1)


def test_flow_is_a_quarter_of_the_size_and_float32_under_autocast():
    networks = CoopNetworks(SMALL).eval()
    images = torch.rand(2, 3, 64, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = networks.flow(images, images)
        disparity = networks.depths(images)[0][0]
    assert flow.shape == (2, 2, 16, 32)
    assert flow.dtype == disparity.dtype == torch.float32


def test_no_flow_is_exactly_no_motion():
    networks = CoopNetworks(SMALL)
    image, depth = torch.rand(1, 3, 64, 128), torch.rand(1, 1, 64, 128) + 1
    motion = networks.motion(image, image, torch.zeros(1, 2, 16, 32), depth, MATRIX)
    torch.testing.assert_close(motion, torch.eye(4)[None])


def test_motion_does_not_see_the_scale_of_the_depth():
    networks = CoopNetworks(SMALL)
    image, depth, flow = torch.rand(1, 3, 64, 128), torch.rand(1, 1, 64, 128) + 1, torch.randn(1, 2, 16, 32)
    near = networks.motion(image, image, flow, depth, MATRIX)
    far = networks.motion(image, image, flow, 3 * depth, MATRIX)
    torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-6)


def test_depth_starts_far_from_the_ends_of_its_range():
    _, depth = CoopNetworks(SMALL).eval().depths(torch.rand(1, 3, 64, 128))
    assert 0.3 < depth.median() < 3


def test_the_odometry_network_knows_the_focal_length():
    networks = CoopNetworks(SMALL)
    image, depth, flow = torch.rand(1, 3, 64, 128), torch.ones(1, 1, 64, 128), torch.randn(1, 2, 16, 32)
    doubled = MATRIX.clone()
    doubled[:, 0, 0] *= 2
    doubled[:, 1, 1] *= 2
    a = networks.motion(image, image, flow, depth, MATRIX)
    b = networks.motion(image, image, flow, depth, doubled)
    assert (a - b).abs().max() > 0  # the same pixels are another motion through another lens


def test_pose_from_images():
    config = NetworksConfig(
        depth=SMALL.depth,
        pose=PoseConfig(source="images", encoder=SMALL.depth.encoder),
        flow=SMALL.flow,
    )
    networks = CoopNetworks(config)
    image = torch.rand(2, 3, 64, 128)
    motion = networks.motion(image, image, torch.zeros(2, 2, 16, 32), torch.ones(2, 1, 64, 128), MATRIX)
    assert motion.shape == (2, 4, 4)
    assert (motion - torch.eye(4)).abs().max() < 0.1
