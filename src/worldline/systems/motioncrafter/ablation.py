"""Trains the rows of `ablation_rows`, and says what rows share.

Every row is a whole system: geometry VAE, motion branch, U-Net. Rows with a stage in common train it once. All rows of
a seed begin with the same random numbers and see the same clips in the same order, so that they can be compared in
pairs; the prior is one for all, as Stable Diffusion is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.io.atomic import atomic_file
from worldline.scene import Progress, no_progress
from worldline.systems.motioncrafter import prior as priors
from worldline.systems.motioncrafter import recipes, train
from worldline.systems.motioncrafter.ablation_rows import Row
from worldline.systems.motioncrafter.config import (
    AutoencoderConfig,
    ImageEncoderConfig,
    MotionCrafterConfig,
    UNetConfig,
)
from worldline.systems.motioncrafter.infer import observe
from worldline.systems.motioncrafter.networks import MotionCrafter
from worldline.systems.motioncrafter.objective import images, maps
from worldline.systems.motioncrafter.recipes import ClipConfig, Recipe, Stage
from worldline.systems.motioncrafter.representation import to_channels, to_maps
from worldline.training.config import SEEDS_PER_RUN, TrainConfig
from worldline.training.loop import Batches

CLIP_SEED = 31
"""Run whose scene seeds the training clips have; the prior has its own."""

MOVING = ("rgb", "points", "scene_flow", "valid", "flow_valid", "dynamic", "intrinsics", "cam2world")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of all rows; together with the code they decide the numbers.

    Attributes:
        size: (H, W) of the clips.
        frames: per clip.
        clips: training clips, rendered once.
        batch_size: clips per step.
        geometry_steps, motion_steps, unet_steps: of the stages of each row.
        prior_steps: of the prior's autoencoders and of its denoiser.
    """

    size: tuple[int, int] = (24, 32)
    frames: int = 4
    clips: int = 240
    batch_size: int = 4
    geometry_steps: int = 120
    motion_steps: int = 50
    unet_steps: int = 80
    prior_steps: tuple[int, int] = (500, 400)
    networks: MotionCrafterConfig = field(default_factory=lambda: networks())


def networks() -> MotionCrafterConfig:
    """The smallest sizes that still are MotionCrafter: latents of 1/4 resolution, two levels, one million weights."""
    vae = AutoencoderConfig(block_out_channels=(8, 16, 32), layers_per_block=1, norm_num_groups=4, latent_channels=4)
    return MotionCrafterConfig(
        vae=vae,
        rgb_vae=vae,
        unet=UNetConfig(
            block_out_channels=(32, 32),
            num_attention_heads=(1, 1),
            layers_per_block=1,
            cross_attention_dim=32,
            addition_time_embed_dim=16,
        ),
        image_encoder=ImageEncoderConfig(
            image_size=32,
            patch_size=8,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=32,
        ),
        window=4,
        overlap=2,
    )


Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""frames [T, H, W, 3] in [0, 1] -> points and scene flow [T, H, W, 3] of some world and unit."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained row.

    Attributes:
        predict: what it says about a clip.
        reconstruct: truth of a clip -> what its VAE makes of it, in the clip's normalised world.
    """

    predict: Predictor
    reconstruct: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]


class Workshop:
    """Trains rows in a folder: the prior and the clips once, stages that rows share once, finished ones never again."""

    def __init__(self, folder: Path, settings: Settings, progress: Progress = no_progress) -> None:
        """Open a folder.

        Raises:
            ValueError: it holds rows of other settings.
        """
        self.folder, self.settings, self.progress = folder, settings, progress
        wanted = json.loads(json.dumps(asdict(settings)))
        about = folder / "settings.json"
        if about.exists() and json.loads(about.read_text()) != wanted:
            raise ValueError(f"{folder} holds rows of other settings; choose another folder, or the same settings.")
        folder.mkdir(parents=True, exist_ok=True)
        about.write_text(json.dumps(wanted, indent=1) + "\n")
        self.clips = self._clips()
        self.prior = self._prior()

    def row(self, row: Row, seed: int) -> Trained:
        """Train a row, or what of it is not there yet."""
        vae = self._vae(row, seed)
        both = [self._unet(row, seed, vae, part) for part in (("all",) if row.unets == "one" else ("points", "flow"))]

        def predict(rgb: Float[Tensor, "T H W 3"]) -> tuple[Tensor, Tensor]:
            seen = [observe(model, rgb) for model in both]
            assert seen[-1].scene_flow is not None
            return seen[0].points, seen[-1].scene_flow

        return Trained(predict=predict, reconstruct=lambda clip: reconstruct(both[0], clip))

    def mean_points(self) -> Float[Tensor, "T H W 3"]:
        """Average normalised point map of the training clips, what one knows without looking; NaN nowhere."""
        clips = self.clips
        points = to_maps(to_channels(clips["points"], clips["valid"], clips["cam2world"]).points)
        known = clips["valid"][..., None]
        return torch.where(known, points, 0).sum(0) / known.sum(0).clamp(min=1)

    def _vae(self, row: Row, seed: int) -> dict[str, Tensor]:
        """Weights of the 4D VAE: the stages "geometry" and "motion"."""
        config = replace(self.settings.networks, normalization=row.normalization, fusion=row.fusion)
        weights = priors.start_from(self.prior, config, row.strategy, unet=False)
        common = f"{row.normalization}-{row.strategy}"
        geometry = self._stages(config)[0]
        if row.strategy == "decoder":
            geometry = replace(geometry, trainable=recipes.GEOMETRY_DECODER)
        if row.strategy != "original":
            weights = self._train(geometry, config, f"geometry-{common}", seed, weights)
            weights = {name: value for name, value in weights.items() if name.startswith(recipes.GEOMETRY)}
        motion = self._stages(config)[1]
        weights = self._train(motion, config, f"motion-{common}-{row.fusion}", seed, weights)
        return {name: value for name, value in weights.items() if name.startswith("vae.")}

    def _unet(self, row: Row, seed: int, vae: dict[str, Tensor], part: str) -> MotionCrafter:
        config = replace(self.settings.networks, normalization=row.normalization, fusion=row.fusion)
        stage = self._stages(config)[2]
        motion = {name: value for name, value in stage.train.weights.items() if name in ("latent_motion", "flow")}
        if part != "all":
            left = {name: value for name, value in stage.train.weights.items() if (name in motion) == (part == "flow")}
            stage = replace(stage, train=replace(stage.train, weights=left))
        if row.video_prior:
            vae = priors.start_from(self.prior, config, "scratch") | vae
        name = f"unet-{row.normalization}-{row.strategy}-{row.fusion}-{part}" + "-scratch" * (not row.video_prior)
        return self._run(stage, config, name, seed, vae)

    def _train(
        self, stage: Stage, config: MotionCrafterConfig, name: str, seed: int, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return self._run(stage, config, name, seed, weights).state_dict()

    def _run(
        self, stage: Stage, config: MotionCrafterConfig, name: str, seed: int, weights: Mapping[str, Tensor]
    ) -> MotionCrafter:
        stage = replace(stage, train=replace(stage.train, seed=seed))
        recipe = Recipe(name=name, networks=config, stages=(stage,), seed=seed)
        folder = self.folder / f"seed-{seed}" / name

        def told(step: str, done: int, total: int) -> None:
            self.progress(f"{name}, seed {seed}", done, total)

        trained = train.run(recipe, folder, source=self._source, prior=weights, progress=told)
        shutil.rmtree(folder / f"{stage.train.name}-checkpoint", ignore_errors=True)
        return trained.model

    def _stages(self, config: MotionCrafterConfig) -> tuple[Stage, ...]:
        settings = self.settings
        common: dict[str, Any] = {"batch_size": settings.batch_size, "ema_decay": 0.97, "checkpoint_every": 500}

        def planned(name: str, steps: int, rate: float, weights: Mapping[str, float]) -> TrainConfig:
            warmup = min(20, steps // 5)
            return TrainConfig(
                name=name, steps=steps, learning_rate=rate, warmup_steps=warmup, weights=weights, **common
            )

        clips = ClipConfig(size=settings.size, views=((settings.frames, 1),))
        pairs = ClipConfig(size=settings.size, views=((2, 1),))
        flow = {"flow": 100.0, "flow_size": 1.0, "kl": 1e-4}
        return recipes.three_stages(
            (planned("geometry", settings.geometry_steps, 2e-3, recipes.geometry_weights()), pairs),
            (planned("motion", settings.motion_steps, 1e-3, flow), pairs),
            (planned("unet", settings.unet_steps, 2e-3, recipes.unet_weights("deterministic")), clips),
            grids=(4,),
            decoded=1,
        )

    def _source(self, stage: Stage, model: MotionCrafter, device: str) -> Batches:
        """Batches of the rendered clips, as their points are normalised for this model."""
        frames, _ = stage.clips.views[0]

        def batch(index: int) -> Any:
            chosen = _chosen(self.settings.clips, stage.train, index)
            start = index % (self.settings.frames - frames + 1)
            clips = _Clips(**{name: value[chosen].to(device) for name, value in self.clips.items()})
            return train.to_clips(clips, list(range(start, start + frames)), model.config.normalization)

        return batch

    def _clips(self) -> dict[str, Tensor]:
        path = self.folder / "clips.safetensors"
        if not path.exists():
            first = CLIP_SEED * SEEDS_PER_RUN
            rendered = render(range(first, first + 2 * self.settings.clips), self.settings, self.settings.clips)
            with atomic_file(path) as draft:
                save_file(rendered, draft)
        return load_file(path)

    def _prior(self) -> priors.VideoPrior:
        path = self.folder / "prior" / "prior.safetensors"
        if not path.exists():
            settings = self.settings
            recipe = priors.mini_prior(
                networks=settings.networks,
                size=settings.size,
                steps=settings.prior_steps,
                batch_size=settings.batch_size,
            )
            first = recipe.seed * SEEDS_PER_RUN
            frames = render(range(first, first + 2 * settings.clips), settings, settings.clips)["rgb"]

            def source(stage: Stage, model: priors.VideoPrior, device: str) -> Batches:
                ends = slice(None, None, settings.frames - 1) if stage is recipe.stages[0] else slice(None)
                return lambda index: frames[_chosen(settings.clips, stage.train, index)][:, ends].to(device)

            trained = priors.run(recipe, path.parent, source=source, progress=self.progress)
            priors.export(trained.model, path, {"recipe": recipe.name, "seed": recipe.seed})
        return priors.load(path)


@dataclass(frozen=True, kw_only=True)
class _Clips:
    """Rendered truth, as far as training and scoring need it; shapes as in `data.synthetic.SyntheticBatch`."""

    rgb: Tensor
    points: Tensor
    scene_flow: Tensor
    valid: Tensor
    flow_valid: Tensor
    dynamic: Tensor
    intrinsics: Tensor
    cam2world: Tensor


def _chosen(count: int, config: TrainConfig, index: int) -> list[int]:
    """Which clips make a batch: every clip once, in an order of the seed, then again in another."""
    places = range(index * config.batch_size, (index + 1) * config.batch_size)
    orders = {turn: _order(count, config.seed, turn) for turn in {place // count for place in places}}
    return [int(orders[place // count][place % count]) for place in places]


def _order(count: int, seed: int, turn: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))


def render(seeds: range, settings: Settings, count: int, least_valid: float = 0.1) -> dict[str, Tensor]:
    """The first `count` clips of these scene seeds that show enough surface, as stacked tensors.

    Raises:
        ValueError: there are not that many.
    """
    from worldline.data.synthetic import RenderConfig, SensorConfig, render_batch

    config, found = RenderConfig(sensor=SensorConfig()), []
    for start in range(0, len(seeds), 8):
        batch = render_batch(seeds[start : start + 8], frames=settings.frames, size=settings.size, config=config)
        kept = torch.nonzero(batch.valid.flatten(1).float().mean(1) >= least_valid)[:, 0]
        found += [{name: getattr(batch, name)[place] for name in MOVING} for place in kept.tolist()]
        if len(found) >= count:
            stacked = {name: torch.stack([clip[name] for clip in found[:count]]) for name in MOVING}
            return {name: value.contiguous() for name, value in stacked.items()}
    raise ValueError(f"Only {len(found)} of {count} clips show a surface; give more seeds.")


@torch.no_grad()
def reconstruct(model: MotionCrafter, clip: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Points and scene flow [T, H, W, 3] of one clip's truth after the VAE's encoders and decoders."""
    truth = (clip[name][None] for name in ("points", "valid", "cam2world", "scene_flow", "flow_valid"))
    channels = to_channels(*truth, normalization=model.config.normalization)
    points, flow = images(to_maps(channels.points)), images(to_maps(channels.scene_flow))
    vae = model.vae
    joint = vae.join(vae.encode(points).mode(), vae.encode_2(flow).mode())
    decoded, moved = vae.decode_joint(joint)
    return maps(decoded, 1)[0], maps(moved, 1)[0]
