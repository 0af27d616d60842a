"""Runs a recipe: stage after stage, in chunks of limited time, and exports what inference needs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from worldline.scene import Progress, no_progress
from worldline.systems.motioncrafter.networks import MotionCrafter, build
from worldline.systems.motioncrafter.objective import Clips, clips_of, target_latents, train_only
from worldline.systems.motioncrafter.recipes import Recipe, Stage
from worldline.systems.motioncrafter.representation import to_channels
from worldline.training.clips import clip_flow
from worldline.training.config import scene_seeds
from worldline.training.curve import git_revision
from worldline.training.loop import Batches, train

Source = Callable[[Stage, MotionCrafter, str], Batches]
"""(stage, model, device) -> batches of `Clips` by index."""

MEASURED_BATCHES = 4
"""Batches from which the scale of the latents is measured."""

LEAST_VALID = 0.02
"""Share of a clip's pixels that must show a surface for it to be trained on."""

TRAINING_ONLY = ("vae.encoder", "vae.quant_conv")
"""Prefixes of parameters that inference never reads."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where a run stands: the model so far, and whether every stage is finished."""

    model: MotionCrafter
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
        prior: weights to begin with, by the model's own names; what it lacks begins random.
        resume: use finished stages and checkpoints found in the folder.
        minutes: wall time of this call.
        device: where to train, as for `training.loop.train`.
        progress: told stage, steps done, steps in all.

    Raises:
        ValueError: a checkpoint in the folder is of other settings, or the prior has an unknown name.
    """
    started = time.monotonic()
    source = source or synthetic
    if not resume:
        for kept in folder.glob("*-latents.json"):
            kept.unlink()
    torch.manual_seed(recipe.seed)
    model = build(recipe.networks).to(device)
    _load(model, prior or {})
    for stage in recipe.stages:
        _begin(model, stage, source, device, folder)
        done = folder / f"{stage.train.name}.safetensors"
        if not (resume and done.exists()):
            left = None if minutes is None else minutes - (time.monotonic() - started) / 60
            outcome = train(  # does one step at least, so that every call gets further
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


def _begin(model: MotionCrafter, stage: Stage, source: Source, device: str, folder: Path) -> None:
    """Bring the model into the state in which a stage starts; the same at every resume."""
    if stage.motion_from_geometry:
        model.vae.start_motion_from_geometry()
    if stage.measure_latents:
        model.config = replace(model.config, scaling_factor=_latent_scale(model, stage, source, device, folder))
    train_only(model, stage.trainable)
    model.train()
    if stage.train.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()


def _latent_scale(model: MotionCrafter, stage: Stage, source: Source, device: str, folder: Path) -> float:
    """What latents are multiplied by to have unit variance; measured once and kept, as the run depends on it."""
    kept = folder / f"{stage.train.name}-latents.json"
    if kept.exists():
        return json.loads(kept.read_text())["scaling_factor"]
    model.config = replace(model.config, scaling_factor=1.0)
    batches = source(stage, model, device)
    latents = torch.cat([target_latents(model, batches(index)).flatten() for index in range(MEASURED_BATCHES)])
    factor = round(1 / float(latents.std()), 5)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"scaling_factor": factor}) + "\n")
    return factor


def _load(model: MotionCrafter, weights: Mapping[str, torch.Tensor]) -> None:
    unknown = model.load_state_dict(dict(weights), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"The model has no parameter {unknown[0]} ({len(unknown)} unknown names in all).")


def synthetic(stage: Stage, model: MotionCrafter, device: str) -> Batches:
    """Clips of synthetic scenes, rendered when they are asked for; the batch index decides the scenes."""
    from worldline.data.synthetic import RenderConfig, SensorConfig, SyntheticBatch, render_batch

    config = RenderConfig(sensor=SensorConfig())

    @lru_cache(maxsize=stage.clips.round)
    def scenes(number: int) -> SyntheticBatch:
        seeds = scene_seeds(stage.train, number)
        return render_batch(seeds, frames=stage.clips.span, size=stage.clips.size, device=device, config=config)

    def batch(index: int) -> Clips:
        rendered = scenes(stage.clips.scenes(index))
        return to_clips(rendered, stage.clips.view(index), model.config.normalization)

    return batch


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
    return clips_of(rendered.rgb[:, chosen][kept], channels)


def export(model: MotionCrafter, path: Path, card: Mapping[str, Any]) -> Path:
    """Write the weights inference needs as fp16 safetensors, and beside them a JSON of how they came about.

    The JSON holds `config` (the networks), `sha256` of the weights, `git_revision`, and everything in `card`
    (metrics, unreliable outputs, recipe, seed, command).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().half().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(TRAINING_ONLY)
    }
    save_file(weights, path)
    about = {
        "config": model.config.to_dict(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "git_revision": git_revision(),
        **card,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    return path
