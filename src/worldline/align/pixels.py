"""Pixels as rays: principal point, distortion, full-resolution ray maps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.config import Priors
from worldline.scene import Cameras


def measured_pixels(
    uv: Float[Tensor, "T n 2"], size: tuple[int, int], priors: Priors
) -> tuple[Float[Tensor, "T n 2"], Float[Tensor, "T 2"]]:
    """Undistorted pixels of the samples from the principal point (square pixels), and the principal point per frame."""
    T = len(uv)
    if priors.intrinsics is None:
        default = ((size[1] - 1) / 2, (size[0] - 1) / 2)
        principal = torch.tensor(priors.principal_point or default, dtype=torch.float64).expand(T, 2)
        return uv - principal[:, None], principal
    K = priors.intrinsics.double().expand(T, 3, 3)
    ray = undistort((uv - K[:, None, :2, 2]) / torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None], priors.distortion)
    focal = (K[:, 0, 0] * K[:, 1, 1]).sqrt()
    return ray * focal[:, None, None], K[:, :2, 2]


def undistort(xy: Float[Tensor, "*b 2"], coefficients: tuple[float, ...] | None) -> Float[Tensor, "*b 2"]:
    """Ideal normalised coordinates of distorted ones: fixed-point iteration of OpenCV's (k1, k2, p1, p2, k3)."""
    if coefficients is None:
        return xy
    k1, k2, p1, p2, k3 = (*coefficients, *([0.0] * (5 - len(coefficients))))[:5]
    ideal = xy
    for _ in range(20):
        x, y = ideal[..., 0], ideal[..., 1]
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        dy = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        ideal = (xy - torch.stack([dx, dy], -1)) / radial[..., None].clamp_min(0.1)
    return ideal


def distort(xy: Float[Tensor, "*b 2"], coefficients: tuple[float, ...] | None) -> Float[Tensor, "*b 2"]:
    """Where a lens with OpenCV's (k1, k2, p1, p2, k3) puts ideal normalised coordinates; the inverse of `undistort`."""
    if coefficients is None:
        return xy
    k1, k2, p1, p2, k3 = (*coefficients, *([0.0] * (5 - len(coefficients))))[:5]
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def full_rays(cameras: Cameras, size: tuple[int, int], priors: Priors) -> Float[Tensor, "*T H W 3"]:
    """Rays with z = 1 of every pixel; one set for all frames when the intrinsics do not change."""
    K = cameras.intrinsics
    K = K[0] if bool((K == K[0]).all()) else K
    y, x = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    uv = torch.stack([x, y], -1)
    lead = K.shape[:-2]
    centre, focal = K[..., :2, 2], torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)
    shape = (*lead, 1, 1, 2)
    ray = undistort((uv - centre.reshape(shape)) / focal.reshape(shape), priors.distortion)
    return torch.cat([ray, torch.ones_like(ray[..., :1])], -1).float()
