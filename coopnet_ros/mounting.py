"""Where a camera sits on the robot, at the time of an image. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Mounting:
    """Where a camera sits.

    Attributes:
        T_base_camera: (4, 4) pose of the optical frame in base_link.
        camera_frame: frame_id of its images.
        moves: it is told with a time, as that of a camera on joints (a pan-tilt unit, an arm).
        epoch: how often time had gone back before that (a bag that loops).
    """

    T_base_camera: np.ndarray
    camera_frame: str = ""
    moves: bool = False
    epoch: int = 0

    def carries_on(self, earlier: Mounting) -> bool:
        """Whether the camera itself has moved on the robot since the earlier mounting, where the two differ.

        Otherwise the earlier one was wrong, or of another camera, or of another time: nothing has moved.
        """
        is_one_camera = (self.camera_frame, self.epoch) == (earlier.camera_frame, earlier.epoch)
        return self.moves and earlier.moves and is_one_camera
