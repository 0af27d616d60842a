"""Closed-form fits of a transformation between two sets of values: used by the alignment and by the evaluation.

Every fit takes optional non-negative weights; weight 0 removes a sample. Values are flattened; results are 0-d (or
Similarity) tensors in the dtype of the input, computed in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.geometry.pose import Similarity


def umeyama(
    source: Float[Tensor, "*batch N 3"],
    target: Float[Tensor, "*batch N 3"],
    weights: Float[Tensor, "*batch N"] | None = None,
    with_scale: bool = True,
) -> Similarity:
    """Similarity (or rigid motion) minimising sum w |target - (s R source + t)|^2 (Umeyama 1991).

    Raises:
        ValueError: no sample has a positive weight.
    """
    x, y = source.double(), target.double()
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    total = w.sum(-1)
    if not bool((total > 0).all()):
        raise ValueError("A similarity fit needs samples with positive weight; all of them are masked out.")
    w = (w / total[..., None])[..., None]
    mean_x, mean_y = (w * x).sum(-2), (w * y).sum(-2)
    dx, dy = x - mean_x[..., None, :], y - mean_y[..., None, :]
    u, d, vt = torch.linalg.svd((w * dy).mT @ dx)
    sign = torch.cat([torch.ones_like(d[..., :2]), torch.linalg.det(u @ vt)[..., None].sign()], -1)
    rotation = (u * sign[..., None, :]) @ vt
    variance = (w * dx * dx).sum((-1, -2))
    ones = torch.ones_like(variance)
    scale = (d * sign).sum(-1) / torch.where(variance > 0, variance, ones) if with_scale else ones
    translation = mean_y - scale[..., None] * (rotation @ mean_x[..., None])[..., 0]
    cast = lambda value: value.to(source.dtype)  # noqa: E731
    return Similarity(scale=cast(scale), rotation=cast(rotation), translation=cast(translation))


def robust_similarity(
    source: Float[Tensor, "N 3"],
    target: Float[Tensor, "N 3"],
    weights: Float[Tensor, " N"] | None = None,
    with_scale: bool = True,
    iterations: int = 30,
) -> Similarity:
    """Similarity that wrong correspondences do not pull: IRLS, first on sum w |r|, then on Geman-McClure of r.

    The scale of Geman-McClure is 2.5 robust standard deviations of the residual length (by the median); right samples
    must be the majority.
    """
    x, y = source.double(), target.double()
    w = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    fitted = umeyama(x, y, w, with_scale)
    floor = 1e-9 * float(y.abs().max().clamp(min=1e-30))
    for i in range(iterations):
        residual = (y - fitted.apply(x)).norm(dim=-1)
        typical = residual[w > 0].median().clamp(min=floor)
        if i < iterations // 2:
            factor = 1 / residual.clamp(min=float(typical) * 0.5 ** (i + 1) + floor)
        else:
            factor = 1 / (1 + (residual / (2.5 * 1.4826 * typical)) ** 2) ** 2
        fitted = umeyama(x, y, w * factor, with_scale)
    return Similarity(
        scale=fitted.scale.to(source.dtype),
        rotation=fitted.rotation.to(source.dtype),
        translation=fitted.translation.to(source.dtype),
    )


def _samples(x: Tensor, y: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Flat float64 samples of positive weight."""
    xs, ys = x.flatten().double(), y.flatten().double()
    ws = torch.ones_like(xs) if w is None else w.flatten().double()
    used = ws > 0
    if not bool(used.any()):
        raise ValueError("A fit needs samples with positive weight; all of them are masked out.")
    return (xs, ys, ws) if bool(used.all()) else (xs[used], ys[used], ws[used])


def weighted_median(values: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The value at which the cumulated weight of the sorted values reaches half of the total."""
    ordered, order = values.sort()
    cumulated = weights[order].double().cumsum(0)
    return ordered[torch.searchsorted(cumulated, cumulated[-1] / 2).clamp(max=len(ordered) - 1)]


def scale_l2(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], w: Float[Tensor, "*n"] | None = None) -> Float[Tensor, ""]:
    """Scale s minimising sum w (s x - y)^2."""
    xs, ys, ws = _samples(x, y, w)
    return ((ws * xs * ys).sum() / (ws * xs * xs).sum().clamp(min=1e-300)).to(x.dtype)


def scale_l1(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], w: Float[Tensor, "*n"] | None = None) -> Float[Tensor, ""]:
    """Scale s minimising sum w |s x - y| exactly: the median of the ratios y/x weighted by w |x|.

    Raises:
        ValueError: x is zero wherever the weight is positive.
    """
    xs, ys, ws = _samples(x, y, w)
    used = xs != 0
    if not bool(used.any()):
        raise ValueError("A scale fit needs samples that are not zero.")
    return weighted_median(ys[used] / xs[used], ws[used] * xs[used].abs()).to(x.dtype)


def scale_median(
    x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], w: Float[Tensor, "*n"] | None = None
) -> Float[Tensor, ""]:
    """median(y) / median(x), the "median scaling" of depth papers; weights only select (positive or not).

    The median of an even number of samples is the lower middle one, as torch.median gives it.
    """
    xs, ys, _ = _samples(x, y, w)
    return (ys.median() / xs.median()).to(x.dtype)


def scale_shift_l2(
    x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], w: Float[Tensor, "*n"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Line (s, t) minimising sum w (s x + t - y)^2."""
    xs, ys, ws = _samples(x, y, w)
    s, t = _line_l2(xs, ys, ws)
    return s.to(x.dtype), t.to(x.dtype)


def _line_l2(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    dx = x - mean_x
    s = (w * dx * (y - mean_y)).sum() / (w * dx * dx).sum().clamp(min=1e-300)
    return s, mean_y - s * mean_x


def scale_shift_l1(
    x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], w: Float[Tensor, "*n"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Line (s, t) minimising sum w |s x + t - y|: the optimum of the linear programme.

    IRLS with a shrinking floor comes near; then the line is turned about samples it (nearly) passes through, each time
    to the exact optimum, a weighted median of slopes (Wesolowsky 1981), until no sample near the line improves it.
    """
    xs, ys, ws = _samples(x, y, w)
    s, t = _line_l2(xs, ys, ws)
    for i in range(25):
        residual = (s * xs + t - ys).abs()
        floor = residual.mean() * 0.6**i * 0.3 + 1e-300
        s, t = _line_l2(xs, ys, ws / residual.clamp(min=float(floor)))
    cost = (ws * (s * xs + t - ys).abs()).sum()
    for _ in range(100):
        nearest = (s * xs + t - ys).abs().topk(min(6, len(xs)), largest=False).indices
        improved = False
        for pivot in nearest.tolist():
            candidate = _line_through(pivot, xs, ys, ws)
            trial = (ws * (candidate[0] * xs + candidate[1] - ys).abs()).sum()
            if bool(trial < cost * (1 - 1e-9)):
                (s, t), cost, improved = candidate, trial, True
                break
        if not improved:
            break
    return s.to(x.dtype), t.to(x.dtype)


def _line_through(pivot: int, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The L1-best line through one of the samples."""
    dx, dy = x - x[pivot], y - y[pivot]
    used = dx != 0
    if not bool(used.any()):
        return torch.zeros_like(x[0]), y[pivot]
    s = weighted_median(dy[used] / dx[used], w[used] * dx[used].abs())
    return s, y[pivot] - s * x[pivot]


def scale_shift3_l2(
    points: Float[Tensor, "N 3"], target: Float[Tensor, "N 3"], w: Float[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, "3"]]:
    """One scale s and a 3-vector shift b minimising sum w |s p + b - g|^2, no rotation (MotionCrafter 5.2)."""
    p, g = points.double(), target.double()
    weight = (torch.ones_like(p[:, 0]) if w is None else w.double())[:, None]
    total = weight.sum()
    if not bool(total > 0):
        raise ValueError("A fit needs samples with positive weight; all of them are masked out.")
    mean_p, mean_g = (weight * p).sum(0) / total, (weight * g).sum(0) / total
    dp = p - mean_p
    s = (weight * dp * (g - mean_g)).sum() / (weight * dp * dp).sum().clamp(min=1e-12)
    return s.to(points.dtype), (mean_g - s * mean_p).to(points.dtype)


def scale_shift_adam(
    x: Float[Tensor, "*n"],
    y: Float[Tensor, "*n"],
    w: Float[Tensor, "*n"] | None = None,
    *,
    learning_rate: float,
    iterations: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The "LAD" of published depth evaluations: Adam on sum |s x + t - y| from (median y / median x, 0).

    Not an optimum but a named procedure (peers.md 3.3): with learning rate 1e-4 and 1000 iterations (MonST3R) it hardly
    leaves its start; 1e-2 and 5000 (Geo4D) comes near scale_shift_l1. It is reproduced in float32 with its stopping
    rule, two equal sums in a row, which in float32 does fire by chance. Weights only select samples.
    """
    xs, ys, _ = (value.float() for value in _samples(x, y, w))
    with torch.enable_grad():
        s = (ys.median() / xs.median()).detach().requires_grad_()
        t = torch.zeros_like(s).requires_grad_()
        adam = torch.optim.Adam([s, t], lr=learning_rate)
        previous = float("inf")
        for _ in range(iterations):
            adam.zero_grad()
            loss = (s * xs + t - ys).abs().sum()
            loss.backward()
            adam.step()
            if abs(previous - float(loss.detach())) < 1e-6:
                break
            previous = float(loss.detach())
    return s.detach().to(x.dtype), t.detach().to(x.dtype)
