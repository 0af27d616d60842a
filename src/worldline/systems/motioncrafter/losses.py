"""The loss terms of MotionCrafter's three stages, each a scalar of plain tensors (spec 4.5).

Point maps, flow [*batch, H, W, 3]; masks and depth [*batch, H, W]. A masked mean is sum(w e) / sum(w), written so that
an empty mask gives 0, never NaN. Everything is computed in the dtype given: pass float32, not bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EMPTY = 1e-7  # added to the mean weight: an empty mask gives 0
PATCH_EMPTY = 1e-6  # the same for the patch means of the multi-scale depth term

Points = Float[Tensor, "*batch H W 3"]
Map = Float[Tensor, "*batch H W"]
Mask = Bool[Tensor, "*batch H W"]


def masked_mean(error: Map, mask: Mask | None) -> Float[Tensor, ""]:
    """Mean of a per-pixel error over the mask (over everything without one); 0 for an empty mask."""
    if mask is None:
        return error.mean()
    weight = mask.to(error.dtype)
    return (error * weight).mean() / (weight.mean() + EMPTY)


def squared(prediction: Points, target: Points, mask: Mask | None) -> Float[Tensor, ""]:
    """Masked mean of the squared distance |a - b|^2 (summed over xyz)."""
    return masked_mean((prediction - target).square().sum(-1), mask)


def absolute(prediction: Points, target: Points, mask: Mask | None) -> Float[Tensor, ""]:
    """Masked mean of the L1 distance |a - b|_1 (summed over xyz)."""
    return masked_mean((prediction - target).abs().sum(-1), mask)


def depth_in_camera(points: Float[Tensor, "*batch H W 3"], cam2world: Float[Tensor, "*batch 4 4"]) -> Map:
    """Depth of world points in their camera: z = r_3 . (X - t), r_3 the camera's z axis in the world."""
    axis = cam2world[..., None, None, :3, 2]
    centre = cam2world[..., None, None, :3, 3]
    return ((points - centre) * axis).sum(-1)


def depth_absolute(prediction: Map, target: Map, mask: Mask | None) -> Float[Tensor, ""]:
    """Masked mean of |z - z*|."""
    return masked_mean((prediction - target).abs(), mask)


def _without_patch_mean(depth: Map, mask: Mask, grid: int) -> Map:
    """Depth minus the masked mean of its patch in a grid x grid cut of the frame; the mean carries no gradient."""
    height, width = depth.shape[-2:]
    if height % grid or width % grid:
        raise ValueError(f"A {height}x{width} frame has no {grid}x{grid} equal patches; choose other grids.")
    split = (*depth.shape[:-2], grid, height // grid, grid, width // grid)
    patches, weight = depth.reshape(split), mask.to(depth.dtype).reshape(split)
    mean = (patches * weight).mean((-3, -1), keepdim=True) / (weight.mean((-3, -1), keepdim=True) + PATCH_EMPTY)
    return (patches - mean.detach()).reshape(depth.shape)


def patch_depth_absolute(prediction: Map, target: Map, mask: Mask, grid: int) -> Float[Tensor, ""]:
    """Masked mean of |z - z*| after taking each patch's own mean from both: local relief, whatever the offset."""
    return masked_mean(
        (_without_patch_mean(prediction, mask, grid) - _without_patch_mean(target, mask, grid)).abs(), mask
    )


def multi_scale_depth(prediction: Map, target: Map, mask: Mask, grids: tuple[int, ...]) -> Float[Tensor, ""]:
    """Sum over grids of `patch_depth_absolute`; published grids are 4, 16 and 64 patches a side."""
    return torch.stack([patch_depth_absolute(prediction, target, mask, grid) for grid in grids]).sum()


def _sobel_normals(points: Float[Tensor, "frames H W 3"]) -> Float[Tensor, "frames H W 3"]:
    """Unit normals cross(dX/du, dX/dv) from Sobel gradients (divided by 8, edges repeated)."""
    smooth, slope = points.new_tensor([1.0, 2.0, 1.0]), points.new_tensor([-1.0, 0.0, 1.0])
    kernel = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None] / 8
    frames, height, width, _ = points.shape
    planes = points.permute(0, 3, 1, 2).reshape(frames * 3, 1, height, width)
    with torch.autocast(points.device.type, enabled=False):  # a convolution would be done in half precision
        gradient = F.conv2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), kernel)
    along_u, along_v = gradient.reshape(frames, 3, 2, height, width).permute(2, 0, 3, 4, 1)
    return F.normalize(torch.linalg.cross(along_u, along_v), dim=-1, eps=1e-6)


def normal(prediction: Points, target: Points, mask: Mask | None) -> Float[Tensor, ""]:
    """Mean of 1 - n.n* over interior pixels whose whole 3x3 neighbourhood is in the mask."""
    size = prediction.shape[-3:]
    frames = (prediction.reshape(-1, *size), target.reshape(-1, *size))
    error = 1 - (_sobel_normals(frames[0]) * _sobel_normals(frames[1])).sum(-1)
    whole = None
    if mask is not None:
        weight = mask.reshape(-1, 1, *size[:2]).to(error.dtype)
        whole = (F.avg_pool2d(weight, 3, stride=1) > 0.99)[:, 0]
    return masked_mean(error[:, 1:-1, 1:-1], whole)


MOVES = 1e-3
"""Scene flow longer than this, in units of the clip, is motion."""


def flow_distance(prediction: Points, target: Points, mask: Mask, moving: float = 3.0) -> Float[Tensor, ""]:
    """Mean of |V - V*| (ours), what moves counted `moving` times: nearly the metric, and still fair to what rests."""
    error = ((prediction - target).square().sum(-1) + 1e-10).sqrt()
    weight = mask * torch.where(target.square().sum(-1) > MOVES**2, moving, 1.0)
    return (error * weight).mean() / (weight.mean() + EMPTY)


def flow_size(flow: Points) -> Float[Tensor, ""]:
    """Mean of |V|^2 over all pixels: the pull towards no motion where nothing says otherwise."""
    return flow.square().sum(-1).mean()


def kl(mean: Float[Tensor, "..."], log_variance: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """KL divergence of N(mean, var) from N(0, 1), averaged over every latent value."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
