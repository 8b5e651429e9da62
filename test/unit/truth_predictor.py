"""A predictor that knows the truth: what the figures of a perfect network are."""

import cv2
import numpy as np

from coopnet_core.data.bag_truth import read_truth
from coopnet_core.data.prepare import fit_frame
from coopnet_core.evaluation.grids import truth_grid
from coopnet_core.inference.prediction import Prediction


class TruthPredictor:
    """Depth in a unit of its own, motion in the same unit, flow and mask as they are, on a grid of its own.

    The unit is half a metre unless `unit_m` says otherwise; with 1 the predictor says that it is metric. `wrong`
    disturbs what it returns: a function from Prediction to Prediction. `truth_camera` is the camera, free of
    distortion, of the true depth, flow and masks, where that is not the camera of the images.
    """

    device = "truth"

    def __init__(self, bag, size=None, wrong=lambda prediction: prediction, unit_m=0.5, truth_camera=None):
        self.truth, self.size, self.wrong, self.previous = read_truth(bag), size, wrong, None
        self.unit_m, self.metric, self.truth_camera = unit_m, unit_m == 1.0, truth_camera
        self.warmed = []

    def warm_up(self, camera):
        self.warmed.append(camera)
        self.reset()

    def reset(self):
        self.previous = None

    def predict(self, frame, outputs=frozenset()):
        width, height = self.size or (frame.image.shape[1], frame.image.shape[0])
        fitted = fit_frame(frame, width, height)
        truth = self.truth[frame.stamp_ns]

        def placed(array):
            if self.truth_camera is not None:
                return looked_up(array, self.truth_camera, fitted.camera)
            grid = truth_grid(frame.camera, fitted.camera, frame.image.shape[1], frame.image.shape[0])
            cut = np.ascontiguousarray(grid.truth(array)).astype(np.float32)
            zoom = width / cut.shape[1], height / cut.shape[0]
            return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), zoom

        depth = 1 / placed(1 / truth.depth)[0] / self.unit_m
        flow = motion = moving = confidence = None
        previous, self.previous = self.previous, (frame.stamp_ns, truth.pose)
        if previous is not None:
            flow, zoom = placed(truth.flow)
            flow = flow * np.array(zoom, np.float32)
            moving = placed(truth.moving)[0]
            confidence = placed(~truth.moving & ~truth.occluded)[0]
            motion = np.linalg.inv(previous[1]) @ truth.pose
            motion[:3, 3] /= self.unit_m
        return self.wrong(
            Prediction(
                stamp_ns=frame.stamp_ns,
                previous_stamp_ns=previous and previous[0],
                camera=fitted.camera,
                image=fitted.image,
                depth=depth.astype(np.float32),
                metric=self.metric,
                T_previous_current=motion,
                flow=flow,
                motion_probability=moving,
                confidence=confidence,
                infer_ms=1.0,
            )
        )


def looked_up(array, source, target):
    """The values of one undistorted camera's image in the pixels of another that stands in its place, by the nearest.

    Returns:
        The (h, w) or (h, w, c) float32 values, and how many pixels of `target` one of `source` is long, in x and y.
    """
    zoom = target.fx / source.fx, target.fy / source.fy
    x = (np.arange(target.width) - target.cx) / zoom[0] + source.cx
    y = (np.arange(target.height) - target.cy) / zoom[1] + source.cy
    maps = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    values = np.ascontiguousarray(array).astype(np.float32)
    return cv2.remap(values, *maps, cv2.INTER_NEAREST, borderValue=(np.nan,) * 4), zoom
