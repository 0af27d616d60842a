"""The full-resolution sweep: every pixel's depth, point, flow and confidence from all windows that see its frame.

With cameras and windows fixed each pixel is a convex problem in its depth D (specs/geo4d.md 6.3 (2)):

    min_D  sum_k w_k | D a - q_k |,    q_k = R_n^T (S_k P_k - c_n),  a = K^-1 (u, v, 1),

solved by re-weighted closed forms D = sum omega_k a.q_k / (|a|^2 sum omega_k), omega_k = w_k / |D a - q_k|.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FrameFields:
    """Everything per pixel of one frame; world coordinates.

    Attributes:
        points: [H, W, 3]; finite everywhere.
        depth: [H, W] z-depth, positive everywhere.
        valid: [H, W] where some window spoke and the point is in front of the camera.
        confidence: [H, W] in [0, 1].
        scene_flow: [H, W, 3] to the next frame, or None.
        flow_valid: [H, W] or None.
    """

    points: Float[Tensor, "H W 3"]
    depth: Float[Tensor, "H W"]
    valid: Bool[Tensor, "H W"]
    confidence: Float[Tensor, "H W"]
    scene_flow: Float[Tensor, "H W 3"] | None
    flow_valid: Bool[Tensor, "H W"] | None


def depth_sweep(
    q: Float[Tensor, "k *p 3"], weight: Float[Tensor, "k *p"], ray: Float[Tensor, "*p 3"], sweeps: int
) -> Float[Tensor, "*p"]:
    """Depth along each ray that minimises the weighted sum of Euclidean distances to the points q; 0 where weight is 0."""
    along = (q * ray).sum(-1) / (ray * ray).sum(-1)
    omega = weight
    depth = (omega * along).sum(0) / omega.sum(0).clamp_min(1e-12)
    for _ in range(sweeps if len(q) > 1 else 0):
        distance = (depth[None, ..., None] * ray - q).norm(dim=-1)
        omega = weight / distance.clamp_min(1e-5 * depth.abs() + 1e-12)
        depth = (omega * along).sum(0) / omega.sum(0).clamp_min(1e-12)
    return depth


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


def fuse_frame(
    world: Float[Tensor, "k H W 3"], weight: Float[Tensor, "k H W"], flow: Float[Tensor, "k H W 3"] | None,
    flow_weight: Float[Tensor, "k H W"] | None, pose: Float[Tensor, "4 4"], ray: Float[Tensor, "H W 3"],
    reference_weight: float, on_rays: bool, sweeps: int = 5,
) -> FrameFields:  # fmt: skip
    """Blend what k windows say about one frame.

    Args:
        world: points of the windows in the world; weight 0 where they are to be ignored.
        weight: confidence.
        flow: scene flow in the world, or None.
        flow_weight: its confidence.
        pose: cam2world of the frame.
        ray: camera rays with z = 1.
        reference_weight: sum of weights that counts as full confidence.
        on_rays: put points on their rays (see AlignConfig.points_on_rays).
        sweeps: re-weightings of the depth.
    """
    rotation, centre = pose[:3, :3].to(world), pose[:3, 3].to(world)
    q = (world - centre) @ rotation
    total = weight.sum(0)
    depth = depth_sweep(q, weight, ray, sweeps) if on_rays else None
    if depth is None:
        blended = median_sweep(q, weight)
        depth = blended[..., 2]
    seen = (total > 0) & (depth > 0)
    filler = depth[seen].median() if bool(seen.any()) else torch.ones((), dtype=world.dtype, device=world.device)
    valid = seen & (depth > 1e-4 * filler)
    depth = torch.where(valid, depth, filler)
    local = depth[..., None] * ray
    if not on_rays:
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
