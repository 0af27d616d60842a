"""Alignments by name: what freedom a prediction is granted before it is compared with the truth.

"scale & shift" alone is not a definition: least squares, least absolute deviations and a published optimiser that stops
early give three different numbers for one prediction. A `DepthGauge` says which, in which space, and per what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import fit

Estimator = Callable[[Tensor, Tensor], tuple[float, float]]


def weiszfeld_scale(predicted: Float[Tensor, " N"], truth: Float[Tensor, " N"]) -> tuple[float, float]:
    """Least absolute deviation scale, stopped after CUT3R's ten reweighted least-squares steps; shift 0."""
    scale = float((predicted * truth).sum() / predicted.square().sum())
    for _ in range(10):
        weight = 1 / ((scale * predicted - truth).abs() + 1e-8)
        scale = float((weight * predicted * truth).sum() / (weight * predicted.square()).sum())
    return max(scale, 1e-3), 0.0


def _adam(lr: float, iterations: int) -> Estimator:
    def estimate(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
        scale, shift = fit.scale_shift_adam(predicted, truth, learning_rate=lr, iterations=iterations)
        return float(scale), float(shift)

    return estimate


ESTIMATORS: Mapping[str, Estimator] = {
    "none": lambda predicted, truth: (1.0, 0.0),
    "median": lambda predicted, truth: (float(fit.scale_median(predicted, truth)), 0.0),
    "scale_l2": lambda predicted, truth: (float(fit.scale_l2(predicted, truth)), 0.0),
    "scale_l1": lambda predicted, truth: (float(fit.scale_l1(predicted, truth)), 0.0),
    "scale_weiszfeld10": weiszfeld_scale,
    "scale_shift_l2": lambda predicted, truth: _pair(fit.scale_shift_l2(predicted, truth)),
    "scale_shift_l1": lambda predicted, truth: _pair(fit.scale_shift_l1(predicted, truth)),
    "scale_shift_adam_1e-4_1000": _adam(1e-4, 1000),
    "scale_shift_adam_1e-2_5000": _adam(1e-2, 5000),
}
"""(predicted [N], truth [N]) -> (scale, shift), by name; `adam` are published optimisers, not converged or slow."""

MEANING: Mapping[str, str] = {
    "none": "nothing is fitted: metric scale is on trial",
    "median": "one scale, median(truth) / median(prediction)",
    "scale_l2": "one scale, least squares (exact)",
    "scale_l1": "one scale, least absolute deviations (exact: weighted median of ratios)",
    "scale_weiszfeld10": "one scale, least absolute deviations by ten reweighted steps (CUT3R)",
    "scale_shift_l2": "one scale and one shift, least squares (exact)",
    "scale_shift_l1": "one scale and one shift, least absolute deviations (exact)",
    "scale_shift_adam_1e-4_1000": "scale and shift by 1000 steps of Adam at 1e-4 (MonST3R): close to a median scale",
    "scale_shift_adam_1e-2_5000": "scale and shift by 5000 steps of Adam at 1e-2 (Geo4D): close to exact L1",
    "scale3_l2": "one scale of the point map, least squares on xyz",
    "scale_shift3_l2": "one scale and one 3-vector shift of the point map, least squares, no rotation",
    "scale_shift3_l2_inverse_depth": "the same with weights 1/z",
    "scale_of_points": "the point map's own scale, no further fit",
    "se3": "rotation and translation of the trajectory (Umeyama)",
    "sim3": "rotation, translation and scale of the trajectory (Umeyama)",
    "se3_depth_scale": "scale of the depth (scale_l1), rotation and translation of the trajectory",
    "depth_scale": "scale of the depth (scale_l1), nothing else",
    "median_norm": "one scale, ratio of median distances of tracks visible in both",
}


def _pair(values: tuple[Tensor, Tensor]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


@dataclass(frozen=True, kw_only=True)
class DepthGauge:
    """How predicted depth is aligned with true depth.

    Attributes:
        estimator: a name in ESTIMATORS.
        space: whether depth or its inverse is transformed.
        per: one fit for the sequence, or one for each frame.
    """

    estimator: str
    space: Literal["depth", "disparity"] = "depth"
    per: Literal["sequence", "frame"] = "sequence"

    @property
    def name(self) -> str:
        """For example `disparity.scale_shift_l2/sequence`."""
        return f"{'disparity.' if self.space == 'disparity' else ''}{self.estimator}/{self.per}"


def align_depth(
    predicted: Float[Tensor, "T H W"], truth: Float[Tensor, "T H W"], mask: Bool[Tensor, "T H W"], gauge: DepthGauge
) -> tuple[Float[Tensor, "T H W"], float]:
    """Predicted depth in the truth's gauge (float64), and the (first) scale; fitted on the pixels of `mask`.

    In disparity, aligned values below 1e-3 are clamped before they are inverted. A frame without a fitting pixel keeps
    its prediction. Raises ValueError when no pixel can be fitted on at all, or the fit is not finite.
    """
    if not bool(mask.any()):
        raise ValueError("No pixel is valid in both prediction and truth: there is nothing to align on.")
    inverse = gauge.space == "disparity"
    source, target = (_invert(depth.double()) if inverse else depth.double() for depth in (predicted, truth))
    groups = [slice(None)] if gauge.per == "sequence" else [slice(t, t + 1) for t in range(len(source))]
    aligned, first = source.clone(), None
    for group in groups:
        chosen = mask[group]
        if not bool(chosen.any()):
            continue
        scale, shift = ESTIMATORS[gauge.estimator](source[group][chosen], target[group][chosen])
        if not torch.tensor([scale, shift]).isfinite().all():
            raise ValueError(f"The alignment {gauge.name} is not finite: the prediction may be constant or not finite.")
        aligned[group] = scale * source[group] + shift
        first = scale if first is None else first
    assert first is not None
    return (1 / aligned.clamp(min=1e-3) if inverse else aligned), first


def _invert(depth: Tensor) -> Tensor:
    return torch.where(depth > 0, 1 / depth.clamp(min=1e-9), torch.zeros_like(depth))
