"""Point map metrics: relative point error (Rel^p) and inlier share (delta_p)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def relative_errors(
    predicted: Float[Tensor, "*shape 3"], truth: Float[Tensor, "*shape 3"], floor: float = 0.01
) -> Float[Tensor, "*shape"]:
    """|p-g| / max(|g|, floor) of each point; |g| is the distance from the origin of the world (the first camera).

    Far points are judged leniently and points near the first camera harshly: that is the published definition.
    Source: GeometryCrafter and MotionCrafter evaluation (peers specification 3.2).
    """
    predicted, truth = predicted.double(), truth.double()
    return (predicted - truth).norm(dim=-1) / truth.norm(dim=-1).clamp(min=floor)


def frame_means(values: Float[Tensor, "T H W"], mask: Bool[Tensor, "T H W"]) -> float:
    """Mean over frames of each frame's mean over its mask; frames with an empty mask are left out.

    The published scripts give NaN for such a frame (and for the clip). NaN only when no frame has a pixel.
    """
    counts = mask.flatten(1).sum(1)
    sums = torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)
    used = counts > 0
    return float((sums[used] / counts[used]).mean())


def point_errors(
    predicted: Float[Tensor, "T H W 3"],
    truth: Float[Tensor, "T H W 3"],
    mask: Bool[Tensor, "T H W"],
    *,
    floor: float = 0.01,
    inlier: float = 0.25,
) -> dict[str, float]:
    """Rel^p and the share of points with a relative error below `inlier`, as means of per-frame means."""
    errors = relative_errors(predicted, truth, floor)
    return {
        "rel_p": frame_means(errors, mask),
        f"delta_p_{inlier:g}": frame_means((errors < inlier).double(), mask),
    }


def depth_of_points_errors(
    predicted: Float[Tensor, "T H W"], truth: Float[Tensor, "T H W"], mask: Bool[Tensor, "T H W"], floor: float = 0.01
) -> dict[str, float]:
    """AbsRel and delta of depths that may be negative, as means of per-frame means.

    |p-g| / max(|g|, floor); share with max(|p|/max(|g|, floor), |g|/max(|p|, floor)) < 1.25. Source: MotionCrafter
    evaluation (specification 5.3).
    """
    p, g = predicted.double().abs(), truth.double().abs()
    relative = (predicted.double() - truth.double()).abs() / g.clamp(min=floor)
    ratio = torch.maximum(p / g.clamp(min=floor), g / p.clamp(min=floor))
    return {
        "depth_abs_rel": frame_means(relative, mask),
        "depth_delta_1.25": frame_means((ratio < 1.25).double(), mask),
    }
