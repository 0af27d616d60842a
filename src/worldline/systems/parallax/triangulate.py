"""Multi-view inverse depth in closed form, point by point, cameras fixed (spec 1.8).

With a = R_ij x, y = K_j^-1 target and z = a_z + r t_z the reprojection residual is (n0 + r n1) / z, where
n0 = f (a_xy - y a_z) and n1 = f (t_xy - y t_z). For weights q = w / (1 + e)^2 / z^2, e = |residual|^2 / sigma^2,

    r = -sum q n0.n1 / sum q n1.n1        (a few rounds; the first two with 4 sigma)

No Jacobians, no iteration over pixels but this one loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from numba import njit

from worldline.align.flow_adjust import R_MAX, R_MIN, FlowState, Matches, relative_pose


@dataclass(frozen=True, kw_only=True)
class Triangulated:
    """Inverse depth of points, and how well it is known.

    Attributes:
        r: inverse depth; `R_MIN` where nothing speaks for more.
        information: px^2 per unit of r^2.
        support: 0..1, the share of the matches' weight that agrees with one static point.
    """

    r: np.ndarray
    information: np.ndarray
    support: np.ndarray


def triangulate(
    pixels: np.ndarray,
    goal: np.ndarray,
    weight: np.ndarray,
    host: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray],
    sigma_px: float,
) -> Triangulated:
    """Inverse depths of the points of one frame.

    Args:
        pixels: [N, 2] float32 (x, y) in the host.
        goal: [K, N, 2] float32 (x, y) in each target.
        weight: [K, N] float32.
        host: (w2c [4, 4], intrinsics [4]) of the host, float64.
        targets: (w2c [K, 4, 4], intrinsics [K, 4]) of the targets.
        sigma_px: residual at which a match counts a quarter.
    """
    slots = len(goal)
    R, t = np.empty((slots, 3, 3), np.float32), np.empty((slots, 3), np.float32)
    for k in range(slots):
        R[k], t[k] = relative_pose(host[0], targets[0][k])
    r, information, support = _triangulate(
        pixels, goal, weight, R, t, host[1].astype(np.float32), targets[1].astype(np.float32), np.float32(sigma_px)
    )
    return Triangulated(r=r, information=information, support=support)


def triangulate_host(matches: Matches, state: FlowState, i: int, use: np.ndarray, sigma_px: float) -> Triangulated:
    """Inverse depths of the grid points of frame `i`, from the slots whose target frame is marked in `use` [T]."""
    target = matches.target[i]
    slots = np.flatnonzero((target >= 0) & use[target])
    frames = target[slots]
    return triangulate(
        matches.pixels[i],
        matches.goal[i][slots],
        matches.weight[i][slots],
        (state.w2c[i], state.intrinsics[i]),
        (state.w2c[frames], state.intrinsics[frames]),
        sigma_px,
    )


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _triangulate(pixels, goal, weight, R, t, host, targets, sigma):
    slots, points = goal.shape[0], goal.shape[1]
    r_out = np.full(points, R_MIN, np.float32)
    information, support = np.zeros(points, np.float32), np.zeros(points, np.float32)
    n00, n01, n11 = np.empty(slots, np.float32), np.empty(slots, np.float32), np.empty(slots, np.float32)
    az, tz, wk = np.empty(slots, np.float32), np.empty(slots, np.float32), np.empty(slots, np.float32)
    for n in range(points):
        x, y = (pixels[n, 0] - host[2]) / host[0], (pixels[n, 1] - host[3]) / host[1]
        used, total = 0, np.float32(0)
        for k in range(slots):
            w = weight[k, n]
            if w <= 0:
                continue
            gx, gy = targets[k, 0], targets[k, 1]
            yx, yy = (goal[k, n, 0] - targets[k, 2]) / gx, (goal[k, n, 1] - targets[k, 3]) / gy
            a2 = R[k, 2, 0] * x + R[k, 2, 1] * y + R[k, 2, 2]
            n0x = gx * (R[k, 0, 0] * x + R[k, 0, 1] * y + R[k, 0, 2] - yx * a2)
            n0y = gy * (R[k, 1, 0] * x + R[k, 1, 1] * y + R[k, 1, 2] - yy * a2)
            n1x, n1y = gx * (t[k, 0] - yx * t[k, 2]), gy * (t[k, 1] - yy * t[k, 2])
            n00[used] = n0x * n0x + n0y * n0y
            n01[used] = n0x * n1x + n0y * n1y
            n11[used] = n1x * n1x + n1y * n1y
            az[used], tz[used], wk[used] = a2, t[k, 2], w
            used += 1
            total += w
        if used == 0:
            continue
        top, bottom, agree = np.float32(0), np.float32(0), np.float32(0)
        for k in range(used):
            top -= wk[k] * n01[k]
            bottom += wk[k] * n11[k]
        r = min(max(top / (bottom + 1e-12), R_MIN), R_MAX)
        for step in range(5):
            s2 = sigma * sigma * (16 if step < 2 else 1)
            top, bottom, agree = np.float32(0), np.float32(0), np.float32(0)
            for k in range(used):
                z = az[k] + r * tz[k]
                if z < 0.02:
                    continue
                iz2 = 1 / (z * z)
                e = max(n00[k] + r * (2 * n01[k] + r * n11[k]), np.float32(0)) * iz2 / s2
                share = wk[k] / ((1 + e) * (1 + e))
                top -= share * iz2 * n01[k]
                bottom += share * iz2 * n11[k]
                agree += share
            r = min(max(top / (bottom + 1e-12), R_MIN), R_MAX)
        r_out[n], information[n], support[n] = r, bottom, agree / total
    return r_out, information, support
