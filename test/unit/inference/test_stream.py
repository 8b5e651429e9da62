import cv2
import numpy as np
import pytest
import torch

from coopnet_core.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from coopnet_core.config import load_config
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.data.frames import Frame
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import ALL_OUTPUTS, DEPTH, FLOW, MASK, MOTION, REFINE_CHOICES
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.networks.bundle import CoopNetworks, normalise
from coopnet_core.resources import shipped_file

CAMERA = Camera(200, 100, 150.0, 150.0, 99.5, 49.5)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    torch.manual_seed(0)
    config = load_config("cpu-small", [], {})
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    metadata = CheckpointMetadata(
        networks=config.networks.model_dump(mode="json"),
        width=128,
        height=64,
        camera_matrix=np.eye(3).tolist(),
        error_model=ErrorModelState.initial().as_floats(),
        error_model_config=config.loss.error_model.model_dump(mode="json"),
        step=0,
    )
    save_checkpoint(path, CoopNetworks(config.networks), metadata)
    return StreamPredictor(path)


def _frame(stamp, seed=0, camera=CAMERA):
    rng = np.random.default_rng(seed)
    height, width = (CAMERA.height, CAMERA.width) if camera is None else (camera.height, camera.width)
    return Frame(rng.integers(0, 255, (height, width, 3), dtype=np.uint8), stamp, camera)


def test_first_frame_has_depth_alone_and_the_second_everything(predictor):
    predictor.reset()
    first, second = predictor.predict(_frame(1)), predictor.predict(_frame(2, 2))
    assert first.previous_stamp_ns is None
    assert first.flow is first.T_previous_current is first.motion_probability is None
    assert (second.stamp_ns, second.previous_stamp_ns) == (2, 1)
    shape = (second.camera.height, second.camera.width)
    assert second.depth.shape == second.motion_probability.shape == second.confidence.shape == shape
    assert second.flow.shape == (*shape, 2)
    assert second.image.shape == (*shape, 3)
    assert (second.depth > 0).all()
    assert not second.metric
    assert 0 <= second.motion_probability.min() <= second.motion_probability.max() <= 1


def test_identical_frames_give_nearly_no_flow_and_the_identity():
    shipped = StreamPredictor(shipped_file("models/small_rendered.safetensors"))
    image = cv2.resize(_frame(0).image[::10, ::10], (CAMERA.width, CAMERA.height), interpolation=cv2.INTER_CUBIC)
    shipped.predict(Frame(image, 1, CAMERA))
    prediction = shipped.predict(Frame(image, 2, CAMERA))
    assert not prediction.flow.any()
    np.testing.assert_array_equal(prediction.T_previous_current, np.eye(4))
    assert (prediction.depth > 0).all()


def test_the_networks_alone_see_nearly_no_motion_between_identical_frames():
    networks = load_checkpoint(shipped_file("models/small_rendered.safetensors")).networks
    frame = _frame(0).image[:64, :128]
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    matrix = torch.from_numpy(Camera(128, 64, 100.0, 100.0, 63.5, 31.5).matrix).float()[None]
    with torch.no_grad():
        flow = networks.flow(normalise(image), normalise(image))
        _, depth = networks.depths(image)
        motion = networks.motion(image, image, flow, depth, matrix)[0]
    angle = torch.rad2deg(((motion[:3, :3].trace() - 1) / 2).clamp(max=1).acos())
    assert angle < 0.1
    assert motion[:3, 3].norm() < 0.02 * depth.median()


def test_reset_and_another_camera_start_a_new_pair(predictor):
    predictor.reset()
    predictor.predict(_frame(1))
    predictor.reset()
    assert predictor.predict(_frame(2)).previous_stamp_ns is None
    other = Camera(200, 100, 160.0, 160.0, 99.5, 49.5)
    assert predictor.predict(_frame(3, camera=other)).previous_stamp_ns is None


def test_only_what_is_wanted_is_computed(predictor):
    predictor.reset()
    predictor.predict(_frame(1), frozenset({DEPTH}))
    depth = predictor.predict(_frame(2, 2), frozenset({DEPTH}))
    assert depth.depth is not None
    assert depth.flow is None
    flow = predictor.predict(_frame(3, 3), frozenset({FLOW}))
    assert flow.flow is not None
    assert flow.depth is None


def test_what_is_computed_does_not_depend_on_what_is_wanted(predictor):
    frames = [_frame(1, 1), _frame(2, 2)]
    predictor.reset()
    everything = [predictor.predict(frame) for frame in frames][1]
    predictor.reset()
    flow = [predictor.predict(frame, frozenset({FLOW})) for frame in frames][1]
    np.testing.assert_allclose(everything.flow, flow.flow, atol=0.05)


def test_a_frame_without_camera_is_refused(predictor):
    with pytest.raises(UsageError, match="calibrat"):
        predictor.predict(_frame(1, camera=None))


def test_warm_up_leaves_no_pair(predictor):
    predictor.warm_up(CAMERA)
    assert predictor.predict(_frame(5)).previous_stamp_ns is None


def test_the_input_size_must_be_a_multiple(predictor, tmp_path):
    with pytest.raises(UsageError, match="multiples of 32"):
        StreamPredictor(tmp_path / "unused", input_size=(100, 64))


@pytest.fixture(scope="module")
def shipped():
    return {
        refine: StreamPredictor(shipped_file("models/small_rendered.safetensors"), refine=refine)
        for refine in REFINE_CHOICES
    }


@pytest.fixture(scope="module")
def street():
    """A drive with movers, at 10 Hz, as frames a tenth of a second apart."""
    return render_clip(SceneConfig(3, 4, Camera.from_field_of_view(416, 128, 80.0), movers=0.15, camera_moves=True))


def _frames(street, images=None):
    images = street.clip.images if images is None else images
    return [Frame(image, 100_000_000 * index, street.clip.camera) for index, image in enumerate(images)]


@pytest.mark.parametrize("refine", REFINE_CHOICES)
def test_the_motion_does_not_depend_on_who_listens_to_the_mask(shipped, street, refine):
    predictor = shipped[refine]
    motions = []
    for outputs in (ALL_OUTPUTS, frozenset({MOTION}), frozenset({DEPTH, MOTION})):
        predictor.reset()
        motions.append([predictor.predict(frame, outputs).T_previous_current for frame in _frames(street)][1:])
    np.testing.assert_allclose(motions[1], motions[0], atol=1e-5)
    np.testing.assert_allclose(motions[2], motions[0], atol=1e-5)


def test_the_refinement_says_how_certain_it_is(shipped, street):
    errors = {}
    true = np.stack([np.linalg.inv(a.pose) @ b.pose for a, b in zip(street.truth, street.truth[1:], strict=False)])
    for refine, predictor in shipped.items():
        predictor.reset()
        pairs = [predictor.predict(frame) for frame in _frames(street)][1:]
        found = np.stack([pair.T_previous_current for pair in pairs])
        cosines = ((np.swapaxes(true[:, :3, :3], 1, 2) @ found[:, :3, :3]).trace(axis1=1, axis2=2) - 1) / 2
        errors[refine] = np.arccos(np.clip(cosines, -1, 1)).mean()
        assert [pair.motion_covariance is None for pair in pairs] == [refine == "off"] * len(pairs)
        if refine != "off":
            deviations = np.sqrt([np.diag(pair.motion_covariance) for pair in pairs])
            assert (deviations > 1e-5).all()
            assert (deviations[:, 3:] < 0.005).all()  # radians
            lengths = np.linalg.norm(found[:, :3, 3], axis=1)
            assert (deviations[:, :3] < lengths[:, None]).all()
    assert errors["static"] < errors["off"]


def test_an_unknown_refinement_is_refused():
    with pytest.raises(UsageError, match="static, all, off"):
        StreamPredictor(shipped_file("models/small_rendered.safetensors"), refine="always")


def test_a_creeping_camera_moves_in_the_end(shipped, street):
    """A fiftieth of a frame's motion at a time: rotations and lengths are those of the whole way."""
    predictor = shipped["static"]
    predictor.reset()
    start = street.clip.images[1]
    height, width = start.shape[:2]
    images = []
    for step in range(12):
        factor = 1 + step * 0.25 / (width / 2)
        matrix = np.array([[factor, 0, (1 - factor) * width / 2], [0, factor, (1 - factor) * height / 2]])
        images.append(
            cv2.warpAffine(start, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        )
    pairs = [predictor.predict(frame) for frame in _frames(street, images)][1:]
    moved = [not np.array_equal(pair.T_previous_current, np.eye(4)) for pair in pairs]
    assert not moved[0]
    assert 2 <= sum(moved) <= 6
    for index, pair in enumerate(pairs, start=1):
        assert pair.previous_stamp_ns == 100_000_000 * (index - 1)
        if not moved[index - 1]:
            assert pair.pair_stamp_ns == pair.previous_stamp_ns
            continue
        since = max([0, *(number for number, moves in enumerate(moved[: index - 1], start=1) if moves)])
        assert pair.pair_stamp_ns == 100_000_000 * since
        # the image is a zoom about the centre: the flow points outwards from the reference, in full
        border = np.nanmean(pair.flow[:, -40:, 0]) - np.nanmean(pair.flow[:, :40, 0])
        assert border == pytest.approx(-2 * 0.25 * (index - since) * 0.9, rel=0.5)


def test_what_moves_before_a_standing_camera_is_seen_and_the_camera_stands(shipped, street):
    predictor = shipped["static"]
    predictor.reset()
    images = []
    for step in range(3):
        image = street.clip.images[1].copy()
        left = 150 + 6 * step
        image[60:100, left : left + 30] = street.clip.images[3][30:70, 300:330]
        images.append(image)
    pairs = [predictor.predict(frame) for frame in _frames(street, images)][1:]
    for step, pair in enumerate(pairs, start=1):
        np.testing.assert_array_equal(pair.T_previous_current, np.eye(4))
        assert not pair.motion_covariance.any()
        left = 150 + 6 * step
        assert pair.motion_probability[62:98, left + 4 : left + 26].mean() > 0.5
        assert pair.motion_probability[:, :100].mean() < 0.1
        assert np.nanmean(pair.flow[64:96, left + 4 : left + 26, 0]) == pytest.approx(-6, abs=2)


def test_a_covered_lens_is_no_standstill(shipped, street):
    predictor = shipped["static"]
    predictor.reset()
    dark = np.zeros_like(street.clip.images[0])
    images = [street.clip.images[0], dark, dark, street.clip.images[1], street.clip.images[2]]
    predictions = [predictor.predict(frame, frozenset({DEPTH, MOTION, MASK})) for frame in _frames(street, images)]
    assert [prediction.previous_stamp_ns is None for prediction in predictions] == [True, True, True, True, False]
    assert all(prediction.T_previous_current is None for prediction in predictions[:4])
    assert predictions[4].T_previous_current is not None
