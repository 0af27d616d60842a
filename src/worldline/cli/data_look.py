"""`worldline data stats`, `view` and `mix`: what stores hold, one clip in the browser, several in proportion."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from worldline.cli.console import note, result, result_json
from worldline.cli.view import watch

if TYPE_CHECKING:
    from worldline.data.store import ClipStore, Entry


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What stores hold: clips, frames, sizes, fields of view, flags; with --sample also depth and motion."""

    stores: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Stores of `worldline data convert`: folders or URLs."""
    sample: int = 0
    """Also read two frames of so many clips, for ranges of depth, valid and moving shares."""
    clips: bool = False
    """List every clip."""
    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, kw_only=True)
class ViewClip:
    """Look at one clip of a store in the browser. Ctrl-C ends it."""

    store: Annotated[str, tyro.conf.Positional]
    """Store of `worldline data convert`: folder or URL."""
    clip: Annotated[str, tyro.conf.Positional] = ""
    """Name of the clip, or its end; the first by default."""
    frames: str = "0:48"
    """Which frames, FIRST:LAST; they are held in memory."""
    port: int = 8080
    """Port on this machine; the next free one is used when it is taken."""
    open: bool = True
    """Open the page in the default browser."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Write a mixture: stores in proportion, for `worldline train --data MIX.json`."""

    stores: Annotated[tuple[str, ...], tyro.conf.Positional]
    """STORE:RATIO of each; the ratio is its share of the samples, 1 by default. Mixtures may be named, too."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, *.json."""
    split: str = ""
    """Only clips of this split."""
    needs: tuple[str, ...] = ()
    """Only clips with all these flags: flow, metric, points, cameras, static, moving_camera, synthetic, tracks."""
    overwrite: bool = False
    """Replace a file that is there."""
    json: bool = False
    """Answer as JSON."""


def run(args: Stats | ViewClip | Mix) -> int:
    """Do one of the three."""
    if isinstance(args, Stats):
        return _stats(args)
    return _view(args) if isinstance(args, ViewClip) else _mix(args)


def _stats(args: Stats) -> int:
    from worldline.data.build import skipped_of
    from worldline.data.store import ClipStore

    if not args.stores:
        raise ValueError("`worldline data stats` needs a store.")
    rows = []
    for place in args.stores:
        store = ClipStore(place, partial=True)
        row = {"store": place, **_summary(store.entries), "left_out": [str(s) for s in skipped_of(store.storage)]}
        if args.sample:
            row["sampled"] = _sampled(store, args.sample)
        if args.clips:
            row["list"] = [entry.to_json() for entry in store.entries]
        rows.append(row)
    if args.json:
        result_json(rows)
        return 0
    for row in rows:
        _print_summary(row)
    return 0


def _summary(entries: list[Entry]) -> dict[str, Any]:
    sizes = Counter(f"{entry.size[0]}x{entry.size[1]}" for entry in entries)
    flags = Counter(flag for entry in entries for flag in entry.flags)
    views = [_view_deg(entry) for entry in entries if entry.intrinsics is not None]
    return {
        "clips": len(entries),
        "frames": sum(entry.frames for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
        "lengths": [min((e.frames for e in entries), default=0), max((e.frames for e in entries), default=0)],
        "datasets": dict(Counter(f"{e.dataset or '?'}{'/' + e.split if e.split else ''}" for e in entries)),
        "sizes": dict(sizes.most_common()),
        "view_deg": [min(views), max(views)] if views else None,
        "flags": dict(sorted(flags.items())),
    }


def _view_deg(entry: Entry) -> float:
    assert entry.intrinsics is not None
    return 2 * math.degrees(math.atan(entry.size[1] / 2 / entry.intrinsics[0]))


def _sampled(store: ClipStore, wanted: int) -> dict[str, Any]:
    """Depth, valid and moving shares of two frames in the middle of some clips, evenly chosen."""
    import torch

    from worldline.geometry import pointmap, sceneflow

    step = max(1, len(store) // wanted)
    depths, valid, moving, moved = [], [], [], []
    for entry in store.entries[step // 2 :: step][:wanted]:
        middle = max(0, entry.frames // 2 - 1)
        scene = store[entry.name].scene(slice(middle, middle + 2))
        valid.append(float(scene.valid.float().mean()))
        if scene.cameras is not None and bool(scene.valid.any()):
            depths.append(pointmap.scene_depth(scene)[scene.valid][::97])
            centres = scene.cameras.cam2world[:, :3, 3]
            moved.append(float((centres[-1] - centres[0]).norm()))
        if scene.flow_valid is not None and bool(scene.flow_valid.any()):
            moving.append(float(sceneflow.dynamic_mask(scene)[scene.flow_valid].float().mean()))
    found: dict[str, Any] = {"clips": len(valid), "valid_share": _mean(valid), "moving_share": _mean(moving)}
    found["camera_step"] = _mean(moved)
    if depths:
        levels = torch.quantile(torch.cat(depths).float()[:1_000_000], torch.tensor([0.01, 0.5, 0.99]))
        found["depth_1_50_99"] = levels.tolist()
    return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _print_summary(row: dict[str, Any]) -> None:
    clips = max(row["clips"], 1)
    result(f"{row['store']}: {row['clips']} clips, {row['frames']} frames, {row['bytes'] / 1e6:.1f} MB")
    result(f"  lengths     {row['lengths'][0]} to {row['lengths'][1]} frames")
    for name in ("datasets", "sizes"):
        result(f"  {name:<11} {', '.join(f'{key} ({count})' for key, count in row[name].items())}")
    if row["view_deg"]:
        result(f"  view        {row['view_deg'][0]:.0f} to {row['view_deg'][1]:.0f} degrees wide")
    result(f"  flags       {', '.join(f'{key} {100 * count / clips:.0f} %' for key, count in row['flags'].items())}")
    for name, value in row.get("sampled", {}).items():
        shown = [f"{v:.3g}" for v in value] if isinstance(value, list) else value if value is None else f"{value:.3g}"
        result(f"  {name:<11} {' / '.join(shown) if isinstance(shown, list) else shown}")
    for entry in row.get("list", []):
        height, width = entry["size"]
        result(f"  {entry['name']}: {entry['frames']} frames {height}x{width}, {', '.join(entry['flags'])}")
    for line in row["left_out"]:
        note(f"left out: {line}")


def _view(args: ViewClip) -> int:
    from worldline.data.store import ClipStore
    from worldline.io.video import parse_frames
    from worldline.viewer.studio import view

    store = ClipStore(args.store, partial=True)
    stored = store.find(args.clip) if args.clip else store[store.entries[0].name]
    scene = stored.scene(parse_frames(args.frames))
    note(f"{stored.entry.name}: {len(scene)} of {len(stored)} frames")
    with view(scene, args.port, playing=True) as studio:
        watch(studio, args.open)
    return 0


def _mix(args: Mix) -> int:
    from dataclasses import replace

    from worldline.data import mixture
    from worldline.io.storage import is_url

    if args.out.exists() and not args.overwrite:
        raise FileExistsError(f"{args.out} exists; choose another name, or replace it with --overwrite.")
    if args.out.suffix != ".json":
        raise ValueError(f"{args.out} must be called *.json, so that it is known as a mixture.")
    named = mixture.parse(args.stores)
    wished: dict[str, Any] = {"split": args.split} if args.split else {}
    sources = tuple(
        replace(
            source,
            store=source.store if is_url(source.store) else str(Path(source.store).absolute()),
            needs=tuple(sorted({*source.needs, *args.needs})),
            **wished,
        )
        for source in named.sources
    )
    mixed = mixture.Mixture(sources=sources)
    opened = mixed.open()
    mixed.write(args.out)
    rows: list[dict[str, Any]] = [
        {
            "store": part.source.store,
            "share": share,
            "clips": len(part.entries),
            "frames": sum(entry.frames for entry in part.entries),
        }
        for part, share in zip(opened, mixed.shares, strict=True)
    ]
    if args.json:
        result_json({"mixture": str(args.out), "sources": rows})
        return 0
    for row in rows:
        result(f"{100 * row['share']:5.1f} %  {row['store']}: {row['clips']} clips, {row['frames']} frames")
    result(f"wrote {args.out}")
    return 0
