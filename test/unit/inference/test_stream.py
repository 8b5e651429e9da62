import cv2
import numpy as np
import pytest
import torch

from coopnet_core.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from coopnet_core.config import load_config
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.data.frames import Frame
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import DEPTH, FLOW
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.networks.bundle import CoopNetworks, normalise
from coopnet_core.resources import shipped_file

CAMERA = Camera(200, 100, 150.0, 150.0, 99.5, 49.5)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    torch.manual_seed(0)
    config = load_config("small", [], {})
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
