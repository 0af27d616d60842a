"""Cameras <-> Pluecker ray maps (Geo4D section 3.3, eq. 6-7).

The ray of a pixel is its unit direction d and its moment m = c x d about the origin, c the camera centre.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.geometry import camera, pose


def from_cameras(
    intrinsics: Float[Tensor, "*batch 3 3"], cam2world: Float[Tensor, "*batch 4 4"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*batch H W 3"], Float[Tensor, "*batch H W 3"]]:
    """Unit direction and moment c x d of every pixel, in the world frame; moments in the unit of the poses."""
    rays = pose.rotate(cam2world[..., :3, :3], camera.camera_rays(intrinsics.to(cam2world.dtype), size))
    direction = torch.nn.functional.normalize(rays, dim=-1)
    centre = cam2world[..., None, None, :3, 3].expand_as(direction)
    return direction, torch.linalg.cross(centre, direction, dim=-1)


def to_cameras(
    direction: Float[Tensor, "T H W 3"],
    moment: Float[Tensor, "T H W 3"],
    weight: Float[Tensor, "T H W"] | None = None,
    *,
    pixels: Float[Tensor, "H W 2"] | None = None,
    size: tuple[int, int] | None = None,
    model: Literal["general", "centred"] = "general",
) -> tuple[Float[Tensor, "T 3 3"], Float[Tensor, "T 4 4"]]:
    """Intrinsics and poses of the cameras whose rays these are; rotation and zoom are told apart.

    Centre: the point nearest to all rays (eq. 6). "general": the homography M with M d ~ (u, v, 1) by DLT, split by RQ
    into K R^T (eq. 7). "centred": square pixels and the principal point at the image centre are imposed, which is far
    better conditioned under noise.

    Args:
        direction: ray directions, normalised here.
        moment: moments for unit directions.
        weight: non-negative, how much each ray counts.
        pixels: pixel coordinates of the rays; default: every pixel of an H x W image.
        size: (H, W) of the image, only for model "centred" and only if `pixels` is given.
        model: what is assumed about the intrinsics.

    Returns:
        (intrinsics, cam2world) in the frame of the rays, in the dtype of the input.
    """
    d = torch.nn.functional.normalize(direction.double(), dim=-1).flatten(1, 2)
    w = torch.ones_like(d[..., 0]) if weight is None else weight.double().flatten(1)
    image = size or (direction.shape[1], direction.shape[2])
    grid = camera.pixel_grid((direction.shape[1], direction.shape[2]), torch.float64, d.device)
    uv = (grid if pixels is None else pixels.double()).flatten(0, 1)
    centre = _centre(d, moment.double().flatten(1, 2), w)
    if model == "general":
        k, rotation = _rq_cameras(d, uv, w)
    else:
        k, rotation = _centred_cameras(d, uv, w, image)
    return k.to(direction.dtype), pose.from_rt(rotation, centre).to(direction.dtype)


def to_cameras_procrustes(
    direction: Float[Tensor, "T H W 3"], moment: Float[Tensor, "T H W 3"]
) -> Float[Tensor, "T 4 4"]:
    """Poses as in the published Geo4D code: rotation of each frame's directions against frame 0's (3.3).

    Uses the central square only; intrinsics must not change over time (zoom biases the rotation). Frame 0 has no
    rotation by construction.
    """
    height, width = direction.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = (slice(None), slice(top, top + side), slice(left, left + side))
    d = torch.nn.functional.normalize(direction[cut].double(), dim=-1).flatten(1, 2)
    centre = _centre(d, moment[cut].double().flatten(1, 2), torch.ones_like(d[..., 0]))
    rotation = _procrustes(d, d[:1].expand_as(d), torch.ones_like(d[..., 0]))
    return pose.from_rt(rotation, centre).to(direction.dtype)


def _centre(d: Tensor, moment: Tensor, w: Tensor) -> Tensor:
    """Point nearest to the lines: sum w (I - d d^T) c = sum w d x m (eq. 6)."""
    eye = torch.eye(3, dtype=d.dtype, device=d.device)
    spread = w.sum(-1)[:, None, None] * eye - (d * w[..., None]).mT @ d
    target = (torch.linalg.cross(d, moment, dim=-1) * w[..., None]).sum(-2)
    return torch.linalg.lstsq(spread, target[..., None]).solution[..., 0]


def _procrustes(world: Tensor, camera_frame: Tensor, w: Tensor) -> Tensor:
    """Rotation R [T,3,3] minimising sum w |world - R camera_frame|^2."""
    u, _, vt = torch.linalg.svd((world * w[..., None]).mT @ camera_frame)
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vt)
    return (u * sign[..., None, :]) @ vt


def _rq_cameras(d: Tensor, uv: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """K and R from the homography M d ~ (u, v, 1): DLT, then M = K R^T by RQ (eq. 7)."""
    middle = uv.mean(0)
    half = (uv - middle).abs().mean()
    a = torch.cat([(uv - middle) / half, torch.ones_like(uv[:, :1])], -1)  # conditioned pixels (Hartley)
    # rows of a x (M d) = 0, as 9x9 normal matrices: [a]x (x) d
    rows = pose.hat(a)[None, :, :, :, None] * d[:, :, None, None, :]  # [T, N, 3, 3, 3]
    flat = rows.flatten(-2) * w.sqrt()[..., None, None]
    normal = flat.flatten(1, 2).mT @ flat.flatten(1, 2)
    m = torch.linalg.eigh(normal)[1][..., 0].reshape(-1, 3, 3)
    front = ((d @ m.mT)[..., 2] * w).sum(-1)  # the sign that puts the rays in front of the camera
    m = m * torch.where(front < 0, -1.0, 1.0)[:, None, None]
    k, rotation_t = _rq(m)
    k = k / k[:, 2:, 2:]
    back = torch.eye(3, dtype=d.dtype, device=d.device).clone()
    back[0, 0] = back[1, 1] = half
    back[:2, 2] = middle
    return back @ k, rotation_t.mT


def _rq(m: Tensor) -> tuple[Tensor, Tensor]:
    """Split m = upper triangular (positive diagonal) times a rotation; m must have a positive determinant."""
    flip = torch.eye(3, dtype=m.dtype, device=m.device).flip(0)
    q, r = torch.linalg.qr((flip @ m).mT)
    upper, rotation = flip @ r.mT @ flip, flip @ q.mT
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(m.dtype)
    return upper * sign[..., None, :], rotation * sign[..., :, None]


def _centred_cameras(d: Tensor, uv: Tensor, w: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """K and R with one focal length: golden-section search over log f, R by Procrustes at each f."""
    offset = uv - torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2], dtype=uv.dtype, device=uv.device)

    def solve(focal: Tensor) -> tuple[Tensor, Tensor]:
        rays = torch.cat([offset.expand(len(d), -1, -1), focal[:, None, None].expand(*d.shape[:2], 1)], -1)
        rays = torch.nn.functional.normalize(rays, dim=-1)
        rotation = _procrustes(d, rays, w)
        return (w * (d * (rays @ rotation.mT)).sum(-1)).sum(-1), rotation  # agreement, to be maximised

    extent, golden = float(max(size)), (5**0.5 - 1) / 2
    low = torch.full((len(d),), extent * 0.1, dtype=d.dtype, device=d.device).log()
    high = torch.full_like(low, extent * 20).log()
    for _ in range(45):
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        left_better = solve(inner.exp())[0] > solve(outer.exp())[0]
        low, high = torch.where(left_better, low, inner), torch.where(left_better, outer, high)
    focal = ((low + high) / 2).exp()
    return camera.intrinsics_from_focal(focal, size), solve(focal)[1]
