"""Two views at a time: essential matrices, the focal search, and where to start a reconstruction (spec 1.4, 1.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.align.flow_adjust import Matches
from worldline.systems.parallax.statistic import Parallax

MIN_MATCHES = 12


@dataclass(frozen=True, kw_only=True)
class TwoView:
    """One pair with its essential matrix.

    Attributes:
        host: frame index.
        slot: which of the host's targets.
        essential: [3, 3] on normalised pixels, or None where there is none.
        cost: mean of min(Sampson error / (1 px)^2, 1) over the matches, by weight.
        inliers: share of matches with Sampson error below 1 px.
        kept: [N] bool, matches that took part.
    """

    host: int
    slot: int
    essential: np.ndarray | None
    cost: float
    inliers: float
    kept: np.ndarray


def two_view(matches: Matches, intrinsics: np.ndarray, host: int, slot: int) -> TwoView:
    """Essential matrix of one pair by 5-point RANSAC at 1 px."""
    import cv2

    weight, target = matches.weight[host, slot], matches.target[host, slot]
    kept = weight > 0.2
    if kept.sum() < MIN_MATCHES:
        return TwoView(host=host, slot=slot, essential=None, cost=1.0, inliers=0.0, kept=kept)
    a = _normalised(matches.pixels[host], intrinsics[host])[kept]
    b = _normalised(matches.goal[host, slot], intrinsics[target])[kept]
    focal = float(np.sqrt(intrinsics[host, 0] * intrinsics[target, 0]))
    essential, _ = cv2.findEssentialMat(a, b, np.eye(3), method=cv2.RANSAC, prob=0.999, threshold=1 / focal)
    if essential is None or len(essential) < 3:
        return TwoView(host=host, slot=slot, essential=None, cost=1.0, inliers=0.0, kept=kept)
    essential = essential[:3]
    error = sampson(essential, a, b) * focal**2
    cost = float(np.average(np.minimum(error, 1), weights=weight[kept]))
    return TwoView(host=host, slot=slot, essential=essential, cost=cost, inliers=float((error < 1).mean()), kept=kept)


def relative_pose_of(pair: TwoView, matches: Matches, intrinsics: np.ndarray) -> np.ndarray | None:
    """[4, 4] pose from the host's to the target's frame, unit translation, most points in front; None if impossible."""
    import cv2

    if pair.essential is None:
        return None
    target = matches.target[pair.host, pair.slot]
    a = _normalised(matches.pixels[pair.host], intrinsics[pair.host])[pair.kept]
    b = _normalised(matches.goal[pair.host, pair.slot], intrinsics[target])[pair.kept]
    focal = float(np.sqrt(intrinsics[pair.host, 0] * intrinsics[target, 0]))
    mask = (sampson(pair.essential, a, b) * focal**2 < 1).astype(np.uint8)[:, None]
    if mask.sum() < MIN_MATCHES // 2:
        return None
    _, R, t, _ = cv2.recoverPose(pair.essential, a, b, np.eye(3), mask=mask)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R, t[:, 0]
    return pose


def sampson(essential: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Sampson distance [N] of normalised matches a, b [N, 2], with b^T E a = 0."""
    a1, b1 = np.c_[a, np.ones(len(a))], np.c_[b, np.ones(len(b))]
    Ea, Eb = a1 @ essential.T, b1 @ essential
    return (b1 * Ea).sum(1) ** 2 / (Ea[:, 0] ** 2 + Ea[:, 1] ** 2 + Eb[:, 0] ** 2 + Eb[:, 1] ** 2 + 1e-18)


def search_focal(
    matches: Matches, parallax: Parallax, intrinsics: np.ndarray, factors: np.ndarray, pairs: int = 8
) -> np.ndarray:
    """Mean truncated Sampson cost of every focal factor over a few spread pairs with large parallax (spec 1.4)."""
    value = np.nan_to_num(np.minimum(parallax.parallax_px, 30) * parallax.coverage)
    value[:, 1::2] = 0  # forward slots only: the backward ones are the same pairs
    chosen = []
    for block in np.array_split(np.arange(len(matches)), min(pairs, len(matches))):
        host, slot = np.unravel_index(np.argmax(value[block]), value[block].shape)
        if value[block[host], slot] > 0:
            chosen.append((int(block[host]), int(slot)))
    curve = np.ones(len(factors))
    for n, factor in enumerate(factors):
        scaled = intrinsics.copy()
        scaled[:, :2] *= factor
        if chosen:
            curve[n] = float(np.mean([two_view(matches, scaled, host, slot).cost for host, slot in chosen]))
    return curve


def start_pairs(matches: Matches, parallax: Parallax, intrinsics: np.ndarray, starts: int) -> list[TwoView]:
    """The best pair of each part of the clip: wide parallax, well covered, well explained by one rigid motion."""
    value = np.nan_to_num(np.minimum(parallax.parallax_px, 12) * parallax.coverage)
    found = []
    for block in np.array_split(np.arange(len(matches)), min(starts, max(1, len(matches) // 4))):
        order = np.argsort(-value[block].ravel())[:4]
        hosts, slots = np.unravel_index(order, value[block].shape)
        candidates = [
            (float(value[block[h], k]), two_view(matches, intrinsics, int(block[h]), int(k)))
            for h, k in zip(hosts, slots, strict=True)
            if value[block[h], k] > 0
        ]
        candidates = [(v, pair) for v, pair in candidates if pair.essential is not None]
        if candidates:
            found.append(max(candidates, key=lambda item: item[0] * item[1].inliers * (1 - item[1].cost))[1])
    return found


def _normalised(pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    return ((pixels - intrinsics[2:]) / intrinsics[:2]).astype(np.float64)
