"""Which pixels move: flow that no static world explains, though the image says the flow is right (spec 1.11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from numba import njit

from worldline.align.flow_adjust import FlowState, relative_pose
from worldline.systems.parallax.fill import EdgeWeights, smooth
from worldline.systems.parallax.representation import FLOW_UNIT, FlowPairs, lookup

LITTLE_TRUST = np.float32(0.3)  # weight of the views that would say "still" if there were any


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How moving things are found.

    Attributes:
        error_px: disagreement with the static world's flow at which a pixel counts half moving.
        relative_flow: the same, per pixel of flow.
        relative_static: the same, per pixel of the static world's flow.
        gray: how much better (grey levels) the flow must match the image than the static world's flow does.
        smoothness: lambda of the edge-aware averaging of the score.
        strong: score above which a region moves.
        weak: score above which pixels connected to a moving region move too.
        smallest: share of the frame below which a moving region is taken for noise.
        dilate_px: growth of the mask when static depth is refitted.
    """

    error_px: float = 1.0
    relative_flow: float = 0.05
    relative_static: float = 0.03
    gray: float = 1.5
    smoothness: float = 30.0
    strong: float = 0.55
    weak: float = 0.45
    smallest: float = 0.001
    dilate_px: int = 5


def motion_score(
    gray: Sequence[np.ndarray], pairs: FlowPairs, state: FlowState, t: int, r: np.ndarray, config: MaskConfig
) -> np.ndarray:
    """How surely the pixels of frame `t` are not part of a static world of inverse depth `r`, [H, W] in [0, 1].

    The product of three: the views' mean of e^2 / (1 + e^2), e = |static flow - flow| over its tolerance; the trust in
    their flow; and how much better the flow matches the images than the static world's flow does. Where flow fails
    (white walls, blur) the static flow matches as well, and nothing is said to move. What moves slowly shows at long
    gaps only: the mean is over the views from the longest gap down to the one at which it is largest.
    """
    import cv2

    targets = pairs.targets()[t]
    slots = np.flatnonzero(targets >= 0)
    gaps = np.abs(np.array(pairs.offsets)[slots])
    slots, gaps = slots[np.argsort(-gaps, kind="stable")], -np.sort(-gaps)
    R, shift = np.empty((len(slots), 3, 3), np.float32), np.empty((len(slots), 3), np.float32)
    for n, k in enumerate(slots):
        R[n], shift[n] = relative_pose(state.w2c[t], state.w2c[targets[k]])
    score, trust, static, flowing = _score(
        pairs.flow[t],
        pairs.weight[t],
        slots,
        gaps,
        R,
        shift,
        state.intrinsics[t].astype(np.float32),
        state.intrinsics[targets[slots]].astype(np.float32),
        r.astype(np.float32),
        np.array([config.error_px, config.relative_flow, config.relative_static], np.float32),
        gray[t],
        np.stack([gray[targets[k]] for k in slots]) if len(slots) else np.zeros((0, *r.shape), np.uint8),
    )
    weight = cv2.blur(trust, (7, 7)) + 1e-6
    static, flowing = cv2.blur(static * trust, (7, 7)) / weight, cv2.blur(flowing * trust, (7, 7)) / weight
    evidence = np.clip((static - flowing) / (config.gray + 0.5 * flowing), 0, 1)
    return score * np.minimum(trust, 1) * evidence


def average_score(score: np.ndarray, tex: np.ndarray, weights: EdgeWeights, config: MaskConfig) -> np.ndarray:
    """Edge-aware mean of the score, textured pixels counting most; [H, W] in [0, 1]."""
    weight = tex / (tex + 6)
    moments = smooth(np.stack([weight * score, weight], -1), weights, config.smoothness)
    return moments[..., 0] / np.maximum(moments[..., 1], 1e-6)


def vote(scores: np.ndarray, pairs: FlowPairs, t: int, reach: int = 2) -> np.ndarray:
    """Mean of the scores [T, H, W] of frame `t` and of what its flows find in the frames up to `reach` away."""
    total = scores[t].astype(np.float32)
    weight = np.ones_like(total)
    for offset in pairs.offsets:
        other = t + offset
        if abs(offset) > reach or not 0 <= other < len(scores):
            continue
        flow, trust = pairs.read(t, offset)
        total += trust * lookup(scores[other].astype(np.float32), flow)
        weight += trust
    return total / weight


def moving_regions(score: np.ndarray, config: MaskConfig) -> np.ndarray:
    """Hysteresis: large connected regions of score > weak that contain > strong; int32 labels, 0 = still."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats((score > config.weak).astype(np.uint8), connectivity=8)
    strong = np.bincount(labels.ravel(), (score > config.strong).ravel(), count)
    keep = (stats[:, cv2.CC_STAT_AREA] >= config.smallest * score.size) & (strong >= 0.25 * stats[:, cv2.CC_STAT_AREA])
    keep[0] = False
    number = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return number[labels]


def grow_mask(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a bool mask."""
    import cv2

    side = 2 * pixels + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _bilinear(image, x, y):
    height, width = image.shape
    x, y = min(max(x, np.float32(0)), np.float32(width - 1.001)), min(max(y, np.float32(0)), np.float32(height - 1.001))
    x0, y0 = int(x), int(y)
    a, b = x - x0, y - y0
    top = (1 - a) * image[y0, x0] + a * image[y0, x0 + 1]
    return (1 - b) * top + b * ((1 - a) * image[y0 + 1, x0] + a * image[y0 + 1, x0 + 1])


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _score(flow, weight, slots, gaps, R, t, host, targets, r, scale, gray, others):
    """Disagreement, trust (sum of weights), and mean grey-level errors of the static world's flow and of the flow."""
    height, width = r.shape
    score, trust = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    static, flowing = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            a, b = (x - host[2]) / host[0], (y - host[3]) / host[1]
            total, used, worse, better = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            most = np.float32(0)
            for n in range(len(slots)):
                if n > 0 and gaps[n] != gaps[n - 1]:
                    most = max(most, total / (used + LITTLE_TRUST))
                k = slots[n]
                w = np.float32(weight[k, y, x]) / 255
                if w <= 0.02:
                    continue
                fx, fy = flow[k, y, x, 0] / FLOW_UNIT, flow[k, y, x, 1] / FLOW_UNIT
                z = max(R[n, 2, 0] * a + R[n, 2, 1] * b + R[n, 2, 2] + r[y, x] * t[n, 2], 0.02)
                px = (R[n, 0, 0] * a + R[n, 0, 1] * b + R[n, 0, 2] + r[y, x] * t[n, 0]) / z
                py = (R[n, 1, 0] * a + R[n, 1, 1] * b + R[n, 1, 2] + r[y, x] * t[n, 1]) / z
                ux, uy = px * targets[n, 0] + targets[n, 2], py * targets[n, 1] + targets[n, 3]
                sx, sy = ux - x, uy - y
                d2 = (sx - fx) ** 2 + (sy - fy) ** 2
                bound = scale[0] + scale[1] * np.sqrt(fx * fx + fy * fy) + scale[2] * np.sqrt(sx * sx + sy * sy)
                e2 = d2 / (bound * bound)
                total += w * e2 / (1 + e2)
                used += w
                worse += w * abs(_bilinear(others[n], np.float32(ux), np.float32(uy)) - gray[y, x])
                better += w * abs(_bilinear(others[n], np.float32(x + fx), np.float32(y + fy)) - gray[y, x])
            if used > 0:
                score[y, x] = max(most, total / (used + LITTLE_TRUST))
                static[y, x], flowing[y, x] = worse / used, better / used
            trust[y, x] = used
    return score, trust, static, flowing
