"""The measured scales on a real drive: networks, the ground of a road, and the true poses in place of wheels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from coopnet_core.data.frames import Frame
from coopnet_core.geometry.camera import Camera
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import inverse, quaternion_from_matrix, transform
from coopnet_ros.scale import CameraHeightScale, OdometryScale, ScaleSettings
from coopnet_ros.wheel_odometry import WheelPoses

CHECKPOINT = Path(__file__).resolve().parents[2] / "models" / "small_driving.safetensors"
MOUNT = transform((0.0, 0.0, 1.65), (-0.5, 0.5, -0.5, 0.5))
"""KITTI's left camera: 1.65 m above the road, looking ahead."""
FIRST, FRAMES, PERIOD = 500, 16, 100_000_000


def test_the_ground_and_the_wheels_agree_on_the_metre(shared_data):
    """On images that the weights never saw."""
    from coopnet_core.inference.stream import StreamPredictor

    folder = shared_data("kitti_odom03_000-599")
    meta = json.loads((folder / "meta.json").read_text())
    camera = Camera(*(meta[name] for name in ("width", "height", "fx", "fy", "cx", "cy")))
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, :3] = np.loadtxt(folder / "poses.txt")[FIRST : FIRST + FRAMES].reshape(-1, 3, 4)
    predictor, wheels = StreamPredictor(CHECKPOINT), WheelPoses()
    by_height = CameraHeightScale(ScaleSettings("camera_height"))
    by_wheels = OdometryScale(ScaleSettings("odometry"), wheels)
    mounting = Mounting(MOUNT)
    for index, path in enumerate(sorted((folder / "image_0").iterdir())[FIRST : FIRST + FRAMES]):
        robot = MOUNT @ poses[index] @ inverse(MOUNT)
        wheels.add(index * PERIOD, robot[:3, 3], quaternion_from_matrix(robot[:3, :3]))
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        prediction = predictor.predict(Frame(image, index * PERIOD, camera))
        height, odometry = by_height.update(prediction, mounting), by_wheels.update(prediction, mounting)
    assert (height.samples, odometry.samples) == (FRAMES, FRAMES - 1)
    assert height.value == pytest.approx(odometry.value, rel=0.1)
    assert max(height.spread, odometry.spread) < 0.2
