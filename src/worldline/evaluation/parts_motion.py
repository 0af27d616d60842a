"""Parts that score motion: scene flow, moving pixels, 3D tracks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.evaluation import motion, tracks
from worldline.evaluation.pair import Pair
from worldline.evaluation.parts import Part, PointPart
from worldline.geometry import pose, sceneflow


def aligned_flow(pair: Pair, points: PointPart, static_pose: bool = False) -> Float[Tensor, "T H W 3"]:
    """Predicted flow in the truth's unit: scaled like the points, and placed by the true cameras if the points are.

    `static_pose` uses the camera of frame t for both ends (MotionCrafter's --static_pose_for_flow).
    """
    return pair.once((points, static_pose), lambda: _align_flow(pair, points, static_pose))


def _align_flow(pair: Pair, points: PointPart, static_pose: bool) -> Tensor:
    scale, shift = points.gauge(pair)
    if pair.placement is None:
        return scale * pair.flow
    start, ahead = scale * pair.camera_points + shift, scale * pair.camera_flow
    following = pair.placement if static_pose else torch.cat([pair.placement[1:], pair.placement[-1:]])
    return sceneflow.camera_to_world_flow(start, ahead, pair.placement, following)


@dataclass(frozen=True, kw_only=True)
class FlowPart(Part):
    """EPE and APD of scene flow, pooled over the clip, in the unit of the truth.

    Attributes:
        points: the point alignment whose scale the flow gets.
        target: "world" displacement, or "camera_relative": x'(camera t+1) - x(camera t), which is what MotionCrafter's
            script compares world predictions with, so that ego-motion counts as an error of the prediction.
        thresholds: of APD.
        mask: pixels with true flow, or all with true points.
        static_pose: see `aligned_flow`.
    """

    points: PointPart = field(default_factory=PointPart)
    target: Literal["world", "camera_relative"] = "world"
    thresholds: tuple[float, ...] = (0.03, 0.05, 0.1, 0.3)
    mask: Literal["flow_valid", "valid"] = "flow_valid"
    static_pose: bool = False
    needs = ("points", "cameras", "scene_flow")
    placed = True

    def names(self) -> tuple[tuple[str, str], ...]:
        """EPE and one APD per threshold."""
        metrics = ("epe", *(f"apd_{threshold:g}" for threshold in self.thresholds))
        return tuple((metric, self.points.alignment) for metric in metrics)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Align, mask, score."""
        predicted = aligned_flow(pair, self.points, self.static_pose)
        assert pair.truth.scene_flow is not None
        target = pair.truth.scene_flow.double() if self.target == "world" else pair.true_camera_flow
        mask = pair.flow_mask
        if self.mask == "valid":
            mask = torch.cat([pair.mask[:-1], torch.zeros_like(mask[-1:])])
        errors = motion.endpoint_errors(predicted[mask], target[mask])
        shares = {f"apd_{threshold:g}": motion.share_within(errors, threshold) for threshold in self.thresholds}
        return {"epe": float(errors.mean()), **shares}, int(mask.sum())


def moving_mask(pair: Pair) -> Bool[Tensor, "T H W"]:
    """Pixels whose true motion exceeds 0.5 % of their depth in a frame."""
    assert pair.truth.scene_flow is not None
    return pair.flow_mask & motion.moving(pair.truth.scene_flow.double(), pair.true_depth, 0.005)


@dataclass(frozen=True, kw_only=True)
class FlowPercentPart(Part):
    """End-point error of world scene flow in percent of the scene's size (median true depth), over all flow pixels."""

    points: PointPart = field(default_factory=PointPart)
    needs = ("points", "cameras", "scene_flow")
    placed = True

    def names(self) -> tuple[tuple[str, str], ...]:
        """EPE over everything."""
        return (("epe_percent", self.points.alignment),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Mean error over flow pixels."""
        errors, mask = _flow_errors(pair, self.points)
        return {"epe_percent": 100 * float(errors[mask].mean()) / pair.scene_size}, int(mask.sum())


@dataclass(frozen=True, kw_only=True)
class MovingFlowPart(Part):
    """End-point error of the truly moving pixels: in percent of the scene, and over that of predicting no motion."""

    points: PointPart = field(default_factory=PointPart)
    needs = ("points", "cameras", "scene_flow", "motion")
    placed = True

    def names(self) -> tuple[tuple[str, str], ...]:
        """EPE, and its ratio to zero flow."""
        return (("epe_moving_percent", self.points.alignment), ("epe_moving_over_zero", self.points.alignment))

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Mean error over moving pixels."""
        errors, mask = _flow_errors(pair, self.points)
        mask = mask & moving_mask(pair)
        assert pair.truth.scene_flow is not None
        error, zero = float(errors[mask].mean()), float(pair.truth.scene_flow.double().norm(dim=-1)[mask].mean())
        return {
            "epe_moving_percent": 100 * error / pair.scene_size,
            "epe_moving_over_zero": error / zero,
        }, int(mask.sum())


@dataclass(frozen=True, kw_only=True)
class StaticFlowPart(Part):
    """Motion that is not there: predicted flow of truly static pixels in percent of their depth."""

    points: PointPart = field(default_factory=PointPart)
    needs = ("points", "cameras", "scene_flow", "static")
    placed = True

    def names(self) -> tuple[tuple[str, str], ...]:
        """Flow of static pixels."""
        return (("static_flow_percent", self.points.alignment),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Mean |flow| / depth over static pixels."""
        mask = pair.flow_mask & ~moving_mask(pair) & (pair.true_depth > 0)
        share = aligned_flow(pair, self.points).norm(dim=-1)[mask] / pair.true_depth[mask]
        return {"static_flow_percent": 100 * float(share.mean())}, int(mask.sum())


@dataclass(frozen=True, kw_only=True)
class DynamicMaskPart(Part):
    """Intersection over union of the pixels that move by more than 0.5 % of their depth in a frame."""

    points: PointPart = field(default_factory=PointPart)
    needs = ("points", "cameras", "scene_flow", "motion")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One IoU."""
        return (("dynamic_iou", self.points.alignment),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Compare masks on pixels with true flow."""
        predicted = motion.moving(aligned_flow(pair, self.points), pair.true_depth, 0.005)
        mask = pair.flow_mask
        return {"dynamic_iou": motion.mask_iou(predicted[mask], moving_mask(pair)[mask])}, int(mask.sum())


def _flow_errors(pair: Pair, points: PointPart) -> tuple[Tensor, Tensor]:
    def errors() -> Tensor:
        assert pair.truth.scene_flow is not None
        return (aligned_flow(pair, points) - pair.truth.scene_flow.double()).norm(dim=-1)

    return pair.once(("flow errors", points), errors), pair.flow_mask


@dataclass(frozen=True, kw_only=True)
class TrackPart(Part):
    """TAPVid-3D scores of the tracks of the first frame's pixels, in the cameras of their times.

    Attributes:
        scaling: how the prediction is scaled.
        metric_thresholds: fixed metres instead of back-projected pixels.
        stride: every so many pixels of the first frame.
    """

    scaling: tracks.TrackScaling = "median"
    metric_thresholds: bool = False
    stride: int = 4
    needs = ("points", "cameras", "tracks", "intrinsics")

    def names(self) -> tuple[tuple[str, str], ...]:
        """AJ, APD, OA."""
        alignment = {"median": "median_norm", "mean": "mean_norm", "none": "none"}[self.scaling]
        return tuple((metric, f"{alignment}/sequence") for metric in ("track_aj", "track_apd", "track_oa"))

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Tracks of both sides, each in its own cameras."""
        if pair.prediction.size != pair.truth.size:
            raise ValueError(f"Tracks are compared pixel by pixel: predict at the truth's size {pair.truth.size}.")
        sides = []
        for scene, poses in ((pair.prediction, pair.poses), (pair.truth, pair.true_poses)):
            points, visible = tracks.tracks_of_scene(scene)
            local = pose.transform(pose.inverse(poses), points.double())
            pick = (slice(None), slice(None, None, self.stride), slice(None, None, self.stride))
            sides.append((local[pick].flatten(1, 2), visible[pick].flatten(1)))
        (predicted, shown), (truth, visible) = sides
        start = pair.truth.valid[0, :: self.stride, :: self.stride].flatten()
        assert pair.truth.cameras is not None
        values = tracks.track_scores(
            predicted[:, start],
            shown[:, start],
            truth[:, start],
            visible[:, start],
            pair.truth.cameras.focal_px,
            scaling=self.scaling,
            metric_thresholds=self.metric_thresholds,
        )
        return values, int(start.sum())
