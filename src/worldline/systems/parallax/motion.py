"""What moves: dynamic mask, depth of movers from where they touch the ground, world scene flow (spec 1.11, 1.12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from numba import njit

from worldline.align.flow_adjust import FlowState, relative_pose
from worldline.systems.parallax.fill import EdgeWeights, smooth
from worldline.systems.parallax.representation import FLOW_UNIT, FlowPairs


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """How moving things are found.

    Attributes:
        error_px: disagreement with the static world's flow at which a pixel counts half moving.
        relative_flow: the same, per pixel of flow.
        relative_static: the same, per pixel of the static world's flow.
        smoothness: lambda of the edge-aware averaging of the score.
        strong: score above which a region moves.
        weak: score above which pixels connected to a moving region move too.
        smallest: share of the frame below which a moving region is taken for noise.
        dilate_px: growth of the mask when static depth is refitted.
        contact_px: how far below a moving thing the ground is looked up.
    """

    error_px: float = 1.5
    relative_flow: float = 0.05
    relative_static: float = 0.03
    smoothness: float = 30.0
    strong: float = 0.5
    weak: float = 0.35
    smallest: float = 0.001
    dilate_px: int = 5
    contact_px: int = 3


def motion_score(
    pairs: FlowPairs, state: FlowState, t: int, r: np.ndarray, config: MotionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """How much the flows of frame `t` disagree with a static world of inverse depth `r` [H, W], and their trust.

    Returns:
        score [H, W] in [0, 1] (weighted mean of e^2 / (1 + e^2)), and min(sum of weights, 1) [H, W].
    """
    targets = pairs.targets()[t]
    slots = np.flatnonzero(targets >= 0)
    R, shift = np.empty((len(slots), 3, 3), np.float32), np.empty((len(slots), 3), np.float32)
    for n, k in enumerate(slots):
        R[n], shift[n] = relative_pose(state.w2c[t], state.w2c[targets[k]])
    return _score(
        pairs.flow[t],
        pairs.weight[t],
        slots,
        R,
        shift,
        state.intrinsics[t].astype(np.float32),
        state.intrinsics[targets[slots]].astype(np.float32),
        r,
        np.array([config.error_px, config.relative_flow, config.relative_static], np.float32),
    )


def average_score(
    score: np.ndarray, trust: np.ndarray, tex: np.ndarray, weights: EdgeWeights, config: MotionConfig
) -> np.ndarray:
    """Edge-aware mean of the score, textured and trusted pixels counting most; [H, W] in [0, 1]."""
    weight = tex / (tex + 6)
    moments = smooth(np.stack([weight * score * trust, weight], -1), weights, config.smoothness)
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


def moving_regions(score: np.ndarray, config: MotionConfig) -> np.ndarray:
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


def ground_contact(r: np.ndarray, labels: np.ndarray, config: MotionConfig) -> np.ndarray:
    """Inverse depth with every moving region standing on the ground below it.

    Per column of a region, the inverse depth `contact_px` below its lowest pixel; columns far from the median of the
    lowest 40 % follow that median. Regions whose foot is outside of the frame keep what surrounds them.
    """
    height, width = r.shape
    result = r.copy()
    for label in range(1, int(labels.max()) + 1):
        region = labels == label
        columns = np.flatnonzero(region.any(0))
        foot = height - 1 - np.argmax(region[::-1, columns], axis=0)
        row = foot + config.contact_px
        seen = row < height
        seen[seen] &= labels[row[seen], columns[seen]] == 0
        if seen.sum() < max(3, 0.1 * len(columns)):
            continue
        contact = r[row[seen], columns[seen]]
        low = foot[seen] >= np.percentile(foot[seen], 60)
        median = float(np.median(contact[low]))
        near = np.abs(np.log(np.maximum(contact, 1e-6) / max(median, 1e-6))) < 0.15
        near &= foot[seen] >= np.percentile(foot[seen], 30)
        profile = np.full(width, median, np.float32)
        if near.sum() > 3:
            profile = np.interp(np.arange(width), columns[seen][near], contact[near]).astype(np.float32)
            kernel = max(3, len(columns) // 4) | 1
            profile = np.convolve(np.pad(profile, kernel // 2, mode="edge"), np.ones(kernel) / kernel, "valid")
        result[region] = np.broadcast_to(profile, r.shape)[region]
    return result


def steady(r: np.ndarray, moving: np.ndarray, pairs: FlowPairs, state: FlowState, rounds: int = 2) -> None:
    """Make the inverse depth [T, H, W] of moving pixels [T, H, W] bool change slowly along the flow, in place.

    Each pixel's log inverse depth is averaged with those the flow finds one and two frames away, after correcting
    for the camera's own motion along the ray. Geometric means keep the result between what was there.
    """
    count = len(r)
    for _ in range(rounds):
        for t in range(count):
            if not moving[t].any():
                continue
            total, weight = np.log(r[t]), np.ones_like(r[t])
            for offset in pairs.offsets:
                other = t + offset
                if abs(offset) > 2 or not 0 <= other < count:
                    continue
                flow, trust = pairs.read(t, offset)
                trust = trust * lookup(moving[other].astype(np.float32), flow)
                total = total + trust * np.log(np.maximum(_seen_from(r[other], state, other, t, flow), 1e-6))
                weight = weight + trust
            r[t][moving[t]] = np.exp(total / weight)[moving[t]]


def scene_flow(
    r: np.ndarray, moving: np.ndarray, pairs: FlowPairs, state: FlowState, t: int
) -> tuple[np.ndarray, np.ndarray]:
    """World displacement [H, W, 3] from frame `t` to `t + 1`, and where it is known [H, W] bool.

    Static pixels do not move. Moving ones go to the point of the ray their flow leads to that is nearest to where they
    were: what a single camera sees of a motion. (Its part along the ray would be a difference of two uncertain depths.)
    """
    flow, trust = pairs.read(t, 1)
    here = world_points(r[t], state, t)
    step = _to_ray(here, flow, state, t + 1)
    known = moving[t] & (trust > 0.3) & (lookup(moving[t + 1].astype(np.float32), flow) > 0.5)
    weight = np.where(known, trust, 0).astype(np.float32)[..., None]
    flat = EdgeWeights(right=np.ones(flow.shape[:2], np.float32), down=np.ones(flow.shape[:2], np.float32))
    smoothed = smooth(np.concatenate([weight * step, weight], -1).astype(np.float32), flat, 8.0)
    step = smoothed[..., :3] / np.maximum(smoothed[..., 3:], 1e-6)
    step[~moving[t]] = 0
    return step.astype(np.float32), ~moving[t] | (smoothed[..., 3] > 0.05)


def _to_ray(points: np.ndarray, flow: np.ndarray, state: FlowState, t: int) -> np.ndarray:
    """Shortest way [H, W, 3] from world points to the rays of frame `t` through where `flow` leads."""
    height, width = points.shape[:2]
    fx, fy, cx, cy = state.intrinsics[t]
    x = (np.arange(width) + flow[..., 0] - cx) / fx
    y = (np.arange(height)[:, None] + flow[..., 1] - cy) / fy
    c2w = np.linalg.inv(state.w2c[t])
    ray = np.stack([x, y, np.ones_like(x)], -1) @ c2w[:3, :3].T
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    from_centre = points - c2w[:3, 3]
    return (from_centre * ray).sum(-1, keepdims=True) * ray - from_centre


def world_points(r: np.ndarray, state: FlowState, t: int) -> np.ndarray:
    """World points [H, W, 3] float32 of inverse depths [H, W]."""
    height, width = r.shape
    fx, fy, cx, cy = state.intrinsics[t]
    x, y = np.meshgrid((np.arange(width) - cx) / fx, (np.arange(height) - cy) / fy)
    camera = np.stack([x, y, np.ones_like(x)], -1) / np.maximum(r, 1e-6)[..., None]
    c2w = np.linalg.inv(state.w2c[t])
    return (camera @ c2w[:3, :3].T + c2w[:3, 3]).astype(np.float32)


def lookup(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Bilinear values [H, W] of `image` where `flow` [H, W, 2] leads to; edge values outside."""
    import cv2

    height, width = image.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _seen_from(r: np.ndarray, state: FlowState, other: int, t: int, flow: np.ndarray) -> np.ndarray:
    """Inverse depth in frame `t` of the points of frame `other` that `flow` of frame `t` leads to."""
    world = world_points(r, state, other)
    row = state.w2c[t, 2]
    depth = (world @ row[:3] + row[3]).astype(np.float32)
    return 1 / np.maximum(lookup(depth, flow), 1e-3)


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _score(flow, weight, slots, R, t, host, targets, r, scale):
    height, width = r.shape
    score, trust = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            a, b = (x - host[2]) / host[0], (y - host[3]) / host[1]
            total, used = np.float32(0), np.float32(0)
            for n in range(len(slots)):
                k = slots[n]
                w = np.float32(weight[k, y, x]) / 255
                if w <= 0:
                    continue
                fx, fy = flow[k, y, x, 0] / FLOW_UNIT, flow[k, y, x, 1] / FLOW_UNIT
                z = R[n, 2, 0] * a + R[n, 2, 1] * b + R[n, 2, 2] + r[y, x] * t[n, 2]
                z = max(z, 0.02)
                px = (R[n, 0, 0] * a + R[n, 0, 1] * b + R[n, 0, 2] + r[y, x] * t[n, 0]) / z
                py = (R[n, 1, 0] * a + R[n, 1, 1] * b + R[n, 1, 2] + r[y, x] * t[n, 1]) / z
                sx, sy = px * targets[n, 0] + targets[n, 2] - x, py * targets[n, 1] + targets[n, 3] - y
                d2 = (sx - fx) ** 2 + (sy - fy) ** 2
                bound = scale[0] + scale[1] * np.sqrt(fx * fx + fy * fy) + scale[2] * np.sqrt(sx * sx + sy * sy)
                e2 = d2 / (bound * bound)
                total += w * e2 / (1 + e2)
                used += w
            if used > 0:
                score[y, x] = total / used
            trust[y, x] = min(used, np.float32(1))
    return score, trust
