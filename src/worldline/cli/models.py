"""`worldline models`: list, download, verify, convert published weights, and say where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from worldline.cli import models_convert
from worldline.cli.console import progress_bar, result, result_json
from worldline.cli.models_convert import Convert

SYSTEMS = ("motioncrafter",)
"""Systems with published weights."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Every published model: where it comes from, its licence, whether it is here."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch the weights of a system; an interrupted download continues."""

    system: Annotated[str, tyro.conf.Positional]
    """Name of the system."""
    paradigm: Literal["deterministic", "denoising"] = "deterministic"
    """Which of its two U-Nets."""
    weights: str | None = None
    """Another repository (owner/name) with the same subfolders, or a folder to check."""
    accept_license: bool = False
    """I have read the licence that is shown without this, and accept it."""
    json: bool = False
    """Answer as JSON, draw no progress."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every key and shape against the networks, built without memory; hashes too where there are files."""

    system: Annotated[str, tyro.conf.Positional]
    """Name of the system."""
    paradigm: Literal["deterministic", "denoising"] = "deterministic"
    """Which of its two U-Nets."""
    weights: str | None = None
    """A folder with the subfolders (their index and config suffice), or another repository."""
    remote: bool = False
    """Read only the headers of the files on the hub, download no tensors."""
    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, kw_only=True)
class Path:
    """Print the folders that hold the weights of a system."""

    system: Annotated[str, tyro.conf.Positional]
    """Name of the system."""
    paradigm: Literal["deterministic", "denoising"] = "deterministic"
    """Which of its two U-Nets."""
    json: bool = False
    """Answer as JSON."""


arguments = {"list": List, "download": Download, "verify": Verify, "path": Path, "convert": Convert}


def run(args: List | Download | Verify | Path | Convert) -> int:
    """Do one of the five; exit code 1 when `verify` finds differences."""
    if isinstance(args, List):
        return _list(args)
    if isinstance(args, Convert):
        return models_convert.run(args)
    _known(args.system)
    if isinstance(args, Download):
        return _download(args)
    if isinstance(args, Verify):
        return _verify(args)
    return _path(args)


def _known(system: str) -> None:
    if system not in SYSTEMS:
        raise ValueError(f"There are no published weights for '{system}'; there are for: {', '.join(SYSTEMS)}.")


def _list(args: List) -> int:
    from worldline.io import weights
    from worldline.systems.motioncrafter import pretrained

    rows: list[dict[str, Any]] = []
    for paradigm in pretrained.UNET_FOLDERS:
        for part in pretrained.weights(paradigm):
            rows.append(
                {
                    "system": part.system,
                    "paradigm": paradigm,
                    "repo": part.repo,
                    "subfolders": list(part.subfolders),
                    "licence": part.licence.name,
                    "licence_accepted": weights.accepted(part.licence),
                    "here": weights.find(part) is not None,
                }
            )
    if args.json:
        result_json(rows)
        return 0
    for row in rows:
        state = "here" if row["here"] else "not downloaded"
        said = "accepted" if row["licence_accepted"] else "not accepted yet"
        result(f"{row['system']} ({row['paradigm']})  {row['repo']}: {', '.join(row['subfolders'])}")
        result(f"    {state}; licence {row['licence']}: {said}")
    return 0


def _download(args: Download) -> int:
    from worldline.systems.motioncrafter import pretrained

    with progress_bar(quiet=args.json) as progress:
        parts = pretrained.resolve_all(
            args.paradigm, source=args.weights, accept_license=args.accept_license, progress=progress
        )
    rows = [{"repo": p.weights.repo, "folder": str(p.folder), "sha256": dict(p.hashes)} for p in parts]
    _say_where(rows, args.json)
    return 0


def _path(args: Path) -> int:
    from worldline.io import weights
    from worldline.systems.motioncrafter import pretrained

    folders = {part.repo: weights.find(part) for part in pretrained.weights(args.paradigm)}
    absent = [repo for repo, folder in folders.items() if folder is None]
    if absent:
        raise ValueError(f"{absent[0]} is not on this machine; `worldline models download {args.system}` fetches it.")
    _say_where([{"repo": repo, "folder": str(folder)} for repo, folder in folders.items()], args.json)
    return 0


def _say_where(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        result_json(rows)
    for folder in () if as_json else dict.fromkeys(row["folder"] for row in rows):
        result(folder)


def _verify(args: Verify) -> int:
    from worldline.systems.motioncrafter import pretrained

    described = pretrained.describe_all(args.paradigm, source=args.weights, remote=args.remote)
    found = pretrained.differences(described, pretrained.read_config(described, args.paradigm))
    rows = []
    for name, difference in found.items():
        table = described.tables[name]
        rows.append(
            {
                "model": name,
                "keys": len(table),
                "shapes_checked": all(shape is not None for shape in table.values()),
                "fits": not difference,
                "difference": difference.describe(),
            }
        )
    if args.json:
        result_json(rows)
    for row in () if args.json else rows:
        scope = "keys and shapes" if row["shapes_checked"] else "keys only, as there is just an index"
        verdict = "all fit" if row["fits"] else f"differ: {row['difference']}"
        result(f"{row['model']}: {row['keys']} tensors ({scope}): {verdict}")
    return 0 if all(row["fits"] for row in rows) else 1
