"""What each of MotionCrafter's three stages minimises: (model, clips, generator) -> named scalars (spec 4.5, 4.6).

    1 geometry VAE   X^ = D1(E1(X)):  points, depth, local depth, normals, KL
    2 motion VAE     V^ = D2(E2(V), z_g), geometry branch frozen:  flow under the flow mask, and a pull to no motion
    3 U-Net          z^ = -U(c, t0, e): latents, and points and flow of z^ through the frozen decoders
      or, denoising  z^ = c_skip x + c_out U([c_in x, c], c_noise, e), x = z + sigma n: latents only

Weights of the terms belong to the recipe. Different from the published trainer, deliberately: the frozen decoders pass
gradients to the U-Net, flow is judged where flow is known, and the denoiser is trained with its sampler's scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from worldline.diffusion.edm import Preconditioning, loss_weight
from worldline.systems.flow_input import FlowNoise, from_truth
from worldline.systems.motioncrafter import losses
from worldline.systems.motioncrafter.conditioning import clip_pixels
from worldline.systems.motioncrafter.networks import MotionCrafter
from worldline.systems.motioncrafter.representation import Channels, to_maps

PAPER_GRIDS = (4, 16, 64)
"""Patches a side of the published multi-scale depth term; they must divide the frame."""

NEAREST = 0.05
"""Distances to the camera are not taken below this (in units of the clip) when errors are made relative."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Training clips, normalised; the world is the clip's own (`representation.to_channels`).

    Attributes:
        frames: [B, T, H, W, 3] in [0, 1].
        points: [B, T, H, W, 3]; filled in smoothly where not valid.
        valid: [B, T, H, W] where the points are measured.
        cam2world: [B, T, 4, 4] in the unit of the points.
        scene_flow: [B, T, H, W, 3] to the next frame of the clip; 0 where unknown.
        flow_valid: [B, T, H, W] where the flow is known; never in the last frame.
        intrinsics: [B, T, 3, 3] in pixels.
    """

    frames: Float[Tensor, "B T H W 3"]
    points: Float[Tensor, "B T H W 3"]
    valid: Bool[Tensor, "B T H W"]
    cam2world: Float[Tensor, "B T 4 4"]
    scene_flow: Float[Tensor, "B T H W 3"]
    flow_valid: Bool[Tensor, "B T H W"]
    intrinsics: Float[Tensor, "B T 3 3"]

    def select(self, frames: list[int]) -> Clips:
        """Some frames of every clip, in the same world; their flow still runs to the frame after."""
        return Clips(**{entry.name: getattr(self, entry.name)[:, frames] for entry in fields(self)})


def clips_of(frames: Float[Tensor, "B T H W 3"], channels: Channels, intrinsics: Float[Tensor, "B T 3 3"]) -> Clips:
    """Frames in [0, 1], the channels of their truth and intrinsics in pixels, as training clips."""
    return Clips(
        frames=frames,
        points=to_maps(channels.points),
        valid=channels.valid,
        cam2world=channels.cam2world,
        scene_flow=to_maps(channels.scene_flow),
        flow_valid=channels.flow_valid,
        intrinsics=intrinsics,
    )


def images(maps: Float[Tensor, "B T H W C"]) -> Float[Tensor, "BT C H W"]:
    """Maps of all frames as a batch of images."""
    return maps.flatten(0, 1).permute(0, 3, 1, 2)


def maps(pictures: Float[Tensor, "BT C H W"], batch: int) -> Float[Tensor, "B T H W C"]:
    """The inverse of `images`, in float32: losses are not computed in half precision."""
    return pictures.float().permute(0, 2, 3, 1).unflatten(0, (batch, -1))


def point_terms(
    prediction: Float[Tensor, "B T H W 3"], clips: Clips, grids: tuple[int, ...]
) -> dict[str, Float[Tensor, ""]]:
    """Every loss of a predicted point map."""
    depth = losses.depth_in_camera(prediction, clips.cam2world)
    target = losses.depth_in_camera(clips.points, clips.cam2world)
    terms = {
        "point_squared": losses.squared(prediction, clips.points, clips.valid),
        "point_absolute": losses.absolute(prediction, clips.points, clips.valid),
        "point_relative": relative(prediction, clips),
        "depth": losses.depth_absolute(depth, target, clips.valid),
        "normal": losses.normal(prediction, clips.points, clips.valid),
    }
    if grids:
        terms["local_depth"] = losses.multi_scale_depth(depth, target, clips.valid, grids)
    return terms


def relative(prediction: Float[Tensor, "B T H W 3"], clips: Clips) -> Float[Tensor, ""]:
    """Mean of |X - X*| / |X* - camera|: nearly the paper's point metric, as a loss (ours; near counts like far)."""
    distance = (clips.points - clips.cam2world[..., None, None, :3, 3]).norm(dim=-1).clamp(min=NEAREST)
    error = ((prediction - clips.points).square().sum(-1) + 1e-8).sqrt()
    return losses.masked_mean(error / distance, clips.valid)


def sampled(posterior, generator: torch.Generator) -> Tensor:
    """A sample of a latent posterior, from the step's own randomness."""
    noise = torch.randn(posterior.mean.shape, generator=generator, device=posterior.mean.device)
    return posterior.mean + posterior.std * noise.to(posterior.mean.dtype)


@dataclass(frozen=True, kw_only=True)
class GeometryVaeObjective:
    """Stage 1: the geometry branch reconstructs world point maps."""

    grids: tuple[int, ...] = PAPER_GRIDS

    def __call__(self, model: MotionCrafter, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Point terms of the reconstruction, and "kl"."""
        posterior = model.vae.encode(images(clips.points))
        decoded = model.vae.decode(sampled(posterior, generator))
        terms = point_terms(maps(decoded, len(clips.frames)), clips, self.grids)
        return terms | {"kl": losses.kl(posterior.mean.float(), posterior.logvar.float())}


@dataclass(frozen=True, kw_only=True)
class MotionVaeObjective:
    """Stage 2: the motion branch reconstructs scene flow beside the frozen geometry branch."""

    def __call__(self, model: MotionCrafter, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Terms "flow" (under the flow mask), "flow_size" (published weight 0.01) and "kl"."""
        vae = model.vae
        with torch.no_grad():
            z_geometry = sampled(vae.encode(images(clips.points)), generator)
        posterior = vae.encode_2(images(clips.scene_flow))
        z_motion = sampled(posterior, generator)
        z_geometry, z_motion = vae.split(vae.join(z_geometry, z_motion))
        flow = maps(vae.decode_2(z_motion, z_geometry), len(clips.frames))
        return {
            "flow": losses.squared(flow, clips.scene_flow, clips.flow_valid),
            "flow_size": losses.flow_size(flow),
            "kl": losses.kl(posterior.mean.float(), posterior.logvar.float()),
        }


@dataclass(frozen=True, kw_only=True)
class ConditionNoise:
    """Noise on the condition frames: strength exp(N(log_mean, log_std)) per clip, told to the U-Net as its third id."""

    log_mean: float = -3.0
    log_std: float = 0.5


@dataclass(frozen=True, kw_only=True)
class UNetObjective:
    """Stage 3: the U-Net predicts joint latents from frames.

    Attributes:
        grids: of the multi-scale depth term; () leaves it out.
        condition_noise: see `ConditionNoise`; None feeds clean frames and the id of inference.
        condition_dropout: share of clips whose condition is zeroed (denoising: needed for guidance).
        sigmas: noise levels of the denoising paradigm.
        chunk: decode this many frames at a time and recompute them in the backward pass; None decodes all at once.
        decoded: frames of each clip, drawn at random, that are decoded for the point and flow terms; None: all.
            Flow is not decoded in the clip's last frame.
        flow_noise: how the optical flow is spoilt that the networks see, if their configuration has any.
        latents: whether there are latent terms; without, encoders of points are not needed.
    """

    grids: tuple[int, ...] = PAPER_GRIDS
    condition_noise: ConditionNoise | None = ConditionNoise()
    condition_dropout: float = 0.0
    sigmas: NoiseLevels | None = None
    chunk: int | None = None
    decoded: int | None = None
    flow_noise: FlowNoise = FlowNoise()
    latents: bool = True

    def __call__(self, model: MotionCrafter, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Deterministic: latent, point and flow terms. Denoising: "latent_geometry" and "latent_motion"."""
        condition, tokens, time_ids = self._condition(model, clips, generator)
        if model.config.paradigm == "denoising":
            target = target_latents(model, clips)
            sigma = (self.sigmas or NoiseLevels()).sample(len(target), generator)
            prediction = denoised(model.unet, noised(target, sigma, generator), sigma, condition, tokens, time_ids)
            return latent_terms(model, prediction, target, clips, weight=loss_weight(sigma))
        prediction = model.predict_latents(condition, tokens, time_ids).float()
        terms = latent_terms(model, prediction, target_latents(model, clips), clips) if self.latents else {}
        vae, chosen = model.vae, self._frames(clips, generator)
        moving = [frame for frame in chosen if frame < clips.frames.shape[1] - 1] or chosen
        latents = prediction / model.config.scaling_factor
        points = self._decode(lambda z: vae.decode(vae.split(z)[0]), latents[:, chosen])
        flow = self._decode(lambda z: vae.decode_2(*reversed(vae.split(z))), latents[:, moving])
        known = clips.select(moving)
        return (
            terms
            | point_terms(points, clips.select(chosen), self.grids)
            | {
                "flow": losses.squared(flow, known.scene_flow, known.flow_valid),
                "flow_distance": losses.flow_distance(flow, known.scene_flow, known.flow_valid),
                "flow_size": losses.flow_size(flow),
            }
        )

    def _frames(self, clips: Clips, generator: torch.Generator) -> list[int]:
        """The frames to decode."""
        count = clips.frames.shape[1]
        order = torch.randperm(count, generator=generator, device=generator.device)
        return sorted(order[: self.decoded or count].tolist())

    def _condition(
        self, model: MotionCrafter, clips: Clips, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Condition latents [B, T, C, h, w], image tokens [B, T, D] and time ids [B, 3]."""
        batch, device = len(clips.frames), clips.frames.device
        strength, frames = None, clips.frames * 2 - 1
        if self.condition_noise is not None:
            spread = torch.randn(batch, generator=generator, device=device) * self.condition_noise.log_std
            strength = (self.condition_noise.log_mean + spread).exp()
            noise = torch.randn(frames.shape, generator=generator, device=device)
            frames = frames + strength[:, None, None, None, None] * noise
        if model.config.optical_flow:
            frames = torch.cat([frames, self._flow(clips, generator)], dim=-1)
        posterior = model.rgb_vae.encode(images(frames))
        trained = any(parameter.requires_grad for parameter in model.rgb_vae.parameters())
        latents = posterior.mode() if trained else sampled(posterior, generator)  # a trained encoder needs no noise
        condition = latents.float().unflatten(0, (batch, -1))
        pixels = clip_pixels(images(clips.frames * 2 - 1), model.config.image_encoder.image_size)
        tokens = model.image_encoder(pixels).image_embeds.float().unflatten(0, (batch, -1))
        kept = torch.rand(batch, generator=generator, device=device) >= self.condition_dropout
        return (
            condition * kept[:, None, None, None, None],
            tokens * kept[:, None, None],
            model.time_ids(condition, strength),
        )

    def _flow(self, clips: Clips, generator: torch.Generator) -> Float[Tensor, "B T H W 6"]:
        """Channels of optical flow, spoilt."""
        truth = (clips.points, clips.scene_flow, clips.valid, clips.flow_valid, clips.intrinsics, clips.cam2world)
        return from_truth(*truth, self.flow_noise, generator)

    def _decode(
        self, decoder: Callable[[Tensor], Tensor], joint: Float[Tensor, "B T C h w"]
    ) -> Float[Tensor, "B T H W 3"]:
        """Maps of unscaled joint latents, in chunks if asked; gradients reach the latents."""
        frames = joint.flatten(0, 1)
        if self.chunk is None:
            return maps(decoder(frames), len(joint))
        parts = [recompute(decoder, part, use_reentrant=False) for part in frames.split(self.chunk)]
        return maps(torch.cat(parts), len(joint))


@torch.no_grad()
def target_latents(model: MotionCrafter, clips: Clips) -> Float[Tensor, "B T C h w"]:
    """Scaled joint latents of the truth: posterior means times the scaling factor; unknown flow is encoded as zero."""
    vae = model.vae
    joint = vae.join(vae.encode(images(clips.points)).mode(), vae.encode_2(images(clips.scene_flow)).mode())
    return (joint.float() * model.config.scaling_factor).unflatten(0, (len(clips.frames), -1))


def latent_terms(
    model: MotionCrafter,
    prediction: Float[Tensor, "B T C h w"],
    target: Float[Tensor, "B T C h w"],
    clips: Clips,
    weight: Float[Tensor, " B"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Mean squared latent errors: geometry over all frames, motion over frames whose flow is known somewhere."""
    error = (prediction - target).square()
    if weight is not None:
        error = error * weight[:, None, None, None, None]
    if model.vae.fusion == "offset":  # one latent for both
        return {"latent_geometry": error.mean()}
    geometry, motion = error.split(model.vae.latent_channels, dim=2)
    known = clips.flow_valid.flatten(2).any(-1)
    return {
        "latent_geometry": geometry.mean(),
        "latent_motion": losses.masked_mean(motion.mean(2), spread(known, motion)),
    }


def spread(known: Bool[Tensor, "B T"], latents: Float[Tensor, "B T C h w"]) -> Bool[Tensor, "B T h w"]:
    """A mask of frames as a mask of latent cells."""
    return known[..., None, None].expand(*known.shape, *latents.shape[-2:])


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """Noise levels of denoising training: mostly log-normal, partly log-uniform over all the sampler ever uses.

    The log-normal (SVD's fine-tuning practice, 0.7 and 1.6) almost never reaches 700 or 0.002, where the sampler
    starts and ends; the uniform share makes sure the network has seen both.
    """

    log_mean: float = 0.7
    log_std: float = 1.6
    uniform_share: float = 0.2
    low: float = 0.002
    high: float = 700.0

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
        """One level per clip, within [low, high]."""
        device = generator.device
        uniform, pick = torch.rand(2, count, generator=generator, device=device)
        even = math.log(self.low) + uniform * (math.log(self.high) - math.log(self.low))
        normal = self.log_mean + self.log_std * torch.randn(count, generator=generator, device=device)
        return torch.where(pick < self.uniform_share, even, normal).exp().clamp(self.low, self.high)


def noised(
    latents: Float[Tensor, "B T C h w"], sigma: Float[Tensor, " B"], generator: torch.Generator
) -> Float[Tensor, "B T C h w"]:
    """Noisy latents x = z + sigma n."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return latents + sigma[:, None, None, None, None] * noise


def denoised(
    unet: Callable[..., Tensor],
    noisy: Float[Tensor, "B T C h w"],
    sigma: Float[Tensor, " B"],
    condition: Float[Tensor, "B T K h w"],
    tokens: Float[Tensor, "B T D"],
    time_ids: Float[Tensor, "B 3"],
) -> Float[Tensor, "B T C h w"]:
    """z^ = c_skip x + c_out U([c_in x, c], c_noise, e): channels in the sampler's order, noisy latents first."""
    edm = Preconditioning.of(sigma)
    seen = torch.cat([edm.network_input(noisy), condition], dim=2)
    return edm.denoised(noisy, unet(seen, edm.noise, tokens, time_ids).float())


def train_only(model: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Let exactly the parameters whose names start with a prefix be trained; returns their names.

    Raises:
        ValueError: a prefix fits no parameter.
    """
    unused = set(prefixes)
    chosen = []
    for name, parameter in model.named_parameters():
        fitting = {prefix for prefix in prefixes if name.startswith(prefix)}
        parameter.requires_grad_(bool(fitting))
        unused -= fitting
        chosen += [name] if fitting else []
    if unused:
        raise ValueError(f"No parameter of the model begins with {', '.join(sorted(unused))}.")
    return chosen
