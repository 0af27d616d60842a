"""Motion blur and compression: what a moving camera and a video file do to pictures."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from worldline.geometry import camera, pose

BLUR_SAMPLES = 7
LONGEST = 0.15  # of the image width: longer streaks are cut, there is nothing to see in them
NEAREST = 1e-3
BLOCK = 8
LUMA = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # BT.601, full range


def image_velocity(
    points: Float[Tensor, "T H W 3"],
    sky: Bool[Tensor, "T H W"],
    scene_flow: Float[Tensor, "T H W 3"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
) -> Float[Tensor, "T H W 2"]:
    """How far each pixel's surface travels over the image per frame, in pixels.

    Towards the next frame; at the last frame, where nothing is known of the next, what the camera did since the one
    before. Sky turns with the camera. Zero for a single frame and for what passes behind the camera.
    """
    frames, height, width = sky.shape
    if frames == 1:
        return torch.zeros(1, height, width, 2).to(points)
    other = torch.cat([cam2world[1:], cam2world[-2:-1]])
    into = pose.inverse(other)
    rays = pose.rotate(into[:, :3, :3] @ cam2world[:, :3, :3], camera.camera_rays(intrinsics, (height, width)))
    there = torch.where(sky[..., None], rays, pose.transform(into, points + scene_flow))
    ahead = (there[..., 2] > NEAREST)[..., None]
    lens = torch.cat([intrinsics[1:], intrinsics[-2:-1]])
    landed = camera.project(torch.where(ahead, there, torch.ones_like(there)), lens)
    moved = (landed - camera.pixel_grid((height, width), landed.dtype, landed.device)) * ahead
    moved[-1] = -moved[-1]
    length = moved.norm(dim=-1, keepdim=True)
    return moved * (LONGEST * width / length.clamp(min=1e-9)).clamp(max=1)


def motion_blur(
    rgb: Float[Tensor, "T H W 3"], velocity: Float[Tensor, "T H W 2"], shutter: float
) -> Float[Tensor, "T H W 3"]:
    """Mean over the time the shutter is open, centred on the frame: each pixel is averaged along its own motion.

    Args:
        rgb: sharp pictures.
        velocity: pixels per frame.
        shutter: share of the time between frames during which it is open; 0 changes nothing.
    """
    if shutter <= 0 or not bool(velocity.any()):
        return rgb
    height, width = rgb.shape[1:3]
    grid = camera.pixel_grid((height, width), rgb.dtype, rgb.device)
    scale = torch.tensor([width, height], device=rgb.device, dtype=rgb.dtype)
    source, total = rgb.permute(0, 3, 1, 2), torch.zeros_like(rgb)
    for share in torch.linspace(-0.5, 0.5, BLUR_SAMPLES).tolist():
        place = (2 * (grid + shutter * share * velocity) + 1) / scale - 1
        seen = F.grid_sample(source, place, padding_mode="border", align_corners=False)
        total += seen.permute(0, 2, 3, 1)
    return total / BLUR_SAMPLES


def compress(rgb: Float[Tensor, "T H W 3"], strength: float) -> Float[Tensor, "T H W 3"]:
    """What is left after quantising 8x8 cosine blocks, coarser in colour and in fine detail, as JPEG and MPEG do.

    Args:
        rgb: pictures in [0, 1].
        strength: quantisation step of the coarsest cosine (orthonormal transform); steps grow sixfold to the finest
            detail and are twice as coarse for colour. 0.06 is about JPEG's quality 50; 0 changes nothing.
    """
    if strength <= 0:
        return rgb
    frames, height, width = rgb.shape[:3]
    basis = _cosines(rgb)
    mix = torch.tensor(LUMA, device=rgb.device, dtype=rgb.dtype)
    planes = F.pad((rgb @ mix.mT).permute(0, 3, 1, 2), (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    rows, columns = planes.shape[2] // BLOCK, planes.shape[3] // BLOCK
    blocks = planes.reshape(frames, 3, rows, BLOCK, columns, BLOCK).transpose(3, 4)
    order = torch.arange(BLOCK, device=rgb.device, dtype=rgb.dtype) / (BLOCK - 1)
    step = strength * (1 + 2.5 * (order[:, None] + order))
    steps = step * torch.tensor([1.0, 2.0, 2.0], device=rgb.device, dtype=rgb.dtype)[:, None, None, None, None]
    kept = (basis @ blocks @ basis.mT / steps).round() * steps
    back = (basis.mT @ kept @ basis).transpose(3, 4).reshape(planes.shape)[:, :, :height, :width]
    return (back.permute(0, 2, 3, 1) @ torch.linalg.inv(mix).mT).clamp(0, 1)


def _cosines(like: Tensor) -> Tensor:
    """Orthonormal DCT-II matrix [8, 8]."""
    k = torch.arange(BLOCK, device=like.device, dtype=like.dtype)
    basis = torch.cos(math.pi / BLOCK * (k + 0.5) * k[:, None]) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis
