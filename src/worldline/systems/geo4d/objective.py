"""What each stage of Geo4D's training minimises: (model, clips, generator) -> named scalars (paper 3.1 to 3.3).

    autoencoder     pictures of all modalities -> latents -> pictures (only where no pretrained one is at hand)
    point decoder   -ln Laplace(X; X^, sigma) with the encoder frozen (eq. 3)
    denoising       |v^ - v|^2 of the latents of all modalities, x_t = sqrt(a_t) s_t z + sqrt(1 - a_t) n

None of this was released; the denoising target follows the published class, the rest the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.diffusion import ddim
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.config import Modality
from worldline.systems.geo4d.frames import flow_cells
from worldline.systems.geo4d.networks import Geo4D
from worldline.systems.geo4d.vae import laplace_nll

NEAREST = 0.02
"""Distances are not taken below this share of the depth range when errors are made relative."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Training clips.

    Attributes:
        frames: [B, T, H, W, 3] in [0, 1].
        pictures: their truth.
        distance: [B, T, H, W] depth of each pixel in its camera, in units of the points' pictures.
        fps: [B] frames per second after striding.
        flow: [B, T, 6, H, W] optical flow to the neighbouring frames of the clip (`flow_input`), for networks that read
            it; None: they see none.
    """

    frames: Float[Tensor, "B T H W 3"]
    pictures: rep.Pictures
    distance: Float[Tensor, "B T H W"]
    fps: Float[Tensor, " B"]
    flow: Float[Tensor, "B T 6 H W"] | None = None


def flat(pictures: Float[Tensor, "B T C H W"]) -> Float[Tensor, "BT C H W"]:
    """Frames of all clips as one batch of pictures."""
    return pictures.flatten(0, 1)


def masked_mean(error: Float[Tensor, "*any"], mask: Bool[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Mean over the mask; 0 for an empty one."""
    return (error * mask).sum() / mask.sum().clamp(min=1)


def point_terms(
    predicted: Float[Tensor, "N 3 H W"],
    raw: Float[Tensor, "N 1 H W"] | None,
    truth: Float[Tensor, "N 3 H W"],
    valid: Bool[Tensor, "N H W"],
    distance: Float[Tensor, "N H W"],
) -> dict[str, Float[Tensor, ""]]:
    """Errors of predicted points: absolute, relative to distance, of the mark of invalid pixels; with `raw`, eq. 3."""
    predicted = predicted.float()
    error = ((predicted - truth).square().sum(1) + 1e-8).sqrt()
    terms = {
        "points": masked_mean(error, valid),
        "points_relative": masked_mean(error / (2 * distance.clamp(min=NEAREST)), valid),
        "points_mark": masked_mean((predicted - truth).abs().mean(1), ~valid),
    }
    if raw is not None:
        terms["points_nll"] = masked_mean(laplace_nll(predicted, truth, raw.float())[:, 0], valid)
    return terms


@dataclass(frozen=True, kw_only=True)
class AutoencoderObjective:
    """The common autoencoder reconstructs the pictures of all modalities.

    Attributes:
        frames: frames drawn from each clip.
    """

    frames: int = 2

    def __call__(self, model: Geo4D, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Point terms, mean absolute errors of the other modalities, and "kl"."""
        chosen = some_frames(clips, self.frames, generator)
        pictures = {name: flat(value[:, chosen]) for name, value in pictures_of(model, clips.pictures).items()}
        posterior = model.vae.encode(torch.cat(list(pictures.values())))
        mean, std = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        decoded = dict(zip(pictures, model.vae.decode(mean + std * noise).float().chunk(len(pictures)), strict=True))
        terms: dict[str, Tensor] = {
            name: (decoded[name] - pictures[name]).abs().mean() for name in pictures if name != "points"
        }
        valid, distance = clips.pictures.valid[:, chosen].flatten(0, 1), clips.distance[:, chosen].flatten(0, 1)
        terms |= point_terms(decoded["points"], None, pictures["points"], valid, distance)
        return terms | {"kl": 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()}


@dataclass(frozen=True, kw_only=True)
class PointDecoderObjective:
    """Points are decoded, with their uncertainty, from the latents of the frozen encoder (eq. 3).

    Attributes:
        frames: frames drawn from each clip.
    """

    frames: int = 4

    def __call__(self, model: Geo4D, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Point terms with "points_nll"."""
        chosen = some_frames(clips, self.frames, generator)
        truth = flat(clips.pictures.points[:, chosen])
        with torch.no_grad():
            posterior = model.vae.encode(truth)
            noise = torch.randn(posterior.mean.shape, generator=generator, device=truth.device)
            latents = posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
        valid, distance = clips.pictures.valid[:, chosen].flatten(0, 1), clips.distance[:, chosen].flatten(0, 1)
        return point_terms(*model.point_vae.decode_with_uncertainty(latents), truth, valid, distance)


@dataclass(frozen=True, kw_only=True)
class DenoisingObjective:
    """The U-Net predicts v of the latents of all modalities from noisy latents and the video.

    Attributes:
        last_share: share of the clips that are shown pure noise (the sampler's first, or only, step); the others get a
            uniform timestep, as published for all.
        decoded: frames of each clip whose predicted latents are decoded too; 0: none, as published.
    """

    last_share: float = 0.0
    decoded: int = 0

    def __call__(self, model: Geo4D, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Mean squared error of v for each modality by its name; errors of decoded frames."""
        schedule = ddim.zero_snr_schedule()
        clean = target_latents(model, clips.pictures)
        timestep = self._timesteps(len(clean), len(schedule.alphas_cumprod), generator)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy, target = schedule.noised(clean, noise, timestep)
        seen = conditions(model, clips.frames, clips.flow)
        context = model.context.expand(len(clean), -1, -1)
        predicted = model.unet(torch.cat([noisy, seen], dim=1), timestep, context, clips.fps).float()
        error = model.split((predicted - target).square())
        terms: dict[str, Tensor] = {name: value.mean() for name, value in error.items()}
        if self.decoded == 0:
            return terms
        alpha = ddim.spread(schedule.alphas_cumprod.to(clean.device)[timestep], noisy)
        scale = ddim.spread(schedule.scale.to(clean.device)[timestep], noisy)
        estimate = (alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted) / scale
        return terms | {f"decoded_{name}": v for name, v in self._decoded(model, estimate, clips, generator).items()}

    def _timesteps(self, count: int, total: int, generator: torch.Generator) -> Int[Tensor, " B"]:
        device = generator.device
        uniform = torch.randint(total, (count,), generator=generator, device=device)
        last = torch.rand(count, generator=generator, device=device) < self.last_share
        return torch.where(last, total - 1, uniform)

    def _decoded(
        self, model: Geo4D, latents: Float[Tensor, "B C T h w"], clips: Clips, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        chosen = some_frames(clips, self.decoded, generator)
        parts = model.split(latents[:, :, chosen] / model.config.vae.scaling_factor)
        points = parts["points"].transpose(1, 2).flatten(0, 1)
        valid, distance = clips.pictures.valid[:, chosen].flatten(0, 1), clips.distance[:, chosen].flatten(0, 1)
        predicted, raw = model.point_vae.decode_with_uncertainty(points)
        terms = point_terms(predicted, raw, flat(clips.pictures.points[:, chosen]), valid, distance)
        others = [name for name in parts if name != "points"]
        if others:
            latents = torch.cat([parts[name].transpose(1, 2).flatten(0, 1) for name in others])
            truth = torch.cat([flat(getattr(clips.pictures, name)[:, chosen]) for name in others])
            errors = (model.vae.decode(latents).float() - truth).abs().chunk(len(others))
            terms |= {name: error.mean() for name, error in zip(others, errors, strict=True)}
        return terms


def some_frames(clips: Clips, count: int, generator: torch.Generator) -> list[int]:
    """Frames drawn without repetition, the same in every clip."""
    total = clips.frames.shape[1]
    return sorted(torch.randperm(total, generator=generator, device=generator.device)[:count].tolist())


def pictures_of(model: Geo4D, pictures: rep.Pictures) -> dict[Modality, Float[Tensor, "B T 3 H W"]]:
    """The pictures of the model's modalities, in order."""
    return {name: getattr(pictures, name) for name in model.config.modalities}


@torch.no_grad()
def target_latents(model: Geo4D, pictures: rep.Pictures) -> Float[Tensor, "B C T h w"]:
    """Scaled latents of the truth: posterior means of all modalities, one after the other."""
    latents = [
        model.vae.encode(flat(value)).mode().float().unflatten(0, value.shape[:2])
        for value in pictures_of(model, pictures).values()
    ]
    return torch.cat(latents, dim=2).transpose(1, 2) * model.config.vae.scaling_factor


def conditions(
    model: Geo4D, frames: Float[Tensor, "B T H W 3"], flow: Float[Tensor, "B T 6 H W"] | None = None
) -> Float[Tensor, "B Z T h w"]:
    """What the U-Net is told: scaled latents of the video, and its optical flow if the model reads any.

    Gradients reach the encoder if it is trained.
    """
    pictures = frames.movedim(-1, 2) * 2 - 1
    latents = model.seeing.encode(flat(pictures)).mode().float().unflatten(0, pictures.shape[:2])
    told = latents * model.seeing.config.scaling_factor
    if model.config.optical_flow:
        count, size = model.config.flow_channels, (told.shape[-2], told.shape[-1])
        cells = told.new_zeros(*told.shape[:2], count, *size)
        if flow is not None:
            cells = flow_cells(flat(flow), size).unflatten(0, told.shape[:2]).to(told)
        told = torch.cat([told, cells], dim=2)
    return told.transpose(1, 2)
