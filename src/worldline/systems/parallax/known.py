"""What is known before looking at a video, and its frames, brought to the working resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.flow_adjust import DepthPrior, Matches
from worldline.io.arena import Arena
from worldline.scene import Video


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known before looking, at the working resolution.

    Attributes:
        intrinsics: [T, 4] fx, fy, cx, cy to start from.
        focal: whether they are true.
        static: the camera does not move.
        poses: [T, 4, 4] world-to-camera poses when all are known, or None.
        inverse: [T, H, W] inverse depth of a prior, or None.
        moving: [T, H, W] what is known to move, or None.
    """

    intrinsics: np.ndarray
    focal: bool
    static: bool
    poses: np.ndarray | None
    inverse: np.ndarray | None
    moving: np.ndarray | None


def what_is_known(
    video: Video,
    size: tuple[int, int],
    default_focal: float,
    prior: Tensor | None,
    priors: Priors,
    arena: Arena,
) -> Known:
    """Priors brought to the working resolution."""
    intrinsics, focal = starting_intrinsics(priors, len(video), video.size, size, default_focal)
    return Known(
        intrinsics=intrinsics,
        focal=focal,
        static=priors.static_camera,
        poses=given_poses(priors),
        inverse=None if prior is None else inverse_prior(prior, len(video), size, arena),
        moving=None if priors.moving_mask is None else resize_mask(priors.moving_mask, size, arena),
    )


def working_size(size: tuple[int, int], pixels: int | None) -> tuple[int, int]:
    """(H, W) of the same aspect with at most about `pixels` pixels, never larger than `size`."""
    scale = 1.0 if pixels is None else min(1.0, float(np.sqrt(pixels / (size[0] * size[1]))))
    return max(2, round(size[0] * scale)), max(2, round(size[1] * scale))


def read_frames(video: Video, size: tuple[int, int], arena: Arena) -> tuple[np.ndarray, np.ndarray]:
    """RGB [T, H, W, 3] and grey [T, H, W] uint8 frames at the given size."""
    import cv2

    rgb, gray = arena.zeros((len(video), *size, 3), np.uint8), arena.zeros((len(video), *size), np.uint8)
    for t, frame in enumerate(video.frames):
        image = frame.numpy(force=True)
        if image.dtype != np.uint8:
            image = np.rint(np.clip(image.astype(np.float32), 0, 1) * 255).astype(np.uint8)
        if image.shape[:2] != size:
            image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        rgb[t] = image
        gray[t] = cv2.cvtColor(rgb[t], cv2.COLOR_RGB2GRAY)
    return rgb, gray


def starting_intrinsics(
    priors: Priors, count: int, size_from: tuple[int, int], size: tuple[int, int], default_focal: float
) -> tuple[np.ndarray, bool]:
    """[T, 4] fx, fy, cx, cy at the working resolution, and whether they are known."""
    sx, sy = size[1] / size_from[1], size[0] / size_from[0]
    if priors.intrinsics is not None:
        K = priors.intrinsics.numpy(force=True).astype(np.float64).reshape(-1, 3, 3)
        K = np.broadcast_to(K, (count, 3, 3))
        cx, cy = (K[:, 0, 2] + 0.5) * sx - 0.5, (K[:, 1, 2] + 0.5) * sy - 0.5
        return np.stack([K[:, 0, 0] * sx, K[:, 1, 1] * sy, cx, cy], -1), True
    focal = default_focal * max(size)
    x, y = priors.principal_point or ((size_from[1] - 1) / 2, (size_from[0] - 1) / 2)
    values = [focal, focal * sy / sx, (x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5]
    return np.tile(np.array(values, np.float64), (count, 1)), False


def given_poses(priors: Priors) -> np.ndarray | None:
    """[T, 4, 4] world-to-camera poses when all are known, else None."""
    known = priors.known_poses()
    if priors.poses is None or known is None or not bool(known.all()):
        return None
    return np.linalg.inv(priors.poses.numpy(force=True).astype(np.float64))


def inverse_prior(prior: Tensor, count: int, size: tuple[int, int], arena: Arena) -> np.ndarray:
    """[T, H, W] float32 inverse depth of a prior, every frame's median 1; 0 where unknown."""
    import cv2

    if len(prior) != count:
        raise ValueError(f"The depth prior has {len(prior)} frames, but the video has {count}.")
    result = arena.zeros((count, *size), np.float32)
    for t, depth in enumerate(prior):
        values = depth.numpy(force=True).astype(np.float32)
        known = np.isfinite(values) & (values > 0)
        inverse = np.where(known, 1 / np.where(known, values, 1), 0).astype(np.float32)
        how = cv2.INTER_AREA if size[0] < inverse.shape[0] else cv2.INTER_LINEAR
        share = cv2.resize(known.astype(np.float32), size[::-1], interpolation=how)
        inverse = cv2.resize(inverse, size[::-1], interpolation=how) / np.maximum(share, 1e-6)
        seen = (share > 0.5) & (inverse > 0)
        result[t] = np.where(seen, inverse, 0) / np.median(inverse[seen]) if seen.any() else 0
    return result


def grid_prior(inverse: np.ndarray, matches: Matches, weight: float) -> DepthPrior:
    """The prior at the grid points."""
    x, y = matches.pixels[..., 0].astype(int), matches.pixels[..., 1].astype(int)
    r = inverse[np.arange(len(inverse))[:, None], y, x].astype(np.float64)
    return DepthPrior(r=r, weight=np.where(r > 0, weight, 0.0))


def resize_mask(mask: Tensor, size: tuple[int, int], arena: Arena) -> np.ndarray:
    """[T, H, W] bool, nearest."""
    import cv2

    result = arena.zeros((len(mask), *size), np.bool_)
    for t, frame in enumerate(mask):
        result[t] = cv2.resize(frame.numpy(force=True).astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    return result
