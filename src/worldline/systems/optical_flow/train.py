"""Trains the flow network in chunks of limited time, and exports what inference needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from worldline.data.synthetic import RenderConfig, SensorConfig
from worldline.flow.network import FlowNetwork
from worldline.scene import Progress, no_progress
from worldline.systems.optical_flow.pairs import Pairs, make_pairs
from worldline.systems.optical_flow.recipes import Recipe
from worldline.training import loop
from worldline.training.config import scene_seeds
from worldline.training.curve import git_revision


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where a run stands: the network so far, and whether every step is done."""

    model: FlowNetwork
    finished: bool


def batches(recipe: Recipe, device: str = "cpu", compile: bool = False) -> loop.Batches:
    """Pairs of synthetic scenes by index; the index decides scenes, size, gap and whether there is a hint."""
    config = RenderConfig(sensor=SensorConfig(), compile=compile)
    pairs = recipe.pairs

    def batch(index: int) -> Pairs:
        seeds = scene_seeds(recipe.train, index)
        size = pairs.sizes[index % len(pairs.sizes)]
        gap = pairs.gaps[index // len(pairs.sizes) % len(pairs.gaps)]
        hinted = index % pairs.unhinted != pairs.unhinted - 1
        return make_pairs(seeds, gap, size, device=device, hinted=hinted, config=config)

    return batch


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = True,
    minutes: float | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Trained:
    """Train into a folder; call again to continue after `minutes` or a kill.

    Args:
        recipe: network, pairs, objective and steps.
        folder: checkpoints, weights and the loss curve.
        resume: use the weights or checkpoint found in the folder.
        minutes: wall time of this call.
        device: where to train, as for `training.loop.train`.
        progress: told stage, steps done, steps in all.

    Raises:
        ValueError: a checkpoint in the folder is of other settings.
    """
    torch.manual_seed(recipe.train.seed)
    model = FlowNetwork(recipe.network).to(device)
    done = folder / f"{recipe.train.name}.safetensors"
    if not (resume and done.exists()):
        outcome = loop.train(
            model.train(),
            recipe.objective,
            batches(recipe, device),
            recipe.train,
            folder,
            resume=resume,
            minutes=minutes,
            device=device,
            progress=progress,
        )
        if not outcome.finished:
            return Trained(model=model, finished=False)
    model.load_state_dict(load_file(done))
    return Trained(model=model.eval().requires_grad_(False), finished=True)


def export(model: FlowNetwork, path: Path, card: Mapping[str, Any]) -> Path:
    """Write fp16 weights and, beside them, a JSON of sizes, hash, git revision and everything in `card`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}, path)
    about = {
        "config": asdict(model.config),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "git_revision": git_revision(),
        **card,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    return path
