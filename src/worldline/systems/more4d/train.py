"""What training MoRe4D adds to `training.stages`: how stages begin, and samples of synthetic scenes kept on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.systems.more4d import pool
from worldline.systems.more4d.latents import FillLatents, MotionLatents
from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.recipes import Recipe, Stage
from worldline.systems.more4d.representation import to_channels
from worldline.systems.more4d.samples import MotionSamples
from worldline.training import stages
from worldline.training.loop import Batches

Source = stages.Source

KEPT = "kept"
"""Folder beside the checkpoints for rendered scenes and latents; may be deleted, and is then made again."""


def _networks(recipe: Recipe) -> MoRe4D:
    return build(recipe.networks)


def _begin(model: MoRe4D, stage: Stage, start: stages.Start) -> MoRe4D:
    stage.begin(model)
    if stage.measure_latents:
        _measure(model, start.batches(model))
    return model


@torch.no_grad()
def _measure(model: MoRe4D, batches: Batches) -> None:
    """Standardise the latents that a stage generates; the same samples at every resume, so the same constants."""
    found = [batches(index) for index in range(stages.MEASURED_BATCHES)]
    moves = isinstance(found[0], MotionSamples | MotionLatents)
    model.vae.standardise(torch.cat([_mean(model, samples) for samples in found]), motion=moves)


def _mean(model: MoRe4D, samples: Any) -> Tensor:
    """Latents that a stage is to generate."""
    if isinstance(samples, MotionLatents | FillLatents):
        return samples.mean
    if isinstance(samples, MotionSamples):
        return model.vae.encode(to_channels(samples.motion)).mean
    return model.vae.encode_video(2 * to_channels(samples.video) - 1).mean


def synthetic(stage: Stage, model: MoRe4D, device: str, *, folder: Path) -> Batches:
    """Samples of a pool of synthetic scenes; the stage says which kind."""
    scenes = pool.Pool(
        config=stage.pool,
        folder=folder,
        seed=stage.train.seed,
        size=model.config.size,
        frames=model.config.frames,
        focal=model.config.focal,
        device=device,
    )
    made = pool.batches(scenes, stage.samples, stage.train.batch_size, model)
    return lambda index: pool.moved(made(index), device)


def run(recipe: Recipe, folder: Path, *, source: stages.Source | None = None, **options: Any) -> stages.Trained[MoRe4D]:
    """`stages.run` of MoRe4D's recipes; without a source of its own, scenes and latents are kept in the folder."""
    kept = partial(synthetic, folder=folder / KEPT)
    method = stages.Method(build=_networks, begin=_begin, source=kept)
    return stages.run(method, recipe, folder, source=source, **options)
