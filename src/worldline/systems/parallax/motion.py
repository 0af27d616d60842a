"""Depth and motion of moving things: ground contact, steadiness in time, world scene flow (spec 1.12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.align.flow_adjust import FlowState
from worldline.systems.parallax.fill import EdgeWeights, smooth
from worldline.systems.parallax.representation import FlowPairs, lookup

ANISOTROPY = 3.0
SPREAD = 0.03
"""Usual change of log depth of a moving thing per frame. This and the next ones: fitted on rendered training clips."""
SIZE_ERROR = {1: 0.04, 2: 0.03, 4: 0.022, 8: 0.018}  # of the change of log size per frame, by frame gap
CONTACT_ERROR = {1: 0.07, 2: 0.05, 4: 0.035, 8: 0.025}  # of the change of log inverse depth per frame
SIZE_SHARE = 0.2  # of the standard deviation that the affine fit claims, which counts deformation as noise
SHARED = 2.0  # witnesses that count as one: the gaps share their errors


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """How moving things are placed.

    Attributes:
        contact_px: how far below a moving thing the ground is looked up.
    """

    contact_px: int = 3


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

    Static pixels do not move. Moving ones go along the ray their flow leads to, to the depth that their whole region
    says over several frames (the difference of two frames' depths would mostly be noise).
    """
    flow, trust = pairs.read(t, 1)
    here = world_points(r[t], state, t)
    approach = -np.log(np.maximum(depth_in(here, state, t + 1) * r[t], 1e-3))  # the camera's own
    step = _moved(r[t], flow, growth(r, moving, pairs, t, approach, state.intrinsics[:, 0]), state, t) - here
    known = moving[t] & (trust > 0.3) & (lookup(moving[t + 1].astype(np.float32), flow) > 0.5)
    weight = np.where(known, trust, 0).astype(np.float32)[..., None]
    flat = EdgeWeights(right=np.ones(flow.shape[:2], np.float32), down=np.ones(flow.shape[:2], np.float32))
    smoothed = smooth(np.concatenate([weight * step, weight], -1).astype(np.float32), flat, 8.0)
    step = smoothed[..., :3] / np.maximum(smoothed[..., 3:], 1e-6)
    step[~moving[t]] = 0
    return step.astype(np.float32), ~moving[t] | (smoothed[..., 3] > 0.05)


def growth(
    r: np.ndarray,
    moving: np.ndarray,
    pairs: FlowPairs,
    t: int,
    usual: np.ndarray,
    focal: np.ndarray | None = None,
) -> np.ndarray:
    """Change of log inverse depth per frame [H, W] of the moving region of each pixel.

    Two witnesses, each at every gap g up to 8 frames ahead and back: the flow of a region, fitted by u' = A u + b, says
    how much larger it gets (log sqrt det A); and the inverse depths [T, H, W] of its pixels, taken from the ground it
    stands on, change along the flow. With variances v (of one frame) the result is the posterior mean under the prior
    N(usual, SPREAD^2), `usual` [H, W] being what standing still would give: noise brings nothing closer. A `focal`
    length [T] that changes enlarges without bringing closer, and is taken off.
    """
    import cv2

    count, labels = cv2.connectedComponents(moving[t].astype(np.uint8), connectivity=8)
    pixels = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
    mean = np.bincount(labels.ravel(), usual.ravel(), count) / pixels
    total, weight = np.zeros(count), np.full(count, SPREAD**-2)
    for offset in pairs.offsets:
        if abs(offset) not in SIZE_ERROR or not 0 <= t + offset < len(moving):
            continue
        flow, trust = pairs.read(t, offset)
        zoom = 0.0 if focal is None else float(np.log(focal[t + offset] / focal[t]))
        trust = trust * (lookup(moving[t + offset].astype(np.float32), flow) > 0.5)
        nearer = lookup(np.log(np.maximum(r[t + offset], 1e-6)), flow) - np.log(np.maximum(r[t], 1e-6))
        for label in range(1, count):
            y, x = np.nonzero((labels == label) & (trust > 0.2))
            for change, variance in _changes(x, y, flow, trust, nearer, offset, len(x) / pixels[label], zoom):
                total[label] += (change - mean[label]) / variance
                weight[label] += 1 / variance
    return np.where(labels > 0, (mean + total / weight)[labels], usual)


def _changes(
    x: np.ndarray,
    y: np.ndarray,
    flow: np.ndarray,
    trust: np.ndarray,
    nearer: np.ndarray,
    offset: int,
    share: float,
    zoom: float,
) -> list[tuple[float, float]]:
    """What some pixels say of their change of log inverse depth per frame: (value, variance) of each witness."""
    gap, found = abs(offset), []
    if len(x) >= 20:
        change = float(np.median(nearer[y, x])) / offset
        found.append((change, SHARED * CONTACT_ERROR[gap] ** 2 / share))
    size = _log_size(np.stack([x, y], -1).astype(np.float64), flow[y, x], trust[y, x])
    if size is not None:
        variance = SIZE_SHARE**2 * size[1] / gap**2 + SIZE_ERROR[gap] ** 2
        found.append(((size[0] - zoom) / offset, SHARED * variance))
    return found


def _log_size(pixels: np.ndarray, flow: np.ndarray, trust: np.ndarray) -> tuple[float, float] | None:
    """Change of log size of some pixels [N, 2] under their flow [N, 2], and its variance; None for too few pixels."""
    if len(pixels) < 30:
        return None
    centred = pixels - np.average(pixels, axis=0, weights=trust)
    design = np.c_[centred, np.ones(len(centred))]
    robust = trust.astype(np.float64)
    for _ in range(3):
        gram = (design * robust[:, None]).T @ design
        if np.linalg.cond(gram) > 1e9:
            return None
        solution = np.linalg.solve(gram, (design * robust[:, None]).T @ flow)
        error = np.linalg.norm(flow - design @ solution, axis=1)
        scale = max(2 * float(np.median(error)), 0.2)
        robust = trust / (1 + (error / scale) ** 2) ** 2
    sizes = np.log(np.maximum(np.linalg.svd(np.eye(2) + solution[:2].T, compute_uv=False), 0.1))
    independent = max(len(pixels) / 60, 1.0)  # flow errors are smooth over some 8x8 px
    extent = float((centred**2).mean())
    variance = (scale / 2) ** 2 / (extent * independent) + (ANISOTROPY * float(sizes[0] - sizes[1])) ** 2
    return float(sizes.mean()), variance


def _moved(r: np.ndarray, flow: np.ndarray, change: np.ndarray, state: FlowState, t: int) -> np.ndarray:
    """World points [H, W, 3] where the pixels of frame `t` are in the next, having grown by `change` in log size."""
    height, width = r.shape
    ahead = min(t + 1, len(state.w2c) - 1)
    fx, fy, cx, cy = state.intrinsics[ahead]
    depth = np.exp(-change) / np.maximum(r, 1e-6)
    x = (np.arange(width) + flow[..., 0] - cx) / fx
    y = (np.arange(height)[:, None] + flow[..., 1] - cy) / fy
    c2w = np.linalg.inv(state.w2c[ahead])
    return (np.stack([x, y, np.ones_like(x)], -1) * depth[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]


def world_points(r: np.ndarray, state: FlowState, t: int) -> np.ndarray:
    """World points [H, W, 3] float32 of inverse depths [H, W]."""
    height, width = r.shape
    fx, fy, cx, cy = state.intrinsics[t]
    x, y = np.meshgrid((np.arange(width) - cx) / fx, (np.arange(height) - cy) / fy)
    camera = np.stack([x, y, np.ones_like(x)], -1) / np.maximum(r, 1e-6)[..., None]
    c2w = np.linalg.inv(state.w2c[t])
    return (camera @ c2w[:3, :3].T + c2w[:3, 3]).astype(np.float32)


def depth_in(points: np.ndarray, state: FlowState, t: int) -> np.ndarray:
    """z-depth [H, W] float32 of world points in the camera of frame `t`."""
    row = state.w2c[t, 2]
    return (points @ row[:3] + row[3]).astype(np.float32)


def _seen_from(r: np.ndarray, state: FlowState, other: int, t: int, flow: np.ndarray) -> np.ndarray:
    """Inverse depth in frame `t` of the points of frame `other` that `flow` of frame `t` leads to."""
    return 1 / np.maximum(lookup(depth_in(world_points(r, state, other), state, t), flow), 1e-3)
