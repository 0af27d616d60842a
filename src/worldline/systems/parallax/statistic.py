"""The parallax statistic: what of camera, focal length and depth can be known at all (spec 1.3, 4).

P of a frame pair = median distance, in pixels, between its flow and the best pure rotation's. Where P stays at the
flow's noise floor there is no translation to see, hence no depth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from worldline.align.flow_adjust import Matches, blocks

ZOOM_SHARE = 0.5
"""A zoom is believed where it leaves less than this share of what rotations leave."""

FAILED_GROWTH = 6.0
"""Parallax of one gap over that of the next shorter one at which flow has failed; motion makes it 2 to 4."""

CameraKind = Literal["full", "rotation_only", "static"]
MEASURED_AT_ONCE = 64  # hosts whose rays are in memory at a time


@dataclass(frozen=True, kw_only=True)
class Parallax:
    """Parallax of every frame pair.

    Attributes:
        rotation: [T, K, 3, 3] best rotation from host to target, identity where there is no match.
        parallax_px: [T, K] median residual of that rotation, NaN where there is no match.
        motion_px: [T, K] median flow length, NaN where there is no match.
        coverage: [T, K] mean weight of the matches.
        zoom: [T, K] log focal length of the target over that of the host; 0 unless it was asked for.
    """

    rotation: np.ndarray
    parallax_px: np.ndarray
    motion_px: np.ndarray
    coverage: np.ndarray
    zoom: np.ndarray

    def by_gap(self, offsets: tuple[int, ...], name: str = "parallax_px", percentile: float = 90) -> dict[int, float]:
        """A high percentile over the clip of "parallax_px" or "motion_px", per frame gap."""
        values = getattr(self, name)
        table = {}
        for gap in sorted({abs(offset) for offset in offsets}):
            found = values[:, [k for k, offset in enumerate(offsets) if abs(offset) == gap]]
            table[gap] = float(np.nanpercentile(found, percentile)) if np.isfinite(found).any() else float("nan")
        return table


def measure(matches: Matches, intrinsics: np.ndarray, rounds: int = 8, zoom: bool = False) -> Parallax:
    """Robust rotation (Kabsch on unit rays, IRLS) and parallax of every frame pair.

    Args:
        matches: grid matches.
        intrinsics: [T, 4] fx, fy, cx, cy.
        rounds: of reweighting.
        zoom: whether the focal length may change from frame to frame; parallax is then what rotations with zoom leave.
    """
    frames, slots = matches.target.shape
    rotation = np.tile(np.eye(3), (frames, slots, 1, 1))
    parallax, motion = np.full((frames, slots), np.nan), np.full((frames, slots), np.nan)
    coverage, zoomed = np.zeros((frames, slots)), np.zeros((frames, slots))
    for part in blocks(frames, MEASURED_AT_ONCE):
        for k in range(slots):
            hosts = part.start + np.flatnonzero((matches.target[part, k] >= 0) & (matches.weight[part, k].sum(-1) > 3))
            if not len(hosts):
                continue
            targets, weight = matches.target[hosts, k], matches.weight[hosts, k].astype(np.float64)
            source = rays(matches.pixels[hosts], intrinsics[hosts])
            lens = intrinsics[targets]
            R, lens = _turn(source, matches.goal[hosts, k], weight, lens, rounds, zoom)
            error = _reprojection(source, R, matches.goal[hosts, k], lens)
            zoomed[hosts, k] = np.log(lens[:, 0] / intrinsics[targets, 0])
            rotation[hosts, k] = R
            parallax[hosts, k] = _weighted_median(error, weight)
            shift = np.linalg.norm(matches.goal[hosts, k] - matches.pixels[hosts], axis=-1)
            motion[hosts, k] = _weighted_median(shift, weight)
            coverage[hosts, k] = weight.mean(-1)
    return Parallax(rotation=rotation, parallax_px=parallax, motion_px=motion, coverage=coverage, zoom=zoomed)


def classify(parallax: Parallax, offsets: tuple[int, ...], floor_px: float) -> CameraKind:
    """What the camera does: "static" (the image rests), "rotation_only" (no parallax at any gap), else "full"."""
    if not any(value > floor_px for value in parallax.by_gap(offsets, "motion_px").values()):
        return "static"
    return "full" if any(value > floor_px for value in parallax.by_gap(offsets).values()) else "rotation_only"


def failed_gaps(parallax: Parallax, offsets: tuple[int, ...], floor_px: float) -> list[int]:
    """Frame gaps at which there is far more parallax than shorter ones could add up to: flow that has failed there.

    Frames that far apart look too different to be matched, but the wrong matches agree both ways here and there.
    """
    by_gap = sorted((gap, value) for gap, value in parallax.by_gap(offsets).items() if np.isfinite(value))
    for (_, shorter), (gap, value) in zip(by_gap[:-1], by_gap[1:], strict=True):
        if value > FAILED_GROWTH * max(shorter, floor_px):
            return [longer for longer, _ in by_gap if longer >= gap]
    return []


def still(parallax: Parallax, offsets: tuple[int, ...], floor_px: float) -> bool:
    """Whether rotations explain next to nothing of the flow: what there is, is noise."""
    motion, left = parallax.by_gap(offsets, "motion_px"), parallax.by_gap(offsets)
    return all(not value > max(floor_px, 1.5 * left[gap]) for gap, value in motion.items())


def zooms(free: Parallax, fixed: Parallax, offsets: tuple[int, ...]) -> bool:
    """Whether a changing focal length explains most of what rotations alone leave, at the gap where it helps most."""
    before, left = fixed.by_gap(offsets, percentile=50.0), free.by_gap(offsets, percentile=50.0)
    return any(left[gap] < ZOOM_SHARE * before[gap] for gap in left)


def zoom_curve(free: Parallax, offsets: tuple[int, ...]) -> np.ndarray:
    """Log focal length [T] of every frame over their mean, from the zooms of all pairs (weighted least squares)."""
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import spsolve

    frames = len(free.zoom)
    hosts, slots = np.nonzero(np.isfinite(free.parallax_px))
    targets = hosts + np.array(offsets)[slots]
    weight = (free.coverage[hosts, slots] / (0.1 + free.parallax_px[hosts, slots])) ** 2
    ends, others = np.concatenate([hosts, targets]), np.concatenate([targets, hosts])
    both, change = np.tile(weight, 2), weight * free.zoom[hosts, slots]
    normal = coo_array((-both, (ends, others)), shape=(frames, frames))
    normal = normal + diags_array(np.bincount(ends, both, frames) + 1e-9)
    right = np.bincount(targets, change, frames) - np.bincount(hosts, change, frames)
    curve = spsolve(normal.tocsc(), right)
    return curve - curve.mean()


def rotation_focal(matches: Matches, intrinsics: np.ndarray, factors: np.ndarray, zoom: bool = False) -> float:
    """Focal factor under which pure rotations explain the flow best.

    A rotating camera shows its focal length: the homographies K R K^-1 of the true one are the only rotations.
    With `zoom` they may also change the focal length from frame to frame.
    """
    chosen = np.unique(np.linspace(0, len(matches) - 1, 24).astype(int))
    others = ~np.isin(np.arange(len(matches)), chosen)
    some = replace(matches, target=np.where(others[:, None], -1, matches.target))
    curve = []
    for factor in factors:
        left = measure(some, intrinsics * np.array([factor, factor, 1, 1]), 4, zoom).parallax_px
        curve.append(float(np.nanmean(left)) if np.isfinite(left).any() else 0.0)
    return float(factors[int(np.argmin(curve))])


def rays(pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Unit rays [M, N, 3] of pixels [M, N, 2] under intrinsics [M, 4]."""
    xy = (pixels - intrinsics[:, None, 2:]) / intrinsics[:, None, :2]
    direction = np.concatenate([xy, np.ones_like(xy[..., :1])], -1)
    return direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def _turn(
    source: np.ndarray, goal_px: np.ndarray, weight: np.ndarray, lens: np.ndarray, rounds: int, zoom: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [M, 3, 3] with goal = R source, and intrinsics [M, 4] of the goal; Geman-McClure, scale falling."""
    robust, lens = weight.copy(), lens.copy()
    for step in range(rounds):
        goal = rays(goal_px, lens)
        covariance = np.einsum("mni,mnj,mn->mij", goal, source, robust)
        U, _, Vt = np.linalg.svd(covariance)
        sign = np.sign(np.linalg.det(U @ Vt))
        U[:, :, 2] *= sign[:, None]
        R = U @ Vt
        turned = np.einsum("mij,mnj->mni", R, source)
        if zoom:  # closed form: goal = focal * turned, about the principal point
            flat = turned[..., :2] / np.maximum(turned[..., 2:], 1e-6)
            seen = (goal_px - lens[:, None, 2:]) / lens[:, None, :2]
            factor = np.einsum("mni,mni,mn->m", seen, flat, robust) / np.einsum("mni,mni,mn->m", flat, flat, robust)
            lens[:, :2] *= np.clip(factor, 0.5, 2.0)[:, None]
            goal = rays(goal_px, lens)
        error = np.linalg.norm(goal - turned, axis=-1)
        scale = np.maximum(_weighted_median(error, weight), 0.05 / lens[:, 0]) * max(1.0, 4.0 / 2**step)
        robust = weight / (1 + (error / scale[:, None]) ** 2) ** 2
    return R, lens


def _reprojection(source: np.ndarray, R: np.ndarray, goal_px: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    point = np.einsum("mij,mnj->mni", R, source)
    pixel = point[..., :2] / np.maximum(point[..., 2:], 1e-6) * intrinsics[:, None, :2] + intrinsics[:, None, 2:]
    return np.linalg.norm(pixel - goal_px, axis=-1)


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted median along the last axis of [M, N]."""
    order = np.argsort(values, axis=-1)
    cumulated = np.cumsum(np.take_along_axis(weight, order, -1), -1)
    index = (cumulated < 0.5 * cumulated[:, -1:]).sum(-1)
    picked = np.take_along_axis(order, np.minimum(index, values.shape[-1] - 1)[:, None], -1)
    return np.take_along_axis(values, picked, -1)[:, 0]
