"""Further parts that score depth: the confident half, boundaries, coverage, stability over time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worldline.evaluation import depth as depth_metrics
from worldline.evaluation.gauge import DepthGauge, align_depth
from worldline.evaluation.pair import Pair
from worldline.evaluation.parts import Part, confidence_at_truth


@dataclass(frozen=True, kw_only=True)
class ConfidentHalfPart(Part):
    """AbsRel of the half of the pixels that the system is surer of; equals AbsRel when it says nothing.

    The scale is fitted on that half too.
    """

    gauge: DepthGauge = DepthGauge(estimator="scale_l1")
    needs = ("points", "cameras")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One AbsRel."""
        return (("abs_rel_confident", self.gauge.name),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Choose the half, fit, score."""
        depth = pair.depth()
        half = depth_metrics.confident_half(confidence_at_truth(pair), pair.mask & (depth > 0))
        aligned, _ = align_depth(depth, pair.true_depth, half, self.gauge)
        errors = depth_metrics.depth_errors(aligned[half], pair.true_depth[half])
        return {"abs_rel_confident": errors["abs_rel"]}, int(half.sum())


@dataclass(frozen=True, kw_only=True)
class BoundaryPart(Part):
    """F1 of depth boundaries; needs a truth that has some."""

    needs = ("points", "cameras")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One F1."""
        return (("boundary_f1", "none"),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Compare at the truth's pixels, without interpolating depth."""
        depth = pair.depth("nearest")
        return {"boundary_f1": depth_metrics.boundary_f1(depth, pair.true_depth, pair.mask)}, int(pair.mask.sum())


@dataclass(frozen=True, kw_only=True)
class CoveragePart(Part):
    """Share of the pixels with truth that have a prediction, in percent."""

    needs = ("points",)

    def names(self) -> tuple[tuple[str, str], ...]:
        """One share."""
        return (("coverage_percent", "none"),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Count."""
        return {"coverage_percent": 100 * float(pair.seen[pair.mask].double().mean())}, int(pair.mask.sum())


@dataclass(frozen=True, kw_only=True)
class StabilityPart(Part):
    """Temporal alignment error of depth with true cameras; meant for static scenes."""

    gauge: DepthGauge = DepthGauge(estimator="scale_shift_l2", space="disparity")
    needs = ("points", "cameras", "intrinsics", "moving_camera")

    def names(self) -> tuple[tuple[str, str], ...]:
        """One error."""
        return (("tae_percent", self.gauge.name),)

    def values(self, pair: Pair) -> tuple[dict[str, float], int]:
        """Align, carry from frame to frame."""
        depth = pair.depth()
        known = pair.mask & (depth > 0)
        aligned, _ = align_depth(depth, pair.true_depth, known, self.gauge)
        assert pair.truth.cameras is not None
        intrinsics = pair.truth.cameras.intrinsics.to(aligned.dtype)
        aligned = torch.where(known, aligned, torch.ones_like(aligned))
        error = depth_metrics.temporal_alignment_error(aligned, known, intrinsics, pair.true_poses)
        return {"tae_percent": error}, len(depth)
