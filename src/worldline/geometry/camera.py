"""Pinhole cameras in pixels: project, unproject, crop, resize, field of view, focal length from a point map.

Pixel (row h, column w) has its centre at (u, v) = (w, h); the image spans [-0.5, W - 0.5] x [-0.5, H - 0.5].
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry.pose import rotate, spread


def pixel_grid(
    size: tuple[int, int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Float[Tensor, "H W 2"]:
    """Pixel coordinates (u, v) = (column, row) of every pixel of an image of size (H, W)."""
    rows = torch.arange(size[0], dtype=dtype, device=device)
    columns = torch.arange(size[1], dtype=dtype, device=device)
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([u, v], -1)


def intrinsics_from_focal(
    focal_px: float | Float[Tensor, "*batch"], size: tuple[int, int]
) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics of a camera with square pixels and the principal point at the image centre ((W-1)/2, (H-1)/2)."""
    focal = torch.as_tensor(focal_px, dtype=None if isinstance(focal_px, Tensor) else torch.get_default_dtype())
    k = torch.zeros(*focal.shape, 3, 3, dtype=focal.dtype, device=focal.device)
    k[..., 0, 0] = k[..., 1, 1] = focal
    k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = (size[1] - 1) / 2, (size[0] - 1) / 2, 1.0
    return k


def camera_rays(intrinsics: Float[Tensor, "*batch 3 3"], size: tuple[int, int]) -> Float[Tensor, "*batch H W 3"]:
    """Viewing directions of every pixel in the camera frame, scaled to z = 1."""
    uv = pixel_grid(size, intrinsics.dtype, intrinsics.device).expand(*intrinsics.shape[:-2], *size, 2)
    return unproject(uv, torch.ones_like(uv[..., 0]), intrinsics)


def project(points_cam: Float[Tensor, "*any 3"], intrinsics: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*out 2"]:
    """Pixel coordinates of camera-frame points [*batch, ..., 3]; callers mask points with z <= 0 themselves."""
    uvw = rotate(intrinsics, points_cam)
    w = uvw[..., 2:]
    tiny = torch.finfo(w.dtype).tiny ** 0.5
    return uvw[..., :2] / torch.where(w.abs() < tiny, torch.full_like(w, tiny), w)


def unproject(
    uv: Float[Tensor, "*any 2"], depth: Float[Tensor, "*any"], intrinsics: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*any 3"]:
    """Camera-frame points at z-depth `depth` on the rays of the pixels uv [*batch, ..., 2]."""
    lead = intrinsics.ndim - 2
    entry = lambda i, j: spread(intrinsics[..., i, j, None], lead, uv)[..., 0]  # noqa: E731
    y = (uv[..., 1] - entry(1, 2)) / entry(1, 1)
    x = (uv[..., 0] - entry(0, 2) - entry(0, 1) * y) / entry(0, 0)
    return torch.stack([x * depth, y * depth, depth], -1)


def crop(intrinsics: Float[Tensor, "*batch 3 3"], top: int, left: int) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics of the image whose pixel (0, 0) is pixel (row top, column left) of the old one."""
    out = intrinsics.clone()
    out[..., 0, 2] -= left
    out[..., 1, 2] -= top
    return out


def resize(
    intrinsics: Float[Tensor, "*batch 3 3"], size_from: tuple[int, int], size_to: tuple[int, int]
) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics after resizing from (H, W) to (H', W'), image edges onto image edges: u' + 1/2 = s (u + 1/2)."""
    sx, sy = size_to[1] / size_from[1], size_to[0] / size_from[0]
    out = intrinsics.clone()
    out[..., 0, :2] *= sx
    out[..., 1, 1] *= sy
    out[..., 0, 2] = (intrinsics[..., 0, 2] + 0.5) * sx - 0.5
    out[..., 1, 2] = (intrinsics[..., 1, 2] + 0.5) * sy - 0.5
    return out


def field_of_view_deg(
    intrinsics: Float[Tensor, "*batch 3 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Horizontal and vertical field of view in degrees, image edge to image edge."""
    angles = []
    for axis, length in ((0, size[1]), (1, size[0])):
        focal, centre = intrinsics[..., axis, axis], intrinsics[..., axis, 2]
        angles.append(torch.rad2deg(torch.atan((centre + 0.5) / focal) + torch.atan((length - 0.5 - centre) / focal)))
    return angles[0], angles[1]


def _offsets(size: tuple[int, int], like: Tensor, principal_point: tuple[float, float] | None) -> Tensor:
    """Pixel coordinates relative to the principal point (default: the image centre)."""
    centre = principal_point or ((size[1] - 1) / 2, (size[0] - 1) / 2)
    return pixel_grid(size, like.dtype, like.device) - torch.tensor(centre, dtype=like.dtype, device=like.device)


def focal_from_pointmap(
    points_cam: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"], principal_point: tuple[float, float] | None = None
) -> Float[Tensor, ""]:
    """Focal length in pixels (square pixels) of a camera-frame point map, robust to wrong points.

    Weighted median of the ratios uv / (xy/z) over both axes, weighted by |uv|. For right points this is the L1 fit of
    uv by f xy/z; weighting by the pixel offset instead of |xy/z| keeps wrong points from having leverage, so almost
    half of them may be wrong.

    Raises:
        ValueError: fewer than 8 pixels of the mask are in front of the camera.
    """
    good = mask & points_cam.isfinite().all(-1) & (points_cam[..., 2] > 0)
    if int(good.sum()) < 8:
        raise ValueError("The focal length needs at least 8 valid pixels in front of the camera.")
    uv = _offsets((points_cam.shape[0], points_cam.shape[1]), points_cam, principal_point)[good].flatten()
    slope = (points_cam[..., :2] / points_cam[..., 2:])[good].flatten()
    used = slope != 0
    ratio, order = (uv[used] / slope[used]).sort()
    weight = uv[used].abs()[order].double().cumsum(0)
    return ratio[torch.searchsorted(weight, weight[-1:] / 2).clamp(max=len(ratio) - 1)][0]


def focal_shift_from_pointmap(
    points: Float[Tensor, "H W 3"],
    mask: Bool[Tensor, "H W"],
    principal_point: tuple[float, float] | None = None,
    iterations: int = 50,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Focal length in pixels and z shift of a point map known only up to a shift along z.

    Minimises sum |f xy/(z + t) - uv|^2 over t with f eliminated in closed form (variable projection; geo4d.md 3.4) by a
    damped Newton search in t, in float64. z + t stays positive over the mask.

    Returns:
        (focal_px, t); the camera-frame points are points + (0, 0, t).
    """
    xyz = points[mask].double()
    uv = _offsets((points.shape[0], points.shape[1]), points.double(), principal_point)[mask]
    xy, z = xyz[:, :2], xyz[:, 2]
    lowest = -float(z.min())

    def fit(t: float) -> tuple[float, float, Tensor, Tensor]:
        q = xy / (z + t)[:, None]
        focal = float((q * uv).sum() / (q * q).sum())
        residual = focal * q - uv
        return float((residual * residual).sum()), focal, residual, q

    # Geometric scan first: the cost in t can have more than one valley; then Gauss-Newton inside the best one.
    spread = max(float(z.max() - z.min()), 1e-6 * max(1.0, abs(lowest)))
    t = min((lowest + spread * 10 ** (k / 6) for k in range(-12, 13)), key=lambda value: fit(value)[0])
    damping = 1e-6
    cost, focal, residual, q = fit(t)
    for _ in range(iterations):
        slope = -focal * q / (z + t)[:, None]  # d(f q)/dt at constant f, then projected off q (Kaufman)
        slope = slope - q * ((slope * q).sum() / (q * q).sum())
        gradient, curvature = float((slope * residual).sum()), float((slope * slope).sum())
        step = -gradient / (curvature * (1 + damping) + 1e-300)
        trial = t + step if t + step > lowest else (t + lowest) / 2
        new = fit(trial)
        if new[0] <= cost:
            done = abs(trial - t) <= 1e-12 * (spread + abs(t))
            t, (cost, focal, residual, q), damping = trial, new, damping / 5
            if done:
                break
        else:
            damping = max(damping * 10, 1e-3)
            if damping > 1e12:
                break
    return points.new_tensor(focal), points.new_tensor(t)
