import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from coopnet_core.config import AugmentationConfig
from coopnet_core.data.augmentation import augment, to_float
from coopnet_core.data.frames import Clip
from coopnet_core.data.triplets import Batch, TripletSampler
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera

CAMERA = Camera(8, 6, 7.0, 7.0, 3.0, 2.5)


def _clip(first, frames, camera=CAMERA):
    values = np.arange(first, first + frames, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (frames, camera.height, camera.width, 3)).copy()
    return Clip(f"clip {first}", images, np.arange(frames) * 10**8, camera)


def test_a_pair_never_crosses_two_clips():
    sampler = TripletSampler([_clip(0, 4), _clip(100, 5)], (-1, 1), 2, seed=0)
    assert len(sampler) == 2 + 3
    for _ in range(20):
        batch = sampler.next(2)
        target = batch.target[:, 0, 0, 0].long()
        sources = batch.sources[:, :, 0, 0, 0].long()
        assert (sources == target[:, None] + torch.tensor([-1, 1])).all()
        assert ((target < 3) | (target > 100)).all()


def test_one_pass_visits_every_target_once():
    sampler = TripletSampler([_clip(0, 8)], (-1, 1), 3, seed=0)
    seen = [value for _ in range(2) for value in sampler.next(2).target[:, 0, 0, 0].tolist()]
    assert sorted(seen) == list(range(1, 7))


def test_one_source_is_drawn_from_the_offsets():
    sampler = TripletSampler([_clip(0, 50)], (-1, 1), 16, seed=0)
    batch = sampler.next(1)
    assert batch.sources.shape == (16, 1, 3, 6, 8)
    steps = batch.sources[:, 0, 0, 0, 0].long() - batch.target[:, 0, 0, 0].long()
    assert set(steps.tolist()) == {-1, 1}


def test_a_restored_sampler_goes_on_alike():
    clips = [_clip(0, 9)]
    sampler = TripletSampler(clips, (-1, 1), 2, seed=3)
    sampler.next(1)
    state = sampler.state()
    expected = [sampler.next(1).sources for _ in range(6)]
    other = TripletSampler(clips, (-1, 1), 2, seed=99)
    other.restore(state)
    assert all(torch.equal(a, other.next(1).sources) for a in expected)


def _mixture(weights=(3.0, 1.0)):
    """Two recordings: one of 10 targets in two clips, one of 60."""
    clips = [(0, 6, 0), (10, 8, 0), (100, 62, 1)]
    return [replace(_clip(first, count), source=source, weight=weights[source]) for first, count, source in clips]


def test_a_mixture_is_drawn_by_its_weights_not_by_its_lengths():
    sampler = TripletSampler(_mixture(), (-1, 1), 8, seed=0)
    drawn = np.concatenate([sampler.next(2).target[:, 0, 0, 0].numpy() for _ in range(500)])
    first = (drawn < 100).mean()
    # 4000 draws with probability 3/4: a standard deviation of 0.0068. By length it would be 10/70.
    assert abs(first - 0.75) < 4 * 0.0068
    # Within a recording every target comes equally often, whatever clip it is in: passes, not single draws.
    for low, high, targets in ((0, 100, 10), (100, 255, 60)):
        counts = np.bincount(drawn[(drawn >= low) & (drawn < high)])
        counts = counts[counts > 0]
        assert len(counts) == targets
        assert counts.max() - counts.min() <= 1


def test_neighbours_in_a_mixture_are_of_one_clip():
    batch = TripletSampler(_mixture(), (-1, 1), 64, seed=0).next(2)
    target, sources = batch.target[:, 0, 0, 0].long(), batch.sources[:, :, 0, 0, 0].long()
    assert (sources == target[:, None] + torch.tensor([-1, 1])).all()


def test_a_restored_mixture_goes_on_alike_and_other_weights_are_refused():
    sampler = TripletSampler(_mixture(), (-1, 1), 4, seed=3)
    sampler.next(1)
    state = json.loads(json.dumps(sampler.state()))
    expected = [sampler.next(1).sources for _ in range(40)]
    other = TripletSampler(_mixture((0.75, 0.25)), (-1, 1), 4, seed=99)  # the same shares
    other.restore(state)
    assert all(torch.equal(a, other.next(1).sources) for a in expected)
    with pytest.raises(UsageError, match=r"0\.75, 0\.25 .* now they have 0\.5, 0\.5"):
        TripletSampler(_mixture((1.0, 1.0)), (-1, 1), 4, seed=3).restore(state)
    with pytest.raises(UsageError, match="now they have 1"):
        TripletSampler([_clip(0, 9)], (-1, 1), 4, seed=3).restore(state)


def test_weights_for_some_only_are_refused():
    with pytest.raises(UsageError, match="one for each"):
        TripletSampler(_mixture((1.0, None)), (-1, 1), 4, seed=0)


def test_mixed_sizes_and_empty_data_are_refused():
    with pytest.raises(NoUsableDataError, match="one size"):
        TripletSampler([_clip(0, 4), _clip(0, 4, Camera(16, 6, 7.0, 7.0, 3.0, 2.5))], (-1, 1), 2, 0)
    with pytest.raises(NoUsableDataError, match="at least 3"):
        TripletSampler([], (-1, 1), 2, 0)


def _random_batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (16, 3, 3, 6, 8), generator=generator, dtype=torch.uint8)
    return Batch(images[:, 0], images[:, 1:], torch.from_numpy(CAMERA.matrix).float().expand(16, 3, 3))


def test_flip_mirrors_all_frames_of_a_row_and_the_camera():
    plain = to_float(_random_batch())
    config = AugmentationConfig(flip=0.5, brightness=0, contrast=0, saturation=0, grey=0)
    flipped = augment(plain, config, torch.Generator().manual_seed(1))
    rows = (flipped.camera_matrix[:, 0, 2] != plain.camera_matrix[:, 0, 2]).tolist()
    assert 2 < sum(rows) < 14
    for k, mirrored in enumerate(rows):
        expected = plain.target[k].flip(-1) if mirrored else plain.target[k]
        torch.testing.assert_close(flipped.target[k], expected)
        expected = plain.sources[k].flip(-1) if mirrored else plain.sources[k]
        torch.testing.assert_close(flipped.sources[k], expected)
        if mirrored:
            assert flipped.camera_matrix[k, 0, 2].item() == CAMERA.flipped().cx


def test_colours_change_alike_for_all_frames_of_a_row():
    batch = to_float(_random_batch())
    same = Batch(batch.target, batch.target[:, None].expand(-1, 2, -1, -1, -1), batch.camera_matrix)
    changed = augment(same, AugmentationConfig(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed.sources[:, 0], changed.target)
    torch.testing.assert_close(changed.sources[:, 1], changed.target)
    assert (changed.target - same.target).abs().max() > 0.01
    assert changed.target.min() >= 0
    assert changed.target.max() <= 1


def _masked_clip(frames=6):
    rng = np.random.default_rng(3)
    moving = rng.random((frames, CAMERA.height, CAMERA.width)) < 0.4
    images = np.repeat(np.where(moving, 200, 40).astype(np.uint8)[..., None], 3, axis=-1)
    return Clip("masked", images, np.arange(frames) * 10**8, CAMERA, moving)


def test_the_true_mask_stays_with_its_image():
    batch = to_float(TripletSampler([_masked_clip()], (-1, 1), 4, seed=0).next(1))
    plain = AugmentationConfig(flip=0.5, brightness=0, contrast=0, saturation=0, grey=0)
    augmented = augment(batch, plain, torch.Generator().manual_seed(1))
    assert torch.equal(augmented.moving, augmented.target[:, :1] > 0.5)
    assert not torch.equal(augmented.moving, batch.moving)


def test_without_the_mask_of_every_clip_there_is_none():
    assert TripletSampler([_masked_clip(), _clip(0, 5)], (-1, 1), 2, seed=0).next(1).moving is None
