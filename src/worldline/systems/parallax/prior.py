"""What a depth prior is worth, measured on the clip itself, and how it joins what parallax saw (spec 3C, 5.1).

Where parallax sees nothing two guesses of log inverse depth remain: A, the planes through what was seen around, and
B, the prior with its ratio to what was seen propagated. With unbiased errors a, b the mixture (1 - w) A + w B has the
error (1 - w) a + w b, whose variance is least at

    w = <a (a - b)> / <(a - b)^2>       = var a / (var a + var b) if they are independent: inverse-variance weights.

The errors are measured by cross-validation: a chequerboard of large tiles is taken away from what was seen, both
guesses are made from the rest, and compared with what was taken away. Sums of frame t and their mean over the clip give

    w_t = (n_t + k n + e) / (d_t + k d + e),     n_t = sum c a (a - b),  d_t = sum c (a - b)^2,

so a frame follows the clip until it knows better, and nothing seen at all leaves w = 1. Before that the prior itself
is brought into line: one scale per frame, and one exponent per clip (its contrast is often wrong by a factor in log
depth; one that knows nothing gets the exponent 0, a plane parallel to the image).

Cross-validation flatters the prior: what is taken away has texture and neighbours whose ratio helps the prior, what
was never seen has not (white walls, where small networks err most). There the prior stands alone, and what it then
knows is the share rho^2 of the variance of inverse depth that it explains on its own. Hence the weight rho^2 w_t. It
rises to 1, the prior alone, where no plane reaches: A's variance grows as one over its support (`fill.fill`).

All this judges the prior by what parallax saw. Where that may itself be wrong, `belief` says with which weight the
prior overrules it; by so much its exponent and share count as 1, and its frames agree with each other instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from worldline.align.banded import solve_banded
from worldline.align.flow_adjust import FlowState
from worldline.systems.parallax.belief import weight_of_prior
from worldline.systems.parallax.fill import Filled
from worldline.systems.parallax.representation import FlowPairs, lookup

LARGEST_ERROR = 1.0  # of a log inverse depth: beyond, a guess is simply wrong
FRAMES = 16  # looked at per clip
SURE = 0.3  # confidence of inverse depths that guesses are compared with
LOOKS = 8  # independent looks at the prior that one clip is worth
LEFT_ALONE = 1e-4  # weight of leaving a frame's scale as it is, where frames are made to agree
NO_DOUBT = 0.01  # weight of the prior against parallax that is not worth the trouble
LITTLE = 1e-4  # squared log ratio per pixel that speaks for the prior beforehand


@dataclass(frozen=True, kw_only=True)
class PriorTrust:
    """How a prior is used in each frame.

    Attributes:
        factor: [T] float32, multiplies the prior after the exponent.
        exponent: of the prior, one per clip, in [0, 1.5].
        share: [T] float32 in [0, 1], weight of the prior's guess against that of planes.
        overrules: weight in [0, 1] of the prior against all that parallax says.
    """

    factor: np.ndarray
    exponent: float
    share: np.ndarray
    overrules: float = 0.0

    def apply(self, prior: np.ndarray, t: int) -> np.ndarray:
        """The prior [H, W] of frame t at the scale and contrast of what was seen; 0 stays unknown."""
        return np.where(prior > 0, self.factor[t] * np.where(prior > 0, prior, 1) ** self.exponent, 0)

    def overrule(self, filled: Filled, value: np.ndarray) -> Filled:
        """Depth from parallax, mixed with the prior's [H, W] as far as that is believed instead; confidence falls."""
        if self.overrules < NO_DOUBT:
            return filled
        mixed = filled.value ** (1 - self.overrules) * np.where(value > 0, value, filled.value) ** self.overrules
        return Filled(value=mixed.astype(np.float32), confidence=filled.confidence * np.float32(1 - self.overrules))

    def agreeing(self, chain: np.ndarray) -> PriorTrust:
        """The same with frames that follow `chain` [T], a factor each, as far as parallax is not believed."""
        chained = self.exponent * np.log(chain)
        own = np.log(self.factor)
        chained += np.median(own - chained)
        factor = np.exp((1 - self.overrules) * own + self.overrules * chained)
        return replace(self, factor=factor.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What parallax and a prior have in common where parallax saw something.

    Attributes:
        exponent: in [0, 1.5], brings the prior's log contrast to that of what was seen.
        explained: share of the variance of inverse depth that the prior explains, rho^2.
        correlation: of log inverse depths.
    """

    exponent: float
    explained: float
    correlation: float


Seen = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
"""Frame -> inverse depth, its confidence, that of its logarithm, the prior's inverse depth (0: unknown), all [H, W]."""

Guesses = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(frame, mask [H, W] of what may be used, aligned prior [H, W]) -> log inverse depth of A and of B, both [H, W]."""


def measure_trust(
    seen: Seen, count: int, guesses: Guesses, whole: float = 1.0, camera_deviation: float = 0.0
) -> PriorTrust:
    """Scale, contrast and weight of a prior from how it predicts what parallax saw.

    Args:
        seen: what parallax saw, and the prior, frame by frame.
        count: frames.
        guesses: makes A and B from part of what was seen.
        whole: frames' worth of the clip's mean in each frame's share.
        camera_deviation: how loosely the flow holds the cameras, see `belief.weight_of_prior`.
    """
    chosen = np.unique(np.linspace(0, count - 1, FRAMES).astype(int))
    found = contrast(seen, chosen)
    overrules = weight_of_prior(found.correlation, camera_deviation)
    exponent, explained = (1 - overrules) * np.array([found.exponent, found.explained]) + overrules
    factor = scale_prior(seen, count, exponent).astype(np.float32)
    trust = PriorTrust(factor=factor, exponent=float(exponent), share=np.ones(count, np.float32), overrules=overrules)
    top, bottom = np.array([_cross_validate(seen, trust, guesses, int(t)) for t in chosen]).T
    shares = (top + whole * top.mean() + LITTLE) / (bottom + whole * bottom.mean() + LITTLE)
    share = explained * np.interp(np.arange(count), chosen, np.clip(shares, 0, 1))
    return replace(trust, share=share.astype(np.float32))


def contrast(seen: Seen, chosen: np.ndarray) -> Agreement:
    """What a prior and what was seen have in common.

    The exponent is a regression of log r on log prior, rho the correlation of inverse depths (far away, log r is
    all noise), both about each frame's medians, robust, and as if a few pixels more had agreed perfectly. Neighbouring
    pixels tell the same: a clip is worth some n = LOOKS of them, so rho^2 becomes 1 - (1 - rho^2) (n - 1) / (n - 2).
    """
    logs, plain = np.full(3, LITTLE * len(chosen)), np.full(3, LITTLE * len(chosen))
    for t in chosen:
        r, c, _, prior = seen(int(t))
        sure = (prior > 0) & (c > SURE)
        if sure.sum() < 50:
            continue
        w, ratios = c[sure], []
        for values in (prior[sure], r[sure]):
            ratios.append(np.clip(values / np.exp(weighted_median(np.log(values), w)), math.exp(-1), 3.0))
        w, (x, y) = w / r.size, ratios
        plain += _products(x - np.average(x, weights=w), y - np.average(y, weights=w), w)
        logs += _products(np.clip(np.log(x), -1, 1), np.clip(np.log(y), -1, 1), w)
    exponent = float(np.clip(logs[1] / logs[0], 0, 1.5))
    explained = max(plain[1], 0.0) ** 2 / (plain[0] * plain[2])
    return Agreement(
        exponent=exponent,
        explained=float(np.clip(1 - (1 - explained) * (LOOKS - 1) / (LOOKS - 2), 0, 1)),
        correlation=float(logs[1] / np.sqrt(logs[0] * logs[2])),
    )


def _products(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums of x x, x y and y y."""
    return np.array([(weight * x * x).sum(), (weight * x * y).sum(), (weight * y * y).sum()], float)


def _cross_validate(seen: Seen, trust: PriorTrust, guesses: Guesses, t: int) -> tuple[float, float]:
    """Sums of a (a - b) and (a - b)^2 over every second tile, predicted from the other ones, per pixel of the frame."""
    r, _, c, prior = seen(t)
    prior = trust.apply(prior, t)
    height, width = r.shape
    side = max(4, min(height, width) // 3)
    rows, columns = np.arange(height) // side, np.arange(width) // side
    away = (rows[:, None] + columns[None] + t) % 2 == 0
    judged = away & (c > SURE) & (prior > 0)
    if judged.sum() < 30 or (~away & (c > SURE)).sum() < 30:
        return 0.0, 0.0
    plane, followed = guesses(t, (~away).astype(np.float32), prior)
    truth = np.log(r[judged])
    a = np.clip(plane[judged] - truth, -LARGEST_ERROR, LARGEST_ERROR)
    b = np.clip(followed[judged] - truth, -LARGEST_ERROR, LARGEST_ERROR)
    weight = c[judged] / r.size
    return float((weight * a * (a - b)).sum()), float((weight * (a - b) ** 2).sum())


def scale_prior(seen: Seen, count: int, exponent: float = 1.0) -> np.ndarray:
    """Factor [T] that brings every frame of the prior to the scale of r: robust, interpolated where nothing is seen."""
    logs, weight, pixels = np.zeros(count), np.zeros(count), 1
    for t in range(count):
        r, _, c, prior = seen(t)
        known, pixels = (prior > 0) & (c > 0.05), r.size
        weight[t] = float(c[known].sum())
        logs[t] = weighted_median(np.log(r[known] / prior[known] ** exponent), c[known])
    found = np.flatnonzero(weight > 0.002 * pixels)
    if not len(found):
        return np.ones(count)
    return np.exp(np.interp(np.arange(count), found, logs[found]))


def chain_prior(prior: np.ndarray, pairs: FlowPairs, state: FlowState) -> np.ndarray:
    """Factor [T] that makes the prior's frames agree along the flow, for cameras without translation."""
    count = len(prior)
    reach = max((offset for offset in pairs.offsets if offset < count), default=0)
    system, right = np.zeros((count, reach + 1)), np.zeros((count, 1))  # normal equations, as `solve_banded` has them
    system[:, 0] = LEFT_ALONE
    for t in range(count):
        for offset in (offset for offset in pairs.offsets if offset > 0 and t + offset < count):
            flow, trust = pairs.read(t, offset)
            there = lookup(prior[t + offset], flow)
            known = (prior[t] > 0) & (there > 0) & (trust > 0.5)
            if known.mean() > 0.02:
                value, weight = np.median(np.log(prior[t][known][::5] / there[known][::5])), known.mean() ** 2
                system[[t, t + offset], 0] += weight
                system[t, offset] -= weight
                right[[t, t + offset], 0] += (-weight * value, weight * value)
    solved = solve_banded(system, right)
    assert solved is not None, "a positive diagonal was added"
    return np.exp(solved[:, 0])


def weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    """Weighted median of all values; 0 where nothing has weight."""
    keep = weight > 0
    if not keep.any():
        return 0.0
    order = np.argsort(values[keep])
    cumulated = np.cumsum(weight[keep][order])
    return float(values[keep][order][np.searchsorted(cumulated, 0.5 * cumulated[-1])])
