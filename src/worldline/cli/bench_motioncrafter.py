"""`worldline bench motioncrafter-ablation`: the MotionCrafter paper's ablations, trained in miniature."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.cli.console import progress_bar, result, result_json

HELD_OUT_SEEDS = 1_000_700_000
"""First scene seed of the clips that rows are scored on; training stays below 1,000,000,000."""

TRIVIAL = "trivial: mean point map, no motion"


@dataclass(frozen=True, kw_only=True)
class MotionCrafterAblation:
    """Train the rows of the MotionCrafter paper's tables 3 and 4, and prior against scratch, small; say what holds."""

    out: Path = Path("runs/motioncrafter-ablation")
    """Folder of clips, prior, trained stages and scores; the same command goes on where it was stopped."""
    seeds: int = 3
    """Times every row is trained."""
    rows: str = "all"
    """Rows to train now, separated by semicolons; a text that is part of a name picks all that hold it."""
    clips: int = 40
    """Held-out clips that rows are scored on."""
    training_clips: int = 240
    """Clips rows are trained on."""
    geometry_steps: int = 120
    """Steps of the geometry VAE of each row."""
    motion_steps: int = 50
    """Steps of the motion branch of each row."""
    unet_steps: int = 80
    """Steps of the U-Net of each row."""
    prior_steps: tuple[int, int] = (500, 400)
    """Steps of the prior's autoencoders and of its denoiser, trained once."""
    batch_size: int = 4
    """Clips per step."""
    threads: int = 1
    """CPU threads; the networks are so small that more only wait."""
    json: bool = False
    """Print rows and findings as JSON instead of tables."""
    markdown: Path | None = None
    """Also write the tables as Markdown."""


def run(args: MotionCrafterAblation) -> int:
    """Train what is missing, score it, show the tables."""
    import torch

    from worldline.evaluation import motion_ablation as judging
    from worldline.systems.motioncrafter import ablation
    from worldline.systems.motioncrafter.ablation_rows import ROWS, TABLES, claims

    if args.seeds < 1 or args.clips < 2:
        raise ValueError("An ablation needs at least one seed and two clips.")
    names = _chosen(args.rows, list(ROWS))
    torch.set_num_threads(args.threads)
    settings = ablation.Settings(
        clips=args.training_clips,
        batch_size=args.batch_size,
        geometry_steps=args.geometry_steps,
        motion_steps=args.motion_steps,
        unet_steps=args.unet_steps,
        prior_steps=args.prior_steps,
    )
    with progress_bar(quiet=args.json) as progress:
        # 1. the prior and the clips, once
        shop = ablation.Workshop(args.out, settings, progress)
        truth = ablation.render(range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + 4 * args.clips), settings, args.clips)
        # 2. every row, seed by seed: an early look is fair to all rows
        for done, (seed, name) in enumerate(itertools.product(range(args.seeds), names)):
            progress("rows", done, args.seeds * len(names))
            if not (file := _file(args, name, seed)).exists():
                row = shop.row(ROWS[name], seed)
                _keep(file, judging.clip_scores(row.predict, row.reconstruct, truth))
        progress("rows", args.seeds * len(names), args.seeds * len(names))
    # 3. tables of all that has been scored, and which findings hold
    mean = shop.mean_points()
    trivial = judging.clip_scores(lambda rgb: (mean, torch.zeros_like(mean)), None, truth)
    scores = {name: _stored(args, name) for name in ROWS}
    verdicts = [
        judging.judge({**scores, TRIVIAL: dict.fromkeys(range(args.seeds), trivial)}, c) for c in claims(TRIVIAL)
    ]
    scores[TRIVIAL] = {0: trivial}
    text = judging.markdown(scores, TABLES, verdicts, TRIVIAL)
    if args.json:
        result_json({"clips": args.clips, **judging.as_json(scores, verdicts)})
    else:
        result(text)
    if args.markdown is not None:
        args.markdown.write_text(text)
    return 0


def _chosen(text: str, names: list[str]) -> list[str]:
    """Rows whose names hold one of the texts; all for "all"."""
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if parts == ["all"]:
        return names
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(f"No row is called '{part}'; the rows are: {'; '.join(names)}.")
    return [name for name in names if any(part in name for part in parts)]


def _file(args: MotionCrafterAblation, name: str, seed: int) -> Path:
    plain = "".join(letter if letter.isalnum() else "-" for letter in name)
    return args.out / f"seed-{seed}" / f"{plain}.{args.clips}-clips.json"


def _keep(file: Path, scores: dict[str, list[float]]) -> None:
    from worldline.io.atomic import atomic_file

    with atomic_file(file) as draft:
        draft.write_text(json.dumps(scores))


def _stored(args: MotionCrafterAblation, name: str) -> dict[int, Any]:
    """Scores of a row by seed, as far as they are there."""
    files = {seed: _file(args, name, seed) for seed in range(args.seeds)}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}
