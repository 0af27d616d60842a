"""Optical flow to the neighbouring frames as channels of the condition: what a small network sees of motion.

A network of a few million parameters does not learn to match pictures; given the matches, it learns what follows from
them. Six maps per frame: flow to the frame after and to the one before, and how far each is to be believed,

    (u, v) * GAIN / W,   c = 1 / (1 + error / (SURE W)),   all zero where there is no neighbour or no flow at all.

Trained on exact flow that is spoilt on purpose, worse where the truth does not know it (`from_truth`), and sometimes
left out; at inference it is estimated (`estimated`). Ours, not the paper's: published networks never see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.flow.neighbours import NeighbourFlow
from worldline.geometry import camera, sceneflow

CHANNELS = 6
SMALLEST = 16  # pixels a side; in smaller frames there is nothing to match
GAIN = 8.0
SURE = 0.005
"""Error, in picture widths, that halves the confidence."""

INVERSION_STEPS = 4
NOISE_CELL = 8  # pixels over which the spoiling is smooth
FAR = 1e4  # times as far as it was put: no parallax is left
FARTHEST = 0.5  # picture widths; longer flow leads out of the picture and is cut


@dataclass(frozen=True, kw_only=True)
class FlowNoise:
    """How exact flow is spoilt for training, clip by clip.

    Attributes:
        low, high: error in picture widths, drawn log-uniformly.
        unknown: times as much where the truth does not know the flow, or where it does not lead back.
        doubt: standard deviation of the logarithm of the error that is claimed over the one that was made.
        dropout: share of clips without any flow.
    """

    low: float = 0.0005
    high: float = 0.02
    unknown: float = 8.0
    doubt: float = 0.3
    dropout: float = 0.25


def assembled(
    flows: Float[Tensor, "*batch 2 T H W 2"], errors: Float[Tensor, "*batch 2 T H W"]
) -> Float[Tensor, "*batch T H W 6"]:
    """The channels of flow and expected error in pixels, [forward, backward] along the first axis of each clip."""
    width, frames = flows.shape[-2], flows.shape[-4]
    believed = 1 / (1 + errors / (SURE * width))
    maps = torch.cat([flows.clamp(-FARTHEST * width, FARTHEST * width) * (GAIN / width), believed[..., None]], dim=-1)
    there = torch.ones(2, frames, device=flows.device, dtype=flows.dtype)
    there[0, -1] = there[1, 0] = 0
    maps = maps * there[..., None, None, None]
    return torch.cat([maps.select(-5, 0), maps.select(-5, 1)], dim=-1)


def from_truth(
    points: Float[Tensor, "B T H W 3"],
    scene_flow: Float[Tensor, "B T H W 3"],
    valid: Bool[Tensor, "B T H W"],
    known: Bool[Tensor, "B T H W"],
    intrinsics: Float[Tensor, "B T 3 3"],
    cam2world: Float[Tensor, "B T 4 4"],
    noise: FlowNoise,
    generator: torch.Generator,
) -> Float[Tensor, "B T H W 6"]:
    """Channels of spoilt exact flow.

    Args:
        points: world points.
        valid: where they are known; elsewhere is taken for sky, whose flow is the camera's turn, and which in half of
            the clips is claimed to be seen as well as all else (flow estimators do say so of a blank sky).
        scene_flow: to the next frame of the clip; 0 where unknown, so that the flow there is the camera's.
        known: where the scene flow is known.
        intrinsics: pixels.
        cam2world: in the unit of the points.
        noise: how it is spoilt.
        generator: on the device of the points.
    """
    batch, frames, height, width = known.shape
    ahead = [min(t + 1, frames - 1) for t in range(frames)]
    centre = cam2world[:, :, None, None, :3, 3]
    points = torch.where(valid[..., None], points, centre + FAR * (points - centre))
    clear = torch.rand(batch, generator=generator, device=points.device) < 0.5
    known = known | (~valid & clear[:, None, None, None])
    forward = sceneflow.to_optical_flow(points, scene_flow, intrinsics[:, ahead], cam2world[:, ahead])
    forward = torch.nan_to_num(forward).clamp(-FARTHEST * width, FARTHEST * width)
    backward = torch.zeros_like(forward)
    returns = torch.zeros_like(known)
    if frames > 1:
        back, certain = inverted(forward[:, :-1].flatten(0, 1), known[:, :-1].flatten(0, 1))
        backward[:, 1:], returns[:, 1:] = (value.unflatten(0, (batch, frames - 1)) for value in (back, certain))
    sure = torch.stack([known, returns], dim=1)
    flows, errors = spoilt(torch.stack([forward, backward], dim=1), sure, noise, generator)
    kept = torch.rand(batch, generator=generator, device=points.device) >= noise.dropout
    return assembled(flows, errors) * kept[:, None, None, None, None]


def inverted(
    flow: Float[Tensor, "N H W 2"], known: Bool[Tensor, "N H W"]
) -> tuple[Float[Tensor, "N H W 2"], Bool[Tensor, "N H W"]]:
    """Flow back from the second picture, b(p) = -f(p + b(p)) by iteration, and where it is consistent and known."""
    grid = camera.pixel_grid((flow.shape[1], flow.shape[2]), flow.dtype, flow.device)
    back = -flow
    for _ in range(INVERSION_STEPS):
        back = -_read(flow, grid + back)
    missed = (_read(flow, grid + back) + back).norm(dim=-1)
    seen = _read(known[..., None].to(flow.dtype), grid + back)[..., 0]
    return back, (missed < 0.5) & (seen > 0.5)


def spoilt(
    flows: Float[Tensor, "B 2 T H W 2"], sure: Bool[Tensor, "B 2 T H W"], noise: FlowNoise, generator: torch.Generator
) -> tuple[Float[Tensor, "B 2 T H W 2"], Float[Tensor, "B 2 T H W"]]:
    """Flow with smooth errors, and the errors that are claimed, in pixels."""
    batch, _, frames, height, width = sure.shape
    device = flows.device
    low, high = (torch.tensor(value, device=device).log() for value in (noise.low, noise.high))
    level = (low + (high - low) * torch.rand(batch, generator=generator, device=device)).exp() * width
    size = level[:, None, None, None, None] * torch.where(sure, 1.0, noise.unknown)
    cells = (-(-height // NOISE_CELL) + 1, -(-width // NOISE_CELL) + 1)
    field = torch.randn(batch * 2 * frames, 3, *cells, generator=generator, device=device)
    field = F.interpolate(field, (height, width), mode="bilinear", align_corners=True)
    field = field.unflatten(0, (batch, 2, frames)).movedim(-3, -1)
    return flows + field[..., :2] * size[..., None], size * (noise.doubt * field[..., 2]).exp()


def estimated(flow: NeighbourFlow, size: tuple[int, int]) -> Float[Tensor, "T 6 h w"]:
    """Channels of estimated flow at the size that networks work at; area means, as of the frames themselves."""
    maps = assembled(torch.stack([flow.forward, flow.backward]), torch.stack([flow.forward_error, flow.backward_error]))
    return F.interpolate(maps.movedim(-1, 1), size, mode="area")


def shrunk(images: Float[Tensor, "T 3 H W"], max_pixels: int | None) -> Float[Tensor, "T 3 h w"]:
    """Frames of at most this area, same aspect; None leaves them as they are."""
    height, width = images.shape[-2:]
    if max_pixels is None or height * width <= max_pixels:
        return images
    ratio = (max_pixels / (height * width)) ** 0.5
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _read(maps: Float[Tensor, "N H W C"], uv: Float[Tensor, "N H W 2"]) -> Float[Tensor, "N H W C"]:
    """Bilinear values at pixel positions, borders repeated."""
    size = uv.new_tensor([maps.shape[2], maps.shape[1]])
    place = (2 * uv + 1) / size - 1
    read = F.grid_sample(maps.movedim(-1, 1), place, padding_mode="border", align_corners=False)
    return read.movedim(1, -1)
