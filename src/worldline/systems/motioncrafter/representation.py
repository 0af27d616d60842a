"""Scene <-> network channels: MotionCrafter's central idea (spec 3.5, 4.3).

Points and scene flow of a whole clip live in ONE world, the first camera's, and are normalised together:

    X' = (X - mu) / S      V' = V / S      mu = mean of X,  S = mean of |X - mu|, over all valid pixels   ("mean")
    X' =  X / S            V' = V / S      S = largest |coordinate|, so that X' lies in [-1, 1]           ("max")

X' is then an image with three channels. It has no mask channel: invalid pixels are filled smoothly from the valid ones
around them, scene flow is zero there. The factor 10 on scene flow belongs to the motion branch of the VAE, not here.
Cameras are normalised with the same numbers, so depth in camera i is row 3 of R_i^T (X' - t_i').
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import pose
from worldline.geometry.normalize import MaxDistance, MeanDistance

Normalization = MeanDistance | MaxDistance


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Clips as the networks see them.

    Attributes:
        points: [B, T, 3, H, W] normalised world points, invalid pixels filled.
        valid: [B, T, H, W] where points are measured rather than filled.
        scene_flow: [B, T, 3, H, W] normalised world displacement to the next frame, zero where not flow_valid.
        flow_valid: [B, T, H, W] where scene flow is measured; all False at the last frame.
        cam2world: [B, T, 4, 4] cameras in the normalised world.
        normalization: one per clip, to go back.
    """

    points: Float[Tensor, "B T 3 H W"]
    valid: Bool[Tensor, "B T H W"]
    scene_flow: Float[Tensor, "B T 3 H W"]
    flow_valid: Bool[Tensor, "B T H W"]
    cam2world: Float[Tensor, "B T 4 4"]
    normalization: tuple[Normalization, ...]


def to_channels(
    points: Float[Tensor, "B T H W 3"],
    valid: Bool[Tensor, "B T H W"],
    cam2world: Float[Tensor, "B T 4 4"],
    scene_flow: Float[Tensor, "B T H W 3"] | None = None,
    flow_valid: Bool[Tensor, "B T H W"] | None = None,
    *,
    normalization: Literal["mean", "max"] = "mean",
) -> Channels:
    """Network channels of clips given in any world frame and unit.

    Missing scene flow becomes zeros that are nowhere valid, so that no loss can pull towards them.

    Raises:
        ValueError: a clip has no valid point.
    """
    # 1. the world is the first camera of each clip; poses stay in float64 until they are relative
    to_first = pose.inverse(cam2world[:, :1].double())
    cameras = (to_first @ cam2world.double()).to(points.dtype)
    to_first = to_first[:, 0].to(points.dtype)
    points = torch.where(valid[..., None], pose.transform(to_first, points), 0)
    if scene_flow is None or flow_valid is None:
        scene_flow, flow_valid = torch.zeros_like(points), torch.zeros_like(valid)
    last = torch.arange(points.shape[1], device=valid.device) == points.shape[1] - 1
    flow_valid = flow_valid & valid & ~last[:, None, None]
    scene_flow = torch.where(flow_valid[..., None], pose.rotate(to_first[:, :3, :3], scene_flow), 0)

    # 2. one centre and one unit per clip
    fitted = tuple(fit(clip, mask, normalization) for clip, mask in zip(points, valid, strict=True))
    points = torch.stack([by.apply(clip) for by, clip in zip(fitted, points, strict=True)])
    scene_flow = torch.stack([by.apply_vector(clip) for by, clip in zip(fitted, scene_flow, strict=True)])
    cameras[..., :3, 3] = torch.stack([by.apply(clip[:, :3, 3]) for by, clip in zip(fitted, cameras, strict=True)])

    # 3. images without holes
    return Channels(
        points=fill_invalid(points.movedim(-1, -3), valid),
        valid=valid,
        scene_flow=scene_flow.movedim(-1, -3),
        flow_valid=flow_valid,
        cam2world=cameras,
        normalization=fitted,
    )


def fit(
    points: Float[Tensor, "*any 3"], valid: Bool[Tensor, "*any"], kind: Literal["mean", "max"] = "mean"
) -> Normalization:
    """The normalisation of one clip from its valid points."""
    if kind == "mean":
        return MeanDistance.fit(points, valid)
    if kind == "max":
        return MaxDistance.fit(points, valid)
    raise ValueError(f"Points are normalised by 'mean' or 'max' distance, not {kind!r}.")


def to_maps(channels: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch H W 3"]:
    """Channels first -> point map or scene flow, still in the clip's normalised world."""
    return channels.movedim(-3, -1)


def fill_invalid(
    channels: Float[Tensor, "*batch 3 H W"], valid: Bool[Tensor, "*batch H W"]
) -> Float[Tensor, "*batch 3 H W"]:
    """Fill invalid pixels from the valid ones around them, coarse to fine; valid pixels keep their exact value.

    Pyramid of area means of p = m X and m down to one row or column; then, from the coarsest level,
    f <- p_l + (1 - m_l) bilinear(f), starting from the mean of the coarsest valid points (spec 4.4).
    """
    mask = valid.reshape(-1, 1, *valid.shape[-2:]).to(channels.dtype)
    known = torch.where(mask > 0, channels.reshape(-1, *channels.shape[-3:]), 0)
    levels = [(known, mask)]
    while min(levels[-1][0].shape[-2:]) > 1:
        size = tuple(side // 2 for side in levels[-1][0].shape[-2:])
        finer, weights = levels[-1]
        levels.append((F.interpolate(finer, size, mode="area"), F.interpolate(weights, size, mode="area")))
    top, top_mask = levels[-1]
    filled = top.sum((-2, -1), keepdim=True) / top_mask.sum((-2, -1), keepdim=True).clamp(min=1e-8)
    for level, weight in reversed(levels):
        smooth = F.interpolate(filled, level.shape[-2:], mode="bilinear", align_corners=False)
        filled = level + smooth * (1 - weight)
    return filled.reshape(channels.shape)
