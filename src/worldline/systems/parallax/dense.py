"""Depth of every pixel of every frame, its confidence, and what moves: the order of the steps (spec 1.8 - 1.12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from worldline.align.flow_adjust import R_MIN, FlowState
from worldline.scene import Progress, no_progress
from worldline.systems.parallax.fill import EdgeWeights, FillConfig, Filled, edge_weights, fill
from worldline.systems.parallax.flow import workers
from worldline.systems.parallax.fuse import fuse
from worldline.systems.parallax.mask import MaskConfig, average_score, grow_mask, motion_score, moving_regions, vote
from worldline.systems.parallax.motion import MotionConfig, ground_contact, steady
from worldline.systems.parallax.representation import FLOW_UNIT, Arena, FlowPairs, lookup, texture
from worldline.systems.parallax.triangulate import Triangulated, triangulate


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """How dense depth is made.

    Attributes:
        sigma_px: reprojection error at which a view counts a quarter.
        support: share of agreeing flow at which confidence starts, and at which it is full.
        texture: mean squared gradient (grey levels squared) at which confidence is halved.
        noise_px: typical error of a flow that passed the forward-backward check.
        fusions: rounds of temporal fusion.
        fill: propagation.
        mask: what moves.
        motion: where it is.
        memory_bytes: arrays beyond this live in a temporary file.
    """

    sigma_px: float = 0.75
    support: tuple[float, float] = (0.35, 0.75)
    texture: float = 4.0
    noise_px: float = 0.2
    fusions: int = 2
    fill: FillConfig = field(default_factory=FillConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, kw_only=True)
class DenseDepth:
    """Dense results.

    Attributes:
        r: [T, H, W] float32 inverse depth.
        confidence: [T, H, W] float32, probability of depth within 10 % of the truth; 0 where there is no parallax.
        moving: [T, H, W] bool.
    """

    r: np.ndarray
    confidence: np.ndarray
    moving: np.ndarray


def dense_depth(
    rgb: Sequence[np.ndarray],
    gray: Sequence[np.ndarray],
    pairs: FlowPairs,
    state: FlowState,
    config: DenseConfig = DenseConfig(),
    *,
    see_depth: bool = True,
    prior: np.ndarray | None = None,
    known_moving: np.ndarray | None = None,
    progress: Progress = no_progress,
) -> DenseDepth:
    """Inverse depth, confidence and moving mask of all frames.

    Args:
        rgb: T frames [H, W, 3] uint8.
        gray: T frames [H, W] uint8.
        pairs: dense flows.
        state: cameras.
        config: see there.
        see_depth: False where cameras have no translation: depth is the prior's, or one constant.
        prior: [T, H, W] float32 inverse depth from elsewhere, each frame up to scale, 0 where unknown; or None.
        known_moving: [T, H, W] bool, pixels known to move.
        progress: called per frame.
    """
    count, (height, width) = len(rgb), pairs.size
    arena = Arena(config.memory_bytes)
    r, c, confidence, scores = (arena.zeros((count, height, width), np.float32) for _ in range(4))
    other_r, other_c, precision = (arena.zeros((count, height, width), np.float32) for _ in range(3))
    moving = arena.zeros((count, height, width), np.bool_)
    factor = np.ones(count, np.float32)

    def observe(t: int) -> None:
        seen = triangulate_frame(pairs, state, t, config.sigma_px)
        r[t], c[t] = seen.r, trust_in(seen, texture(gray[t]), config)
        precision[t] = np.sqrt(np.maximum(local_mean(seen.information), 0)) / config.noise_px

    def exchange(t: int) -> None:
        other_r[t], other_c[t] = fuse(r, c, pairs, state, t)

    def propagate(t: int, weights: EdgeWeights, apart: np.ndarray | None = None) -> Filled:
        filled = spread(t, weights, apart)
        return Filled(value=np.maximum(filled.value, R_MIN), confidence=filled.confidence)

    def spread(t: int, weights: EdgeWeights, apart: np.ndarray | None) -> Filled:
        if not see_depth:
            flat = np.ones((height, width), np.float32) if prior is None else np.maximum(factor[t] * prior[t], 0)
            return Filled(value=flat, confidence=np.zeros((height, width), np.float32))
        return fill(r[t], c[t], weights, config.fill, None if prior is None else factor[t] * prior[t], apart)

    def score(t: int) -> None:
        weights = edge_weights(rgb[t], config.fill.edge)
        found = motion_score(gray, pairs, state, t, propagate(t, weights).value, config.mask)
        scores[t] = average_score(found, texture(gray[t]), weights, config.mask)

    def finish(t: int) -> None:
        labels = moving_regions(vote(scores, pairs, t), config.mask)
        moving[t] = labels > 0
        if known_moving is not None:
            moving[t] |= known_moving[t]
        c[t][grow_mask(moving[t], config.mask.dilate_px)] = 0
        filled = propagate(t, edge_weights(rgb[t], config.fill.edge), moving[t])
        r[t] = filled.value if prior is not None else ground_contact(filled.value, labels, config.motion)
        sure = probability(filled.confidence, precision[t] * filled.value) if see_depth else filled.confidence
        confidence[t] = np.where(moving[t], 0.3 * sure, sure)

    if see_depth:
        for_all(observe, count, "triangulation", progress)
    for _ in range(config.fusions if see_depth else 0):
        for_all(exchange, count, "fusion", progress)
        (r, other_r), (c, other_c) = (other_r, r), (other_c, c)
    if prior is not None:
        factor = (scale_prior(r, c, prior) if see_depth else chain_prior(prior, pairs, state)).astype(np.float32)
    for_all(score, count, "motion", progress)
    for_all(finish, count, "depth", progress)
    steady(r, moving, pairs, state)
    return DenseDepth(r=np.maximum(r, R_MIN, out=r), confidence=confidence, moving=moving)


def for_all(work: Callable[[int], None], count: int, name: str, progress: Progress) -> None:
    """Run `work` for all frames on the machine's cores."""
    with ThreadPoolExecutor(workers()) as pool:
        for done, _ in enumerate(pool.map(work, range(count)), 1):
            progress(name, done, count)


def triangulate_frame(pairs: FlowPairs, state: FlowState, t: int, sigma_px: float) -> Triangulated:
    """Inverse depth, information and support [H, W] of every pixel of frame `t` from all its flows."""
    height, width = pairs.size
    targets = pairs.targets()[t]
    slots = np.flatnonzero(targets >= 0)
    frames = targets[slots]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    pixels = np.stack([x, y], -1).reshape(-1, 2)
    goal = pixels + pairs.flow[t, slots].reshape(len(slots), -1, 2).astype(np.float32) / np.float32(FLOW_UNIT)
    weight = pairs.weight[t, slots].reshape(len(slots), -1).astype(np.float32) / 255
    seen = triangulate(
        pixels,
        goal,
        weight,
        (state.w2c[t], state.intrinsics[t]),
        (state.w2c[frames], state.intrinsics[frames]),
        sigma_px,
    )
    shape = (height, width)
    return Triangulated(
        r=seen.r.reshape(shape), information=seen.information.reshape(shape), support=seen.support.reshape(shape)
    )


def trust_in(seen: Triangulated, tex: np.ndarray, config: DenseConfig) -> np.ndarray:
    """Confidence [H, W] of triangulated inverse depth: agreement x information x texture, 0 at the floor (spec 1.9)."""
    low, high = config.support
    agreement = np.clip((seen.support - low) / (high - low), 0, 1)
    usual = max(float(np.quantile(seen.information, 0.75)), 1e-6)
    known = np.minimum(seen.information / usual, 1) * (seen.r > 2 * R_MIN)
    return (agreement * known * tex / (tex + config.texture)).astype(np.float32)


def probability(support: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Probability [H, W] that depth is within 10 % of the truth, at one scale per clip.

    A logistic function of the propagated support [H, W] in [0, 1] and of the precision r sqrt(information) / noise (how
    many standard deviations the inverse depth is from zero), fitted on clips with truth; see the README's table.
    """
    odds = np.maximum(np.log((support + 0.01) / (1.01 - support)), 0)
    logit = -1.75 + 0.28 * odds * np.log(np.clip(precision, 1, 300))
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


def local_mean(values: np.ndarray) -> np.ndarray:
    """Mean over 9x9 px."""
    import cv2

    return cv2.blur(values, (9, 9))


def scale_prior(r: np.ndarray, c: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Factor [T] that brings every frame of the prior to the scale of r: robust, interpolated where nothing is seen."""
    logs, weight = np.zeros(len(r)), np.zeros(len(r))
    for t in range(len(r)):
        known = (prior[t] > 0) & (c[t] > 0.05)
        weight[t] = float(c[t][known].sum())
        logs[t] = weighted_median(np.log(r[t][known] / prior[t][known]), c[t][known])
    seen = np.flatnonzero(weight > 0.002 * r[0].size)
    if not len(seen):
        return np.ones(len(r))
    return np.exp(np.interp(np.arange(len(r)), seen, logs[seen]))


def chain_prior(prior: np.ndarray, pairs: FlowPairs, state: FlowState) -> np.ndarray:
    """Factor [T] that makes the prior's frames agree along the flow, for cameras without translation."""
    count = len(prior)
    rows, values, weights = [], [], []
    for t in range(count):
        for offset in (offset for offset in pairs.offsets if offset > 0 and t + offset < count):
            flow, trust = pairs.read(t, offset)
            there = lookup(prior[t + offset], flow)
            known = (prior[t] > 0) & (there > 0) & (trust > 0.5)
            if known.mean() > 0.02:
                rows.append((t, t + offset))
                values.append(float(np.median(np.log(prior[t][known][::5] / there[known][::5]))))
                weights.append(float(known.mean()))
    system = np.zeros((len(rows) + count, count))
    for n, ((a, b), weight) in enumerate(zip(rows, weights, strict=True)):
        system[n, b], system[n, a] = weight, -weight
    system[len(rows) :] = 0.01 * np.eye(count)
    right = np.concatenate([np.array(values) * np.array(weights), np.zeros(count)])
    return np.exp(np.linalg.lstsq(system, right, rcond=None)[0])


def weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    """Weighted median of all values; 0 where nothing has weight."""
    keep = weight > 0
    if not keep.any():
        return 0.0
    order = np.argsort(values[keep])
    cumulated = np.cumsum(weight[keep][order])
    return float(values[keep][order][np.searchsorted(cumulated, 0.5 * cumulated[-1])])
