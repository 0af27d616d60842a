"""Depth of every pixel of every frame, its confidence, and what moves: the order of the steps (spec 1.8 - 1.12)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from worldline.align.flow_adjust import R_MIN, FlowState
from worldline.io.arena import Arena
from worldline.scene import Progress, no_progress
from worldline.systems.parallax.fill import EdgeWeights, FillConfig, Filled, Guide, edge_weights, far_guesses, fill
from worldline.systems.parallax.flow import workers
from worldline.systems.parallax.fuse import fuse
from worldline.systems.parallax.mask import MaskConfig, average_score, grow_mask, motion_score, moving_regions, vote
from worldline.systems.parallax.motion import MotionConfig, ground_contact, steady
from worldline.systems.parallax.prior import NO_DOUBT, PriorTrust, chain_prior, measure_trust
from worldline.systems.parallax.representation import FLOW_UNIT, RELEASE_EVERY, FlowPairs, texture
from worldline.systems.parallax.triangulate import Triangulated, triangulate

PRIOR_ERROR = 0.3  # usual error of a prior's log depth
PRIOR_FLOATING = 0.5  # where the ground is the prior's as well, it knows movers as well as the ground below them


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """How dense depth is made.

    Attributes:
        sigma_px: reprojection error at which a view counts a quarter.
        support: share of agreeing flow at which confidence starts, and at which it is full.
        texture: mean squared gradient (grey levels squared) at which confidence is halved.
        company: mean confidence of the neighbourhood at which a pixel's own is halved.
        noise_px: typical error of a flow that passed the forward-backward check.
        fusions: rounds of temporal fusion.
        fill: propagation.
        mask: what moves.
        motion: where it is.
    """

    sigma_px: float = 0.75
    support: tuple[float, float] = (0.35, 0.75)
    texture: float = 4.0
    company: float = 0.05
    noise_px: float = 0.2
    fusions: int = 2
    fill: FillConfig = field(default_factory=FillConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)


@dataclass(frozen=True, kw_only=True)
class DenseDepth:
    """Dense results.

    Attributes:
        r: [T, H, W] float32 inverse depth.
        confidence: [T, H, W] float32, probability of depth within 10 % of the truth; 0 where there is no parallax.
        moving: [T, H, W] bool.
        overruled: weight in 0..1 of the prior against all that parallax says (`belief`).
    """

    r: np.ndarray
    confidence: np.ndarray
    moving: np.ndarray
    overruled: float = 0.0


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
    camera_deviation: float = 0.0,
    progress: Progress = no_progress,
    arena: Arena | None = None,
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
        camera_deviation: how loosely the flow holds the cameras (`uncertainty`); speaks for a prior that contradicts.
        progress: called per frame.
        arena: where the arrays of all frames live; by default in memory.
    """
    arena = Arena(sys.maxsize) if arena is None else arena
    work = _Dense(rgb, gray, pairs, state, config, prior, arena)
    # 1. Every frame on its own, then with its neighbours.
    if not see_depth:
        work.chain_prior()
    else:
        for_all(work.observe, len(rgb), "triangulation", progress, arena)
        for _ in range(config.fusions):
            for_all(work.exchange, len(rgb), "fusion", progress, arena)
            work.swap()
        work.weigh_prior(camera_deviation)
    # 2. What moves, as seen from a world where nothing does.
    spread = work.spread if see_depth else work.believe
    for_all(lambda t: work.score(t, spread), len(rgb), "motion", progress, arena)
    # 3. Depth without what moves; movers stand on the ground, or where the prior says.
    for_all(lambda t: work.finish(t, spread, known_moving), len(rgb), "depth", progress, arena)
    steady(work.r, work.moving, pairs, state)
    np.maximum(work.r, R_MIN, out=work.r)
    overruled = 0.0 if work.trust is None else work.trust.overrules
    return DenseDepth(r=work.r, confidence=work.confidence, moving=work.moving, overruled=overruled)


Spread = Callable[[int, EdgeWeights, np.ndarray | None], Filled]
"""Full-coverage inverse depth of one frame, given its affinities and which pixels stand apart."""


class _Dense:
    """The arrays of a clip while its depth is made, and the steps that fill them frame by frame."""

    def __init__(
        self,
        rgb: Sequence[np.ndarray],
        gray: Sequence[np.ndarray],
        pairs: FlowPairs,
        state: FlowState,
        config: DenseConfig,
        prior: np.ndarray | None,
        arena: Arena,
    ) -> None:
        self.rgb, self.gray, self.pairs, self.state, self.config, self.prior = rgb, gray, pairs, state, config, prior
        shape, self.arena = (len(rgb), *pairs.size), arena
        self.r, self.c = arena.zeros(shape, np.float32), arena.zeros(shape, np.float32)
        self.next_r, self.next_c = arena.zeros(shape, np.float32), arena.zeros(shape, np.float32)
        self.precision, self.scores = arena.zeros(shape, np.float32), arena.zeros(shape, np.float32)
        self.confidence, self.moving = arena.zeros(shape, np.float32), arena.zeros(shape, np.bool_)
        self.trust: PriorTrust | None = None
        self.floating = 0.0  # weight of the prior's word about movers against the ground's that they stand on

    def chain_prior(self) -> None:
        """Make the prior's frames agree with each other, where there is no parallax to compare them with."""
        if self.prior is not None:
            self.floating = PRIOR_FLOATING
            factor = chain_prior(self.prior, self.pairs, self.state).astype(np.float32)
            found = self.arena.zeros(self.prior.shape, np.float32)
            for t in range(len(found)):
                found[t] = self.prior[t] * factor[t]
            self.arena.release()
            self.prior = found

    def weights(self, t: int) -> EdgeWeights:
        """Affinities of a frame (cheap enough not to keep)."""
        return edge_weights(self.rgb[t], self.config.fill.edge)

    def observe(self, t: int) -> None:
        """What the flows of one frame say."""
        seen = triangulate_frame(self.pairs, self.state, t, self.config.sigma_px)
        self.r[t], self.c[t] = seen.r, trust_in(seen, texture(self.gray[t]), self.config)
        self.precision[t] = np.sqrt(np.maximum(local_mean(seen.information), 0)) / self.config.noise_px

    def exchange(self, t: int) -> None:
        """What the neighbouring frames add."""
        self.next_r[t], self.next_c[t] = fuse(self.r, self.c, self.pairs, self.state, t)

    def swap(self) -> None:
        """Take over what `exchange` found."""
        self.r, self.c, self.next_r, self.next_c = self.next_r, self.next_c, self.r, self.c

    def weigh_prior(self, camera_deviation: float) -> None:
        """Find out what the prior is worth next to what was seen."""
        if self.prior is not None:
            trust = measure_trust(self.seen, len(self.r), self.guesses, camera_deviation=camera_deviation)
            if trust.overrules >= NO_DOUBT:
                trust = trust.agreeing(chain_prior(self.prior, self.pairs, self.state))
            self.trust, self.floating = trust, PRIOR_FLOATING * trust.overrules

    def seen(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Inverse depth, its confidence, that of its logarithm, and the prior as it came."""
        assert self.prior is not None
        if t % RELEASE_EVERY == 0:
            self.arena.release()
        return self.r[t], self.c[t], self.c[t] * self.log_weight(t), self.prior[t]

    def log_weight(self, t: int) -> np.ndarray:
        """Weight [H, W] of log r next to a prior's: the noise of r over r against the usual error of a prior."""
        sigmas = self.precision[t] * self.r[t]
        return sigmas**2 / (sigmas**2 + PRIOR_ERROR**-2)

    def guesses(self, t: int, kept: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log inverse depth of one frame by planes and by the prior, from the part `kept` of what was seen."""
        guide = Guide(value=prior, weight=self.log_weight(t), share=1.0)
        return far_guesses(self.r[t], self.c[t] * kept, self.weights(t), self.config.fill, guide)

    def spread(self, t: int, weights: EdgeWeights, apart: np.ndarray | None = None) -> Filled:
        """What was seen, propagated to all pixels."""
        guide = None
        if self.prior is not None and self.trust is not None:
            value, share = self.trust.apply(self.prior[t], t), float(self.trust.share[t])
            guide = Guide(value=value, weight=self.log_weight(t), share=share)
        filled = fill(self.r[t], self.c[t], weights, self.config.fill, guide, apart)
        filled = Filled(value=np.maximum(filled.value, R_MIN), confidence=filled.confidence)
        return filled if guide is None or self.trust is None else self.trust.overrule(filled, guide.value)

    def believe(self, t: int, weights: EdgeWeights, apart: np.ndarray | None = None) -> Filled:
        """The prior alone, or one constant."""
        flat = np.ones(self.pairs.size, np.float32)
        known = flat if self.prior is None else np.where(self.prior[t] > 0, self.prior[t], 1)
        return Filled(value=known, confidence=np.zeros(self.pairs.size, np.float32))

    def score(self, t: int, spread: Spread) -> None:
        """How surely each pixel moves."""
        weights = self.weights(t)
        r = spread(t, weights, None).value
        found = motion_score(self.gray, self.pairs, self.state, t, r, self.config.mask)
        self.scores[t] = average_score(found, texture(self.gray[t]), weights, self.config.mask)

    def finish(self, t: int, spread: Spread, known_moving: np.ndarray | None) -> None:
        """The mask, and the final depth and confidence."""
        labels = moving_regions(vote(self.scores, self.pairs, t), self.config.mask)
        moving = labels > 0 if known_moving is None else (labels > 0) | known_moving[t]
        self.c[t][grow_mask(moving, self.config.mask.dilate_px)] = 0
        filled = spread(t, self.weights(t), moving)
        sure = probability(filled.confidence, self.precision[t] * filled.value) * (filled.confidence > 0)
        self.confidence[t] = np.where(moving, 0.3 * sure, sure)
        stood = ground_contact(filled.value, labels, self.config.motion)
        self.r[t] = stood ** (1 - self.floating) * filled.value**self.floating
        self.moving[t] = moving


def for_all(work: Callable[[int], None], count: int, name: str, progress: Progress, arena: Arena) -> None:
    """Run `work` for all frames on the machine's cores, keeping only the newest ones of the arena's in memory."""
    with ThreadPoolExecutor(workers()) as pool:
        for done, _ in enumerate(pool.map(work, range(count)), 1):
            progress(name, done, count)
            if done % RELEASE_EVERY == 0:
                arena.release()


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
    """Confidence [H, W] of triangulated inverse depth: agreement x information x texture, 0 at the floor (spec 1.9).

    Where most flow is wrong some of it agrees by chance, in specks: a pixel is believed as far as its neighbours are.
    """
    low, high = config.support
    agreement = np.clip((seen.support - low) / (high - low), 0, 1)
    usual = max(float(np.quantile(seen.information, 0.75)), 1e-6)
    known = np.minimum(seen.information / usual, 1) * (seen.r > 2 * R_MIN)
    alone = (agreement * known * tex / (tex + config.texture)).astype(np.float32)
    around = local_mean(alone)
    return alone * around / (around + np.float32(config.company))


def probability(support: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Probability [H, W] that depth is within 10 % of the truth, at one scale per clip.

    A logistic function of the propagated support [H, W] in [0, 1] and of the precision r sqrt(information) / noise (how
    many standard deviations the inverse depth is from zero), fitted on clips with truth; benchmarks/RESULTS.md shows
    how well it holds.
    """
    odds = np.maximum(np.log((support + 0.01) / (1.01 - support)), 0)
    logit = -1.75 + 0.28 * odds * np.log(np.clip(precision, 1, 300))
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


def local_mean(values: np.ndarray) -> np.ndarray:
    """Mean over 9x9 px."""
    import cv2

    return cv2.blur(values, (9, 9))
