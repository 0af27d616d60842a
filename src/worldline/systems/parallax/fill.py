"""Full-coverage depth from sparse trust: edge-aware moving least squares (spec 1.9, 1.10).

The fast global smoother (Min et al., TIP 2014) solves, alternately along rows and columns, the tridiagonal systems of

    sum (u - f)^2 + lambda sum w (u_a - u_b)^2,      w = exp(-|Lab_a - Lab_b| / sigma)  between neighbours a, b

in O(pixels). Applied to the moments c {1, x, y, xx, xy, yy, r, xr, yr} it gives, at every pixel, the local plane in
inverse depth that best explains the confident values around it without crossing colour edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from numba import njit


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """How depth is propagated.

    Attributes:
        edge: colour difference (Lab / 255) that cuts propagation to 1/e.
        near: smoothness (lambda) of the first rounds.
        far: smoothness of the round that closes large holes.
        passes: row and column passes of the smoother.
        ridge: slope regulariser of the near rounds, in units of the longer side.
        far_ridge: the same of the far round, where planes extrapolate.
        trust: propagated confidence at which the near fit counts half.
        reach: propagated confidence below which planes say less than a guide, whatever that is worth.
        range: values are clipped to (low, high) times the (0.5, 99.5) percentiles of the confident ones.
        prior_reach: smoothness of the ratio to a prior.
        pull: confidence of that ratio being 1, at every pixel.
    """

    edge: float = 0.06
    near: float = 30.0
    far: float = 6000.0
    passes: int = 3
    ridge: float = 0.03
    far_ridge: float = 0.08
    trust: float = 0.012
    reach: float = 0.003
    range: tuple[float, float] = (0.5, 1.3)
    prior_reach: float = 1000.0
    pull: float = 0.001


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A field known everywhere, [H, W] float32, and how far it is supported there, [H, W] in [0, 1]."""

    value: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Inverse depth from elsewhere, at the scale of what was seen.

    Attributes:
        value: [H, W] float32, 0 where unknown.
        weight: [H, W] or a number, how much of each pixel's confidence holds for the logarithm of its inverse depth.
        share: weight of the guide against planes, 0..1 (see `prior.measure_trust`).
    """

    value: np.ndarray
    weight: np.ndarray | float = 1.0
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EdgeWeights:
    """Affinity to the right ([H, W], last column 0) and lower ([H, W], last row 0) neighbour, float32."""

    right: np.ndarray
    down: np.ndarray


def edge_weights(rgb: np.ndarray, edge: float) -> EdgeWeights:
    """Affinities of an image [H, W, 3] uint8."""
    import cv2

    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32) / 255
    right, down = np.zeros(lab.shape[:2], np.float32), np.zeros(lab.shape[:2], np.float32)
    right[:, :-1] = np.exp(-np.linalg.norm(np.diff(lab, axis=1), axis=-1) / edge)
    down[:-1] = np.exp(-np.linalg.norm(np.diff(lab, axis=0), axis=-1) / edge)
    return EdgeWeights(right=right, down=down)


def smooth(values: np.ndarray, weights: EdgeWeights, strength: float, passes: int = 3) -> np.ndarray:
    """Fast global smoother of [H, W, C] float32 with lambda = `strength` (spread over the passes as in eq. 20)."""
    result = np.ascontiguousarray(values, np.float32).copy()
    for step in range(1, passes + 1):
        share = 1.5 * 4.0 ** (passes - step) / (4.0**passes - 1) * strength
        smooth_rows(result, weights.right, np.float32(share))
        smooth_columns(result, weights.down, np.float32(share))
    return result


def fill(
    r: np.ndarray,
    confidence: np.ndarray,
    weights: EdgeWeights,
    config: FillConfig = FillConfig(),
    guide: Guide | None = None,
    apart: np.ndarray | None = None,
) -> Filled:
    """Local planes through the confident inverse depths, everywhere (near, near without outliers, far).

    Args:
        r: [H, W] float32 inverse depth.
        confidence: [H, W] float32 in [0, 1].
        weights: affinities of the image.
        config: see there.
        guide: inverse depth from elsewhere. Far from confident values the log ratio to it is propagated beside the
            plane: it gives edges and holes, parallax gives scale and low frequencies (spec 3C).
        apart: [H, W] bool, pixels that are not part of the surfaces around them (moving things): guide only.
    """
    ridge, far_ridge = np.float32(config.ridge**2), np.float32(config.far_ridge**2)
    c = confidence.astype(np.float32) + np.float32(1e-6)
    first, _ = _plane_fit(smooth(_moments(r, c), weights, config.near, config.passes), ridge)
    c = c / (1 + ((r - first) / (0.1 * np.abs(first) + 0.02)) ** 2)
    moments = _moments(r, c)
    near, support = _plane_fit(smooth(moments, weights, config.near, config.passes), ridge)
    trust = support / (support + np.float32(config.trust))
    far, reach = _plane_fit(smooth(moments, weights, config.far, config.passes), far_ridge)
    if guide is not None:
        followed, known = _follow(guide, r, c, weights, config), guide.value > 0
        share = 1 - (1 - guide.share) * reach / (reach + np.float32(config.reach))  # nothing in reach: the guide alone
        far = np.where(known, followed**share * np.maximum(far, 1e-4) ** (1 - share), far)
        far = far if apart is None else np.where(apart & known, followed, far)
    mixed = trust * near + (1 - trust) * far
    confident = confidence > 0.3
    if confident.sum() > 20:
        low, high = np.percentile(r[confident], (0.5, 99.5))
        mixed = np.clip(mixed, low * config.range[0], high * config.range[1])
    return Filled(value=mixed.astype(np.float32), confidence=trust.astype(np.float32))


def far_guesses(
    r: np.ndarray, confidence: np.ndarray, weights: EdgeWeights, config: FillConfig, guide: Guide
) -> tuple[np.ndarray, np.ndarray]:
    """Log inverse depth [H, W] far from what was seen: by planes through it, and by following the guide."""
    c = confidence.astype(np.float32) + np.float32(1e-6)
    far, _ = _plane_fit(smooth(_moments(r, c), weights, config.far, config.passes), np.float32(config.far_ridge**2))
    followed = _follow(guide, r, c, weights, config)
    return np.log(np.maximum(far, 1e-4)), np.log(np.maximum(followed, 1e-4))


def _follow(guide: Guide, r: np.ndarray, c: np.ndarray, weights: EdgeWeights, config: FillConfig) -> np.ndarray:
    """The guide times the smoothly propagated ratio of confident inverse depths to it."""
    known = guide.value > 0
    safe = np.where(known, guide.value, 1)
    ratio = np.clip(np.log(np.maximum(r, 1e-4) / safe), -1.5, 1.5).astype(np.float32)
    trusted = np.where(known, c * guide.weight, 0).astype(np.float32)
    moments = np.stack([trusted * ratio, trusted + np.float32(config.pull)], -1)
    moments = smooth(moments, weights, config.prior_reach, config.passes)
    return safe * np.exp(moments[..., 0] / moments[..., 1])


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def smooth_rows(values, right, strength):
    """Solve (I + strength * Laplacian of `right`) u = values along every row of [H, W, C], in place (Thomas)."""
    height, width, channels = values.shape
    carry = np.empty(width, np.float32)
    for y in range(height):
        carry[0] = 0
        for x in range(width):
            before = -strength * right[y, x - 1] if x > 0 else np.float32(0)
            after = -strength * right[y, x] if x < width - 1 else np.float32(0)
            inverse = 1 / (1 - before - after - (before * carry[x - 1] if x > 0 else np.float32(0)))
            carry[x] = after * inverse
            if x > 0:
                for k in range(channels):
                    values[y, x, k] = (values[y, x, k] - before * values[y, x - 1, k]) * inverse
            else:
                for k in range(channels):
                    values[y, x, k] *= inverse
        for x in range(width - 2, -1, -1):
            for k in range(channels):
                values[y, x, k] -= carry[x] * values[y, x + 1, k]


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def smooth_columns(values, down, strength):
    """The same along every column, row by row so that memory is read in order."""
    height, width, channels = values.shape
    carry = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            before = -strength * down[y - 1, x] if y > 0 else np.float32(0)
            after = -strength * down[y, x] if y < height - 1 else np.float32(0)
            inverse = 1 / (1 - before - after - (before * carry[y - 1, x] if y > 0 else np.float32(0)))
            carry[y, x] = after * inverse
            if y > 0:
                for k in range(channels):
                    values[y, x, k] = (values[y, x, k] - before * values[y - 1, x, k]) * inverse
            else:
                for k in range(channels):
                    values[y, x, k] *= inverse
    for y in range(height - 2, -1, -1):
        for x in range(width):
            for k in range(channels):
                values[y, x, k] -= carry[y, x] * values[y + 1, x, k]


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _moments(value, c):
    height, width = value.shape
    moments = np.empty((height, width, 9), np.float32)
    side = np.float32(max(height, width))
    for y in range(height):
        v = (y - np.float32(0.5) * (height - 1)) / side
        for x in range(width):
            u, w, r = (x - np.float32(0.5) * (width - 1)) / side, c[y, x], value[y, x]
            moments[y, x, 0], moments[y, x, 1], moments[y, x, 2] = w, w * u, w * v
            moments[y, x, 3], moments[y, x, 4], moments[y, x, 5] = w * u * u, w * u * v, w * v * v
            moments[y, x, 6], moments[y, x, 7], moments[y, x, 8] = w * r, w * u * r, w * v * r
    return moments


@njit(cache=True, nogil=True)
@no_type_check
def _plane_fit(moments, ridge):
    """Value of the local plane at every pixel, and the propagated confidence."""
    height, width = moments.shape[0], moments.shape[1]
    fitted, support = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    side = max(height, width)
    for y in range(height):
        v = (y - 0.5 * (height - 1)) / side
        for x in range(width):
            u, m = (x - 0.5 * (width - 1)) / side, moments[y, x]
            s = m[0]
            inverse = 1.0 / max(s, 1e-20)
            mu, mv, mr = m[1] * inverse, m[2] * inverse, m[6] * inverse
            a = max(m[3] * inverse - mu * mu, 0.0) + ridge
            b = m[4] * inverse - mu * mv
            d = max(m[5] * inverse - mv * mv, 0.0) + ridge
            cu, cv = m[7] * inverse - mu * mr, m[8] * inverse - mv * mr
            determinant = max(a * d - b * b, 1e-12)
            gu, gv = (d * cu - b * cv) / determinant, (a * cv - b * cu) / determinant
            fitted[y, x] = mr + gu * (u - mu) + gv * (v - mv)
            support[y, x] = s
    return fitted, support
