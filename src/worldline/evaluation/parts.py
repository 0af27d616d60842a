"""The parts a protocol is made of: each is data, says which numbers it gives, and gives them for one pair.

`needs` says what the truth must have for a part to apply: a part that does not apply gives no row, a part that applies
and cannot be measured gives failed rows. Nothing here decides how sequences are averaged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.evaluation import depth as depth_metrics
from worldline.evaluation import points as point_metrics
from worldline.evaluation import trajectory
from worldline.evaluation.gauge import DepthGauge, align_depth
from worldline.evaluation.pair import Pair, Resize
from worldline.evaluation.report import Measure, failure, measure
from worldline.geometry import fit, pointmap, pose, sceneflow
from worldline.scene import Scene4D

Need = Literal[
    "points",
    "cameras",
    "intrinsics",
    "moving_camera",
    "two_frames",
    "three_frames",
    "scene_flow",
    "motion",
    "static",
    "tracks",
]

_HAS: dict[Need, Callable[[Scene4D], bool]] = {
    "points": lambda truth: bool(truth.valid.any()),
    "cameras": lambda truth: truth.cameras is not None,
    "intrinsics": lambda truth: truth.cameras is not None and bool(truth.cameras.intrinsics.isfinite().all()),
    "moving_camera": lambda truth: _camera_moves(truth),
    "two_frames": lambda truth: len(truth) >= 2,
    "three_frames": lambda truth: len(truth) >= 3,
    "scene_flow": lambda truth: truth.flow_valid is not None and bool(truth.flow_valid[:-1].any()),
    "motion": lambda truth: bool(_moves(truth).any()),
    "static": lambda truth: truth.flow_valid is not None and bool((truth.flow_valid & ~_moves(truth))[:-1].any()),
    "tracks": lambda truth: "tracks" in truth.extras and truth.cameras is not None,
}


def _camera_moves(truth: Scene4D) -> bool:
    """By more than a thousandth of the scene's size (where there are points): what is less is rounding."""
    if truth.cameras is None or trajectory.still(truth.cameras.cam2world):
        return False
    if not bool(truth.valid.any()):
        return True
    size = pointmap.depth_of(truth.points, truth.cameras.cam2world)[truth.valid].median()
    return trajectory.path_length(truth.cameras.cam2world) > 1e-3 * float(size)


def _moves(truth: Scene4D) -> Tensor:
    return torch.zeros_like(truth.valid) if truth.scene_flow is None else sceneflow.dynamic_mask(truth)


class Part(ABC):
    """Some numbers of a protocol."""

    needs: tuple[Need, ...] = ()
    placed: bool = False
    """Whether the numbers depend on where the estimated cameras put things, so that a row with true poses belongs
    beside it."""

    @abstractmethod
    def names(self) -> tuple[tuple[str, str], ...]:
        """(metric, alignment) of every number, whatever the prediction."""

    @abstractmethod
    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """The numbers by metric, and how many pixels (pairs, frames) they are about.

        Raises ValueError when the prediction lacks what is asked for.
        """

    def applies(self, truth: Scene4D) -> bool:
        """Whether the truth has what this part needs."""
        return all(_HAS[need](truth) for need in self.needs)

    def measures(self, pair: Pair) -> list[Measure]:
        """One measure per name; failed ones with the reason."""
        try:
            values, n = self.values(pair)
        except ValueError as error:
            return self.failures(str(error))
        return [measure(metric, alignment, values[metric], n) for metric, alignment in self.names()]

    def error_map(self, pair: Pair, frame: int) -> Float[Tensor, "H W"] | None:
        """Relative errors of one frame's pixels, NaN where nothing is scored; None for parts without pixels."""
        return None

    def failures(self, reason: str) -> list[Measure]:
        """A failed measure per name."""
        return [failure(metric, alignment, reason) for metric, alignment in self.names()]


@dataclass(frozen=True, kw_only=True)
class DepthPart(Part):
    """Depth errors of the whole sequence under one alignment.

    Attributes:
        gauge: the alignment.
        metrics: which of `depth_errors`.
        truth_range: pixels with truth strictly between are scored.
        clip_after: aligned depth is clamped to these (None: not).
        confident_fit: fit only on the more confident half of the pixels, score all (stands for Geo4D's own mask).
        resize: how predicted depth is brought to the truth's size.
        pool: "pixels" of the whole sequence at once, or the mean of per-"frames" means (empty frames left out).
        fit_every: fit on every so many of the pixels (the suites' L1 fits would take longer than some systems).
    """

    gauge: DepthGauge
    metrics: tuple[str, ...] = ("abs_rel", "sq_rel", "rmse", "log_rmse", "delta_1.25", "delta_1.25^2", "delta_1.25^3")
    truth_range: tuple[float, float] = (0.0, float("inf"))
    clip_after: tuple[float | None, float | None] = (None, None)
    confident_fit: bool = False
    resize: Resize = "bicubic"
    pool: Literal["pixels", "frames"] = "pixels"
    fit_every: int = 1
    needs = ("points", "cameras")

    def names(self) -> tuple[tuple[str, str], ...]:
        """Every metric under the gauge."""
        return tuple((metric, self.gauge.name) for metric in self.metrics)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Align, clip, score."""
        aligned, scored = self.aligned(pair)
        truth = pair.true_depth
        if self.pool == "pixels":
            return depth_metrics.depth_errors(aligned[scored], truth[scored]), int(scored.sum())
        frames = [t for t in range(len(truth)) if bool(scored[t].any())]
        each = [depth_metrics.depth_errors(aligned[t][scored[t]], truth[t][scored[t]]) for t in frames]
        return {name: sum(e[name] for e in each) / len(each) for name in self.metrics}, int(scored.sum())

    def error_map(self, pair: Pair, frame: int) -> Float[Tensor, "H W"] | None:
        """|p-g|/g of aligned depth."""
        try:
            depth, scored = self.aligned(pair)
        except ValueError:
            return None
        truth = pair.true_depth[frame]
        return torch.where(scored[frame], (depth[frame] - truth).abs() / truth, torch.full_like(truth, torch.nan))

    def aligned(self, pair: Pair) -> tuple[Float[Tensor, "T H W"], Tensor]:
        """Aligned and clipped depth, 0 in holes, and the pixels to score."""
        low, high = self.truth_range
        predicted, truth = pair.depth(self.resize), pair.true_depth
        scored = pair.mask & (truth > low) & (truth < high)
        known = predicted > 0
        chosen = scored & known
        if self.confident_fit and pair.prediction.confidence is not None:
            chosen = depth_metrics.confident_half(confidence_at_truth(pair), chosen)
        if self.fit_every > 1:
            chosen = every(chosen, self.fit_every)
        aligned, _ = align_depth(predicted, truth, chosen, self.gauge)
        aligned = torch.where(known, aligned, torch.zeros_like(aligned))
        if self.clip_after != (None, None):
            aligned = aligned.clamp(*self.clip_after)
        return aligned, scored


def every(mask: Tensor, step: int) -> Tensor:
    """Every `step`-th pixel of a mask, counted through the whole sequence."""
    kept = torch.zeros_like(mask)
    kept.view(-1)[mask.flatten().nonzero()[::step, 0]] = True
    return kept


def confidence_at_truth(pair: Pair) -> Float[Tensor, "T H W"]:
    """Predicted confidence at the truth's size; constant where the prediction has none."""
    confidence = pair.prediction.confidence
    if confidence is None:
        return torch.ones(pair.mask.shape)
    resized = torch.nn.functional.interpolate(confidence[:, None], pair.truth.size, mode="nearest-exact")
    return resized[:, 0]


@dataclass(frozen=True, kw_only=True)
class PointPart(Part):
    """Rel^p and delta_p of the point map, and the errors of its depth.

    Attributes:
        frame: "world" is the first camera, "camera" each frame's own.
        fit: one scale and a 3-vector shift ("scale_shift3_l2"), or a scale only ("scale3_l2").
        weight: weights of the fit: none, 1/z or 1/z^2 of the truth.
        floor: smallest |truth| an error is divided by.
        inlier: relative error below which a point counts for delta_p.
        depth: "true_camera" takes z of the aligned points in the true cameras, "own_scale" gives depth its own
            least-squares scale, "none" leaves it out.
    """

    frame: Literal["world", "camera"] = "world"
    fit: Literal["scale_shift3_l2", "scale3_l2"] = "scale_shift3_l2"
    weight: Literal["none", "inverse_depth", "inverse_depth_squared"] = "none"
    floor: float = 0.01
    inlier: float = 0.25
    depth: Literal["true_camera", "own_scale", "none"] = "true_camera"
    needs = ("points", "cameras")

    @property
    def placed(self) -> bool:  # type: ignore[override]
        """World points depend on the cameras, camera points do not."""
        return self.frame == "world"

    @property
    def alignment(self) -> str:
        """Name of the fit."""
        return self.fit + ("" if self.weight == "none" else f"_{self.weight}") + "/sequence"

    def names(self) -> tuple[tuple[str, str], ...]:
        """Point metrics, then depth metrics."""
        points = (("rel_p", self.alignment), (f"delta_p_{self.inlier:g}", self.alignment))
        gauge = self.alignment if self.depth == "true_camera" else "scale_l2/sequence"
        return points if self.depth == "none" else (*points, ("depth_abs_rel", gauge), ("depth_delta_1.25", gauge))

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Fit once, place, score."""
        aligned, truth = self.aligned(pair)
        seen = pair.seen[..., None]
        aligned = torch.where(seen, aligned, torch.zeros_like(aligned))
        values = point_metrics.point_errors(aligned, truth, pair.mask, floor=self.floor, inlier=self.inlier)
        if self.depth != "none":
            depth = self._own_depth(pair) if self.depth == "own_scale" else _depth_in(pair, aligned)
            depth = torch.where(pair.seen, depth, torch.zeros_like(depth))
            values |= point_metrics.depth_of_points_errors(depth, pair.true_depth, pair.mask, self.floor)
        return values, int(pair.mask.sum())

    def error_map(self, pair: Pair, frame: int) -> Float[Tensor, "H W"] | None:
        """Relative point errors."""
        try:
            aligned, truth = self.aligned(pair)
        except ValueError:
            return None
        error = point_metrics.relative_errors(aligned[frame], truth[frame], self.floor)
        return torch.where(pair.mask[frame], error, torch.full_like(error, torch.nan))

    def aligned(self, pair: Pair) -> tuple[Float[Tensor, "T H W 3"], Float[Tensor, "T H W 3"]]:
        """Aligned prediction and truth in the frame of the errors."""
        scale, shift = self.gauge(pair)
        if self.frame == "camera":
            return scale * pair.camera_points + shift, pose.transform(pose.inverse(pair.true_poses), pair.truth_points)
        if pair.placement is None:
            return scale * pair.world_points + shift, pair.truth_points
        return pose.transform(pair.placement, scale * pair.camera_points + shift), pair.truth_points

    def gauge(self, pair: Pair) -> tuple[float, Tensor]:
        """Scale and shift: fitted in the world, or in camera frames where other poses will place the prediction."""
        return pair.once(self, lambda: self._fit(pair))

    def _fit(self, pair: Pair) -> tuple[float, Tensor]:
        in_camera = self.frame == "camera" or pair.placement is not None
        source = pair.camera_points if in_camera else pair.world_points
        target = pose.transform(pose.inverse(pair.true_poses), pair.truth_points) if in_camera else pair.truth_points
        chosen = pair.mask & pair.seen
        if not bool(chosen.any()):
            raise ValueError("No pixel is valid in both prediction and truth: there is nothing to align on.")
        weight = None
        if self.weight != "none":
            weight = 1 / (pair.true_depth[chosen] + 1e-6)
            weight = weight.square() if self.weight == "inverse_depth_squared" else weight
        source, target = source[chosen], target[chosen]
        if self.fit == "scale_shift3_l2":
            scale, shift = fit.scale_shift3_l2(source, target, weight)
            return float(scale), shift
        repeated = None if weight is None else weight[:, None].expand_as(source)
        return float(fit.scale_l2(source, target, repeated)), torch.zeros(3, dtype=source.dtype)

    def _own_depth(self, pair: Pair) -> Tensor:
        depth, truth = pair.camera_points[..., 2], pair.true_depth
        return align_depth(depth, truth, pair.mask & pair.seen, DepthGauge(estimator="scale_l2"))[0]


def _depth_in(pair: Pair, world_points: Tensor) -> Tensor:
    return pose.transform(pose.inverse(pair.true_poses), world_points)[..., 2]
