"""What each of MoRe4D's stages minimises: (model, samples, generator) -> named scalars (spec 1.4, 2.4, 4.6).

    prior       a masked autoencoder guesses hidden patches of pictures
    autoencoder motion (weighted by visibility), pictures and depth through one video autoencoder
    generator   velocity of trajectory latents, from picture, depth, text and motion features
    inpainter   velocity of video latents, from masked renderings and text

Weights of the terms belong to the recipe. Different from the published trainers, deliberately: gradients reach the
trajectory encoder; hidden tracks count less; means, not sums; sigma in float32; no batch is dropped for its loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldline.systems.more4d import flow
from worldline.systems.more4d.latents import FillLatents, MotionLatents, encode_fill, encode_motion
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.representation import depth_picture, to_channels
from worldline.systems.more4d.samples import FillSamples, MotionSamples
from worldline.systems.more4d.vae import Posterior

MOVING = 0.01
"""Displacements, in widths of the picture, that count as motion."""

MOVING_CELL = 0.3
"""Mean squared change of a standardised latent that counts as motion; what stands still changes by less than 0.02."""


def weighted_mean(value: Float[Tensor, "*any"], weight: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Mean under a weight; 0 where nothing counts."""
    return (value * weight).sum() / weight.sum().clamp(min=1e-6)


def _sampled(posterior: Posterior, generator: torch.Generator) -> Tensor:
    noise = torch.randn(posterior.mean.shape, generator=generator, device=posterior.mean.device)
    return posterior.sample(noise.to(posterior.mean))


def _kept(count: int, dropout: float, generator: torch.Generator) -> Bool[Tensor, " count"]:
    return torch.rand(count, generator=generator, device=generator.device) >= dropout


@dataclass(frozen=True, kw_only=True)
class PriorObjective:
    """The masked autoencoder of the embedded model; published weights bring OmniMAE's.

    Attributes:
        hidden: share of the patches that are hidden.
    """

    hidden: float = 0.75

    def __call__(
        self, model: MoRe4D, samples: MotionSamples, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Term "patches": squared error of hidden patches."""
        images = samples.image.movedim(-1, 1)
        guess, truth, hidden = model.generator.omnimae_extractor.guess(images, self.hidden, generator)
        return {"patches": (guess.float() - truth)[hidden].square().mean()}


@dataclass(frozen=True, kw_only=True)
class VaeObjective:
    """The motion-sensitive autoencoder.

    Attributes:
        pictures: also reconstruct still pictures and depth, which an autoencoder without Wan's weights must learn.
        moving: weight of points that move by more than `MOVING`; most do not, and what stands still is learned first.
        noise: deviation that latents are trained with; None: the posterior's own, as published.
    """

    pictures: bool = False
    moving: float = 1.0
    noise: float | None = None

    def __call__(
        self, model: MoRe4D, samples: MotionSamples, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms "motion" (mean absolute error), "kl" per latent number, and "picture", "depth" if asked.

        A picture is the whole video that begins with it, where that is known: the inpainter works on videos.
        """
        vae, motion, count = model.vae, to_channels(samples.motion), len(samples.motion)
        videos, terms = {"motion": vae.pseudo_video(motion)}, {}
        if self.pictures:
            seen = samples.image[:, None] if samples.video is None else samples.video
            videos |= {"picture": 2 * to_channels(seen) - 1, "depth": depth_picture(samples.depth)[:, :, None]}
        for names in _of_one_length(videos):
            truth = torch.cat([videos[name].float() for name in names])
            posterior = vae.encode_video(truth)
            decoded = vae.decode_video(self._latent(posterior, generator), clamp=False).float()
            for name, was, now in zip(names, truth.split(count), decoded.split(count), strict=True):
                if name == "motion":
                    own = Posterior(mean=posterior.mean[:count], logvar=posterior.logvar[:count])
                    terms["kl"] = vae.of_motion(own).kl().mean() / own.mean[0].numel()
                    error = (vae.from_pseudo_video(now.clamp(-1, 1)).float() - motion).abs().mean(1)
                    moves = samples.motion.norm(dim=-1) > MOVING
                    terms[name] = weighted_mean(error, samples.weight * torch.where(moves, self.moving, 1.0))
                else:
                    terms[name] = (now - was).abs().mean()
        return terms

    def _latent(self, posterior: Posterior, generator: torch.Generator) -> Tensor:
        if self.noise is None:
            return _sampled(posterior, generator)
        noise = torch.randn(posterior.mean.shape, generator=generator, device=posterior.mean.device)
        return posterior.mean + self.noise * noise.to(posterior.mean)


def _of_one_length(videos: dict[str, Tensor]) -> list[list[str]]:
    """Names of videos that can go through the autoencoder as one batch, which costs less than one by one."""
    lengths = {value.shape[2] for value in videos.values()}
    return [[name for name, value in videos.items() if value.shape[2] == length] for length in sorted(lengths)]


@dataclass(frozen=True, kw_only=True)
class GeneratorObjective:
    """4D-STraG: flow matching of trajectory latents; a deterministic generator is asked for them without noise.

    Attributes:
        text_dropout: share of captions left out, for guidance.
        control_dropout: share of pictures whose control latent is zeroed.
        shift: of the noise levels.
        from_mean: learn the mean of a motion's latents, not a sample; published latents are sampled.
        moving: weight of latent cells that move (most do not): where it is not known whether something moves, more than
            1 lets the answer lean towards that it does.
    """

    text_dropout: float = 0.1
    control_dropout: float = 0.02
    shift: float = flow.SHIFT
    from_mean: bool = False
    moving: float = 1.0

    def __call__(
        self, model: MoRe4D, samples: MotionSamples | MotionLatents, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Term "velocity"; samples may have been encoded beforehand."""
        encoded = samples if isinstance(samples, MotionLatents) else encode_motion(model, samples)
        latent = encoded.mean if self.from_mean else _sampled(encoded.posterior, generator)
        conditions, reference = _told(model, encoded)
        count, z = len(latent), model.config.vae.z_dim
        control = conditions[:, :z] * _kept(count, self.control_dropout, generator)[:, None, None, None, None]
        conditions = torch.cat([control, conditions[:, z:]], 1)
        text = model.embed_text(_dropped(encoded.captions, self.text_dropout, generator))
        seen = None if model.image is None else model.image.grey(model.config.size).expand(count, -1, -1)
        return {
            "velocity": _velocity_loss(
                latent,
                conditions,
                generator,
                self.shift,
                lambda told, t: model.generator(told, t, text, seen, reference=reference, motion=encoded.features),
                None if self.moving == 1 else torch.where(_moving_cells(encoded.mean), self.moving, 1.0),
                noiseless=model.config.deterministic,
            )
        }


def _moving_cells(latent: Float[Tensor, "B Z t h w"]) -> Bool[Tensor, "B 1 t h w"]:
    """Cells that differ from those of the first frame, in which nothing has moved yet."""
    return (latent - latent[:, :, :1]).square().mean(1, keepdim=True) > MOVING_CELL


def _told(model: MoRe4D, encoded: MotionLatents) -> tuple[Tensor, Tensor | None]:
    """Conditions (picture, zeros, depth) and the latent of the reference tokens."""
    frames = encoded.mean.shape[2]
    control, grey = (value.expand(-1, -1, frames, -1, -1) for value in (encoded.control, encoded.depth))
    reference = None
    if model.config.generator.reference_tokens:
        # the autoencoder is causal: the first latent of a still clip is that of its picture alone
        reference = encoded.control[:, :, 0] * (model.config.reference == "picture")
    return torch.cat([control, torch.zeros_like(control), grey], dim=1), reference


def _velocity_loss(
    latent: Tensor,
    conditions: Tensor,
    generator: torch.Generator,
    shift: float,
    network: flow.Velocity,
    weight: Tensor | None = None,
    *,
    noiseless: bool = False,
) -> Tensor:
    """Flow matching at drawn noise levels; `noiseless` is the sampler's one step from zeros."""
    if noiseless:
        sigma, noise = latent.new_ones(len(latent)), torch.zeros_like(latent)
    else:
        sigma = flow.training_sigmas(shift).to(latent.device)[flow.draw(len(latent), generator)]
        noise = torch.randn(latent.shape, generator=generator, device=latent.device)
    noisy, target = flow.noised(latent.float(), noise, sigma)
    return flow.loss(network(torch.cat([noisy.to(conditions), conditions], 1), 1000 * sigma), target, weight)


@dataclass(frozen=True, kw_only=True)
class InpainterObjective:
    """4D-ViSM: flow matching of video latents under masked renderings.

    Attributes:
        text_dropout: share of captions left out, for guidance.
        shift: of the noise levels.
        from_mean: learn the mean of a video's latents, not a sample; published latents are sampled.
    """

    text_dropout: float = 0.1
    shift: float = flow.SHIFT
    from_mean: bool = False

    def __call__(
        self, model: MoRe4D, samples: FillSamples | FillLatents, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Term "velocity"; samples may have been encoded beforehand."""
        encoded = samples if isinstance(samples, FillLatents) else encode_fill(model, samples)
        latent = encoded.mean if self.from_mean else _sampled(encoded.posterior, generator)
        text = model.embed_text(_dropped(encoded.captions, self.text_dropout, generator))
        return {
            "velocity": _velocity_loss(
                latent,
                encoded.conditions,
                generator,
                self.shift,
                lambda told, t: model.inpainter(told, t, text, encoded.context, motion=None),
            )
        }


def _dropped(captions: tuple[str, ...], dropout: float, generator: torch.Generator) -> list[str]:
    kept = _kept(len(captions), dropout, generator).tolist()
    return [caption if keep else "" for caption, keep in zip(captions, kept, strict=True)]


def train_only(model: nn.Module, prefixes: tuple[str, ...], except_for: tuple[str, ...] = ()) -> list[str]:
    """Let exactly the parameters whose names start with a prefix, and with none of the exceptions, be trained.

    Returns their names.

    Raises:
        ValueError: a prefix fits no parameter.
    """
    unused, chosen = set(prefixes), []
    for name, parameter in model.named_parameters():
        fitting = {prefix for prefix in prefixes if name.startswith(prefix)}
        unused -= fitting
        trained = bool(fitting) and not name.startswith(except_for or ("\0",))
        parameter.requires_grad_(trained)
        chosen += [name] if trained else []
    if unused:
        raise ValueError(f"No parameter of the model begins with {', '.join(sorted(unused))}.")
    return chosen
