"""`worldline data check`: is every clip of a store whole, and do its cameras, depth, motion and images agree?"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from worldline.cli.console import note, progress_bar, result, result_json
from worldline.io.storage import is_url

if TYPE_CHECKING:
    from worldline.data.check import CheckConfig, ClipCheck
    from worldline.data.store import ClipStore, StoredClip


@dataclass(frozen=True, kw_only=True)
class Check:
    """Test every clip of a store: whole bytes, rigid cameras, depth seen from other frames, X + V, points at rest."""

    store: Annotated[str, tyro.conf.Positional]
    """Store of `worldline data convert`: folder or URL."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for report.json and a picture of every clip that fails; default STORE-check, here for a URL."""
    match: str = ""
    """Only clips with this in their name."""
    tolerance: float = 0.05
    """Relative difference of depth that still agrees."""
    pairs: int = 16
    """Frame pairs per test and clip, spread over the clip."""
    passes: float = 0.85
    """Score that every test must reach, in its worst frame pair; synthetic data deserve 0.98."""
    images: bool = False
    """Also compare the motion of the images with points, flow and cameras: sees flow that contains the camera's motion
    (slow; always done where no depth is known)."""
    pictures: bool = False
    """Draw also the clips that pass."""
    again: bool = False
    """Test also what an earlier run has tested."""
    json: bool = False
    """Answer as JSON, draw no bars."""


def run(args: Check) -> int:
    """Test, report; exit code 1 when a clip fails."""
    from worldline.data.check import CheckConfig
    from worldline.data.store import ClipStore

    if args.pairs < 1 or not 0 < args.tolerance < 1 or not 0 <= args.passes <= 1:
        raise ValueError("--pairs must be positive, --tolerance in (0, 1) and --passes in [0, 1].")
    store = ClipStore(args.store)
    config = CheckConfig(tolerance=args.tolerance, pairs=args.pairs, passes=args.passes, images=args.images)
    out = args.out or _beside(args.store)
    chosen = [entry for entry in store.entries if args.match in entry.name]
    if not chosen:
        raise ValueError(f"{args.store} has no clip with {args.match!r} in its name.")
    out.mkdir(parents=True, exist_ok=True)
    ledger = _Ledger(out / "checked.jsonl", config, fresh=args.again)
    rows = []
    with progress_bar(quiet=args.json) as progress:
        for number, entry in enumerate(chosen):
            key = f"{entry.name}@{entry.shard}+{entry.table[0]}"
            row = ledger.known(key) or ledger.add(key, _test(store, entry.name, config, out, args.pictures))
            rows.append(row)
            progress("clips", number + 1, len(chosen))
    return _answer(args, out, rows)


def _beside(store: str) -> Path:
    """STORE-check; in this folder for a URL."""
    place = store.rstrip("/")
    return Path(f"{place.rsplit('/', 1)[-1] if is_url(place) else place}-check")


class _Ledger:
    """What has been tested, so that a stopped run goes on."""

    def __init__(self, path: Path, config: CheckConfig, fresh: bool) -> None:
        self._path = path
        self._config = zlib.crc32(json.dumps(asdict(config), sort_keys=True).encode())
        self._rows: dict[str, dict[str, Any]] = {}
        if fresh:
            path.unlink(missing_ok=True)
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
                if row.pop("config") == self._config:
                    self._rows[row.pop("key")] = row
            except (ValueError, KeyError):
                continue  # the line at which an earlier run was killed

    def known(self, key: str) -> dict[str, Any] | None:
        return self._rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, "config": self._config, **row}) + "\n")
        return row


def _test(store: ClipStore, name: str, config: CheckConfig, out: Path, pictures: bool) -> dict[str, Any]:
    from worldline.data.check import ClipCheck, check_clip

    damage: list[str] = []
    check = ClipCheck(name=name, outcomes=(), passes=config.passes)
    try:
        clip = store[name]
        damage = [str(piece) for piece in clip.damages()]
        if not damage:
            check = check_clip(clip, config)
    except (ValueError, OSError) as error:
        damage = [str(error)]
    check = replace(check, damage=tuple(damage))
    picture = ""
    if not damage and (pictures or check.verdict == "fails"):
        picture = str(_draw(clip, check, config, out))
    return {
        "clip": name,
        "score": check.score,
        "verdict": check.verdict,
        "tests": [asdict(outcome) for outcome in check.outcomes],
        "damage": damage,
        "picture": picture,
    }


def _draw(clip: StoredClip, check: ClipCheck, config: CheckConfig, out: Path) -> Path:
    from PIL import Image

    from worldline.data.check.picture import draw
    from worldline.io.atomic import atomic_file

    read: Callable[[int, int], Any] = lambda a, b: clip.read(slice(a, b)).scene  # noqa: E731
    path = out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', check.name).strip('-') or 'clip'}.png"
    with atomic_file(path) as draft:
        Image.fromarray(draw(check, read, config)).save(draft, format="PNG")
    return path


def _answer(args: Check, out: Path, rows: list[dict[str, Any]]) -> int:
    from worldline.io.atomic import atomic_file

    failed = [row for row in rows if row["verdict"] == "fails"]
    untested = [row for row in rows if row["verdict"] == "untested"]
    with atomic_file(out / "report.json") as draft:
        draft.write_text(json.dumps({"store": args.store, "clips": rows}, indent=1) + "\n")
    if args.json:
        result_json({"store": args.store, "failed": len(failed), "untested": len(untested), "clips": rows})
        return 1 if failed else 0
    for row in rows:
        score = "  -  " if row["score"] is None else f"{row['score']:.3f}"
        result(f"{score}  {row['verdict']:<8}  {row['clip']}   {_figures(row)}")
        for line in row["damage"]:
            note(line)
    passed = len(rows) - len(failed) - len(untested)
    result(f"{passed} of {len(rows)} clips pass, {len(failed)} fail, {len(untested)} could not be tested; "
           f"report and pictures: {out}")  # fmt: skip
    return 1 if failed else 0


def _figures(row: dict[str, Any]) -> str:
    """The figures of the tests on one line: mean agreement, and what kept a test from being one."""
    parts = []
    for test in row["tests"]:
        if test["mean"] is not None and test["name"] != "projection":
            parts.append(f"{test['name']} {100 * test['mean']:.2f} %")
        elif test["score"] != 1.0 and test["note"]:
            parts.append(f"{test['name']}: {test['note']}")
    return ", ".join(parts)
