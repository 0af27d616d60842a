"""Runs a recipe: stage after stage, in chunks of limited time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from worldline.geometry import pointmap
from worldline.scene import Progress, no_progress
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.networks import Geo4D, build, widened
from worldline.systems.geo4d.objective import Clips, target_latents
from worldline.systems.geo4d.recipes import Recipe, Stage
from worldline.training.config import scene_seeds
from worldline.training.loop import Batches, train

Source = Callable[[Stage, Geo4D, str], Batches]
"""(stage, model, device) -> batches of `Clips` by index."""

MEASURED_BATCHES = 4
"""Batches from which the scale of the latents is measured."""

SCENE_FPS = 24.0
"""Frame rate of synthetic scenes."""

GOLDEN = (5**0.5 - 1) / 2

FEWEST_VALID = 0.02
"""Clips with less than this share of valid pixels teach nothing about geometry."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where a run stands: the model so far, and whether every stage is finished."""

    model: Geo4D
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
        source: where clips come from; None renders synthetic scenes.
        prior: weights to begin with, by the model's own names and in the shapes of the first stage; what it lacks
            begins random.
        resume: use finished stages and checkpoints found in the folder.
        minutes: wall time of this call.
        device: where to train, as for `training.loop.train`.
        progress: told stage, steps done, steps in all.

    Raises:
        ValueError: a checkpoint in the folder is of other settings, or the prior has an unknown name.
    """
    started = time.monotonic()
    source = source or synthetic
    torch.manual_seed(recipe.seed)
    model = build(recipe.networks.with_modalities(recipe.stages[0].modalities)).to(device)
    _load(model, prior or {})
    for stage in recipe.stages:
        torch.manual_seed(recipe.seed)  # new parts begin the same at every resume
        model = _begin(model, stage, source, device)
        done = folder / f"{stage.train.name}.safetensors"
        if not (resume and done.exists()):
            left = None if minutes is None else minutes - (time.monotonic() - started) / 60
            if left is not None and left <= 0:
                return Trained(model=model, finished=False)
            outcome = train(
                model,
                stage.objective,
                source(stage, model, device),
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


def _begin(model: Geo4D, stage: Stage, source: Source, device: str) -> Geo4D:
    """Bring the model into the state in which a stage starts; the same at every resume."""
    if stage.modalities != model.config.modalities:
        narrower = not set(model.config.modalities) <= set(stage.modalities)
        model = _anew(model, stage) if narrower else widened(model, stage.modalities)
    if stage.points_from_vae:
        model.start_points_from_vae()
    if stage.measure_latents:
        model.config = _with_scale(model.config, 1.0)
        batches = source(stage, model, device)
        latents = torch.cat(
            [target_latents(model, batches(index).pictures).flatten() for index in range(MEASURED_BATCHES)]
        )
        model.config = _with_scale(model.config, round(1 / float(latents.std()), 5))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(stage.trainable))
    model.train()
    model.unet.gradient_checkpointing = stage.train.gradient_checkpointing
    return model


def _anew(model: Geo4D, stage: Stage) -> Geo4D:
    """A new U-Net for fewer modalities beside the autoencoders (they were trained on all, the U-Net not yet)."""
    fresh = build(model.config.with_modalities(stage.modalities)).to(next(model.parameters()).device)
    _load(fresh, {name: value for name, value in model.state_dict().items() if not name.startswith("unet.")})
    return fresh


def _with_scale(config: Any, scale: float) -> Any:
    return replace(config, vae=replace(config.vae, scaling_factor=scale))


def _load(model: Geo4D, weights: Mapping[str, torch.Tensor]) -> None:
    unknown = model.load_state_dict(dict(weights), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"The model has no parameter {unknown[0]} ({len(unknown)} unknown names in all).")


def synthetic(stage: Stage, model: Geo4D, device: str) -> Batches:
    """Clips of synthetic scenes, rendered when they are asked for; the batch index decides scenes, size and stride."""
    from worldline.data.synthetic import RenderConfig, SensorConfig, render_batch

    config, gain = RenderConfig(sensor=SensorConfig()), model.config.moment_gain

    def batch(index: int) -> Clips:
        chosen, size = stage.clips.view(index), stage.clips.size(index)
        rendered = render_batch(
            scene_seeds(stage.train, index), frames=chosen[-1] + 1, size=size, device=device, config=config
        )
        return to_clips(rendered, chosen, gain)

    return batch


def to_clips(rendered: Any, chosen: list[int], moment_gain: float = 1.0) -> Clips:
    """The chosen frames of rendered truth as training clips; clips with nothing in them are replaced by their likes.

    Raises:
        ValueError: no clip of the batch shows anything.
    """
    valid = rendered.valid[:, chosen]
    usable = torch.nonzero(valid.flatten(1).float().mean(1) >= FEWEST_VALID)[:, 0]
    if len(usable) == 0:
        raise ValueError("No clip of this batch shows a surface; leave the scenes of sky out.")
    take = usable[torch.arange(len(valid), device=usable.device) % len(usable)]
    points, valid, cam2world = rendered.points[take][:, chosen], valid[take], rendered.cam2world[take][:, chosen]
    pictures = rep.to_pictures(points, valid, rendered.intrinsics[take][:, chosen], cam2world, moment_gain=moment_gain)
    unit = torch.stack([box.scale for box in pictures.boxes])
    depth = torch.stack([pointmap.depth_of(clip, pose) for clip, pose in zip(points, cam2world, strict=True)])
    stride = chosen[1] - chosen[0] if len(chosen) > 1 else 1
    return Clips(
        frames=rendered.rgb[take][:, chosen],
        pictures=pictures,
        distance=depth / unit[:, None, None, None],
        fps=torch.full((len(take),), SCENE_FPS / stride, device=points.device),
    )


def mixture(sources: Mapping[str, Source], ratios: Mapping[str, float]) -> Source:
    """A source that draws each batch from one of several, as often as the ratios say, decided by the batch index.

    Multiples of the golden ratio spread evenly, so shares hold in short stretches too, not only on average.

    Raises:
        ValueError: names that do not agree, or ratios that are not positive.
    """
    if set(sources) != set(ratios) or any(ratio <= 0 for ratio in ratios.values()):
        raise ValueError("A mixture needs one positive ratio for each of its sources.")
    names, total = list(sources), sum(ratios.values())
    edges = [sum(ratios[name] for name in names[: place + 1]) / total for place in range(len(names))]

    def pick(index: int) -> str:
        place = (index + 0.5) * GOLDEN % 1.0
        return next((name for name, edge in zip(names, edges, strict=True) if place < edge), names[-1])

    def mixed(stage: Stage, model: Geo4D, device: str) -> Batches:
        batches = {name: source(stage, model, device) for name, source in sources.items()}

        def batch(index: int) -> Any:
            return batches[pick(index)](index)

        return batch

    return mixed
