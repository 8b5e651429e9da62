import cv2
import numpy as np
import pytest

from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import fit_frame
from coopnet_core.evaluation.grids import truth_grid
from coopnet_core.geometry.camera import Camera


@pytest.mark.parametrize("size", [(416, 128), (320, 96), (256, 256), (1242, 375), (96, 320)])
@pytest.mark.parametrize("recorded", [(1242, 375), (640, 480), (201, 97)])
def test_rectangle_is_the_crop_that_fit_frame_took(recorded, size):
    camera = Camera(*recorded, 700.0, 690.0, recorded[0] / 2 - 7.3, recorded[1] / 2 + 2.9)
    # Column and row numbers as the image: the centre of the output must show what the centre of the rectangle holds.
    columns, rows = np.meshgrid(np.arange(recorded[0]), np.arange(recorded[1]))
    image = np.stack([columns % 256, rows % 256, columns // 256], -1).astype(np.uint8)
    fitted = fit_frame(Frame(image, 0, camera), *size)
    grid = truth_grid(camera, fitted.camera, *recorded)
    cut = grid.truth(columns)
    assert cut.shape == (grid.height, grid.width)
    exact = camera.cropped(grid.columns.start, grid.rows.start, grid.width, grid.height).scaled(*size)
    for name in ("fx", "fy", "cx", "cy"):
        assert getattr(exact, name) == pytest.approx(getattr(fitted.camera, name), rel=1e-9)


def test_truth_of_another_size_is_the_same_view():
    camera = Camera(100, 60, 80, 80, 49.5, 29.5)
    output = camera.cropped(10, 6, 80, 48).scaled(40, 24)
    grid = truth_grid(camera, output, 200, 120)
    assert (grid.columns, grid.rows) == (slice(20, 180), slice(12, 108))


def test_sparse_truth_is_cut_never_resampled():
    truth = np.full((60, 100), np.nan, np.float32)
    truth[30, 50] = 12.0
    camera = Camera(100, 60, 80, 80, 49.5, 29.5)
    grid = truth_grid(camera, camera.cropped(10, 6, 80, 48).scaled(40, 24), 100, 60)
    cut = grid.truth(truth)
    assert np.isfinite(cut).sum() == 1
    assert cut[24, 40] == 12.0


@pytest.mark.parametrize("size", [(96, 64), (128, 64), (64, 96)])
def test_a_map_cropped_and_reduced_comes_back_to_its_place(size):
    # Linear in x and y: any shift shows. Averaging whole pixels over 1.5 of them is off by up to 1/18 to either side.
    camera = Camera(200, 96, 120, 120, 99.5, 47.5)
    columns, rows = np.meshgrid(np.arange(200, dtype=np.float32), np.arange(96, dtype=np.float32))
    fitted = fit_frame(Frame(np.zeros((96, 200, 3), np.uint8), 0, camera), *size)
    grid = truth_grid(camera, fitted.camera, 200, 96)
    for plane in (columns, rows):
        small = cv2.resize(grid.truth(plane), size, interpolation=cv2.INTER_AREA)
        difference = (grid.values(small) - grid.truth(plane))[3:-3, 3:-3]
        assert np.abs(difference).max() < 0.06
        assert abs(difference.mean()) < 1e-3


def test_flow_is_scaled_to_the_truth():
    camera = Camera(100, 60, 80, 80, 49.5, 29.5)
    grid = truth_grid(camera, camera.scaled(50, 20), 100, 60)
    np.testing.assert_allclose(grid.flow(np.ones((20, 50, 2), np.float32))[30, 50], [2, 3])


@pytest.mark.parametrize("model", ["plumb_bob", "equidistant"])
def test_distorted_truth_follows_the_image(model):
    coefficients = (-0.2, 0.03, 0.001, 0.0, 0.0) if model == "plumb_bob" else (0.05, 0.01, 0.0, 0.0)
    camera = Camera(160, 120, 120, 120, 80, 59, model, coefficients)
    columns, rows = np.meshgrid(np.arange(160, dtype=np.float32), np.arange(120, dtype=np.float32))
    image = np.stack([columns, rows, columns], -1).astype(np.uint8)
    fitted = fit_frame(Frame(image, 0, camera), 128, 96)
    grid = truth_grid(camera, fitted.camera, 160, 120)
    assert grid.is_rectified
    where = grid.truth(columns)
    shown = grid.values(fitted.image[..., 0])
    assert np.nanmedian(np.abs(where - shown)) < 1
    inner = np.abs(where - shown)[5:-5, 5:-5]
    assert np.nanmax(inner) < 3
    assert grid.truth(columns > 80).dtype == bool
