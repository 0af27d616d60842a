"""`worldline bench geo4d-ablation`: the Geo4D paper's ablations in miniature, on held-out synthetic clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.cli.console import note, progress_bar, result, result_json

if TYPE_CHECKING:
    from worldline.systems.geo4d.system import Geo4DSystem


@dataclass(frozen=True, kw_only=True)
class Geo4DAblation:
    """What modalities, stride, steps and point decoder are worth (the paper's tables 3, 4, 6, 7), paired by clip."""

    weights: Path | None = None
    """A checkpoint of geo4d-mini; by default the one in the package."""
    clips: int = 24
    """Held-out clips, always the same ones."""
    frames: int = 22
    """Frames of each; the steps are compared on its first window."""
    size: tuple[int, int] = (48, 64)
    """Height and width of the clips."""
    seeds: int = 3
    """Seeds of the noise for the modalities, whose spread is told; the other tables use the first."""
    kept: Path | None = None
    """Add the scores of finished clips to this file, and do not make those again that are in it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print rows and findings as JSON instead of tables."""
    markdown: Path | None = None
    """Also write the tables as Markdown."""


def run(args: Geo4DAblation) -> int:
    """Run every row on every clip, show the tables and what holds."""
    from worldline import api
    from worldline.evaluation import ablation as judging
    from worldline.evaluation import ablation_tables as tables
    from worldline.systems.geo4d import ablation
    from worldline.systems.geo4d.system import load_mini
    from worldline.systems.system import Loading

    if args.clips < 1 or args.seeds < 1:
        raise ValueError("An ablation needs at least one clip and one seed.")
    # 1. the system, and clips long enough for windows to overlap
    weights = None if args.weights is None else str(args.weights)
    system = load_mini(Loading(device=api.choose_device(args.device), weights=weights))
    window = system.model.config.window
    if args.frames <= window:
        raise ValueError(f"Strides differ only on clips longer than a window; give --frames above {window}.")
    if system.model.config.deterministic:
        note("note: these weights do not denoise, so steps and seeds are left out (`train geo4d-mini --no-direct`).")
    clips = judging.held_out_clips(args.clips, args.frames, args.size)
    # 2. every row on every clip
    seeds = tuple(range(args.seeds))
    settings = _settings(args, system)
    with progress_bar(quiet=args.json) as progress:
        scores = judging.run(
            clips,
            lambda truth: ablation.rows(truth.video, system.model, system.config, seeds),
            total=args.clips,
            kept=args.kept,
            settings=settings,
            progress=progress,
        )

    # 3. tables, and which findings hold
    def reference(table: str) -> str:
        return ablation.reference(table, system.model, system.config)

    lines = tables.lines(scores, reference)
    asked = {score.table for score in scores}
    findings = tables.verdicts(scores, [claim for claim in ablation.claims(window) if claim.table in asked])
    text = tables.markdown(lines, findings, reference)
    if args.json:
        result_json({"settings": settings, "clips": args.clips, "rows": tables.rows(lines), "findings": findings})
    else:
        result(text)
    for score in scores:
        if score.failed:
            note(f"failed: clip {score.clip}, {score.table}, {score.row}, seed {score.seed}: {score.failed}")
    if args.markdown is not None:
        args.markdown.write_text(text)
    return 0


def _settings(args: Geo4DAblation, system: Geo4DSystem) -> dict[str, Any]:
    """What scores depend on besides the clip."""
    return {
        "weights": system.weights_sha256,
        "frames": args.frames,
        "size": list(args.size),
        "seeds": args.seeds,
        "config": repr(system.config),
    }
