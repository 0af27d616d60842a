"""`worldline evaluate`: score predictions against truth under named protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from worldline.cli.console import note, progress_bar, result, result_json

if TYPE_CHECKING:
    from worldline.evaluation.protocols import Protocol
    from worldline.evaluation.report import Mean, Report
    from worldline.evaluation.scoring import Sequence4D


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score scenes, or other tools' outputs, against truth; a failed sequence is a row, never a gap."""

    predictions: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """One per system: a scene, a known tool's output, or a folder of such, one per sequence."""
    truth: tuple[Path, ...] = ()
    """Scenes (or trajectory files) with the truth, or folders of such; paired with predictions by name."""
    protocol: str = "worldline-v1"
    """A protocol's name, several with commas, or all; `--protocol list` says what there is."""
    dataset: str | None = None
    """Use the protocol's settings for this data set (masks, clipping); default: what the truth says it is."""
    names: tuple[str, ...] = ()
    """Names of the systems in the tables; default: the names of the paths."""
    json: bool = False
    """Print one row per number as JSON instead of tables."""
    markdown: Path | None = None
    """Also write the tables, with intervals, as Markdown."""
    html: Path | None = None
    """Also write one self-contained page with every sequence, error maps and camera paths."""
    trivial: bool = True
    """Score the trivial predictors too."""


arguments = Evaluate


def run(args: Evaluate) -> int:
    """Read, score, show; 1 when no number could be had at all."""
    from worldline.evaluation import scoring, tables
    from worldline.evaluation.page import html_page

    # 1. What to measure, on what.
    if args.protocol == "list":
        return _list_protocols()
    if not args.predictions or not args.truth:
        raise ValueError("Give predictions and --truth, for instance: worldline evaluate OUT --truth CLIPS.")
    protocols = _protocols(args.protocol)
    systems, sequences = _gather(args)
    # 2. Score.
    with progress_bar(quiet=args.json) as progress:
        reports = scoring.score(
            sequences,
            protocols,
            systems=systems,
            dataset=args.dataset,
            trivial=args.trivial,
            pictures=args.html is not None,
            progress=progress,
        )
    means = scoring.summarize_each(reports, protocols)
    # 3. Show, and write.
    for protocol in protocols:
        if not any(report.protocol == protocol.name for report in reports):
            note(f"{protocol.name}: the truth has nothing this protocol measures.")
    if args.json:
        result_json(tables.rows(reports))
    else:
        show(means)
        note_failures(reports, systems)
    if args.markdown is not None:
        args.markdown.write_text(tables.markdown(means, protocols))
    if args.html is not None:
        args.html.write_text(html_page(reports, means, protocols))
    return 0 if any(mean.scored for mean in means if not mean.system.startswith("trivial")) else 1


def _list_protocols() -> int:
    from worldline.evaluation.protocols import PROTOCOLS

    for protocol in PROTOCOLS.values():
        result(f"{protocol.name}\n  {protocol.source}\n  Beware: {protocol.pitfall}")
        if protocol.datasets:
            result(f"  data sets: {', '.join(protocol.datasets)}")
    return 0


def _protocols(names: str) -> list[Protocol]:
    from worldline.evaluation.protocols import PROTOCOLS

    if names == "all":
        return list(PROTOCOLS.values())
    unknown = [name for name in names.split(",") if name not in PROTOCOLS]
    if unknown:
        raise ValueError(f"There is no protocol '{unknown[0]}'; there are: {', '.join(PROTOCOLS)}.")
    return [PROTOCOLS[name] for name in names.split(",")]


def _gather(args: Evaluate) -> tuple[list[str], list[Sequence4D]]:
    """Names of the systems, and every true sequence with the predictions for it."""
    from functools import partial

    from worldline.evaluation import readers
    from worldline.evaluation.scoring import Sequence4D

    truths: dict[str, Path] = {}
    for path in args.truth:
        truths |= readers.find(path)
    names = _system_names(args)
    found: dict[str, dict[str, Path]] = {}
    for name, path in zip(names, args.predictions, strict=True):
        entries = readers.find(path)
        if len(entries) == len(truths) == 1:
            entries = {next(iter(truths)): next(iter(entries.values()))}
        if not set(entries) & set(truths):
            raise ValueError(
                f"{path} has {', '.join(list(entries)[:5])}, the truth has {', '.join(list(truths)[:5])}: "
                "give predictions the names of their sequences."
            )
        found[name] = entries
    sequences = [
        Sequence4D(
            name=sequence,
            truth=partial(readers.read, path),
            predictions={
                name: partial(readers.read, entries[sequence]) for name, entries in found.items() if sequence in entries
            },
        )
        for sequence, path in truths.items()
    ]
    return names, sequences


def _system_names(args: Evaluate) -> list[str]:
    if args.names:
        if len(args.names) != len(args.predictions):
            raise ValueError(f"{len(args.predictions)} predictions need as many --names, got {len(args.names)}.")
        names = list(args.names)
    else:
        names = [path.resolve().stem if path.is_file() else path.resolve().name for path in args.predictions]
        if len(set(names)) < len(names):
            names = [f"{path.resolve().parent.name}/{name}" for path, name in zip(args.predictions, names, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"The systems need different names, got {', '.join(names)}; give --names.")
    return names


def show(means: Sequence[Mean]) -> None:
    """Print one table per protocol or suite, a line per metric."""
    from rich.console import Console
    from rich.table import Table

    from worldline.evaluation import tables

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for name in dict.fromkeys(mean.protocol for mean in means):
        header, lines = tables.grid([mean for mean in means if mean.protocol == name], tables.short_cell)
        table = Table(title=name, title_justify="left")
        for index, column in enumerate(header):
            table.add_column(column, justify="right" if index else "left", overflow="fold")
        for line in lines:
            table.add_row(*line)
        console.print(table)


def note_failures(reports: Sequence[Report], systems: Sequence[str]) -> None:
    """Say on stderr which system failed where, once per reason."""
    said: set[tuple[str, str, str]] = set()
    for report in reports:
        for measure in report.measures:
            key = (report.system, report.sequence, measure.failed)
            if measure.failed and key not in said and report.system in systems:
                said.add(key)
                note(f"{report.sequence}, {report.system}: {measure.metric} failed: {measure.failed}")
