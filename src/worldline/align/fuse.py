"""The full-resolution sweep: every pixel's depth, point, flow and confidence from all windows that see its frame.

With cameras and windows fixed each pixel is a problem in its own depth D alone, in closed form per re-weighting
(specs/geo4d.md 6.3 (2)). The default objective leaves a robust mean of ln D over what the windows say: their points,
ln (a.q_k / |a|^2) with q_k = R_n^T (S_k P_k - c_n) and a = K^-1 (u, v, 1), and their disparities,
-ln((d_k - beta_k) / alpha_k), each with the noise that was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.noise import ScaleTable
from worldline.align.rotations import dot
from worldline.scene import Cameras


@dataclass(frozen=True, kw_only=True)
class FrameFields:
    """Everything per pixel of one frame (or of several, with one more leading dimension); world coordinates.

    Attributes:
        points: [H, W, 3]; finite everywhere.
        depth: [H, W] z-depth, positive everywhere.
        valid: [H, W] where some window spoke and the point is in front of the camera.
        confidence: [H, W] in [0, 1].
        scene_flow: [H, W, 3] to the next frame, or None.
        flow_valid: [H, W] or None.
    """

    points: Float[Tensor, "*F H W 3"]
    depth: Float[Tensor, "*F H W"]
    valid: Bool[Tensor, "*F H W"]
    confidence: Float[Tensor, "*F H W"]
    scene_flow: Float[Tensor, "*F H W 3"] | None
    flow_valid: Bool[Tensor, "*F H W"] | None

    def frame(self, i: int) -> FrameFields:
        """One of several frames."""
        several = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v[i] for name, v in several.items() if v is not None})

    def cpu(self) -> FrameFields:
        """On the CPU, where cameras and videos are."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.cpu() for name, v in every.items() if v is not None})


def beside_ray(
    q: Float[Tensor, "k *p 3"], ray: Float[Tensor, "*p 3"], square: Float[Tensor, "*p"]
) -> tuple[Float[Tensor, "k *p"], Float[Tensor, "k *p"]]:
    """Depth of the point of the ray nearest to q, and the squared distance there: |D a - q|^2 = |a|^2 (D - d)^2 + e."""
    along = dot(q, ray) / square
    rest = q - along[..., None] * ray
    return along, dot(rest, rest)


def depth_sweep(
    q: Float[Tensor, "k *p 3"], weight: Float[Tensor, "k *p"], ray: Float[Tensor, "*p 3"], sweeps: int
) -> Float[Tensor, "*p"]:
    """Depth along each ray with the smallest weighted sum of distances to the points q; 0 where weight is 0."""
    square = dot(ray, ray)
    along, aside = beside_ray(q, ray, square)
    omega = weight
    depth = (omega * along).sum(0) / omega.sum(0).clamp_min(1e-12)
    for _ in range(sweeps if len(q) > 1 else 0):
        distance = (square * (depth - along) ** 2 + aside).sqrt()
        omega = weight / distance.clamp_min(1e-5 * depth.abs() + 1e-12)
        depth = (omega * along).sum(0) / omega.sum(0).clamp_min(1e-12)
    return depth


@runtime_checkable
class Fusion(Protocol):
    """How the depth of a pixel follows from what windows say."""

    def depth(
        self, windows: list[int], q: Tensor, weight: Tensor, disparity: list[Tensor | None], ray: Tensor
    ) -> Tensor:
        """Depth along z of every pixel; 0 where nothing is known."""
        ...


@dataclass(frozen=True, kw_only=True)
class RobustFusion:
    """Default: a robust mean of log depths, each estimate in units of its own noise (Cauchy, started at the median).

    Attributes:
        along: relative range noise of points by confidence.
        disparity: coefficients (alpha, beta) of each window, or None.
        disparity_noise: of each window's disparity, by its expected value, or None.
    """

    along: ScaleTable
    disparity: Float[Tensor, "G 2"] | None = None
    disparity_noise: tuple[ScaleTable, ...] | None = None

    def depth(
        self, windows: list[int], q: Float[Tensor, "k F H W 3"], weight: Float[Tensor, "k F H W"],
        disparity: list[Tensor | None], ray: Float[Tensor, "F H W 3"],
    ) -> Float[Tensor, "F H W"]:  # fmt: skip
        """Depth along z; 0 where nothing is known."""
        along = dot(q, ray) / dot(ray, ray)
        seen = (weight > 0) & (along > 0)
        values = [torch.where(seen, along, torch.ones_like(along)).log()]
        precision = [torch.where(seen, 1 / self.along.at(weight), torch.zeros_like(along))]
        for i, k in enumerate(windows):
            d = disparity[i]
            if d is None or self.disparity is None or self.disparity_noise is None or float(self.disparity[k, 0]) <= 0:
                continue
            alpha, beta = self.disparity[k].tolist()
            inverse = (d - beta).clamp_min(1e-6 * alpha)
            relative = self.disparity_noise[k].at(d) / inverse
            usable = (d > 0) & (relative < 0.3)
            values.append((alpha / inverse).log()[None])
            precision.append(torch.where(usable, 1 / relative, torch.zeros_like(relative))[None])
        x, p = torch.cat(values), torch.cat(precision)
        mean = _robust_mean(x, p, _start_of_mean(x, p))
        agree = ((x - mean).abs() * p < 3) & (p > 0)
        against = ((x - mean).abs() * p > 4).any(0)
        unclear = (against & (agree.sum(0) < 2)) | ((p * agree).sum(0) <= 0.6 * p.sum(0))  # also where nothing is known
        return _ask_neighbours(x, p, mean, unclear).exp()


def _robust_mean(x: Tensor, precision: Tensor, start: Tensor) -> Tensor:
    """Cauchy mean over the first dimension."""
    mean = start
    for _ in range(6 if len(x) > 1 else 0):
        w = precision * precision / (1 + ((x - mean) * precision / 2.0) ** 2)
        mean = torch.where(w.sum(0) > 0, (w * x).sum(0) / w.sum(0).clamp_min(1e-30), mean)
    return mean


def _ask_neighbours(x: Tensor, precision: Tensor, mean: Tensor, unclear: Tensor) -> Tensor:
    """Where estimates contradict each other or are missing, the median of clear neighbours (5 x 5) has a weak say."""
    if not bool(unclear.any()) or bool(unclear.all()):
        return mean
    _, height, width = mean.shape
    frame, row, col = torch.nonzero(unclear, as_tuple=True)
    step = torch.arange(-2, 3, device=mean.device)
    rows = (row[:, None, None] + step[:, None]).clamp(0, height - 1).expand(-1, 5, 5)
    cols = (col[:, None, None] + step).clamp(0, width - 1).expand(-1, 5, 5)
    index = ((frame[:, None, None] * height + rows) * width + cols).flatten(1)
    around = torch.where(
        unclear.flatten()[index], torch.full_like(mean.flatten()[index], torch.nan), mean.flatten()[index]
    )
    middle = around.nanmedian(1).values
    known = torch.isfinite(middle)
    middle = torch.where(known, middle, mean[frame, row, col])
    own = torch.cat([x[:, frame, row, col], middle[None]])
    weak = torch.cat([precision[:, frame, row, col], torch.where(known, 1 / 0.15, 0.0).to(mean)[None]])
    out = mean.clone()
    out[frame, row, col] = _robust_mean(own, weak, middle)
    return out


def _start_of_mean(x: Tensor, precision: Tensor) -> Tensor:
    """Weighted median over the first dimension."""
    order = x.argsort(0)
    p = precision.gather(0, order).cumsum(0)
    middle = (p < 0.5 * p[-1:]).sum(0, keepdim=True).clamp(max=len(x) - 1)
    return x.gather(0, order).gather(0, middle)[0]


def median_sweep(
    values: Float[Tensor, "k *p c"], weight: Float[Tensor, "k *p"], sweeps: int = 4
) -> Float[Tensor, "*p c"]:
    """Weighted geometric median over k by Weiszfeld's iteration."""
    omega = weight
    middle = (values * omega[..., None]).sum(0) / omega.sum(0).clamp_min(1e-12)[..., None]
    for _ in range(sweeps if len(values) > 1 else 0):
        distance = (values - middle).norm(dim=-1)
        omega = weight / (distance + 1e-4 * distance.mean(0) + 1e-12)
        middle = (values * omega[..., None]).sum(0) / omega.sum(0).clamp_min(1e-12)[..., None]
    return middle


def fuse_frames(
    world: Float[Tensor, "k F H W 3"], weight: Float[Tensor, "k F H W"], flow: Float[Tensor, "k F H W 3"] | None,
    flow_weight: Float[Tensor, "k F H W"] | None, pose: Float[Tensor, "F 4 4"], ray: Float[Tensor, "F H W 3"],
    reference_weight: float, depth_of: Callable[[Tensor], Tensor] | None,
) -> FrameFields:  # fmt: skip
    """Blend what k windows say about F frames that they all see.

    Args:
        world: points of the windows in the world; weight 0 where they are to be ignored.
        weight: confidence.
        flow: scene flow in the world, or None.
        flow_weight: its confidence.
        pose: cam2world of the frames.
        ray: camera rays with z = 1.
        reference_weight: sum of weights that counts as full confidence.
        depth_of: depth of the pixels from the windows' points in the camera [k, F, H, W, 3], puts points on their rays;
            None keeps the blended points (see AlignConfig.points_on_rays).
    """
    rotation, centre = pose[:, None, :3, :3].to(world), pose[:, None, None, :3, 3].to(world)
    q = (world - centre) @ rotation
    total = weight.sum(0)
    blended = None
    if depth_of is not None:
        depth = depth_of(q)
    else:
        blended = median_sweep(q, weight)
        depth = blended[..., 2]
    seen = (total > 0) & (depth > 0)
    filler = depth[seen].median() if bool(seen.any()) else torch.ones((), dtype=world.dtype, device=world.device)
    valid = seen & (depth > 1e-4 * filler)
    depth = torch.where(valid, depth, filler)
    local = depth[..., None] * ray
    if blended is not None:
        local = torch.where(valid[..., None], blended, local)
    spread = (weight * (q - local).norm(dim=-1)).sum(0) / total.clamp_min(1e-12) / depth
    confidence = (total / reference_weight).clamp(0, 1) / (1 + (spread / 0.1) ** 2)
    fused_flow, flow_valid = None, None
    if flow is not None and flow_weight is not None:
        fused_flow = median_sweep(flow, flow_weight)
        flow_valid = (flow_weight.sum(0) > 0) & valid
        fused_flow = torch.where(flow_valid[..., None], fused_flow, torch.zeros_like(fused_flow))
    return FrameFields(
        points=local @ rotation.mT + centre,
        depth=depth,
        valid=valid,
        confidence=torch.where(valid, confidence, torch.zeros_like(confidence)),
        scene_flow=fused_flow,
        flow_valid=flow_valid,
    )


def rigid_flow(points: Float[Tensor, "S H W 3"], cameras: Cameras) -> Float[Tensor, "S H W 2"]:
    """Optical flow to the next frame if every point stood still, pixels; NaN behind the next camera."""
    S, height, width = points.shape[:3]
    pose, K = cameras.cam2world[1 : S + 1].to(points), cameras.intrinsics[1 : S + 1].to(points)
    q = (points - pose[:, None, None, :3, 3]) @ pose[:, None, :3, :3]
    uv = q[..., :2] / q[..., 2:].clamp_min(1e-9)
    uv = uv * torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None, None] + K[:, None, None, :2, 2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flow = uv - torch.stack([x, y], -1).to(points)
    return torch.where(q[..., 2:] > 0, flow, torch.full_like(flow, torch.nan))


def moved_pixels(
    points: Float[Tensor, "H W 3"], valid: Bool[Tensor, "H W"], other_depth: Float[Tensor, "H W"],
    other_valid: Bool[Tensor, "H W"], other_pose: Float[Tensor, "4 4"], other_intrinsics: Float[Tensor, "3 3"],
    threshold: float,
) -> Bool[Tensor, "H W"]:  # fmt: skip
    """Pixels whose point, if it stood still, would hide what another frame sees there: it must have moved."""
    height, width = valid.shape
    local = (points - other_pose[:3, 3].to(points)) @ other_pose[:3, :3].to(points)
    z = local[..., 2]
    uv = local[..., :2] / z.clamp_min(1e-9)[..., None]
    K = other_intrinsics.to(points)
    x = (uv[..., 0] * K[0, 0] + K[0, 2]).round()
    y = (uv[..., 1] * K[1, 1] + K[1, 2]).round()
    inside = valid & (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = torch.where(inside, y * width + x, torch.zeros_like(x)).long()
    # the nearest surface around the pixel decides, so that edges are not called motion
    padded = torch.where(other_valid, other_depth, torch.full_like(other_depth, torch.inf))
    near = -torch.nn.functional.max_pool2d(-padded[None, None], 3, 1, 1)[0, 0]
    return inside & (near.flatten()[index] > z * (1 + threshold)) & near.flatten()[index].isfinite()
