"""Scene <-> pictures: Geo4D's central idea (paper section 3.1; spec 1.5, 1.6).

Four pictures of every frame, all in the first camera of the clip, each with three channels as a video model expects:

    points         X / s, Y / s, (Z - lo) / s mapped to [-1, 1]-like ranges; lo, s from percentiles of the clip's Z
    ray direction  d, unit length
    ray moment     g c / s x d, c the camera's centre, s that of the points, g a gain
    disparity      (1 / Z_cam - lo') / s' mapped to [-1, 1], three times the same

Points lose their unit and their place along Z, disparity its unit and zero; rays lose the unit only. Reading the maps
back gives an `Observation` whose points are shifted along Z to where their perspective says the first camera is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import camera, pose, raymap
from worldline.geometry.disparity import from_depth
from worldline.geometry.normalize import PercentileBox, PercentileDisparity

SKY_EPSILON = {"evaluation": 0.1, "demo": 0.35}
"""How near all three coordinates must be to 1.05 to mean "nothing there", in the two published programs."""
OUTSIDE = 1.99
"""Points are clamped to +-2: beyond this they are not to be trusted."""
LARGEST_WEIGHT = 10.0
FEWEST_PIXELS = 64
"""Fewer confident pixels in a window's first frame do not fix its focal length and shift."""

Rays = tuple[Float[Tensor, "T h w 3"], Float[Tensor, "T h w 3"]]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Clips as the autoencoders see them, and what is needed to go back.

    Attributes:
        points: [B, T, 3, H, W]; invalid pixels are (1.05, 1.05, 1.05).
        ray_direction: [B, T, 3, H, W].
        ray_moment: [B, T, 3, H, W], multiplied by the gain.
        disparity: [B, T, 3, H, W]; invalid pixels are -1.05.
        valid: [B, T, H, W].
        boxes, ranges: normalisation of points and disparity of each clip.
    """

    points: Float[Tensor, "B T 3 H W"]
    ray_direction: Float[Tensor, "B T 3 H W"]
    ray_moment: Float[Tensor, "B T 3 H W"]
    disparity: Float[Tensor, "B T 3 H W"]
    valid: Bool[Tensor, "B T H W"]
    boxes: tuple[PercentileBox, ...]
    ranges: tuple[PercentileDisparity, ...]


def to_pictures(
    points: Float[Tensor, "B T H W 3"],
    valid: Bool[Tensor, "B T H W"],
    intrinsics: Float[Tensor, "B T 3 3"],
    cam2world: Float[Tensor, "B T 4 4"],
    *,
    moment_gain: float = 1.0,
) -> Pictures:
    """The pictures of clips given in any world frame and unit.

    Raises:
        ValueError: a clip has no valid point.
    """
    size = (points.shape[2], points.shape[3])
    # 1. the frame is the first camera of each clip; poses stay in float64 until they are relative
    to_first = pose.inverse(cam2world[:, :1].double())
    cameras = to_first @ cam2world.double()
    points = pose.transform(to_first[:, 0].to(points.dtype), torch.where(valid[..., None], points, 0))
    # 2. points in the box of their percentiles
    boxes = tuple(PercentileBox.fit(clip, mask) for clip, mask in zip(points, valid, strict=True))
    boxed = torch.stack([box.apply(clip, mask) for box, clip, mask in zip(boxes, points, valid, strict=True)])
    # 3. disparity in the range of its own
    depth = pose.transform(pose.inverse(cameras).to(points.dtype), points)[..., 2]
    disparity = from_depth(depth)
    ranges = tuple(PercentileDisparity.fit(clip, mask) for clip, mask in zip(disparity, valid, strict=True))
    ranged = torch.stack([span.apply(clip, mask) for span, clip, mask in zip(ranges, disparity, valid, strict=True)])
    # 4. rays, moments in the unit of the boxed points
    unit = torch.stack([box.scale for box in boxes]).double()
    cameras[..., :3, 3] = cameras[..., :3, 3] / unit[:, None, None]
    direction, moment = raymap.from_cameras(intrinsics.to(cameras.dtype), cameras, size)
    return Pictures(
        points=channels_first(boxed),
        ray_direction=channels_first(direction.to(points.dtype)),
        ray_moment=channels_first(moment_gain * moment.to(points.dtype)),
        disparity=ranged[:, :, None].expand(-1, -1, 3, -1, -1),
        valid=valid,
        boxes=boxes,
        ranges=ranges,
    )


def channels_first(maps: Float[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch 3 H W"]:
    """Maps as pictures."""
    return maps.movedim(-1, -3)


def channels_last(pictures: Float[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch H W C"]:
    """Pictures as maps."""
    return pictures.movedim(-3, -1)


def read_points(pictures: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch H W 3"]:
    """Points in units of their box, with an unknown shift along Z: (x / 2, y / 2, (z + 1) / 2)."""
    return PercentileBox.to_unit(channels_last(pictures))


def read_disparity(pictures: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch H W"]:
    """Disparity up to scale and shift: the mean of the three channels, (v + 1) / 2."""
    return PercentileDisparity.to_unit(pictures.mean(-3))


def read_rays(
    direction: Float[Tensor, "*batch 3 h w"], moment: Float[Tensor, "*batch 3 h w"], moment_gain: float = 1.0
) -> tuple[Float[Tensor, "*batch h w 3"], Float[Tensor, "*batch h w 3"]]:
    """Unit directions, and moments in units of the points."""
    return F.normalize(channels_last(direction), dim=-1), channels_last(moment) / moment_gain


def invalid_points(
    pictures: Float[Tensor, "*batch 3 H W"], sky: Literal["evaluation", "demo"] = "evaluation"
) -> Bool[Tensor, "*batch H W"]:
    """Where a picture of points says that there is nothing: all of it near 1.05, or any of it at the clamp."""
    marked = ((pictures - PercentileBox.INVALID).abs() < SKY_EPSILON[sky]).all(-3)
    return marked | (pictures.abs() > OUTSIDE).any(-3)


def confidence_of(raw: Float[Tensor, "*batch H W"], invalid: Bool[Tensor, "*batch H W"]) -> Float[Tensor, "*batch H W"]:
    """Weight 1 / sigma, sigma = softplus(raw) (paper eq. 3); 0 where invalid, not limited."""
    return torch.where(invalid, torch.zeros_like(raw), 1 / F.softplus(raw))


def first_camera_shift(
    points: Float[Tensor, "H W 3"], confidence: Float[Tensor, "H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]] | None:
    """(focal in pixels, shift along Z) of a window's first frame from its perspective (spec 3.4, integer pixels).

    Only pixels that count at least half as much as the median one are asked. None when they do not fix both.
    """
    known = confidence > 0
    if int(known.sum()) < FEWEST_PIXELS:
        return None
    mask = known & (confidence >= 0.5 * confidence[known].median())
    spread = points[mask].std(0)
    if int(mask.sum()) < FEWEST_PIXELS or float(spread[:2].min()) == 0:
        return None
    focal, shift = camera.focal_shift_from_pointmap(points, mask)
    size = max(points.shape[:2])
    plausible = bool(torch.isfinite(shift)) and 0.1 * size < float(focal) < 20 * size
    return (focal, shift) if plausible else None


def shifted(points: Float[Tensor, "T H W 3"], shift: Float[Tensor, ""]) -> Float[Tensor, "T H W 3"]:
    """Points moved along Z, so that the first camera is the origin."""
    return points + points.new_tensor([0.0, 0.0, 1.0]) * shift


def ray_cameras(
    rays: Rays, method: Literal["published", "paper"] = "paper"
) -> tuple[Float[Tensor, "T 3 3"] | None, Float[Tensor, "T 4 4"]]:
    """Cameras of a window from its rays, relative to the first one.

    "published" turns each frame's directions onto the first frame's and knows no intrinsics (spec 3.3); "paper" solves
    a homography and splits it into intrinsics and rotation (eq. 6-7), so that zoom is not taken for rotation.

    Returns:
        (intrinsics in pixels of the ray map or None, cam2world).
    """
    if method == "published":
        return None, raymap.to_cameras_procrustes(*rays)
    return raymap.to_cameras(*rays)
