"""A prior in miniature: what Stable Diffusion and SVD give the paper, trained on the colours of synthetic clips alone.

    SD's VAE      -> an autoencoder of single frames in the geometry VAE's sizes: where stage 1 can start
    SVD's VAE     -> another in the condition encoder's sizes
    SVD's U-Net   -> a denoiser of frame latents that is shown the first frame (its latent beside the noisy ones, one
                     image token): where stage 3 can start, through `networks.unet_weights_from_prior`
    CLIP          -> the image encoder, trained with the denoiser

No depth, no camera and no motion is ever shown to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.diffusion.edm import loss_weight
from worldline.io.ledger import sha256
from worldline.io.tensors import WeightsError
from worldline.systems import flow_input
from worldline.systems.motioncrafter import losses
from worldline.systems.motioncrafter.conditioning import clip_pixels
from worldline.systems.motioncrafter.config import MotionCrafterConfig, mini_config
from worldline.systems.motioncrafter.networks import (
    GeometryMotionVAE,
    build_image_encoder,
    build_unet,
    time_ids,
    unet_weights_from_prior,
)
from worldline.systems.motioncrafter.objective import NoiseLevels, denoised, images, noised, sampled, train_only
from worldline.systems.motioncrafter.recipes import ClipConfig, Recipe, Stage, VaeStrategy
from worldline.training import export as exporting
from worldline.training import stages
from worldline.training.config import TrainConfig, scene_seeds
from worldline.training.loop import Batches

NAME = "motioncrafter-prior"
AUTOENCODERS = ("vae.", "rgb_vae.")
DENOISER = ("unet.", "image_encoder.")


class VideoPrior(nn.Module):
    """Two picture autoencoders, a video denoiser and an image encoder; prefixes vae, rgb_vae, unet, image_encoder."""

    def __init__(self, config: MotionCrafterConfig) -> None:
        """Build with random weights, in the sizes that a MotionCrafter of this configuration can start from."""
        super().__init__()
        one = replace(config, fusion="offset", paradigm="denoising")  # one latent, and [noisy | condition] in front
        self.config = one
        self.vae = GeometryMotionVAE(config.vae, fusion="none")
        self.rgb_vae = GeometryMotionVAE(config.rgb_vae, fusion="none")
        self.unet = build_unet(one)
        self.image_encoder = build_image_encoder(config.image_encoder)

    @torch.no_grad()
    def latents(self, frames: Float[Tensor, "B T H W 3"]) -> Float[Tensor, "B T C h w"]:
        """Scaled latents of frames in [-1, 1]."""
        latents = self.vae.encode(images(frames)).mode().float() * self.config.scaling_factor
        return latents.unflatten(0, (len(frames), -1))


@dataclass(frozen=True, kw_only=True)
class PictureObjective:
    """Both autoencoders reconstruct single frames."""

    def __call__(self, model: VideoPrior, frames: Tensor, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Terms "picture" and "picture_condition" (absolute plus squared error), and "kl" of both; frames in [0, 1]."""
        pictures = images(frames * 2 - 1)
        terms: dict[str, Tensor] = {}
        divergences = []
        for name, vae in (("picture", model.vae), ("picture_condition", model.rgb_vae)):
            posterior = vae.encode(pictures)
            error = vae.decode(sampled(posterior, generator)).float() - pictures
            terms[name] = error.abs().mean() + error.square().mean()
            divergences.append(losses.kl(posterior.mean.float(), posterior.logvar.float()))
        return terms | {"kl": torch.stack(divergences).sum()}


@dataclass(frozen=True, kw_only=True)
class DenoiserObjective:
    """The U-Net denoises the latents of a clip, shown its first frame, as SVD does.

    Attributes:
        sigmas: noise levels.
        condition_noise: strength of the noise on the shown frame, exp(N(log_mean, log_std)), told as the third time id.
        condition_dropout: share of clips that are shown nothing.
    """

    sigmas: NoiseLevels = NoiseLevels()
    condition_noise: tuple[float, float] = (-4.0, 0.5)
    condition_dropout: float = 0.1

    def __call__(self, model: VideoPrior, frames: Tensor, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Term "denoise": squared error of the clean latents, weighted (sigma^2 + 1) / sigma^2; frames in [0, 1]."""
        count, length = frames.shape[:2]
        device = frames.device
        video = frames * 2 - 1
        clean = model.latents(video)
        log_mean, log_std = self.condition_noise
        strength = (log_mean + log_std * torch.randn(count, generator=generator, device=device)).exp()
        first = images(video[:, :1])
        noisy_first = first + strength[:, None, None, None] * torch.randn(
            first.shape, generator=generator, device=device
        )
        with torch.no_grad():
            seen = model.rgb_vae.encode(noisy_first).mode().float()
        token = model.image_encoder(clip_pixels(first, model.config.image_encoder.image_size)).image_embeds.float()
        kept = torch.rand(count, generator=generator, device=device) >= self.condition_dropout
        condition = (seen * kept[:, None, None, None])[:, None].expand(-1, length, -1, -1, -1)
        tokens = (token * kept[:, None])[:, None].expand(-1, length, -1)
        sigma = self.sigmas.sample(count, generator)
        ids = time_ids(clean, strength)
        found = denoised(model.unet, noised(clean, sigma, generator), sigma, condition, tokens, ids)
        error = (found - clean).square() * loss_weight(sigma)[:, None, None, None, None]
        return {"denoise": error.mean()}


def mini_prior(
    *,
    seed: int = 5,
    networks: MotionCrafterConfig | None = None,
    size: tuple[int, int] = (48, 64),
    steps: tuple[int, int] = (600, 1500),
    batch_size: int = 8,
) -> Recipe:
    """The prior of the mini: autoencoders, then the denoiser, on the colours of synthetic clips.

    Its seed, and so its scenes, are others than those of the systems that start from it.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": "bf16",
        "seed": seed,
        "gradient_clip": 1.0,
        "ema_decay": 0.99,
    }
    pictures = TrainConfig(
        name="pictures",
        steps=steps[0],
        learning_rate=2e-3,
        warmup_steps=min(40, steps[0] // 5),
        weights={"picture": 1.0, "picture_condition": 1.0, "kl": 1e-4},
        **common,
    )
    video = TrainConfig(
        name="video",
        steps=steps[1],
        learning_rate=1e-3,
        warmup_steps=min(60, steps[1] // 5),
        weights={"denoise": 1.0},
        **common,
    )
    first = Stage(
        train=pictures,
        trainable=AUTOENCODERS,
        objective=PictureObjective(),
        clips=ClipConfig(size=size, views=((2, 1), (2, 3))),
    )
    second = Stage(
        train=video,
        trainable=DENOISER,
        objective=DenoiserObjective(),
        clips=ClipConfig(size=size, views=((4, 1), (4, 2))),
        measure_latents=True,
    )
    return Recipe(name=NAME, networks=networks or mini_config(), stages=(first, second), seed=seed)


def _networks(recipe: Recipe) -> VideoPrior:
    return VideoPrior(recipe.networks)


def _begin(model: VideoPrior, stage: Stage, start: stages.Start) -> VideoPrior:
    if stage.measure_latents:
        factor = start.measured("scaling_factor", lambda: _latent_scale(model, start))
        model.config = replace(model.config, scaling_factor=factor)
    train_only(model, stage.trainable)
    return model.train()


def _latent_scale(model: VideoPrior, start: stages.Start) -> float:
    model.config = replace(model.config, scaling_factor=1.0)
    batches = start.batches(model)
    clips = [model.latents(batches(index) * 2 - 1).flatten() for index in range(stages.MEASURED_BATCHES)]
    return round(1 / float(torch.cat(clips).std()), 5)


def synthetic(stage: Stage, model: VideoPrior, device: str) -> Batches:
    """Frames [B, T, H, W, 3] in [0, 1] of synthetic scenes; the batch index decides the scenes."""
    from worldline.data.synthetic import RenderConfig, SensorConfig, render_batch

    config = RenderConfig(sensor=SensorConfig())

    @lru_cache(maxsize=stage.clips.round)
    def scenes(number: int) -> Tensor:
        seeds = scene_seeds(stage.train, number)
        return render_batch(seeds, frames=stage.clips.span, size=stage.clips.size, device=device, config=config).rgb

    return lambda index: scenes(stage.clips.scenes(index))[:, stage.clips.view(index)]


METHOD = stages.Method(build=_networks, begin=_begin, source=synthetic)

run = partial(stages.run, METHOD)
"""`stages.run` of the prior's recipe."""


def export(model: VideoPrior, path: Path, card: Mapping[str, Any]) -> Path:
    """Write all weights, and beside them a JSON (see `training.export`)."""
    return exporting.export(model.state_dict(), path, model.config.to_dict(), card)


def load(path: Path) -> VideoPrior:
    """A prior written by `export`, in float32.

    Raises:
        FileNotFoundError: the file or the JSON of its name is not there.
        WeightsError: not the file its JSON describes, or not a prior.
    """
    about = path.with_suffix(".json")
    for needed in (path, about):
        if not needed.is_file():
            raise FileNotFoundError(f"There is no {needed}; a prior is a .safetensors file and its .json.")
    card = json.loads(about.read_text())
    if card.get("sha256") != sha256(path):
        raise WeightsError(f"{path} is not the file that {about.name} describes; get both again.")
    if card.get("recipe") != NAME:
        raise WeightsError(f"{path} is no prior; make one with `worldline train {NAME}`.")
    model = VideoPrior(MotionCrafterConfig.from_dict(card["config"]))
    stages.load_weights(model, stages.read_prior(path))
    return model.requires_grad_(False).eval()


def start_from(
    prior: VideoPrior, config: MotionCrafterConfig, strategy: VaeStrategy = "all", *, unet: bool = True
) -> dict[str, Tensor]:
    """What a MotionCrafter can take from a prior, by its own names.

    Args:
        prior: of the same sizes.
        config: of the MotionCrafter.
        strategy: "scratch" leaves the geometry VAE random; all others start it as the picture autoencoder.
        unet: also take the U-Net, the condition encoder and the image encoder.

    Raises:
        WeightsError: the sizes differ.
    """
    for part in ("vae", "rgb_vae", "unet", "image_encoder"):
        if getattr(prior.config, part) != getattr(config, part):
            raise WeightsError(f"The prior's {part} has other sizes than the model's; train a prior of its sizes.")
    state = prior.state_dict()

    def of(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}

    weights: dict[str, Tensor] = {}
    if strategy != "scratch":
        weights |= {f"vae.{key}": value for key, value in of("vae.").items()}
    if unet:
        seen = {key: value for key, value in of("rgb_vae.").items() if key.startswith(("encoder.", "quant_conv."))}
        weights |= {f"rgb_vae.{key}": value for key, value in seen.items()}
        weights |= {f"image_encoder.{key}": value for key, value in of("image_encoder.").items()}
        weights |= {f"unet.{key}": value for key, value in unet_weights_from_prior(of("unet."), config).items()}
        weights = reading_flow(weights) if config.optical_flow else weights
    return weights


def fitted(weights: dict[str, Tensor], own: MotionCrafterConfig, wanted: MotionCrafterConfig) -> dict[str, Tensor]:
    """Weights of a finished checkpoint for networks that may also read optical flow, and scale latents otherwise.

    New input channels begin at zero, and the U-Net's output is rescaled, so that nothing changes at first.
    """
    widened = reading_flow(weights) if wanted.optical_flow and not own.optical_flow else dict(weights)
    for name in ("unet.conv_out.weight", "unet.conv_out.bias"):
        widened[name] = weights[name] * (wanted.scaling_factor / own.scaling_factor)
    return widened


def reading_flow(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of networks that see colours alone, for ones that read optical flow, too, and make nothing of it yet."""
    name = "rgb_vae.encoder.conv_in.weight"
    seen = weights[name]
    nothing = seen.new_zeros(len(seen), flow_input.CHANNELS, *seen.shape[2:])
    return {**weights, name: torch.cat([seen, nothing], dim=1)}


def start(path: Path | None, recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights a run of a recipe begins with: from a prior, from a checkpoint of the model's own names, or none.

    Raises:
        ValueError: the strategy, or the last stage alone, keeps what only a prior has, and there is none.
    """
    strategy: VaeStrategy = options.get("strategy", "all")
    if path is None:
        if options.get("last_stage"):
            raise ValueError("The last stage goes on from a finished checkpoint; give one with --prior FILE.")
        if strategy in ("original", "decoder"):
            raise ValueError(
                f"The strategy '{strategy}' keeps an encoder that was trained before; give one with --prior FILE "
                f"(`worldline train {NAME}` makes it)."
            )
        return {}
    about = path.with_suffix(".json")
    card = json.loads(about.read_text()) if about.is_file() else {}
    if "config" in card and card.get("recipe") != NAME:  # a checkpoint of the same system
        return fitted(stages.read_prior(path), MotionCrafterConfig.from_dict(card["config"]), recipe.networks)
    return start_from(load(path), recipe.networks, strategy)
