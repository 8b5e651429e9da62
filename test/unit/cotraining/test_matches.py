import pytest
import torch
import torch.nn.functional as F

from coopnet_core.cotraining.matches import Matches, classical_matches, matches_term


def _textured(height=96, width=160, seed=0):
    """An image with structure of many sizes, wider than it is seen, so that it can be moved."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width + 60)
    for side in (5, 12, 30):
        coarse = torch.rand(1, 3, height // side + 2, (width + 60) // side + 2, generator=generator)
        image += F.interpolate(coarse, size=(height, width + 60), mode="bicubic") / 3
    return image.clamp(0, 1)


def _moved(shift, width=160):
    """Target and source, where the source shows the same 20 + shift pixels to the right."""
    wide = _textured()
    return wide[..., 20 : 20 + width], wide[..., 20 + shift : 20 + shift + width]


@pytest.mark.parametrize("shift", [3, 14])
def test_a_shift_is_found_both_ways(shift):
    target, source = _moved(shift)
    matches = classical_matches(target, source)
    assert matches.flow.shape == (2, 2, 96, 160)
    inner = matches.flow[..., 16:-16, 32:-32]
    assert inner[0, 0].median().item() == pytest.approx(-shift, abs=0.2)
    assert inner[1, 0].median().item() == pytest.approx(shift, abs=0.2)
    assert inner[:, 1].abs().median() < 0.2
    assert matches.agree[..., 16:-16, 32:-32].mean() > 0.8


def test_what_leaves_the_image_does_not_agree():
    target, source = _moved(14)
    agree = classical_matches(target, source).agree
    assert agree[0, 0, :, :12].max() == 0
    assert agree[1, 0, :, -12:].max() == 0


def test_unrelated_images_hardly_agree():
    agree = classical_matches(_textured(seed=1)[..., :160], _textured(seed=2)[..., :160]).agree
    assert agree.mean() < 0.4


def test_constant_images_stay_finite():
    matches = classical_matches(torch.full((1, 3, 64, 96), 0.5), torch.full((1, 3, 64, 96), 0.5))
    assert matches.flow.isfinite().all()
    assert matches.flow.abs().max() < 0.1


def _levels(flow, sizes=((16, 24), (8, 12))):
    """A constant flow of the image, given at two levels in their own pixels."""
    return [
        tuple(torch.full((1, 2, *size), value * size[1] / 96, requires_grad=True) for value in flow) for size in sizes
    ]


def test_the_term_is_zero_where_the_flow_is_that_of_the_matches():
    wanted = Matches(torch.cat([torch.full((1, 2, 64, 96), v) for v in (4.0, -4.0)]), torch.ones(2, 1, 64, 96))
    assert matches_term(_levels((4.0, -4.0)), wanted).item() == pytest.approx(0, abs=1e-5)
    # Off by 3 in both components and directions: Charbonnier of 3 sqrt(2), once for the finest and half for the other.
    expected = 1.5 * ((18 + 0.01) ** 0.5 - 0.1)
    assert matches_term(_levels((7.0, -7.0)), wanted).item() == pytest.approx(expected, rel=1e-4)


def test_pixels_that_do_not_agree_teach_nothing():
    agree = torch.ones(2, 1, 64, 96)
    agree[..., :48] = 0
    flow = torch.full((2, 2, 64, 96), 5.0)
    flow[..., :48] = 1e4
    levels = _levels((4.0, 4.0))
    term = matches_term(levels, Matches(flow, agree))
    term.backward()
    assert term.item() < 3
    assert levels[0][0].grad[..., :12].abs().max() == 0
    assert levels[0][0].grad[..., 13:].abs().min() > 0


def test_no_agreement_gives_zero_with_zero_gradient():
    levels = _levels((4.0, 4.0))
    term = matches_term(levels, Matches(torch.zeros(2, 2, 64, 96), torch.zeros(2, 1, 64, 96)))
    term.backward()
    assert term.item() == 0
    assert levels[0][0].grad.abs().max() == 0
