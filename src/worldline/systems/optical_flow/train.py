"""What training the flow adds to `training.stages`: its network, pairs of synthetic scenes, and its checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from worldline.data.synthetic import RenderConfig, SensorConfig
from worldline.flow.dis import DisFlow, doubled
from worldline.flow.network import FlowNetwork
from worldline.systems.optical_flow.pairs import Pairs, make_pairs
from worldline.systems.optical_flow.recipes import Recipe, Stage
from worldline.training import loop, stages
from worldline.training.config import scene_seeds
from worldline.training.curve import git_revision


def _networks(recipe: Recipe) -> FlowNetwork:
    return FlowNetwork(recipe.networks)


def _begin(model: FlowNetwork, stage: Stage, start: stages.Start) -> FlowNetwork:
    return model.train().requires_grad_(True)


def synthetic(stage: Stage, model: FlowNetwork, device: str) -> loop.Batches:
    """Pairs of synthetic scenes by index; the index decides scenes, size, gap, hint and how it is mirrored."""
    rendered = lru_cache(stage.pairs.block)(partial(render, stage, device=device))

    def batch(index: int) -> Pairs:
        number, turn = stage.pairs.shown(index)
        return rendered(number).mirrored(turn)

    return batch


def render(stage: Stage, number: int, *, device: str) -> Pairs:
    """The number-th rendered batch of a run."""
    pairs = stage.pairs
    size = pairs.sizes[number % len(pairs.sizes)]
    gap = pairs.gaps[number // len(pairs.sizes) % len(pairs.gaps)]
    hint = doubled(DisFlow()) if number % pairs.doubled == 0 else DisFlow()
    config = RenderConfig(sensor=SensorConfig.video())
    return make_pairs(scene_seeds(stage.train, number), gap, size, hint=hint, device=device, config=config)


METHOD = stages.Method(build=_networks, begin=_begin, source=synthetic)

run = partial(stages.run, METHOD)
"""`stages.run` of the flow's recipes."""


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
