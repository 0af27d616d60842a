"""Depth metrics: relative errors, threshold accuracies, boundaries and stability over time.

No function here aligns anything: a number means nothing without the name of its alignment, and alignments live in
`gauge.py`. Averages are over the pixels given; how pixels, frames and sequences are pooled is the protocol's business.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import camera, pointmap, pose

LOG_FLOOR = 1e-5
"""Predictions below this are clamped before the logarithm (MonST3R and Geo4D evaluation)."""

BOUNDARY_RATIOS = tuple(1.05 + 0.2 * index / 9 for index in range(10))
"""Depth ratios between neighbouring pixels that count as a boundary (Depth Pro, section 4)."""


def depth_errors(predicted: Float[Tensor, " N"], truth: Float[Tensor, " N"]) -> dict[str, float]:
    """The usual depth errors, averaged over pixels.

    AbsRel = mean |p-g|/g; SqRel = mean (p-g)^2/g; RMSE; log RMSE with p clamped at 1e-5; delta = share of pixels with
    max(p/g, g/p) < 1.25, 1.25^2, 1.25^3. Depths in one unit, truth > 0. All are NaN when there is no pixel.

    Source: Eigen et al. 2014; the clamp as in MonST3R's and Geo4D's scripts.
    """
    predicted, truth = predicted.double(), truth.double()
    error = predicted - truth
    clamped = predicted.clamp(min=LOG_FLOOR)
    ratio = torch.maximum(clamped / truth, truth / clamped)
    return {
        "abs_rel": float((error.abs() / truth).mean()),
        "sq_rel": float((error.square() / truth).mean()),
        "rmse": float(error.square().mean().sqrt()),
        "log_rmse": float((clamped.log() - truth.log()).square().mean().sqrt()),
        "delta_1.25": float((ratio < 1.25).double().mean()),
        "delta_1.25^2": float((ratio < 1.25**2).double().mean()),
        "delta_1.25^3": float((ratio < 1.25**3).double().mean()),
    }


def confident_half(confidence: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """The pixels of `mask` whose confidence reaches the median over it; everything when confidence is constant."""
    if not bool(mask.any()):
        return mask
    return mask & (confidence >= confidence[mask].median())


def _foreground(depth: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the pixel left, right, above, below its neighbour is nearer by more than `ratio`."""
    across, down = depth[..., :, 1:] / depth[..., :, :-1], depth[..., 1:, :] / depth[..., :-1, :]
    return across > ratio, across < 1 / ratio, down > ratio, down < 1 / ratio


def boundary_f1(
    predicted: Float[Tensor, "T H W"], truth: Float[Tensor, "T H W"], valid: Bool[Tensor, "T H W"]
) -> float:
    """F1 of depth boundaries in 0..1, invariant to scale; NaN where the truth has none.

    A boundary lies between two neighbouring pixels when their depth ratio exceeds t. Recall is averaged over the
    directions (left, right, up, down: which side is in front counts) that the truth has boundaries in, precision over
    those the prediction has some in, F1 over ten t in [1.05, 1.25] weighted by t. Pairs with an invalid pixel are left
    out; boundaries must agree to the pixel. Source: Depth Pro (Bochkovskii et al. 2024), section 4, whose code counts
    an empty direction as 0, so that truth itself can score below 1.
    """
    across, down = valid[..., :, 1:] & valid[..., :, :-1], valid[..., 1:, :] & valid[..., :-1, :]
    pairs = (across, across, down, down)
    predicted, truth = predicted.clamp(min=1e-6), truth.clamp(min=1e-6)
    total = weight = 0.0
    for ratio in BOUNDARY_RATIOS:
        precisions, recalls = [], []
        for p, g, both in zip(_foreground(predicted, ratio), _foreground(truth, ratio), pairs, strict=True):
            p, g = p & both, g & both
            hits = float((p & g).sum())
            if bool(p.any()):
                precisions.append(hits / float(p.sum()))
            if bool(g.any()):
                recalls.append(hits / float(g.sum()))
        if recalls:
            recall, precision = sum(recalls) / len(recalls), sum(precisions) / max(len(precisions), 1)
            total += ratio * 2 * precision * recall / max(precision + recall, 1e-12)
            weight += ratio
    return total / weight if weight else float("nan")


def temporal_alignment_error(
    depth: Float[Tensor, "T H W"],
    valid: Bool[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
) -> float:
    """How much depth changes between frames when the true camera motion is taken out, in percent (TAE).

    Each frame's points are moved to the next camera (and back), and their depth compared with the depth predicted at
    the pixel they land on: 100/(2(T-1)) sum AbsRel(forward) + AbsRel(backward). Moving objects and occlusions are not
    masked: meant for static scenes with true poses. NaN with fewer than two frames or no overlap.
    Source: Video Depth Anything (Chen et al. 2025), section 4.
    """
    errors = []
    for now in range(len(depth) - 1):
        for a, b in ((now, now + 1), (now + 1, now)):
            points = pointmap.from_depth(depth[a], intrinsics[a])
            moved = pose.transform(pose.inverse(cam2world[b]) @ cam2world[a], points.to(cam2world.dtype))
            pixel = camera.project(moved, intrinsics[b].to(moved.dtype)).round()
            height, width = depth.shape[1:]
            x, y, z = pixel[..., 0], pixel[..., 1], moved[..., 2]
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > 0) & valid[a]
            column, row = x[inside].long(), y[inside].long()
            seen = valid[b][row, column]
            target = depth[b][row, column][seen].double()
            if len(target):
                errors.append(float(((z[inside][seen].double() - target).abs() / target).mean()))
    return 100 * sum(errors) / len(errors) if errors else float("nan")
