"""Motion metrics: end-point error and shares of scene flow, and the moving-pixel mask.

Scene flow is a world displacement from frame t to t+1 unless a protocol says otherwise; what unit a threshold is in
is the unit of the truth.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def endpoint_errors(predicted: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    """|predicted - truth| of each vector, in the truth's unit."""
    return (predicted.double() - truth.double()).norm(dim=-1)


def endpoint_error(predicted: Float[Tensor, "N 3"], truth: Float[Tensor, "N 3"]) -> float:
    """Mean end-point error (EPE) over all vectors, in the truth's unit; NaN without any."""
    return float(endpoint_errors(predicted, truth).mean())


def share_within(errors: Float[Tensor, " N"], threshold: float) -> float:
    """Share of errors at most `threshold` (APD@threshold, in 0..1); NaN without any."""
    return 1.0 - float((errors > threshold).double().mean())


def moving(
    scene_flow: Float[Tensor, "*shape 3"], depth: Float[Tensor, "*shape"], share: float
) -> Bool[Tensor, "*shape"]:
    """Where a point moves by more than `share` of its depth in one frame."""
    return scene_flow.norm(dim=-1) > share * depth.abs()


def mask_iou(predicted: Bool[Tensor, "*shape"], truth: Bool[Tensor, "*shape"]) -> float:
    """Intersection over union of two masks; NaN when the truth is empty (nothing to find)."""
    if not bool(truth.any()):
        return float("nan")
    return float((predicted & truth).sum() / (predicted | truth).sum())
