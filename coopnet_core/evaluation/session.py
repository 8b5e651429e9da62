"""Evaluate a stream of predictions against the truth of the recorded frames, beside trivial baselines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import cv2
import numpy as np

from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.evaluation import baselines
from coopnet_core.evaluation.depth import DepthMeter, DepthProtocol, crop_mask
from coopnet_core.evaluation.flow import FlowMeter
from coopnet_core.evaluation.grids import TruthGrid, truth_grid
from coopnet_core.evaluation.mask import MaskMeter
from coopnet_core.evaluation.odometry import (
    SEGMENT_LENGTHS,
    SEGMENT_STEP,
    SHORT_LENGTHS,
    chain,
    odometry_figures,
    rotation_angle,
    straight_line,
)
from coopnet_core.evaluation.photometric import PhotometricMeter
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Prediction

_LEAST_MOTION_M = 0.02
STABLE_KEYS = {
    "depth": ("abs_rel", "a1"),
    "odometry": ("ate_7dof_m", "t_err_pct", "rotation_deg_per_frame"),
    "flow": ("epe", "fl_pct"),
    "mask": ("auc", "iou_moving"),
}
# Figure, the baseline it is held against, and whether less is better.
_COMPARISONS = (
    ("depth.abs_rel", "constant", True),
    ("odometry.ate_7dof_m", "straight_line", True),
    ("odometry.t_err_pct", "straight_line", True),
    ("odometry.t_err_short_pct", "straight_line", True),
    ("odometry.rotation_deg_per_frame", "straight_line", True),
    ("flow.epe", "zero", True),
    ("mask.auc", "frame_difference", False),
    ("mask.iou_moving", "frame_difference", False),
)


@dataclass(frozen=True)
class EvaluationOptions:
    """What the protocols leave open.

    Attributes:
        depth: the depth protocol.
        alignment: of the trajectory, for t_err, r_err, RPE.
        segment_lengths: metres.
        mask_threshold: posterior above which a pixel counts as moving.
    """

    depth: DepthProtocol = field(default_factory=DepthProtocol)
    alignment: str = "7dof"
    segment_lengths: tuple[float, ...] = SEGMENT_LENGTHS
    mask_threshold: float = 0.5


@dataclass(frozen=True)
class _Pair:
    """One predicted motion, its covariance, and the true poses of its two frames (None where unknown)."""

    stamp_ns: int
    previous_stamp_ns: int
    motion: np.ndarray
    covariance: np.ndarray | None
    pose: np.ndarray | None
    previous_pose: np.ndarray | None


@dataclass(frozen=True)
class Trajectories:
    """The longest unbroken run of frame pairs: (N, 4, 4) each, relative to its first camera.

    `truth` is None where the poses are unknown.
    """

    estimate: np.ndarray
    truth: np.ndarray | None
    stamps_ns: np.ndarray


class EvaluationSession:
    """Takes frame after frame with its prediction and truth; gives the figures at any time."""

    def __init__(self, options: EvaluationOptions | None = None) -> None:
        self.options = options or EvaluationOptions()
        self.frames = 0
        self._depth = {
            name: DepthMeter(self._depth_protocol(name)) for name in ("prediction", "constant", "road_plane")
        }
        self._flow = {name: FlowMeter() for name in ("prediction", "zero")}
        names = ("prediction", "all_static", "frame_difference", "flow_length")
        self._mask = {name: MaskMeter(self.options.mask_threshold) for name in names}
        self._photometric = PhotometricMeter()
        self._pairs: list[_Pair] = []
        self._poses: dict[int, np.ndarray] = {}
        self._seen_truth: set[str] = set()
        self._seen_output: set[str] = set()
        self._notes: dict[str, int] = {}
        self._infer_ms: list[float] = []
        self._previous: tuple[int, np.ndarray] | None = None

    def add(self, frame: Frame, prediction: Prediction | None, truth: FrameTruth | None) -> None:
        """Add one recorded frame.

        Args:
            frame: as recorded, with its camera.
            prediction: None where there is none for this frame (counted).
            truth: on the grid of the recorded frame, or of the same view at another size; None where unknown.
        """
        self.frames += 1
        truth = truth or FrameTruth()
        self._seen_truth |= {name for name in ("depth", "pose", "flow", "moving") if getattr(truth, name) is not None}
        if truth.pose is not None:
            self._poses[frame.stamp_ns] = truth.pose
        previous, self._previous = self._previous, None
        if prediction is None:
            self._note("frames without a prediction")
            self._previous = (frame.stamp_ns, np.zeros((0, 0, 3), np.uint8))
            return
        self._previous = (frame.stamp_ns, prediction.image)
        self._note_outputs(prediction)
        if frame.camera is None:
            self._note("frames without a camera: their truth cannot be placed")
            return
        self._add_depth(frame.camera, prediction, truth)
        self._add_motion(prediction, truth)
        # A true flow leads to the frame just before; a prediction that skipped frames leads elsewhere.
        if previous is None or prediction.pair_stamp_ns != previous[0]:
            if prediction.pair_stamp_ns is not None:
                self._note("pairs that are not of neighbouring frames: flow and mask not evaluated")
            return
        self._add_flow(frame.camera, prediction, truth)
        has_image = previous[1].shape == prediction.image.shape
        self._add_mask(frame.camera, prediction, truth, previous[1] if has_image else None)
        if has_image:
            self._photometric.update(prediction, previous[1])

    def report(self) -> dict[str, object]:
        """Figures, baselines, improvements, reasons, protocol and counts; see docs of the command `evaluate`."""
        reasons: dict[str, str] = {}
        figures = {
            "depth": self._depth["prediction"].compute(),
            "odometry": self._odometry(reasons),
            "flow": self._flow["prediction"].compute(),
            "mask": self._mask["prediction"].compute(),
        }
        for part, keys in STABLE_KEYS.items():
            found = figures[part] if figures[part] is not None else {}
            figures[part] = dict.fromkeys(keys) | found
            for key in (key for key in keys if figures[part][key] is None):
                reasons.setdefault(f"{part}.{key}", self._why_missing(part))
        trivial = self._baselines()
        photometric = self._photometric.compute()
        if photometric is None:
            reasons["photometric"] = "no pair of neighbouring frames has depth, motion and flow"
        return {
            **figures,
            "photometric": photometric,
            "baselines": trivial,
            "improvement": _improvements(figures, trivial),
            "reasons": reasons,
            "protocol": self._protocol(),
            "counts": self._counts(),
        }

    def trajectories(self) -> Trajectories | None:
        """The longest unbroken run of pairs; with poses as far as they are known throughout."""
        runs = _runs([pair for pair in self._pairs if pair.pose is not None and pair.previous_pose is not None])
        known = bool(runs)
        if not runs:
            runs = _runs(self._pairs)
        if not runs:
            return None
        run = max(runs, key=len)
        stamps = np.array([run[0].previous_stamp_ns, *(pair.stamp_ns for pair in run)], dtype=np.int64)
        truth = np.stack([run[0].previous_pose, *(pair.pose for pair in run)]) if known else None
        return Trajectories(chain([pair.motion for pair in run]), truth, stamps)

    def grid(self, camera: Camera, prediction: Prediction, array: np.ndarray) -> TruthGrid:
        """The common grid of a truth array and a prediction."""
        return truth_grid(camera, prediction.camera, array.shape[1], array.shape[0])

    def _depth_protocol(self, name: str) -> DepthProtocol:
        # The crop counts from the edges of the recorded image: it is applied here, before the truth is cut.
        protocol = replace(self.options.depth, crop="none")
        # A baseline has no scale of its own: it is always given the best one.
        return protocol if name == "prediction" else replace(protocol, scaling="median")

    def _note(self, text: str) -> None:
        self._notes[text] = self._notes.get(text, 0) + 1

    def _note_outputs(self, prediction: Prediction) -> None:
        outputs = {"depth": prediction.depth, "odometry": prediction.T_previous_current, "flow": prediction.flow}
        outputs["mask"] = prediction.motion_probability
        self._seen_output |= {name for name, output in outputs.items() if output is not None}
        self._infer_ms.append(prediction.infer_ms)

    def _add_depth(self, camera: Camera, prediction: Prediction, truth: FrameTruth) -> None:
        if truth.depth is None or prediction.depth is None:
            return
        grid = self.grid(camera, prediction, truth.depth)
        true = grid.truth(truth.depth)
        with np.errstate(divide="ignore", invalid="ignore"):
            disparity = grid.values(np.where(prediction.depth > 0, 1.0 / prediction.depth, np.nan))
        within = grid.truth(crop_mask(*truth.depth.shape, self.options.depth.crop))
        if not self._depth["prediction"].update(true, disparity, within):
            self._note("frames without a pixel of true depth in the evaluated range")
            return
        within &= np.isfinite(disparity) & (disparity > 0)
        self._depth["constant"].update(true, baselines.constant_disparity(*true.shape), within)
        road = baselines.road_plane_disparity(prediction.camera.scaled(grid.width, grid.height))
        self._depth["road_plane"].update(true, road, within)

    def _add_motion(self, prediction: Prediction, truth: FrameTruth) -> None:
        if prediction.T_previous_current is None or prediction.previous_stamp_ns is None:
            return
        earlier = self._poses.get(prediction.previous_stamp_ns)
        self._pairs.append(
            _Pair(
                prediction.stamp_ns,
                prediction.previous_stamp_ns,
                np.asarray(prediction.T_previous_current, dtype=np.float64),
                prediction.motion_covariance,
                truth.pose,
                earlier,
            )
        )

    def _add_flow(self, camera: Camera, prediction: Prediction, truth: FrameTruth) -> None:
        if truth.flow is None or prediction.flow is None or not np.isfinite(truth.flow).all(-1).any():
            return
        grid = self.grid(camera, prediction, truth.flow)
        if grid.is_rectified:
            self._note("frames of a distorted camera: their true flow is not evaluated")
            return
        true, flow = grid.truth(truth.flow), grid.flow(prediction.flow)
        masks: dict[str, np.ndarray] = {}
        for array, positive, negative in ((truth.occluded, "occ", "noc"), (truth.moving, "moving", "static")):
            if array is not None and array.shape == truth.flow.shape[:2]:
                masks[positive] = grid.truth(array)
                masks[negative] = ~masks[positive]
        self._flow["prediction"].update(true, flow, masks)
        self._flow["zero"].update(true, np.zeros_like(flow), masks, np.isfinite(flow).all(-1))

    def _add_mask(
        self, camera: Camera, prediction: Prediction, truth: FrameTruth, previous_image: np.ndarray | None
    ) -> None:
        if truth.moving is None or prediction.motion_probability is None:
            return
        grid = self.grid(camera, prediction, truth.moving)
        moving, probability = grid.truth(truth.moving), grid.values(prediction.motion_probability)
        self._mask["prediction"].update(moving, probability)
        known = np.isfinite(probability)
        self._mask["all_static"].update(moving, np.zeros(moving.shape, np.float32), known)
        if previous_image is not None:
            score = grid.values(baselines.frame_difference_score(prediction.image, previous_image))
            self._mask["frame_difference"].update(moving, score, known)
        if prediction.flow is not None:
            # Pixels whose flow leaves the image have no length: they count as static, so that all see the same pixels.
            score = np.nan_to_num(grid.values(baselines.flow_length_score(prediction.flow)))
            self._mask["flow_length"].update(moving, score, known)

    def _odometry(self, reasons: dict[str, str]) -> dict[str, object] | None:
        known = [pair for pair in self._pairs if pair.pose is not None and pair.previous_pose is not None]
        if not known:
            return None
        run = self.trajectories()
        figures, why = odometry_figures(
            run.estimate, run.truth, alignment=self.options.alignment, lengths=self.options.segment_lengths
        )
        reasons.update({f"odometry.{key}": reason for key, reason in why.items()})
        figures |= _pair_figures(known, [pair.motion for pair in known])
        figures["rotation_nees"] = _rotation_nees(known)
        return figures | {"frames": len(run.stamps_ns), "pairs": len(known), "runs": len(_runs(known))}

    def _baselines(self) -> dict[str, object]:
        trivial: dict[str, dict[str, object]] = {
            "depth": {name: self._depth[name].compute() for name in ("constant", "road_plane")},
            "odometry": {"straight_line": self._straight_line()},
            "flow": {"zero": self._flow["zero"].compute()},
            "mask": {name: self._mask[name].compute() for name in ("all_static", "frame_difference", "flow_length")},
        }
        return trivial | {"descriptions": baselines.DESCRIPTIONS}

    def _straight_line(self) -> dict[str, object] | None:
        run = self.trajectories()
        if run is None or run.truth is None:
            return None
        line = straight_line(run.stamps_ns)
        options = self.options
        figures, why = odometry_figures(
            line, run.truth, alignment=options.alignment, lengths=options.segment_lengths, is_line=True
        )
        ahead = np.eye(4)
        ahead[2, 3] = 1.0
        known = [pair for pair in self._pairs if pair.pose is not None and pair.previous_pose is not None]
        figures |= _pair_figures(known, [ahead] * len(known))
        return figures | ({"reasons": why} if why else {})

    def _why_missing(self, part: str) -> str:
        truth = {"odometry": "pose", "mask": "moving"}.get(part, part)
        if truth not in self._seen_truth:
            named = {"depth": "depth", "pose": "poses", "flow": "flow", "moving": "moving mask"}[truth]
            return f"the recording has no true {named} for the evaluated frames"
        if part not in self._seen_output:
            return f"the predictions hold no {part}"
        if part == "mask" and self._mask["prediction"].images:
            return "no pixel moves by itself (or all do): the figure is undefined"
        return "no frame has both a prediction and a truth that can be compared"

    def _protocol(self) -> dict[str, object]:
        options = self.options
        return {
            "depth": asdict(options.depth)
            | {
                "crop_of": "the recorded image",
                "resize": "disparity, bilinear, to the part of the truth that the networks saw",
                "clamp": "after scaling",
                "average": "per-image figures, mean over images",
                "axis": "camera z",
            },
            "odometry": {
                "alignment": options.alignment,
                "segment_lengths_m": list(options.segment_lengths),
                "segment_step": SEGMENT_STEP,
                "short_segment_lengths_m": list(SHORT_LENGTHS),
                "short_segment_step": 1,
                "trajectory": "longest unbroken run of frame pairs",
                "rotation_deg_per_frame": "mean geodesic error of the rotation of each frame pair",
            },
            "flow": {"outlier": "error > 3 px and > 5 % of the true length", "average": "pooled over pixels"},
            "mask": {"threshold": options.mask_threshold, "average": "pooled over pixels"},
            "photometric": "0.85 (1 - SSIM) / 2 + 0.15 |difference|, on pixels that both warps explain",
        }

    def _counts(self) -> dict[str, object]:
        timing = float(np.median(self._infer_ms)) if self._infer_ms else None
        return {"frames": self.frames, "pairs": len(self._pairs), "infer_ms_median": timing, "notes": dict(self._notes)}


def _runs(pairs: list[_Pair]) -> list[list[_Pair]]:
    """Pairs split where one does not begin at the frame where the one before ended."""
    runs: list[list[_Pair]] = []
    for pair in pairs:
        if runs and runs[-1][-1].stamp_ns == pair.previous_stamp_ns:
            runs[-1].append(pair)
        else:
            runs.append([pair])
    return runs


def _pair_figures(pairs: list[_Pair], motions: list[np.ndarray]) -> dict[str, object]:
    """Errors of single pairs: rotation, direction of the translation (no scale needed), scatter of the scale."""
    true = np.stack([np.linalg.inv(pair.previous_pose) @ pair.pose for pair in pairs])
    found = np.stack(motions)
    rotation = rotation_angle(np.swapaxes(true[:, :3, :3], 1, 2) @ found[:, :3, :3])
    true_length, length = (np.linalg.norm(motion[:, :3, 3], axis=1) for motion in (true, found))
    moves = (true_length > _LEAST_MOTION_M) & (length > 0)
    figures: dict[str, object] = {"rotation_deg_per_frame": float(np.degrees(rotation.mean()))}
    if not moves.any():
        return figures | {"direction_deg_per_frame": None, "scale_spread": None}
    cosine = (true[moves, :3, 3] * found[moves, :3, 3]).sum(1) / (true_length[moves] * length[moves])
    scales = true_length[moves] / length[moves]
    figures["direction_deg_per_frame"] = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).mean())
    return figures | {"scale_median": float(np.median(scales)), "scale_spread": float(scales.std() / np.median(scales))}


def _rotation_nees(pairs: list[_Pair]) -> float | None:
    """Squared error of the rotation in units of its own covariance, per axis: 1 is honest, more is overconfident.

    None where no motion has a covariance; a camera that stands is certain, and left out.
    """
    values = []
    for pair in pairs:
        if pair.covariance is None or not pair.covariance.any():
            continue
        true = np.linalg.inv(pair.previous_pose) @ pair.pose
        error = cv2.Rodrigues(true[:3, :3] @ pair.motion[:3, :3].T)[0][:, 0]
        values.append(error @ np.linalg.solve(pair.covariance[3:, 3:], error) / 3)
    return float(np.mean(values)) if values else None


def _improvements(figures: dict[str, dict], trivial: dict[str, dict]) -> dict[str, float | None]:
    """How many times better than the named baseline, above 1 is better; None where one of the two is unknown."""
    ratios: dict[str, float | None] = {}
    for name, baseline, less_is_better in _COMPARISONS:
        part, key = name.split(".")
        ours, theirs = figures[part].get(key), (trivial[part][baseline] or {}).get(key)
        better, worse = (ours, theirs) if less_is_better else (theirs, ours)
        known = ours is not None and theirs is not None and better
        ratios[f"{name} / {baseline}"] = float(worse / better) if known else None
    return ratios
