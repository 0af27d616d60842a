"""Pose of one camera from known points: robust Gauss-Newton from likely poses, RANSAC where these disagree."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

SIGMAS_PX = (12.0, 4.0, 2.0, 1.0)  # of Geman-McClure, coarse to fine
SURE = 0.6  # share of agreeing weight from which RANSAC is not asked
LEAST = 0.15  # share of agreeing weight without which there is no pose


def resect(
    points: np.ndarray, pixels: np.ndarray, weight: np.ndarray, intrinsics: np.ndarray, guesses: list[np.ndarray]
) -> np.ndarray | None:
    """World-to-camera pose [4, 4] that most of the weight agrees with at 2 px, or None.

    Args:
        points: [M, 3] world points.
        pixels: [M, 2] where they are seen.
        weight: [M] trust.
        intrinsics: [4] fx, fy, cx, cy.
        guesses: poses to start from.
    """
    if len(points) < 12:
        return None
    found = [_descend(points, pixels, weight, intrinsics, guess) for guess in guesses]
    best = max(found, key=lambda item: item[1], default=(None, 0.0))
    if best[1] < SURE:
        pose = _ransac(points, pixels, intrinsics)
        if pose is not None:
            best = max(
                best, _descend(points, pixels, weight, intrinsics, pose, SIGMAS_PX[2:]), key=lambda item: item[1]
            )
    return best[0] if best[1] >= LEAST else None


def _descend(
    points: np.ndarray,
    pixels: np.ndarray,
    weight: np.ndarray,
    intrinsics: np.ndarray,
    guess: np.ndarray,
    sigmas: tuple[float, ...] = SIGMAS_PX,
) -> tuple[np.ndarray | None, float]:
    """Locally best pose and the share of the weight within 2 px of it."""
    from scipy.spatial.transform import Rotation

    pose = guess.copy()
    for sigma in sigmas:
        for _ in range(3):
            H, g, _ = _normal(points, pixels, weight, intrinsics, pose, sigma)
            try:
                step = -np.linalg.solve(H + 1e-6 * np.diag(np.diag(H)) + 1e-12 * np.eye(6), g)
            except np.linalg.LinAlgError:
                return None, 0.0
            turn = Rotation.from_rotvec(step[3:]).as_matrix()
            pose[:3, :3], pose[:3, 3] = turn @ pose[:3, :3], turn @ pose[:3, 3] + step[:3]
    agreeing = _normal(points, pixels, weight, intrinsics, pose, 2.0)[2]
    return (pose, agreeing) if np.isfinite(pose).all() else (None, 0.0)


def _ransac(points: np.ndarray, pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray | None:
    import cv2

    fx, fy, cx, cy = intrinsics
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    found, rotation, translation, inliers = cv2.solvePnPRansac(
        points, pixels, K, None, iterationsCount=300, reprojectionError=2.0, confidence=0.999, flags=cv2.SOLVEPNP_SQPNP
    )
    if not found or inliers is None:
        return None
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(rotation)[0], translation[:, 0]
    return pose if np.isfinite(pose).all() else None


@njit(cache=True, nogil=True)
@no_type_check
def _normal(points, pixels, weight, intrinsics, pose, sigma):
    """Normal equations [6, 6], [6] of a left perturbation (translation, rotation); share of weight within sigma."""
    H, g, J = np.zeros((6, 6)), np.zeros(6), np.zeros((2, 6))
    agreeing, total = 0.0, 1e-12
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    for n in range(len(points)):
        total += weight[n]
        p = np.zeros(3)
        for a in range(3):
            p[a] = pose[a, 0] * points[n, 0] + pose[a, 1] * points[n, 1] + pose[a, 2] * points[n, 2] + pose[a, 3]
        if p[2] < 1e-3:
            continue
        x, y, iz = p[0] / p[2], p[1] / p[2], 1 / p[2]
        ex, ey = fx * x + cx - pixels[n, 0], fy * y + cy - pixels[n, 1]
        e = (ex * ex + ey * ey) / (sigma * sigma)
        agreeing += weight[n] * (e < 1)
        J[0, 0], J[0, 2], J[0, 3], J[0, 4], J[0, 5] = fx * iz, -fx * x * iz, -fx * x * y, fx * (1 + x * x), -fx * y
        J[1, 1], J[1, 2], J[1, 3], J[1, 4], J[1, 5] = fy * iz, -fy * y * iz, -fy * (1 + y * y), fy * x * y, fy * x
        q = weight[n] / ((1 + e) * (1 + e))
        for a in range(6):
            g[a] += q * (J[0, a] * ex + J[1, a] * ey)
            for b in range(6):
                H[a, b] += q * (J[0, a] * J[0, b] + J[1, a] * J[1, b])
    return H, g, agreeing / total
