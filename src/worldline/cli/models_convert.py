"""`worldline models convert`: published pickles into folders of safetensors, without running anything in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from worldline.cli.console import progress_bar, result, result_json

SYSTEMS = ("geo4d",)
"""Systems whose weights are published as pickles."""


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn published checkpoints (pickles) into a folder for --weights; checks every key, runs nothing in them."""

    system: Annotated[str, tyro.conf.Positional]
    """Name of the system."""
    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The published files; for geo4d: model.ckpt vae.ckpt."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to make."""
    json: bool = False
    """Answer as JSON, draw no bars."""


def run(args: Convert) -> int:
    """Convert, then say where it is."""
    if args.system not in SYSTEMS:
        raise ValueError(f"Weights of '{args.system}' need no conversion; those of {', '.join(SYSTEMS)} do.")
    if len(args.checkpoints) != 2:
        raise ValueError("geo4d has two checkpoints: `worldline models convert geo4d model.ckpt vae.ckpt -o DIR`.")
    from worldline.systems.geo4d.convert import convert

    with progress_bar(quiet=args.json) as progress:
        folder = convert(*args.checkpoints, args.out, progress=progress)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if args.json:
        result_json({"folder": str(folder), "bytes": size})
    else:
        result(f"{folder}: {size / 1e9:.1f} GB. Use it: worldline reconstruct VIDEO --system geo4d --weights {folder}")
    return 0
