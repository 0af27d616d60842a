"""Runs a recipe: stage after stage, in chunks of limited time, on synthetic scenes or on samples from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from worldline.scene import Progress, no_progress
from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.recipes import Recipe, Stage
from worldline.systems.more4d.representation import to_channels
from worldline.systems.more4d.samples import FillSamples, MotionSamples, fill_samples, motion_samples
from worldline.training.config import scene_seeds
from worldline.training.loop import Batches, train

Source = Callable[[Stage, MoRe4D, str], Batches]
"""(stage, model, device) -> samples by index."""

ROUND = 32
"""Batches of scenes that are rendered, and then seen `PASSES` times, before the next ones."""

PASSES = 3


MEASURED_BATCHES = 4
"""Batches from which the constants of latents are measured."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where a run stands: the model so far, and whether every stage is finished."""

    model: MoRe4D
    finished: bool


def run(
    recipe: Recipe,
    folder: Path,
    *,
    source: Source | None = None,
    prior: Mapping[str, torch.Tensor] | None = None,
    resume: bool = True,
    minutes: float | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Trained:
    """Train a recipe into a folder; call again to continue after `minutes` or a kill.

    Args:
        recipe: networks and stages.
        folder: checkpoints, weights and loss curves of the stages.
        source: where samples come from; None renders synthetic scenes.
        prior: weights to begin with, by the model's own names; what it lacks begins random.
        resume: use finished stages and checkpoints found in the folder.
        minutes: wall time of this call.
        device: where to train, as for `training.loop.train`.
        progress: told stage, steps done, steps in all.

    Raises:
        ValueError: a checkpoint in the folder is of other settings, or the prior has an unknown name or shape.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    model = build(recipe.networks).to(device)
    _load(model, prior or {})
    for stage in recipe.stages:
        torch.manual_seed(recipe.seed)  # additions begin the same at every resume
        stage.begin(model)
        if stage.measure_latents:
            _measure(model, (source or synthetic)(stage, model, device))
        done = folder / f"{stage.train.name}.safetensors"
        if not (resume and done.exists()):
            left = None if minutes is None else minutes - (time.monotonic() - started) / 60
            if left is not None and left <= 0:
                return Trained(model=model, finished=False)
            outcome = train(
                model,
                stage.objective,  # type: ignore[arg-type]
                (source or synthetic)(stage, model, device),
                stage.train,
                folder,
                resume=resume,
                minutes=left,
                device=device,
                progress=progress,
            )
            if not outcome.finished:
                return Trained(model=model, finished=False)
        _load(model, load_file(done))
    model.requires_grad_(False)
    return Trained(model=model.eval(), finished=True)


@torch.no_grad()
def _measure(model: MoRe4D, batches: Batches) -> None:
    """Standardise latents of motion; the same samples at every resume, so the same constants."""
    motions = [to_channels(batches(index).motion) for index in range(MEASURED_BATCHES)]
    model.vae.standardise(torch.cat([model.vae.encode(motion).mean for motion in motions]))


def _load(model: MoRe4D, weights: Mapping[str, torch.Tensor]) -> None:
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            found = "no such name" if name not in own else f"{list(own[name].shape)} there"
            raise ValueError(f"The model cannot take {name} {list(value.shape)}: {found}.")
    model.load_state_dict(dict(weights), strict=False)


def synthetic(stage: Stage, model: MoRe4D, device: str) -> Batches:
    """Samples of synthetic scenes; the batch index decides the scenes and, for holes, the other cameras."""
    from worldline.data.synthetic import RenderConfig, SensorConfig, SyntheticBatch, render_batch

    follow = stage.samples == "motion"
    config = RenderConfig(sensor=SensorConfig(), tracks=follow)
    sizes = model.config

    @lru_cache(maxsize=ROUND)
    def scenes(number: int) -> SyntheticBatch:
        seeds = scene_seeds(stage.train, number)
        return render_batch(seeds, frames=sizes.frames, size=sizes.size, device=device, config=config)

    def batch(index: int) -> MotionSamples | FillSamples:
        clips = scenes(index // (ROUND * PASSES) * ROUND + index % ROUND)
        if follow:
            assert clips.tracks is not None and clips.visible is not None
            return motion_samples(
                clips.rgb[:, 0], clips.tracks, clips.visible, clips.valid[:, 0], clips.intrinsics[:, 0],
                clips.cam2world[:, 0], clips.captions, focal=sizes.focal,
            )  # fmt: skip
        generator = torch.Generator().manual_seed(stage.train.seed * 1_000_003 + index)
        return fill_samples(clips.rgb, clips.depth, clips.valid, clips.intrinsics, clips.captions, generator)

    return batch
