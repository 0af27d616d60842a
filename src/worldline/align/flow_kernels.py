"""The inner loops of the flow bundle adjustment, compiled; formulas in `worldline.align.flow_adjust`."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

POSE = 7  # parameters per frame: translation 3, rotation 3, scale of the depth prior 1


@njit(cache=True, nogil=True)
@no_type_check
def relative_pose(w2c_i, w2c_j):
    """(R_ij, t_ij): from camera i's frame to camera j's."""
    R = np.empty((3, 3))
    t = np.empty(3)
    for a in range(3):
        for c in range(3):
            R[a, c] = w2c_j[a, 0] * w2c_i[c, 0] + w2c_j[a, 1] * w2c_i[c, 1] + w2c_j[a, 2] * w2c_i[c, 2]
    for a in range(3):
        t[a] = w2c_j[a, 3] - (R[a, 0] * w2c_i[0, 3] + R[a, 1] * w2c_i[1, 3] + R[a, 2] * w2c_i[2, 3])
    return R, t


@njit(cache=True, nogil=True)
@no_type_check
def robust_costs(w2c, intrinsics, r, pixels, target, goal, weight, sigma):
    """Sum of the Geman-McClure costs of the matches of every host, [T]."""
    costs = np.zeros(target.shape[0])
    for i in range(target.shape[0]):
        fx, fy, cx, cy = intrinsics[i]
        total = 0.0
        for k in range(target.shape[1]):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            gx, gy, dx, dy = intrinsics[j]
            for n in range(pixels.shape[1]):
                w = weight[i, k, n]
                if w <= 0:
                    continue
                x, y = (pixels[i, n, 0] - cx) / fx, (pixels[i, n, 1] - cy) / fy
                px = R[0, 0] * x + R[0, 1] * y + R[0, 2] + r[i, n] * t[0]
                py = R[1, 0] * x + R[1, 1] * y + R[1, 2] + r[i, n] * t[1]
                pz = R[2, 0] * x + R[2, 1] * y + R[2, 2] + r[i, n] * t[2]
                if pz < 1e-3:
                    total += w * sigma * sigma / 2
                    continue
                ex = gx * px / pz + dx - goal[i, k, n, 0]
                ey = gy * py / pz + dy - goal[i, k, n, 1]
                e = (ex * ex + ey * ey) / (sigma * sigma)
                total += w * sigma * sigma / 2 * e / (1 + e)
        costs[i] = total
    return costs


@njit(cache=True, nogil=True)
@no_type_check
def match_errors(w2c, intrinsics, r, pixels, target, goal, weight, hosts):
    """Pixels [M, K, N] between the matches of some hosts [M] and where their points are seen; NaN without a match."""
    errors = np.full((len(hosts), target.shape[1], pixels.shape[1]), np.nan, np.float32)
    for m in range(len(hosts)):
        i = hosts[m]
        for k in range(target.shape[1]):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            for n in range(pixels.shape[1]):
                if weight[i, k, n] <= 0:
                    continue
                x = (pixels[i, n, 0] - intrinsics[i, 2]) / intrinsics[i, 0]
                y = (pixels[i, n, 1] - intrinsics[i, 3]) / intrinsics[i, 1]
                pz = max(R[2, 0] * x + R[2, 1] * y + R[2, 2] + r[i, n] * t[2], 1e-3)
                px = (R[0, 0] * x + R[0, 1] * y + R[0, 2] + r[i, n] * t[0]) / pz
                py = (R[1, 0] * x + R[1, 1] * y + R[1, 2] + r[i, n] * t[1]) / pz
                ex = intrinsics[j, 0] * px + intrinsics[j, 2] - goal[i, k, n, 0]
                ey = intrinsics[j, 1] * py + intrinsics[j, 3] - goal[i, k, n, 1]
                errors[m, k, n] = np.sqrt(ex * ex + ey * ey)
    return errors


@njit(cache=True, nogil=True)
@no_type_check
def match_rows(R, t, x, y, r, gx, gy, dx, dy, goal, own, other):
    """Residual of one match and its Jacobian rows.

    Fills own [2, 6] (host's pose) and other [2, 6] (target's pose); returns residual 2, d/dr 2, d/dfocal 2, valid.
    """
    ax = R[0, 0] * x + R[0, 1] * y + R[0, 2]
    ay = R[1, 0] * x + R[1, 1] * y + R[1, 2]
    az = R[2, 0] * x + R[2, 1] * y + R[2, 2]
    px, py, pz = ax + r * t[0], ay + r * t[1], az + r * t[2]
    if pz < 1e-3:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False
    ux, uy, iz = px / pz, py / pz, 1 / pz
    J = ((gx * iz, 0.0, -gx * ux * iz), (0.0, gy * iz, -gy * uy * iz))
    for a in range(2):
        j0, j1, j2 = J[a]
        other[a, 0], other[a, 1], other[a, 2] = r * j0, r * j1, r * j2
        # J_a (omega x p) = omega . (p x J_a), and J_a R (x x omega) = omega . (R^T J_a x x)
        other[a, 3] = py * j2 - pz * j1
        other[a, 4] = pz * j0 - px * j2
        other[a, 5] = px * j1 - py * j0
        m0 = j0 * R[0, 0] + j1 * R[1, 0] + j2 * R[2, 0]
        m1 = j0 * R[0, 1] + j1 * R[1, 1] + j2 * R[2, 1]
        m2 = j0 * R[0, 2] + j1 * R[1, 2] + j2 * R[2, 2]
        own[a, 0], own[a, 1], own[a, 2] = -r * m0, -r * m1, -r * m2
        own[a, 3] = -(y * m2 - m1)
        own[a, 4] = -(m0 - x * m2)
        own[a, 5] = -(x * m1 - y * m0)
    ex, ey = gx * ux + dx - goal[0], gy * uy + dy - goal[1]
    rx = J[0][0] * t[0] + J[0][2] * t[2]
    ry = J[1][1] * t[1] + J[1][2] * t[2]
    qx, qy, qz = -(R[0, 0] * x + R[0, 1] * y), -(R[1, 0] * x + R[1, 1] * y), -(R[2, 0] * x + R[2, 1] * y)
    fx = gx * ux + J[0][0] * qx + J[0][2] * qz
    fy = gy * uy + J[1][1] * qy + J[1][2] * qz
    return ex, ey, rx, ry, fx, fy, True


@njit(cache=True, nogil=True)
@no_type_check
def linearize_hosts(w2c, intrinsics, r, pixels, target, goal, weight, sigma, first, last):
    """Normal equations of the hosts first to last - 1: H [B, L, L], g [B, L], E [B, N, L], h and b [B, N]."""
    frames, slots, points = last - first, target.shape[1], pixels.shape[1]
    size = POSE + 6 * slots + 1
    H, g = np.zeros((frames, size, size)), np.zeros((frames, size))
    E, h, b = np.zeros((frames, points, size)), np.zeros((frames, points)), np.zeros((frames, points))
    row = np.zeros((2, 13))  # host pose 6, target pose 6, focal 1
    own, other = row[:, :6], row[:, 6:12]
    column = np.empty(13, np.int64)
    column[:6] = np.arange(6)
    column[12] = size - 1
    for m in range(frames):
        i = first + m
        fx, fy, cx, cy = intrinsics[i]
        for k in range(slots):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            gx, gy, dx, dy = intrinsics[j]
            column[6:12] = POSE + 6 * k + np.arange(6)
            local = np.zeros((13, 13))
            for n in range(points):
                w = weight[i, k, n]
                if w <= 0:
                    continue
                x, y = (pixels[i, n, 0] - cx) / fx, (pixels[i, n, 1] - cy) / fy
                ex, ey, rx, ry, row[0, 12], row[1, 12], ok = match_rows(
                    R, t, x, y, r[i, n], gx, gy, dx, dy, goal[i, k, n], own, other
                )
                if not ok:
                    continue
                e = (ex * ex + ey * ey) / (sigma * sigma)
                q = w / ((1 + e) * (1 + e))
                h[m, n] += q * (rx * rx + ry * ry)
                b[m, n] += q * (rx * ex + ry * ey)
                for a in range(13):
                    ja, jb = q * row[0, a], q * row[1, a]
                    E[m, n, column[a]] += ja * rx + jb * ry
                    g[m, column[a]] += ja * ex + jb * ey
                    for c in range(a + 1):
                        local[a, c] += ja * row[0, c] + jb * row[1, c]
            for a in range(13):
                for c in range(a):
                    local[c, a] = local[a, c]
            for a in range(13):
                for c in range(13):
                    H[m, column[a], column[c]] += local[a, c]
    return H, g, E, h, b


@njit(cache=True, nogil=True)
@no_type_check
def point_system(w2c, intrinsics, r, pixels, target, goal, weight, sigma, step, focal_step, first, last):
    """Of the points of the hosts first to last - 1, [B, N] each: h, and b + E^T dx for steps of poses [T, 6] and focal.

    The same sums as in `linearize_hosts`, without the derivatives that only the cameras' system needs.
    """
    frames, slots, points = last - first, target.shape[1], pixels.shape[1]
    h, b = np.zeros((frames, points)), np.zeros((frames, points))
    row = np.zeros((2, 12))
    own, other = row[:, :6], row[:, 6:12]
    for m in range(frames):
        i = first + m
        fx, fy, cx, cy = intrinsics[i]
        for k in range(slots):
            j = target[i, k]
            if j < 0:
                continue
            R, t = relative_pose(w2c[i], w2c[j])
            gx, gy, dx, dy = intrinsics[j]
            for n in range(points):
                w = weight[i, k, n]
                if w <= 0:
                    continue
                x, y = (pixels[i, n, 0] - cx) / fx, (pixels[i, n, 1] - cy) / fy
                ex, ey, rx, ry, zx, zy, ok = match_rows(R, t, x, y, r[i, n], gx, gy, dx, dy, goal[i, k, n], own, other)
                if not ok:
                    continue
                e = (ex * ex + ey * ey) / (sigma * sigma)
                q = w / ((1 + e) * (1 + e))
                h[m, n] += q * (rx * rx + ry * ry)
                ex += zx * focal_step
                ey += zy * focal_step
                for a in range(6):
                    ex += own[0, a] * step[i, a] + other[0, a] * step[j, a]
                    ey += own[1, a] * step[i, a] + other[1, a] * step[j, a]
                b[m, n] += q * (rx * ex + ry * ey)
    return h, b
