"""`worldline bench systems`: every system on the fixed suites, beside trivial predictors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from worldline.cli import bench_geo4d, bench_motioncrafter
from worldline.cli.bench_geo4d import Geo4DAblation
from worldline.cli.bench_motioncrafter import MotionCrafterAblation
from worldline.cli.console import note, progress_bar, result_json
from worldline.cli.evaluate import note_failures, show

if TYPE_CHECKING:
    from worldline.evaluation.benchmark import Predictor

DATA_VARIABLE = "WORLDLINE_SHARED_DATA"


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Score systems on the fixed suites: 64 synthetic clips, and real sequences where their data is."""

    suite: Literal["synthetic-v1", "real-v1", "all"] = "all"
    """Which suite."""
    systems: str = "embedded"
    """Names with commas; embedded: auto and all that run without a download; none: trivial predictors only."""
    data: Path | None = None
    """Folder of the real sequences; default: the variable WORLDLINE_SHARED_DATA, else ../shared/data."""
    only: str = ""
    """Only clips whose name holds this text: a look, not a result."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print one row per number as JSON instead of tables."""
    markdown: Path | None = None
    """Also write the tables, with intervals, as Markdown."""


arguments = {"systems": Systems, "geo4d-ablation": Geo4DAblation, "motioncrafter-ablation": MotionCrafterAblation}


def run(args: Systems | Geo4DAblation | MotionCrafterAblation) -> int:
    """Gather clips and systems, run, show."""
    if isinstance(args, Geo4DAblation):
        return bench_geo4d.run(args)
    if isinstance(args, MotionCrafterAblation):
        return bench_motioncrafter.run(args)
    from itertools import chain

    from worldline.evaluation import benchmark, report, tables
    from worldline.evaluation.protocols.suites import REAL_V1, SYNTHETIC_V1

    # 1. The systems.
    predictors, parameters = _predictors(args)
    # 2. The clips: rendered or read one after the other.
    synthetic = [c for c in SYNTHETIC_V1 if args.suite != "real-v1" and args.only in c.name]
    real = [c for c in REAL_V1 if args.suite != "synthetic-v1" and args.only in c.name]
    data = data_folder(args.data)
    missing = benchmark.missing_real(data, real)
    if missing:
        note(f"real-v1: skipped, not found below {data or 'any data folder'}: {', '.join(missing)}. Use --data.")
    real = [c for c in real if c.name not in missing]
    if not synthetic and not real:
        raise ValueError(
            f"No clip is left: nothing of {args.suite} is here{f' with {args.only}' if args.only else ''}."
        )
    clips = benchmark.synthetic_clips(synthetic)
    if data is not None:
        clips = chain(clips, benchmark.real_clips(data, real))
    # 3. Run and show.
    with progress_bar(quiet=args.json) as progress:
        reports = benchmark.run_suites(
            clips, predictors, total=len(synthetic) + len(real), parameters=parameters, progress=progress
        )
    means = report.summarize(reports)
    if args.json:
        result_json(tables.rows(reports))
    else:
        show(means)
        note_failures(reports, list(predictors))
    if args.markdown is not None:
        args.markdown.write_text(tables.markdown(means))
    return 0


def data_folder(chosen: Path | None) -> Path | None:
    """Where real sequences are: the option, the variable, or ../shared/data beside the repository or working folder.

    Raises FileNotFoundError when a folder that was asked for is not there.
    """
    asked = chosen or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if asked is not None:
        if not asked.is_dir():
            raise FileNotFoundError(f"There is no data folder {asked}; change --data or {DATA_VARIABLE}.")
        return asked
    places = (Path.cwd().parent, Path(__file__).resolve().parents[4])
    return next((place / "shared" / "data" for place in places if (place / "shared" / "data").is_dir()), None)


def _predictors(args: Systems) -> tuple[dict[str, Predictor], Mapping[str, int]]:
    """Systems as functions of a video and a seed, and how many weights each has."""
    from worldline import api
    from worldline.systems.registry import CARDS, card
    from worldline.systems.system import Loading

    device = api.choose_device(args.device)
    embedded = [c.name for c in CARDS.values() if c.kind == "video" and c.installed and c.embedded]
    names = {"embedded": [api.AUTO, *embedded], "none": []}.get(args.systems) if args.systems else []
    if names is None:
        names = [name.strip() for name in args.systems.split(",")]
    parameters: dict[str, int] = {}
    for name in names:
        entry = card(api.AUTO_PRIOR if name == api.AUTO else name)
        if entry.embedded:
            try:
                parameters[name] = entry.load(Loading(device=device)).parameters
            except (ValueError, OSError) as error:
                note(f"{name}: {error}")
    return {name: _predict_with(api.reconstruct, name, str(device)) for name in names}, parameters


def _predict_with(reconstruct: Any, name: str, device: str) -> Predictor:
    return lambda video, seed: reconstruct(video, system=name, seed=seed % 2**31, device=device)
