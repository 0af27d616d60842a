"""`worldline demo`: a clip with known truth is rendered, reconstructed and scored, and a picture of it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from worldline.cli.console import note, progress_bar, result

if TYPE_CHECKING:
    from worldline.evaluation.report import Report

SHOWN = {
    "rel_p": "relative point error",
    "abs_rel": "depth AbsRel",
    "abs_rel_confident": "  on the confident half",
    "epe_moving_percent": "scene flow error of what moves, % of depth",
    "static_flow_percent": "false motion of what stands still, % of depth",
    "dynamic_iou": "moving mask IoU (higher is better)",
    "ate_percent_path": "camera path error, % of the path",
    "rpe_rotation_deg": "camera rotation error, degrees per frame",
    "focal_error_percent": "focal length error, %",
}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Render a synthetic clip, reconstruct it, say how accurate that is, and draw a picture."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("demo")
    """Folder for the clip, its truth, the scene and the picture; files of an earlier demo are replaced."""
    system: str = "auto"
    """A name from `worldline systems`."""
    seed: int = 2_000_000_000
    """Which synthetic scene; seeds from 1000000000 on are never trained on."""
    frames: int = 24
    """Length of the clip."""


arguments = Demo


def run(args: Demo) -> int:
    """The whole path, from pixels to a scored scene."""
    from worldline import api
    from worldline.data.synthetic import render_clip
    from worldline.evaluation.baselines import TRIVIAL
    from worldline.evaluation.engine import evaluate
    from worldline.evaluation.protocols import PROTOCOLS
    from worldline.io.store import save
    from worldline.io.video import write_video
    from worldline.render.picture import contact_picture, save_png

    # 1. A clip whose truth is known exactly.
    note(f"Rendering {args.frames} frames of synthetic scene {args.seed} ...")
    truth = render_clip(args.seed, frames=args.frames, size=(144, 240), category="both")
    args.out.mkdir(parents=True, exist_ok=True)
    clip = args.out / "clip.mp4"
    write_video(clip, truth.video)
    save(truth, args.out / "truth", overwrite=True)
    # 2. Its reconstruction, from the pixels of the video file alone.
    with progress_bar() as progress:
        scene = api.reconstruct(clip, system=args.system, progress=progress)
    save(scene, args.out / "scene", overwrite=True)
    # 3. How accurate it is, beside predictors that do not look.
    protocol = PROTOCOLS["worldline-v1"]
    guesses = {name: predict(truth.video, 0) for name, predict in TRIVIAL.items()}
    reports = {scene.provenance.system: evaluate(scene, truth, protocol)}
    reports |= {name: evaluate(guess, truth, protocol) for name, guess in guesses.items()}
    _print_table(reports)
    # 4. A picture, and what to do next.
    save_png(args.out / "picture.png", contact_picture(scene, truth))
    result(f"\nPicture: {args.out / 'picture.png'}")
    result(f"Open the viewer with: .venv/bin/worldline view {args.out / 'scene'}")
    return 0


def _print_table(reports: Mapping[str, Report]) -> None:
    """One row per metric, one column per predictor; a number that could not be had is a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Accuracy against truth; lower is better unless it says otherwise")
    table.add_column("", no_wrap=True)
    for name in reports:
        table.add_column(name.replace("+", "\n+ ").replace(": ", ":\n"), justify="right")
    for metric, words in SHOWN.items():
        measures = [[m for m in report.measures if m.metric == metric][:1] for report in reports.values()]
        if any(measures):
            cells = ["-" if not found or found[0].failed else f"{found[0].value:.3g}" for found in measures]
            table.add_row(words, *cells)
    Console(width=150).print(table)
