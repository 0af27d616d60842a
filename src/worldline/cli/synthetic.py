"""`worldline render-synthetic`: a clip of a moving scene whose truth is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from worldline.cli.console import note, result, result_json


@dataclass(frozen=True, kw_only=True)
class RenderSynthetic:
    """Render a clip of a moving scene with its exact truth: OUT/video.mp4 and the scene OUT/truth."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write; must not exist yet or be empty, unless --overwrite."""
    seed: int = 0
    """Which scene; the same seed gives the same clip."""
    frames: int = 24
    """Length of the clip."""
    size: str = "128x192"
    """Height and width in pixels."""
    category: str | None = None
    """rigid, articulated, deforming, camera_only, object_only, both, fast, occlusion, low_texture or long; or any."""
    sensor: bool = False
    """Add the exposure, tone and noise errors of a real camera."""
    device: str = "cpu"
    """Where to render: cpu or cuda."""
    overwrite: bool = False
    """Replace an earlier clip in the folder."""
    json: bool = False
    """Answer as JSON."""


arguments = RenderSynthetic


def run(args: RenderSynthetic) -> int:
    """Render, then write truth and video."""
    from worldline.cli.reconstruct import parse_size
    from worldline.data.synthetic import RenderConfig, SensorConfig, render_clip
    from worldline.io.store import save
    from worldline.io.video import write_video

    # 1. Refuse before working.
    size = parse_size(args.size)
    assert size is not None
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}.")
    _check_folder(args.out, args.overwrite)
    # 2. The clip and its truth.
    config = RenderConfig(sensor=SensorConfig() if args.sensor else None)
    note(f"Rendering {args.frames} frames of synthetic scene {args.seed} ...")
    truth = render_clip(
        args.seed, frames=args.frames, size=size, category=args.category, device=args.device, config=config
    )
    # 3. Both on disk.
    args.out.mkdir(parents=True, exist_ok=True)
    save(truth, args.out / "truth", overwrite=args.overwrite)
    write_video(args.out / "video.mp4", truth.video)
    facts = {"video": str(args.out / "video.mp4"), "truth": str(args.out / "truth"), **truth.provenance.settings}
    if args.json:
        result_json(facts)
        return 0
    for name in ("video", "truth", "category", "caption"):
        result(f"{name:<9} {facts[name]}")
    return 0


def _check_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose a folder to write the clip to.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(f"{out} is not empty; choose another folder, or replace the clip in it with --overwrite.")
