"""A predictor that knows the truth: what the figures of a perfect network are."""

import cv2
import numpy as np

from coopnet_core.data.bag_truth import read_truth
from coopnet_core.data.prepare import fit_frame
from coopnet_core.evaluation.grids import truth_grid
from coopnet_core.inference.prediction import Prediction


class TruthPredictor:
    """Depth in units of half a metre, motion in the same unit, flow and mask as they are, on a grid of its own.

    `wrong` disturbs what it returns: a function from Prediction to Prediction.
    """

    metric = False
    device = "truth"

    def __init__(self, bag, size=None, wrong=lambda prediction: prediction):
        self.truth, self.size, self.wrong, self.previous = read_truth(bag), size, wrong, None

    def reset(self):
        self.previous = None

    def predict(self, frame, outputs=frozenset()):
        width, height = self.size or (frame.image.shape[1], frame.image.shape[0])
        fitted = fit_frame(frame, width, height)
        truth = self.truth[frame.stamp_ns]

        def placed(array):
            grid = truth_grid(frame.camera, fitted.camera, frame.image.shape[1], frame.image.shape[0])
            cut = np.ascontiguousarray(grid.truth(array)).astype(np.float32)
            return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), cut.shape

        depth = 2 / placed(1 / truth.depth)[0]
        flow = motion = moving = None
        previous, self.previous = self.previous, (frame.stamp_ns, truth.pose)
        if previous is not None:
            flow, shape = placed(truth.flow)
            flow = flow * np.array([width / shape[1], height / shape[0]], np.float32)
            moving = placed(truth.moving)[0]
            motion = np.linalg.inv(previous[1]) @ truth.pose
            motion[:3, 3] *= 2
        stamp = previous and previous[0]
        return self.wrong(
            Prediction(
                frame.stamp_ns, stamp, fitted.camera, fitted.image, depth, False, motion, flow, moving, None, 1.0
            )
        )
