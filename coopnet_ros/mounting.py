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
    """

    T_base_camera: np.ndarray
    camera_frame: str = ""
    moves: bool = False

    def carries_on(self, earlier: Mounting) -> bool:
        """Whether the camera itself has moved on the robot since the earlier mounting, where the two differ.

        Otherwise the earlier one was wrong, or that of another camera: nothing has moved.
        """
        return self.moves and earlier.moves and self.camera_frame == earlier.camera_frame
