"""`worldline train geo4d-mini`: the embedded Geo4D from nothing on synthetic scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worldline.cli.console import note, progress_bar, result, result_json


@dataclass(frozen=True, kw_only=True)
class TrainGeo4DMini:
    """Train the embedded Geo4D from nothing on synthetic scenes; call again with --resume to go on."""

    out: Path = Path("runs/geo4d-mini")
    """Folder for checkpoints, loss curves and the finished mini.safetensors."""
    minutes: float | None = None
    """Stop after this time, with a checkpoint; by default run to the end."""
    resume: bool = False
    """Continue what is in the folder."""
    seed: int = 11
    """Of everything random: weights, scenes, noise."""
    embedded: bool = False
    """The short schedule that the weights in the package had, instead of the full one."""
    fraction: float = 1.0
    """Part of the recipe's steps to do; 0.01 is a trial."""
    threads: int | None = None
    """CPU threads; on a busy machine 1 is faster than 2."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: bool = False
    """Answer as JSON, draw no bars."""


def run(args: TrainGeo4DMini) -> int:
    """Train, then export when every stage is done."""
    import torch

    from worldline.systems.geo4d import recipes
    from worldline.systems.geo4d.pretrained import export
    from worldline.systems.geo4d.train import run as train

    if not args.resume and args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty; add --resume to continue it, or choose another --out.")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipes.mini(seed=args.seed, steps=recipes.EMBEDDED_STEPS if args.embedded else recipes.MINI_STEPS)
    if args.fraction != 1.0:
        recipe = recipes.scaled(recipe, args.fraction)
    with progress_bar(quiet=args.json) as progress:
        trained = train(recipe, args.out, minutes=args.minutes, device=device, progress=progress)
    answer: dict[str, object] = {"finished": trained.finished, "out": str(args.out)}
    if trained.finished:
        card = {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "command": f"worldline train geo4d-mini --seed {args.seed} --fraction {args.fraction:g}"
            + (" --embedded" if args.embedded else ""),
            "stages": [stage.train.to_json() for stage in recipe.stages],
            "license": "Apache-2.0",
        }
        answer["weights"] = str(export(trained.model, args.out / "mini.safetensors", card))
    else:
        note("worldline: not finished; the same command with --resume continues.")
    if args.json:
        result_json(answer)
    elif trained.finished:
        result(f"trained: {answer['weights']}")
    return 0
