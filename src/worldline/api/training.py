"""`train`: a system learns, into a folder, from a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worldline.api.run import choose_device
from worldline.io.ledger import sha256
from worldline.scene import Progress, no_progress

if TYPE_CHECKING:
    from worldline.training.stages import Recipe, Source


def train(
    name: str,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    source: Source | None = None,
    data: Sequence[str] = (),
    workers: int = 0,
    prior: str | Path | None = None,
    seed: int | None = None,
    fraction: float = 1.0,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
    **options: Any,
) -> Path | None:
    """Train a system into a folder; returns the file of its weights, or None if `minutes` were over before the end.

    Args:
        name: "motioncrafter-mini", ...; an unknown name is answered with the list.
        out: folder of checkpoints, loss curves and the weights.
        recipe: a recipe of your own for that system, in place of the named one; seed and options are then its own.
        source: (stage, model, device) -> batches by index; default: synthetic scenes.
        data: clip stores to train on, as STORE or STORE:RATIO, and mixture files; in place of a source.
        workers: processes that read stored clips ahead.
        prior: file of weights to begin with (safetensors, by the model's names, or of "motioncrafter-prior"); the rest
            begins random.
        seed: of everything random: weights, scenes, noise; default the recipe's own.
        fraction: part of the recipe's steps to do; 0.01 is a trial.
        minutes: wall time of this call; the next one with `resume` goes on where this one stopped, bit for bit.
        resume: continue what is in the folder.
        device: "auto" (CUDA, else CPU), "cpu" or "cuda".
        progress: receives (stage, steps done, steps in all).
        **options: keywords of the named recipe.

    Raises:
        ValueError: unknown names or options, or a folder that is not empty without `resume`, or of another run.
        FileNotFoundError: there is no such prior.
    """
    from worldline.systems.trainable import source_of, trainable
    from worldline.training.stages import noted, scaled

    # 1. What is trained.
    training, out = trainable(name), Path(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; resume it (--resume), or choose another folder (--out).")
    chosen = options if seed is None else {"seed": seed, **options}
    plan = training.recipe_of(chosen) if recipe is None else recipe
    plan = plan if fraction == 1.0 else scaled(plan, fraction)
    if data:
        source, plan = source_of(training, data, workers), noted(plan, data=" ".join(data))
    where = choose_device(device if device != "auto" or torch.cuda.is_available() else "cpu")
    start = training.start(None if prior is None else Path(prior), plan, options)
    # 2. Train it, or go on.
    trained = training.run(plan, out, source=source, prior=start, minutes=minutes, device=str(where), progress=progress)
    if not trained.finished:
        return None
    # 3. Write what inference needs, and how it came about.
    about = _training_card(name, plan, options, fraction, None if prior is None else Path(prior))
    return training.export(trained.model, out / training.file, {**about, **training.card})


def _training_card(
    name: str, plan: Recipe, options: Mapping[str, Any], fraction: float, prior: Path | None
) -> dict[str, Any]:
    """What is known about freshly trained weights: recipe, seed, command, prior, stages, licence."""
    words = ["worldline", "train", name, "--seed", str(plan.seed), "--fraction", f"{fraction:g}"]
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        words += [flag] * value if isinstance(value, bool) else [flag, str(value)]
    known: dict[str, Any] = {"recipe": plan.name, "seed": plan.seed}
    notes = plan.stages[0].train.notes
    if "data" in notes:
        words += ["--data", *notes["data"].split()]
        known["data"] = notes["data"]
    if prior is not None:
        words += ["--prior", str(prior)]
        known["prior"] = {"file": prior.name, "sha256": sha256(prior)}
    stages = [stage.train.to_json() for stage in plan.stages]
    return {**known, "command": " ".join(words), "stages": stages, "license": "Apache-2.0"}
