"""What can be trained by name: the recipe, who runs it, and how the result is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from worldline.data import mixture
from worldline.training.stages import Recipe, Source, Trained, read_prior


def _named_weights(path: Path | None, recipe: Recipe, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Weights by the model's own names, or none."""
    return {} if path is None else read_prior(path)


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """One training that has a name.

    Attributes:
        recipe: (seed=, ...) -> recipe; its other keywords are the training's options.
        run: `training.stages.run` with the system's method.
        export: (model, path, card) -> path; writes the finished weights.
        stored: (mixture of clip stores, workers) -> source of clips; None: it can only be trained on what it renders.
        start: (prior's file or None, recipe, options) -> weights the first stage begins with.
        file: what the finished weights are called.
        card: what is said about the weights beside what `api.train` knows.
    """

    recipe: Callable[..., Recipe]
    run: Callable[..., Trained]
    export: Callable[[Any, Path, Mapping[str, Any]], Path]
    stored: Callable[..., Source] | None = None
    start: Callable[[Path | None, Recipe, Mapping[str, Any]], Mapping[str, Tensor]] = _named_weights
    file: str = "mini.safetensors"
    card: Mapping[str, Any] = field(default_factory=dict)

    def recipe_of(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe with some options changed.

        Raises:
            ValueError: an option it does not have.
        """
        known = inspect.signature(self.recipe).parameters
        for name in options:
            if name not in known:
                raise ValueError(f"This training has no option '{name}'; it has: {', '.join(known)}.")
        return self.recipe(**options)


def source_of(training: Trainable, words: Sequence[str], workers: int) -> Source | None:
    """Where clips come from: the stores and mixtures a person names, or None for what the system renders itself.

    Raises:
        ValueError: this training takes no stores, or they cannot be mixed.
        FileNotFoundError: there is no such store.
    """
    if not words:
        return None
    if training.stored is None:
        raise ValueError(
            "This training renders its own scenes; stores of clips are for motioncrafter-mini and geo4d-mini."
        )
    mixed = mixture.parse(words)
    mixed.open()  # before anything is written
    return training.stored(mixed, workers)


def _motioncrafter_mini() -> Trainable:
    from worldline.systems.motioncrafter import prior, recipes, train

    unproven = {"unreliable": ["scene_flow"]}  # until `benchmarks/motioncrafter_mini.py --write` has measured it
    return Trainable(
        recipe=recipes.mini,
        run=train.run,
        export=train.export,
        stored=train.stored,
        start=prior.start,
        card=unproven,
    )


def _motioncrafter_prior() -> Trainable:
    from worldline.systems.motioncrafter import prior

    return Trainable(recipe=prior.mini_prior, run=prior.run, export=prior.export, file="prior.safetensors")


def _geo4d_mini() -> Trainable:
    from worldline.systems.geo4d import pretrained, recipes, train

    return Trainable(recipe=recipes.mini, run=train.run, export=pretrained.export, stored=train.stored)


def _more4d_mini() -> Trainable:
    from worldline.systems.more4d import pretrained, recipes, train

    return Trainable(recipe=recipes.mini, run=train.run, export=pretrained.export, start=_more4d_start)


def _more4d_start(path: Path | None, recipe: Recipe, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Weights from one file, or from a folder of Wan's bases, which are too large to be read at once."""
    from worldline.systems.more4d.start import StartingWeights

    if path is not None and path.is_dir():
        return StartingWeights(folder=path, networks=recipe.networks)
    return _named_weights(path, recipe, options)


def _flow_mini() -> Trainable:
    from worldline.systems.optical_flow import recipes, train

    return Trainable(recipe=recipes.mini, run=train.run, export=train.export)


TRAININGS: Mapping[str, Callable[[], Trainable]] = {
    "motioncrafter-mini": _motioncrafter_mini,
    "motioncrafter-prior": _motioncrafter_prior,
    "geo4d-mini": _geo4d_mini,
    "more4d-mini": _more4d_mini,
    "flow-mini": _flow_mini,
}
"""Names and how to look them up; looking up imports the system's networks."""


def trainable(name: str) -> Trainable:
    """The training of a name; ValueError names the known ones."""
    if name not in TRAININGS:
        raise ValueError(f"There is no training '{name}'; choose one of: {', '.join(TRAININGS)}.")
    return TRAININGS[name]()
