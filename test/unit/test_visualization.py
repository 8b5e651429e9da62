import colorsys
import json
import math
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.data.frames import FrameTruth
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Prediction
from coopnet_core.plots import plot_curves, plot_each_curve, plot_error_model, plot_trajectory
from coopnet_core.visualization import (
    depth_range,
    depth_to_color,
    error_panel,
    error_to_color,
    flow_to_color,
    mask_overlay,
    median_ratio,
    panel,
    tile,
    write_animation,
    write_picture,
)

HEIGHT, WIDTH = 24, 40


def prediction(**changes):
    generator = np.random.default_rng(0)
    values = {
        "stamp_ns": 1,
        "previous_stamp_ns": 0,
        "camera": Camera.from_field_of_view(WIDTH, HEIGHT, 90),
        "image": generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        "depth": generator.uniform(1, 50, (HEIGHT, WIDTH)).astype(np.float32),
        "metric": False,
        "T_previous_current": np.eye(4),
        "flow": generator.uniform(-5, 5, (HEIGHT, WIDTH, 2)).astype(np.float32),
        "motion_probability": generator.uniform(0, 1, (HEIGHT, WIDTH)).astype(np.float32),
        "confidence": None,
        "infer_ms": 1.0,
    }
    return Prediction(**values | changes)


def luminance(color):
    return color.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_brighter_and_colours_saturate_at_the_limits():
    depth = np.array([[0.5, 1.0, 2.0, 5.0, 20.0, 80.0, 500.0]])
    color = depth_to_color(depth, 1.0, 80.0)
    assert color.dtype == np.uint8
    brightness = luminance(color)[0]
    assert (np.diff(brightness[1:6]) < 0).all()
    assert color[0, 0].tolist() == color[0, 1].tolist()
    assert color[0, 5].tolist() == color[0, 6].tolist()
    assert color[0, 6].any()


@pytest.mark.parametrize("missing", [np.nan, np.inf, 0.0, -1.0])
def test_missing_depth_is_black_without_a_warning(missing, recwarn):
    assert depth_to_color(np.array([[missing, 3.0]]), 1.0, 80.0)[0, 0].tolist() == [0, 0, 0]
    assert not recwarn.list


def test_directions_of_the_flow_have_their_own_colours():
    flow = np.array([[[10.0, 0], [0, 10], [-10, 0], [0, -10], [0, 0], [np.nan, 0]]])
    right, down, left, up, still, missing = flow_to_color(flow, 10.0)[0].tolist()
    assert right == [255, 0, 0]
    assert left == [0, 255, 255]
    assert down[1] > 200
    assert up[2] > 200
    assert still == [255, 255, 255]
    assert missing == [0, 0, 0]


def test_half_the_flow_is_half_as_saturated_and_too_long_is_darker():
    colors = flow_to_color(np.array([[[5.0, 0], [10, 0], [30, 0]]]), 10.0)[0]
    assert colors[0].tolist() == [255, 128, 128]
    assert colors[2].tolist() == [191, 0, 0]


MISSING = [np.nan, np.inf, -np.inf]


def with_missing(values, missing):
    """A tenth of the values replaced."""
    generator = np.random.default_rng(1)
    holes = generator.uniform(size=values.shape) < 0.1
    values[holes] = generator.choice(missing, holes.sum())
    return values


def test_every_depth_has_the_colour_of_its_inverse():
    near, far = 0.5, 80.0
    depth = with_missing(np.exp(np.random.default_rng(0).uniform(-2, 6, (30, 40))), [*MISSING, 0.0, -1.0])
    magma = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_MAGMA)[:, 0, ::-1].tolist()
    colors = depth_to_color(depth, near, far)
    for value, color in zip(depth.ravel().tolist(), colors.reshape(-1, 3).tolist(), strict=True):
        if not (math.isfinite(value) and value > 0):
            assert color == [0, 0, 0]
            continue
        share = (1 / min(max(value, near), far) - 1 / far) / (1 / near - 1 / far)
        level = 255 * (0.05 + 0.95 * share)
        assert color in [magma[round(level + shift)] for shift in (-1e-3, 1e-3)]  # float32 may round to the other side


def test_every_flow_has_the_colour_of_the_wheel():
    max_px = 7.3
    generator = np.random.default_rng(0)
    flow = generator.normal(0, 1, (30, 40, 2)) * np.exp(generator.uniform(-5, 4, (30, 40, 1)))
    colors = flow_to_color(with_missing(flow, MISSING), max_px)
    for (u, v), color in zip(flow.reshape(-1, 2).tolist(), colors.reshape(-1, 3).tolist(), strict=True):
        if not (math.isfinite(u) and math.isfinite(v)):
            assert color == [0, 0, 0]
            continue
        length = math.hypot(u, v) / max_px
        turn = math.atan2(v, u) / (2 * math.pi)
        expected = colorsys.hsv_to_rgb(turn % 1, min(length, 1), 0.75 if length > 1 else 1)
        # OpenCV's angle is good to 0.3 degrees, a grey level of a saturated colour is 0.24
        np.testing.assert_allclose(color, 255 * np.array(expected), atol=2)


def test_views_are_coloured_like_copies():
    flow, depth = prediction().flow[:, ::-1], prediction().depth.T
    np.testing.assert_array_equal(flow_to_color(flow, 5.0), flow_to_color(flow.copy(), 5.0))
    np.testing.assert_array_equal(depth_to_color(depth, 1.0, 50.0), depth_to_color(depth.copy(), 1.0, 50.0))


def test_errors_get_brighter():
    colors = luminance(error_to_color(np.array([[0.0, 1.0, 2.0, 9.0, np.nan]]), 2.0))[0]
    assert colors[0] < colors[1] < colors[2] == colors[3]
    assert colors[4] == 0


def test_mask_tints_in_proportion():
    image = np.full((1, 3, 3), 100, np.uint8)
    overlay = mask_overlay(image, np.array([[0.0, 1.0, np.nan]]))
    assert overlay[0, 0].tolist() == overlay[0, 2].tolist() == [100, 100, 100]
    assert overlay[0, 1, 0] > 200
    assert overlay[0, 1, 1] < 60


def test_arguments_without_a_meaning_are_refused():
    depth, flow = np.ones((2, 2)), np.ones((2, 2, 2))
    for near, far in ((0, 1), (2, 2), (3, 1)):
        with pytest.raises(UsageError, match="near"):
            depth_to_color(depth, near, far)
    with pytest.raises(UsageError, match="max_px"):
        flow_to_color(flow, 0)
    with pytest.raises(UsageError, match="max_error"):
        error_to_color(depth, -1)
    with pytest.raises(UsageError, match="equal sizes"):
        mask_overlay(np.zeros((3, 3, 3), np.uint8), depth)
    with pytest.raises(UsageError, match="nothing to tile"):
        tile([], [], 2)


def test_depth_range_is_always_usable():
    assert depth_range(np.full((3, 3), np.nan)) == (1.0, 2.0)
    near, far = depth_range(np.full((3, 3), 7.0))
    assert 0 < near < far


def test_inputs_stay_as_they_are():
    p = prediction()
    before = [p.depth.copy(), p.flow.copy(), p.image.copy(), p.motion_probability.copy()]
    panel(p, FrameTruth(depth=p.depth, flow=p.flow))
    for array, copy in zip((p.depth, p.flow, p.image, p.motion_probability), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_panel_holds_all_four_pictures():
    page = panel(prediction(), columns=2, min_width=WIDTH)
    cell = (page.shape[0] // 2, page.shape[1] // 2)
    assert page.shape[1] == 2 * WIDTH
    assert cell[0] > HEIGHT
    image = prediction().image
    np.testing.assert_array_equal(page[cell[0] - HEIGHT : cell[0], :WIDTH], image)
    fixed = panel(prediction(), flow_max_px=6.0, columns=2, min_width=WIDTH)
    np.testing.assert_array_equal(fixed[-HEIGHT:, :WIDTH], flow_to_color(prediction().flow, 6.0))


def test_panel_with_truth_has_a_second_row():
    truth = FrameTruth(depth=prediction().depth * 3, flow=prediction().flow, moving=prediction().flow[..., 0] > 0)
    page = panel(prediction(), truth, min_width=WIDTH)
    assert page.shape[1] == 4 * WIDTH
    half = page.shape[0] // 2
    # Same depth up to scale: same colours above and below.
    np.testing.assert_allclose(
        page[half - HEIGHT : half, WIDTH : 2 * WIDTH].astype(int),
        page[-HEIGHT:, WIDTH : 2 * WIDTH].astype(int),
        atol=4,
    )


def test_panel_of_a_first_frame():
    first = prediction(flow=None, motion_probability=None, T_previous_current=None, previous_stamp_ns=None)
    assert panel(first).shape[2] == 3
    assert panel(prediction(depth=None), FrameTruth()).dtype == np.uint8


def test_error_panel_accepts_missing_maps():
    image = prediction().image
    assert error_panel(image, None, np.zeros((HEIGHT, WIDTH)), 0.5, 5.0, WIDTH).shape[1] == 3 * WIDTH


def test_median_ratio_without_common_pixels():
    assert median_ratio(None, np.ones((2, 2))) == 1.0
    assert median_ratio(np.full((2, 2), np.nan), np.ones((2, 2))) == 1.0


def test_picture_keeps_red_red(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    path = write_picture(tmp_path / "new" / "a.png", image)
    assert Image.open(path).getpixel((0, 0)) == (200, 0, 0)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animation_has_all_pages(tmp_path, suffix):
    pages = [np.full((10, 2000, 3), 60 * index, np.uint8) for index in range(4)]
    path = write_animation(tmp_path / f"a{suffix}", pages, fps=5)
    with Image.open(path) as animation:
        assert animation.n_frames == 4
        assert animation.size == (960, 5)
        assert animation.info.get("loop") == 0


def test_animation_errors(tmp_path):
    with pytest.raises(UsageError, match=r"\.webp or \.gif"):
        write_animation(tmp_path / "a.mp4", [np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(UsageError, match="not one picture"):
        write_animation(tmp_path / "a.gif", [])


def test_plots_are_written(tmp_path):
    poses = np.repeat(np.eye(4)[None], 5, 0)
    poses[:, 2, 3] = range(5)
    assert plot_trajectory(tmp_path / "t.png", poses, {"a": poses[:, :3, 3]}).stat().st_size > 1000
    assert plot_trajectory(tmp_path / "u.png", None, {"a": poses}).exists()
    lines = [
        {"step": k, "stage": "flow" if k < 5 else "together", "validation": k == 9, "loss": 1 / k, "fairness": 0.4}
        for k in range(1, 10)
    ]
    metrics = tmp_path / "metrics.jsonl"
    # The last line was cut short by an interruption.
    metrics.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 10, "lo')
    assert len(read_metrics(metrics)) == 9
    assert plot_curves(metrics, tmp_path / "c.png").stat().st_size > 1000


def test_each_curve_is_a_picture_of_its_own_in_the_colours_of_the_reader(tmp_path):
    lines = [{"step": k, "stage": "a", "loss": 10.0 / k, "e_f": None if k % 2 else 0.1 * k} for k in range(1, 9)]
    lines += [{"step": 8, "validation": True, "e_r": 0.2}, {"step": 9, "loss": float("nan")}, {"step": 10}]
    paths = plot_each_curve(lines, tmp_path)
    assert {curve.key: path.name for curve, path in paths.items()} == {"loss": "loss.svg", "errors": "errors.svg"}
    drawn = (tmp_path / "errors.svg").read_text()
    assert re.findall(r">(e_\w+)</text>", drawn) == ["e_r", "e_f"]  # what nobody measured has no name
    assert "prefers-color-scheme:dark" in drawn
    assert "var(--ink)" in drawn
    assert "#010203" not in drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_the_gates_are_in_the_curves(tmp_path):
    lines = [{"step": k, "separation": 0.1 * k} for k in range(5)]
    (plain,) = plot_each_curve(lines, tmp_path / "a").values()
    (gated,) = plot_each_curve(lines, tmp_path / "b", {"separation": 1.5}).values()
    assert gated.read_text().count("stroke-dasharray") == plain.read_text().count("stroke-dasharray") + 1


def test_the_error_model_is_drawn(tmp_path):
    edges, shares = np.linspace(-0.1, 0.3, 5), np.array([0.1, 0.5, 0.0, 0.4])
    drawn = plot_error_model(tmp_path / "m.svg", edges, shares, shares, 0.2).read_text()
    assert ">tau</text>" in drawn
    assert ">tau</text>" not in plot_error_model(tmp_path / "n.svg", edges, shares, shares, float("nan")).read_text()


def test_curves_without_figures_are_refused(tmp_path):
    with pytest.raises(NoUsableDataError, match="cannot be read"):
        plot_curves(tmp_path / "none.jsonl", tmp_path / "c.png")
    (tmp_path / "m.jsonl").write_text('{"step": 1, "other": 2}\n')
    with pytest.raises(NoUsableDataError, match="none of the figures"):
        plot_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(NoUsableDataError, match="no line"):
        plot_curves(tmp_path / "e.jsonl", tmp_path / "c.png")
