"""What the networks say about one window of a video: points, disparity and rays in the window's own frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.align.config import AlignConfig
from worldline.align.observation import Observation
from worldline.diffusion import ddim
from worldline.geometry import pointmap
from worldline.scene import Video
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.config import MODALITIES, Modality
from worldline.systems.geo4d.frames import Fit, FrameFlow, FrameLatents, flow_cells
from worldline.systems.geo4d.networks import Geo4D
from worldline.systems.offload import placed

USUAL_FPS = 24.0

PointDecoder = Literal["uncertain", "certain", "common"]

CERTAIN = 0.5413248546129181
"""Uncertainty channel of a pixel whose weight 1 / softplus is 1."""


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """How a video is worked through; None means what the model was made for.

    Attributes:
        stride: frames from one window to the next, less than a window, or nothing ties them together.
        steps: denoising steps.
        seeds: one run per seed; several give a per-pixel spread, hence confidence.
        final: what the sampler returns, see `diffusion.ddim`.
        modalities: what the alignment is told; points always.
        point_decoder: how latents of points are decoded: by their own decoder with its uncertainty, by it with every
            pixel as certain as any other, or by the common autoencoder, which says nothing about certainty.
        sky: which of the published thresholds for "nothing there".
        ray_reduction: rays are decoded from latents averaged over so many cells a side; 1 is exact, and costs as
            much as points and disparity together.
        chunk: frames encoded or decoded at once; changes memory, not results.
        max_pixels: larger frames are shrunk to this area, padding included, for the networks, and their maps enlarged
            again without mixing surfaces; None works at the frames' own size.
        device: where networks run; another device than the model's moves each network there only while it works.
        optical_flow: let networks that read optical flow see it; False: they work from the colours alone.
        flow_pixels: area that frames are shrunk to before their flow is estimated.
        spread: disagreement between seeds, relative to the depth range, that halves the confidence.
        align: how windows become one world.
    """

    stride: int | None = None
    steps: int | None = None
    seeds: tuple[int, ...] = (0,)
    final: ddim.Final = "published"
    modalities: tuple[Modality, ...] = MODALITIES
    point_decoder: PointDecoder = "uncertain"
    sky: Literal["evaluation", "demo"] = "evaluation"
    ray_reduction: int = 1
    chunk: int = 4
    max_pixels: int | None = None
    device: str | None = None
    optical_flow: bool = True
    flow_pixels: int = 96 * 128
    spread: float = 0.02
    align: AlignConfig = AlignConfig()


DEFAULTS = InferConfig()


class Observer:
    """Says what the model sees in windows of one video; each frame is encoded once."""

    def __init__(self, video: Video, model: Geo4D, config: InferConfig = DEFAULTS) -> None:
        self.video, self.model, self.config = video, model, config
        home = next(model.unet.parameters()).device
        self.device = home if config.device is None else torch.device(config.device)
        self.fit = Fit.of(video.size, model.config.size_multiple, config.max_pixels)
        self.latents = FrameLatents(video, self.fit, model.seeing, self.device, config.chunk)
        self.flow = FrameFlow(video, self.fit, config.flow_pixels)
        self.schedule = ddim.zero_snr_schedule()

    @torch.inference_mode()
    def observe(self, window: range) -> Observation:
        """One window; float32 on the CPU, at the video's size.

        A video that is shorter than the window is continued with its last frame; what is said about the continuation is
        dropped. Points are in the unit of the window's depth range, with the first camera at the origin as far as their
        perspective tells.
        """
        # 1. the window's latents; a short video stands still after its end
        padded = [*window] + [window[-1]] * (self.model.config.window - len(window))
        with placed(self.model.seeing, self.device):
            seen = self.latents.of(padded) * self.model.seeing.config.scaling_factor
        if self.model.config.optical_flow:
            seen = torch.cat([seen, self._told(window, seen)], dim=1)
        # 2. latents of all modalities, for each seed, then their pictures
        runs = [self._pictures(self._denoise(seen, seed, window.start), len(window)) for seed in self.config.seeds]
        # 3. one answer, as certain as the point decoder says and as the seeds agree
        return self._observation(window, runs)

    def _told(self, window: range, seen: Float[Tensor, "T Z h w"]) -> Float[Tensor, "T C h w"]:
        """Optical flow for the U-Net; none for the continuation of a short video, or where it is not wanted."""
        told = seen.new_zeros(len(seen), self.model.config.flow_channels, *seen.shape[-2:])
        if self.config.optical_flow:
            told[: len(window)] = flow_cells(self.flow.of(window), (seen.shape[-2], seen.shape[-1])).to(told)
        return told

    def _denoise(self, seen: Float[Tensor, "T Z h w"], seed: int, start: int) -> Float[Tensor, "C T h w"]:
        """Latents of all modalities from noise, which is drawn on the CPU: a seed means the same on every device.

        A deterministic model begins with zeros, whatever the seed.
        """
        model, unet = self.model, self.model.unet
        shape = (1, model.config.unet.out_channels, len(seen), *seen.shape[-2:])
        generator = torch.Generator().manual_seed((seed * 1_000_003 + start) % 2**63)
        noise = torch.randn(shape, generator=generator).to(self.device)
        noise = noise * (not model.config.deterministic)
        condition = seen.transpose(0, 1)[None]
        fps = torch.tensor([model.config.fps or self.video.fps or USUAL_FPS], device=self.device)
        with placed(unet, self.device):
            context = model.prepared_context(seen.device)
            return ddim.sample(
                lambda x, timestep: unet(torch.cat([x, condition], dim=1), timestep, context, fps),
                noise,
                self.schedule,
                self.config.steps or model.config.steps,
                final=self.config.final,
            )[0]

    def _pictures(self, latents: Float[Tensor, "C T h w"], count: int) -> dict[str, Tensor]:
        """Decoded pictures [T, C, h, w] of the real frames, cropped, on the CPU; "uncertainty" beside points."""
        model, scale = self.model, self.model.config.vae.scaling_factor
        parts = {name: part[0].transpose(0, 1)[:count] / scale for name, part in model.split(latents[None]).items()}
        pictures = {}
        if self.config.point_decoder != "common":
            with placed(model.point_vae, self.device):
                points = parts.pop("points").split(self.config.chunk)
                decoded = [model.point_vae.decode_with_uncertainty(z) for z in points]
            pictures["points"], pictures["uncertainty"] = (torch.cat(maps) for maps in zip(*decoded, strict=True))
        with placed(model.vae, self.device):
            for name, part in parts.items():
                if name.startswith("ray"):
                    part = _coarser(part, self.config.ray_reduction)
                pictures[name] = torch.cat([model.vae.decode(z) for z in part.split(self.config.chunk)])
        if self.config.point_decoder != "uncertain":
            pictures["uncertainty"] = torch.full_like(pictures["points"][:, :1], CERTAIN)
        return {name: self.fit.crop(maps.float()).cpu() for name, maps in pictures.items()}

    def _observation(self, window: range, runs: list[dict[str, Tensor]]) -> Observation:
        """Pictures at the network's size -> an observation at the video's."""
        stacked = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
        points = rep.read_points(stacked["points"])  # [S, T, H, W, 3]
        invalid = rep.invalid_points(stacked["points"], self.config.sky).float().mean(0) >= 0.5
        raw = stacked["uncertainty"].mean(0)[:, 0]
        confidence = rep.confidence_of(raw, invalid).clamp(max=rep.LARGEST_WEIGHT) * agreement(
            points, self.config.spread
        )
        points = points.median(0).values
        known = torch.isfinite(points).all(-1) & torch.isfinite(confidence) & (confidence > 0)
        disparity = None
        if "disparity" in stacked:
            disparity = rep.read_disparity(stacked["disparity"].mean(0))
            disparity = torch.where(torch.isfinite(disparity), disparity, 0)
        shift = rep.first_camera_shift(points[0], torch.where(known[0], confidence[0], 0))
        points = points if shift is None else rep.shifted(points, shift[1])
        confidence = torch.where(known, confidence, 0)
        points, disparity, confidence = resized(points, disparity, confidence, self.video.size)
        direction, moment = self._rays(stacked) if "ray_direction" in stacked else (None, None)
        return Observation(
            frames=tuple(window),
            points=points,
            confidence=confidence,
            disparity=disparity,
            ray_direction=direction,
            ray_moment=moment,
        )

    def _rays(self, stacked: dict[str, Tensor]) -> tuple[Float[Tensor, "T h w 3"], Float[Tensor, "T h w 3"]]:
        """Rays at every k-th pixel of the video, k as large as the size allows; they vary slowly."""
        direction, moment = (self.fit.smooth(stacked[name].mean(0)) for name in ("ray_direction", "ray_moment"))
        direction, moment = rep.read_rays(direction, moment, self.model.config.moment_gain)
        every = ray_spacing(self.video.size)
        return direction[:, ::every, ::every].contiguous(), moment[:, ::every, ::every].contiguous()


def ray_spacing(size: tuple[int, int]) -> int:
    """Every how many pixels a ray is kept: a divisor of both sides that leaves 8 rays along each."""
    fitting = [k for k in (8, 4, 2) if size[0] % k == 0 and size[1] % k == 0 and min(size) // k >= 8]
    return fitting[0] if fitting else 1


def agreement(points: Float[Tensor, "S T H W 3"], half: float) -> Float[Tensor, "T H W"]:
    """1 / (1 + (spread / half)^2): spread = standard deviation of the seeds, in units of the window's depth range."""
    if len(points) == 1:
        return torch.ones(points.shape[1:-1])
    spread = (points - points.mean(0)).square().sum(-1).mean(0).sqrt()
    return 1 / (1 + (spread / half) ** 2)


def resized(
    points: Float[Tensor, "T h w 3"],
    disparity: Float[Tensor, "T h w"] | None,
    confidence: Float[Tensor, "T h w"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "T H W 3"], Float[Tensor, "T H W"] | None, Float[Tensor, "T H W"]]:
    """Maps at the video's size, every pixel still a pixel of one surface; what is unknown is zero everywhere."""
    known = confidence > 0
    if tuple(points.shape[1:3]) != size:
        beside = confidence if disparity is None else disparity
        other = torch.stack([confidence, beside, beside], -1)
        points, found = pointmap.resize(points, known, size)
        other, _ = pointmap.resize(other, known, size)
        confidence, known = other[..., 0], found
        disparity = None if disparity is None else other[..., 1]
    return torch.where(known[..., None], points, 0), disparity, confidence * known


def _coarser(latents: Float[Tensor, "T Z h w"], by: int) -> Float[Tensor, "T Z h2 w2"]:
    """Latents averaged over `by` x `by` cells, as far as both sides divide."""
    fits = by > 1 and latents.shape[-2] % by == 0 and latents.shape[-1] % by == 0
    return nn.functional.avg_pool2d(latents, by) if fits else latents
