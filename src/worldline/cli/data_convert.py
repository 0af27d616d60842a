"""`worldline data convert` and `synthesize`: a store of clips out of a dataset's folder, or out of nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from worldline.cli.console import note, progress_bar, result, result_json

if TYPE_CHECKING:
    from worldline.data.build import BuildConfig, Built

SKIPPED_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Building:
    """How a store is written."""

    out: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Store to write: a folder, or a URL such as s3://bucket/name. A run into an interrupted one goes on with it."""
    workers: int = 1
    """Processes to work with."""
    shard_mb: int = 256
    """Size at which a file of the store is closed; an interrupted run makes the clips of open ones again."""
    overwrite: bool = False
    """Replace another store that is there."""
    retry: bool = False
    """Try again what the finished store had to leave out."""
    json: bool = False
    """Answer as JSON, draw no bars."""


@dataclass(frozen=True, kw_only=True)
class Convert(Building):
    """Turn a dataset's folder into a store of clips; damaged files are named and their clips left out."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Which dataset it is; `list` prints the names."""
    root: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the dataset, as it was unpacked."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """Store to write: a folder, or a URL such as s3://bucket/name. A run into an interrupted one goes on with it."""
    frames: int = 150
    """Cut sequences into clips of at most so many frames; 0 keeps them whole."""
    match: str = ""
    """Only sequences with this in their name."""


@dataclass(frozen=True, kw_only=True)
class Synthesize(Building):
    """Render synthetic moving scenes with exact truth into a store."""

    clips: int = 100
    """How many scenes."""
    seed: int = 0
    """Of the first scene; the others follow. From 1000000000 on seeds are for evaluation."""
    frames: int = 24
    """Length of a clip."""
    size: str = "128x192"
    """Height and width in pixels."""
    category: str | None = None
    """One kind of scene (see `worldline render-synthetic --help`); any by default."""
    sensor: bool = True
    """Add the exposure, tone and noise errors of a real camera."""
    tracks: bool = False
    """Also store where every pixel of the first frame goes."""


def run(args: Convert | Synthesize) -> int:
    """Make the store; exit code 1 when clips had to be left out."""
    return _convert(args) if isinstance(args, Convert) else _synthesize(args)


def _convert(args: Convert) -> int:
    from worldline.data import conversion
    from worldline.data.adapters import ADAPTERS

    if args.dataset == "list":
        for name in ADAPTERS:
            result(name)
        return 0
    if args.root is None or not args.out:
        raise ValueError("`worldline data convert` needs a dataset, its folder and -o STORE.")
    longest = args.frames or None
    jobs = list(conversion.jobs(args.dataset, args.root, longest, args.match))
    return _build(args, jobs, conversion.settings(args.dataset, args.root, longest, args.match))


def _synthesize(args: Synthesize) -> int:
    from worldline.cli.reconstruct import parse_size
    from worldline.data import synthesis

    size = parse_size(args.size)
    assert size is not None
    extras = ("object_id", *(("tracks", "visible_from_reference") if args.tracks else ()))
    config = synthesis.SynthesisConfig(
        clips=args.clips,
        seed=args.seed,
        frames=args.frames,
        size=size,
        category=args.category,
        sensor=args.sensor,
        extras=extras,
    )
    return _build(args, list(synthesis.jobs(config)), {"synthetic": asdict(config)})


def _config(args: Building) -> BuildConfig:
    from worldline.data.build import BuildConfig

    if args.shard_mb < 1:
        raise ValueError(f"--shard-mb must be at least 1, got {args.shard_mb}.")
    return BuildConfig(
        workers=args.workers, shard_bytes=args.shard_mb << 20, overwrite=args.overwrite, retry=args.retry
    )


def _build(args: Building, jobs: list[Any], settings: dict[str, Any]) -> int:
    from worldline.data.build import build

    config = _config(args)
    try:
        with progress_bar(quiet=args.json) as progress:
            built = build(args.out, jobs, settings, config, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Finished shards are kept; the same command goes on.") from None
    return _answer(args, built)


def _answer(args: Building, built: Built) -> int:
    frames = sum(entry.frames for entry in built.entries)
    size = sum(entry.bytes for entry in built.entries)
    if args.json:
        result_json(
            {
                "store": args.out,
                "clips": len(built.entries),
                "frames": frames,
                "bytes": size,
                "resumed": built.resumed,
                "skipped": [asdict(item) for item in built.skipped],
            }
        )
    else:
        result(f"{args.out}: {len(built.entries)} clips, {frames} frames, {size / 1e6:.1f} MB")
        if built.resumed:
            note(f"{built.resumed} clips were there from before.")
        for item in built.skipped[:SKIPPED_SHOWN]:
            note(f"damaged: {item}")
        if len(built.skipped) > SKIPPED_SHOWN:
            note(f"... and {len(built.skipped) - SKIPPED_SHOWN} more; all are in {args.out}/report.json.")
    return 1 if built.skipped else 0
