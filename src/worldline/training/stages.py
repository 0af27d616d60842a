"""Runs the stages of a recipe in order; each starts from the (averaged) weights of the one before.

    recipe = networks + stages + seed
    for stage in recipe.stages:
        model   <- method.begin(model, stage)              the same at every resume
        weights <- loop.train(model, stage.objective, ...) or <folder>/<stage>.safetensors of an earlier call
        model   <- weights

What a system adds is its `Method`: how its networks are built, how a stage begins, where clips come from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worldline.scene import Progress, no_progress
from worldline.training import checkpoint
from worldline.training.config import TrainConfig
from worldline.training.loop import Batches, Objective, train

MEASURED_BATCHES = 4
"""Batches from which constants of latents are measured."""


class Stage(Protocol):
    """One stage of a recipe, as far as running it goes."""

    @property
    def train(self) -> TrainConfig:
        """Steps, rates, weights of the losses; its name names the files."""

    @property
    def objective(self) -> Objective:
        """The named losses."""


ModelT = TypeVar("ModelT", bound=nn.Module)
NetworksT = TypeVar("NetworksT")
StageT = TypeVar("StageT", bound=Any)


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[NetworksT, StageT]):
    """A full run: networks and stages."""

    name: str
    networks: NetworksT
    stages: tuple[StageT, ...]
    seed: int


def scaled(recipe: Recipe[NetworksT, StageT], fraction: float) -> Recipe[NetworksT, StageT]:
    """The same recipe with every stage's steps, warm-up included, multiplied by a fraction.

    Raises:
        ValueError: the fraction is not positive.
    """
    if not fraction > 0:
        raise ValueError(f"A recipe cannot be shortened to {fraction:g} of its steps; give a positive fraction.")

    def shorter(stage: StageT) -> StageT:
        steps, warmup = (max(1, round(fraction * count)) for count in (stage.train.steps, stage.train.warmup_steps))
        return replace(stage, train=replace(stage.train, steps=steps, warmup_steps=warmup))

    return replace(recipe, stages=tuple(shorter(stage) for stage in recipe.stages))


def noted(recipe: Recipe[NetworksT, StageT], **facts: str) -> Recipe[NetworksT, StageT]:
    """The same recipe with facts in the notes of every stage, so that a run of other facts is another run."""
    stages = tuple(
        replace(stage, train=replace(stage.train, notes={**stage.train.notes, **facts})) for stage in recipe.stages
    )
    return replace(recipe, stages=stages)


Source = Callable[[StageT, ModelT, str], Batches]
"""(stage, model, device) -> batches by index."""


@dataclass(frozen=True, kw_only=True)
class Start(Generic[ModelT]):
    """What a stage can look at while it begins.

    Attributes:
        batches: model -> the batches the stage will be trained on.
        kept: file of constants that were measured when the stage first began.
    """

    batches: Callable[[ModelT], Batches]
    kept: Path

    def measured(self, name: str, measure: Callable[[], float]) -> float:
        """A constant of the stage: measured once and kept, as everything after depends on it."""
        values = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        if name not in values:
            values[name] = measure()
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            self.kept.write_text(json.dumps(values) + "\n")
        return values[name]


@dataclass(frozen=True, kw_only=True)
class Method(Generic[ModelT, NetworksT, StageT]):
    """What a system adds to a run.

    Attributes:
        build: recipe -> networks with random weights.
        begin: (model, stage, start) -> the model in the state in which the stage starts, its `requires_grad` set.
        source: where clips come from when the caller names no other source.
    """

    build: Callable[[Recipe[NetworksT, StageT]], ModelT]
    begin: Callable[[ModelT, StageT, Start[ModelT]], ModelT]
    source: Source[StageT, ModelT]


@dataclass(frozen=True, kw_only=True)
class Trained(Generic[ModelT]):
    """Where a run stands: the model so far, and whether every stage is finished."""

    model: ModelT
    finished: bool


def run(
    method: Method[ModelT, NetworksT, StageT],
    recipe: Recipe[NetworksT, StageT],
    folder: Path,
    *,
    source: Source[StageT, ModelT] | None = None,
    prior: Mapping[str, Tensor] | None = None,
    resume: bool = True,
    minutes: float | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Trained[ModelT]:
    """Train a recipe into a folder; call again to continue after `minutes` or a kill.

    Args:
        method: the system's part.
        recipe: networks and stages.
        folder: checkpoints, weights and loss curves of the stages.
        source: where clips come from; None renders synthetic scenes.
        prior: weights to begin with, by the names and in the shapes of the model as the first stage finds it; what it
            lacks begins random.
        resume: use finished stages and checkpoints found in the folder.
        minutes: wall time of this call; at least one step is done, so that every call gets further.
        device: where to train, as for `training.loop.train`.
        progress: told stage, steps done, steps in all.

    Raises:
        ValueError: what the folder holds is of other settings, or the prior has an unknown name or another shape.
    """
    started = time.monotonic()
    source = source or method.source
    torch.manual_seed(recipe.seed)
    model = method.build(recipe).to(device)
    load_weights(model, prior or {})
    for stage in recipe.stages:
        name, done = stage.train.name, folder / f"{stage.train.name}.safetensors"
        kept = folder / f"{name}-latents.json"
        if not resume:
            kept.unlink(missing_ok=True)
        torch.manual_seed(recipe.seed)  # what a stage adds begins the same at every resume
        model = method.begin(model, stage, Start(batches=_of(source, stage, device), kept=kept))
        if resume and done.exists():
            _check_finished(folder, stage.train)
        else:
            left = None if minutes is None else max(minutes - (time.monotonic() - started) / 60, 0.0)
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
        load_weights(model, load_file(done))
    model.requires_grad_(False)
    return Trained(model=model.eval(), finished=True)


def _of(source: Source[StageT, ModelT], stage: StageT, device: str) -> Callable[[ModelT], Batches]:
    return lambda model: source(stage, model, device)


def _check_finished(folder: Path, config: TrainConfig) -> None:
    """Refuse weights of a finished stage whose last checkpoint says that it was another stage."""
    last = checkpoint.latest(folder / f"{config.name}-checkpoint")
    if last is not None:
        checkpoint.check_run(last, config.to_json())


def read_prior(path: Path) -> dict[str, Tensor]:
    """Weights to begin a run with, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no prior {path}; give a .safetensors file.")
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged ({error}); get it again.") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill part of a model in place, tensor by tensor; what is not among the weights stays.

    Weights that are read when they are asked for are so never in memory beside the whole model.

    Raises:
        ValueError: a name the model does not have, or another shape; what came before it is filled by then.
    """
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            found = "it has no such name" if name not in own else f"it has {list(own[name].shape)} there"
            raise ValueError(f"The model cannot take {name} {list(value.shape)}: {found}.")
        with torch.no_grad():
            own[name].copy_(value)
