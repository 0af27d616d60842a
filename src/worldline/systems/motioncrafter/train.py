"""What training MotionCrafter adds to `training.stages`: how stages begin, and clips, synthetic or stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from worldline.data.mixture import Mixture
from worldline.systems.motioncrafter.networks import MotionCrafter, build
from worldline.systems.motioncrafter.objective import Clips, clips_of, target_latents, train_only
from worldline.systems.motioncrafter.recipes import Recipe, Stage
from worldline.systems.motioncrafter.representation import to_channels
from worldline.training import export as exporting
from worldline.training import stages
from worldline.training.clips import clip_flow
from worldline.training.config import scene_seeds
from worldline.training.loop import Batches

Source = stages.Source[Stage, MotionCrafter]

LEAST_VALID = 0.02
"""Share of a clip's pixels that must show a surface for it to be trained on."""

TRAINING_ONLY = ("vae.encoder", "vae.quant_conv")
"""Prefixes of parameters that inference never reads."""


def _networks(recipe: Recipe) -> MotionCrafter:
    return build(recipe.networks)


def _begin(model: MotionCrafter, stage: Stage, start: stages.Start) -> MotionCrafter:
    if stage.motion_from_geometry:
        model.vae.start_motion_from_geometry()
    if stage.measure_latents:
        factor = start.measured("scaling_factor", lambda: _latent_scale(model, start))
        model.config = replace(model.config, scaling_factor=factor)
    train_only(model, stage.trainable)
    model.train()
    if stage.train.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model


def _latent_scale(model: MotionCrafter, start: stages.Start) -> float:
    """What latents are multiplied by to have unit variance."""
    model.config = replace(model.config, scaling_factor=1.0)
    batches = start.batches(model)
    latents = torch.cat([target_latents(model, batches(index)).flatten() for index in range(stages.MEASURED_BATCHES)])
    return round(1 / float(latents.std()), 5)


def synthetic(stage: Stage, model: MotionCrafter, device: str) -> Batches:
    """Clips of synthetic scenes, rendered when they are asked for; the batch index decides the scenes."""
    from worldline.data.synthetic import RenderConfig, SensorConfig, SyntheticBatch, render_batch

    config = RenderConfig(sensor=SensorConfig(shutter=stage.clips.shutter))

    @lru_cache(maxsize=stage.clips.round)
    def scenes(number: int) -> SyntheticBatch:
        seeds = scene_seeds(stage.train, number)
        return render_batch(seeds, frames=stage.clips.span, size=stage.clips.size, device=device, config=config)

    def batch(index: int) -> Clips:
        rendered = scenes(stage.clips.scenes(index))
        return to_clips(rendered, stage.clips.view(index), model.config.normalization)

    return batch


def stored(mixture: Mixture, workers: int = 0) -> Source:
    """Clips of stores in the recipe's sizes and strides; the batch index decides which.

    Args:
        mixture: which stores, in which proportion.
        workers: processes that read ahead.
    """
    from worldline.data.loader import Loader, LoaderConfig, View

    def source(stage: Stage, model: MotionCrafter, device: str) -> Batches:
        views = tuple(View(frames=n, stride=stride, size=stage.clips.size) for n, stride in stage.clips.views)
        plan = LoaderConfig(views=views, batch_size=stage.train.batch_size, seed=stage.train.seed,
                            least_valid=LEAST_VALID, workers=workers)  # fmt: skip
        loader = Loader(mixture, plan)

        def batch(index: int) -> Clips:
            loaded = loader(index).to(device)
            return to_clips(loaded, list(range(loaded.rgb.shape[1])), model.config.normalization)

        return batch

    return source


def to_clips(rendered: Any, chosen: list[int], normalization: Literal["mean", "max"] = "mean") -> Clips:
    """The chosen frames of rendered truth as training clips; scene flow runs from each chosen frame to the next.

    Clips that see almost nothing but sky are left out.

    Raises:
        ValueError: no clip is left.
    """
    flow, flow_valid = rendered.scene_flow, rendered.flow_valid
    if chosen != list(range(rendered.rgb.shape[1])):
        whole = (rendered.points, flow, flow_valid, rendered.intrinsics, rendered.cam2world)
        pairs = [clip_flow(*clip, chosen) for clip in zip(*whole, strict=True)]
        flow, flow_valid = (torch.stack(pieces) for pieces in zip(*pairs, strict=True))
    kept = rendered.valid[:, chosen].flatten(1).float().mean(1) > LEAST_VALID
    if not bool(kept.any()):
        raise ValueError("No clip of this batch sees anything but sky; render other scenes or larger batches.")
    channels = to_channels(
        rendered.points[:, chosen][kept],
        rendered.valid[:, chosen][kept],
        rendered.cam2world[:, chosen][kept],
        flow[kept],
        flow_valid[kept],
        normalization=normalization,
    )
    return clips_of(rendered.rgb[:, chosen][kept], channels, rendered.intrinsics[:, chosen][kept])


def export(model: MotionCrafter, path: Path, card: Mapping[str, Any]) -> Path:
    """Write the weights inference needs as fp16 safetensors, and beside them a JSON (see `training.export`)."""
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    return exporting.export(weights, path, model.config.to_dict(), card)


METHOD = stages.Method(build=_networks, begin=_begin, source=synthetic)

run = partial(stages.run, METHOD)
"""`stages.run` of MotionCrafter's recipes."""
