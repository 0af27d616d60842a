"""What training MoRe4D adds to `training.stages`: how stages begin, and samples of synthetic scenes."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.recipes import Recipe, Stage
from worldline.systems.more4d.representation import to_channels
from worldline.systems.more4d.samples import FillSamples, MotionSamples, fill_samples, motion_samples
from worldline.training import stages
from worldline.training.config import scene_seeds
from worldline.training.loop import Batches

ROUND = 32
"""Batches of scenes that are rendered, and then seen `PASSES` times, before the next ones."""

PASSES = 3


def _networks(recipe: Recipe) -> MoRe4D:
    return build(recipe.networks)


def _begin(model: MoRe4D, stage: Stage, start: stages.Start) -> MoRe4D:
    stage.begin(model)
    if stage.measure_latents:
        _measure(model, start.batches(model))
    return model


@torch.no_grad()
def _measure(model: MoRe4D, batches: Batches) -> None:
    """Standardise latents of motion; the same samples at every resume, so the same constants."""
    motions = [to_channels(batches(index).motion) for index in range(stages.MEASURED_BATCHES)]
    model.vae.standardise(torch.cat([model.vae.encode(motion).mean for motion in motions]))


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


METHOD = stages.Method(build=_networks, begin=_begin, source=synthetic)

run = partial(stages.run, METHOD)
"""`stages.run` of MoRe4D's recipes."""
