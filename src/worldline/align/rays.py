"""Cameras read off ray maps (Geo4D eq. 6-8), per view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.observation import Observation
from worldline.geometry.pose import from_rt
from worldline.geometry.raymap import to_cameras_procrustes

_RAYS = 150  # per frame: enough for three angles, a centre and a focal


@dataclass(frozen=True, kw_only=True)
class RayViews:
    """Ray cameras of all windows that have ray maps.

    Attributes:
        window: [B] window.
        frame: [B] frame.
        pose: [B, 4, 4] camera in the window's frame, unit of the moments.
        log_focal: [B] focal that fits the directions best, ln pixels; NaN-free.
    """

    window: Int[Tensor, " B"]
    frame: Int[Tensor, " B"]
    pose: Float[Tensor, "B 4 4"]
    log_focal: Float[Tensor, " B"]


def published_ray_cameras(observation: Observation) -> Float[Tensor, "t 4 4"]:
    """Centre by eq. 6, rotation by Procrustes against the window's first frame, as the published code does."""
    if observation.ray_cam2world is not None:
        return observation.ray_cam2world.cpu().double()
    assert observation.ray_direction is not None and observation.ray_moment is not None
    return to_cameras_procrustes(observation.ray_direction.double(), observation.ray_moment.double()).cpu()


def read_rays(
    observations: Sequence[Observation], principal: Float[Tensor, "T 2"], focal_px: float, published: bool
) -> RayViews | None:
    """Ray cameras of every window, or None when no window has ray maps.

    Unless published, the rotation is fitted against the rays of a pinhole camera with one focal per frame, so that a
    zoom does not turn into a rotation.
    """
    window, frame, pose, log_focal = [], [], [], []
    for k in range(len(observations)):
        o = observations[k]
        if o.ray_direction is None or o.ray_moment is None:
            continue
        index = torch.tensor(o.frames)
        if published:
            pose.append(published_ray_cameras(o))
            log_focal.append(torch.full((len(o),), focal_px, dtype=torch.float64).log())
        else:
            one, f = _fit(o, principal[index], focal_px)
            pose.append(one)
            log_focal.append(f)
        window.append(torch.full_like(index, k))
        frame.append(index)
    if not pose:
        return None
    return RayViews(
        window=torch.cat(window), frame=torch.cat(frame), pose=torch.cat(pose), log_focal=torch.cat(log_focal)
    )


def _fit(o: Observation, principal: Tensor, focal_px: float) -> tuple[Tensor, Tensor]:
    """Pose and log focal of each frame from a subset of its rays."""
    assert o.ray_direction is not None and o.ray_moment is not None
    rows, cols = o.ray_direction.shape[1:3]
    step = max(1, round((rows * cols / _RAYS) ** 0.5))
    cut = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    d = torch.nn.functional.normalize(o.ray_direction[cut].cpu().double(), dim=-1).flatten(1, 2)
    m = o.ray_moment[cut].cpu().double().flatten(1, 2)
    y, x = torch.meshgrid(torch.arange(rows)[cut[1]], torch.arange(cols)[cut[2]], indexing="ij")
    uv = torch.stack([x * (o.size[1] // cols), y * (o.size[0] // rows)], -1).flatten(0, 1).double()
    offset = uv - principal[:, None]
    f = torch.full((len(o),), focal_px, dtype=torch.float64).log()
    w = torch.ones_like(d[..., 0])
    for _ in range(3):
        ray = _pinhole(offset, f)
        rotation = _procrustes(d, ray, w)
        error = d - ray @ rotation.mT
        # d ray / d ln f, turned into the window: one more Gauss-Newton unknown beside the rotation
        plane = torch.cat([offset * torch.exp(-f)[:, None, None], torch.ones_like(offset[..., :1])], -1)
        length = plane.norm(dim=-1, keepdim=True)
        change = torch.cat([-plane[..., :2], torch.zeros_like(length)], -1) / length
        change = (change - (change * ray).sum(-1, keepdim=True) * ray) @ rotation.mT
        size = error.norm(dim=-1)
        w = 1 / (1 + (size / (2 * size.median(1, keepdim=True).values + 1e-9)) ** 2)
        step_f = (w[..., None] * change * error).sum((1, 2)) / (w[..., None] * change * change).sum((1, 2)).clamp_min(
            1e-12
        )
        f = f + step_f.clamp(-0.3, 0.3)
    rotation = _procrustes(d, _pinhole(offset, f), w)
    spread = w.sum(-1)[:, None, None] * torch.eye(3).double() - (d * w[..., None]).mT @ d
    target = (torch.linalg.cross(d, m, dim=-1) * w[..., None]).sum(-2)
    centre = torch.linalg.solve(spread + 1e-9 * torch.eye(3).double(), target[..., None])[..., 0]
    return from_rt(rotation, centre), f


def _pinhole(offset: Tensor, log_focal: Tensor) -> Tensor:
    ray = torch.cat([offset * torch.exp(-log_focal)[:, None, None], torch.ones_like(offset[..., :1])], -1)
    return torch.nn.functional.normalize(ray, dim=-1)


def _procrustes(target: Tensor, source: Tensor, w: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd((target * w[..., None]).mT @ source)
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = torch.linalg.det(u @ vt)
    return (u * sign[..., None, :]) @ vt
