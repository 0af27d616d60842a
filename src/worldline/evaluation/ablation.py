"""What the rows of an ablation are worth on held-out synthetic clips: paired, with errors, beside trivial predictors.

Depth: AbsRel and the share within 25 % after one scale and shift per clip in disparity (least absolute deviation), the
only alignment that is fair to a disparity map. Cameras: absolute trajectory error after a similarity in percent of the
path's length, and the rotation error of one step, on clips whose camera moves. Every row sees the same clips, so that
differences are compared clip by clip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.evaluation import trajectory
from worldline.evaluation.baselines import mean_map
from worldline.evaluation.depth import depth_errors
from worldline.geometry import fit, pose
from worldline.io.jsonable import jsonable
from worldline.scene import Progress, Video, no_progress

VALIDATION_START = 1_000_500_000
"""First scene seed; training stays below 1,000,000,000."""
LEAST_VALID = 0.05
"""Clips that show less than this share of surfaces are left out: there is nothing to be right about."""
FURTHEST = 100.0
"""Depth beyond this, in the truth's unit, counts as this."""
FPS = 24.0

METRICS = {
    "abs_rel": ("AbsRel %", "depth", "lower"),
    "delta": ("within 25 % %", "depth", "higher"),
    "ate": ("ATE % of path", "cameras", "lower"),
    "rotation": ("rotation error per step, deg", "cameras", "lower"),
}
"""Heading, what must be said to have it, and which direction is better."""

TRIVIAL = "mean depth map, straight path"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A held-out clip.

    Attributes:
        seed: of its scene.
        video: what systems see.
        depth, valid: [T, H, W].
        cam2world: [T, 4, 4].
    """

    seed: int
    video: Video
    depth: Float[Tensor, "T H W"]
    valid: Bool[Tensor, "T H W"]
    cam2world: Float[Tensor, "T 4 4"]

    def first(self, frames: int) -> Truth:
        """Only its first frames."""
        return Truth(
            seed=self.seed,
            video=self.video.select(slice(frames)),
            depth=self.depth[:frames],
            valid=self.valid[:frames],
            cam2world=self.cam2world[:frames],
        )


@runtime_checkable
class Said(Protocol):
    """What a row answers: disparity up to scale and shift, poses up to a similarity, and CPU seconds."""

    @property
    def disparity(self) -> Tensor | None:
        """[T, H, W] or None."""
        ...

    @property
    def cam2world(self) -> Tensor | None:
        """[T, 4, 4] or None."""
        ...

    @property
    def seconds(self) -> float:
        """CPU time it took."""
        ...


@runtime_checkable
class Asked(Protocol):
    """A row of a table for one clip (see `systems.geo4d.ablation.Row`)."""

    @property
    def table(self) -> str:
        """Where it stands."""
        ...

    @property
    def name(self) -> str:
        """Of the row."""
        ...

    @property
    def seed(self) -> int:
        """Of the noise."""
        ...

    @property
    def frames(self) -> int:
        """How many of the clip's first frames it is about."""
        ...

    @property
    def says(self) -> tuple[str, ...]:
        """What it owes: depth, cameras."""
        ...

    @property
    def answer(self) -> Callable[[], Said]:
        """Makes it; may raise."""
        ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row on one clip with one seed.

    Attributes:
        clip: scene seed.
        table, row, seed: whose.
        values: metric -> number; a metric that the clip or the row does not have is not there; None: it failed.
        seconds_per_frame: CPU time, or None.
        failed: why, or "".
    """

    clip: int
    table: str
    row: str
    seed: int
    values: dict[str, float | None] = field(default_factory=dict)
    seconds_per_frame: float | None = None
    failed: str = ""


def held_out_clips(count: int, frames: int, size: tuple[int, int], start: int = VALIDATION_START) -> Iterator[Truth]:
    """Rendered clips one by one, those that show little but sky left out; always the same for the same arguments."""
    from worldline.data.synthetic import render_batch

    seed, found = start, 0
    while found < count:
        batch = render_batch([seed], frames=frames, size=size)
        if float(batch.valid.float().mean()) > LEAST_VALID:
            found += 1
            times = torch.arange(frames, dtype=torch.float64) / FPS
            yield Truth(
                seed=seed,
                video=Video(frames=batch.rgb[0], timestamps=times),
                depth=batch.depth[0],
                valid=batch.valid[0],
                cam2world=batch.cam2world[0],
            )
        seed += 1


def depth_scores(disparity: Float[Tensor, "T H W"], truth: Truth) -> dict[str, float]:
    """AbsRel and the share within 25 %, both in percent, after one scale and shift in disparity.

    Nothing for a clip that shows no surface.
    """
    if not bool(truth.valid.any()):
        return {}
    known, depth = disparity[truth.valid].double(), truth.depth[truth.valid].double()
    scale, shift = fit.scale_shift_l1(known, 1 / depth)
    errors = depth_errors(1 / (scale * known + shift).clamp(min=1 / FURTHEST), depth)
    return {"abs_rel": 100 * errors["abs_rel"], "delta": 100 * errors["delta_1.25"]}


def camera_scores(cam2world: Float[Tensor, "T 4 4"], truth: Truth) -> dict[str, float]:
    """ATE in percent of the path after a similarity, and the error of one step's rotation in degrees (rms).

    Nothing for a clip whose camera stands still. An estimate that stands still has the error of the best single place.
    """
    true = truth.cam2world.double()
    if trajectory.still(true):
        return {}
    found = cam2world.double()
    if trajectory.still(found):
        error = trajectory.still_error(true)
    else:
        error = trajectory.absolute_trajectory_error(found, true, "sim3")
    steps = [pose.inverse(poses[:-1]) @ poses[1:] for poses in (found, true)]
    angles = pose.rotation_angle_deg(steps[0][:, :3, :3], steps[1][:, :3, :3])
    return {"ate": 100 * error / trajectory.path_length(true), "rotation": float(angles.square().mean().sqrt())}


def judge(asked: Asked, truth: Truth) -> Score:
    """The score of one row; one that raises, or says what is not finite, has failed everything it owed."""
    seen = truth.first(asked.frames)
    scored = partial(Score, clip=truth.seed, table=asked.table, row=asked.name, seed=asked.seed)
    there = {"depth": bool(seen.valid.any()), "cameras": not trajectory.still(seen.cam2world)}
    owed = [name for name, (_, what, _) in METRICS.items() if what in asked.says and there[what]]
    try:
        said = asked.answer()
    except Exception as error:  # noqa: BLE001 - a row may raise anything; it is told what it was
        return scored(values=dict.fromkeys(owed), failed=_reason(error))
    values, reasons = _values(said, seen)
    bad = [name for name in owed if not math.isfinite(values.get(name, math.nan))]
    if bad and not reasons:
        reasons.append(f"{', '.join(bad)}: missing or not finite")
    return scored(
        values={name: None if name in bad else values[name] for name in owed},
        seconds_per_frame=said.seconds / asked.frames,
        failed="; ".join(reasons) if bad else "",
    )


def _values(said: Said, truth: Truth) -> tuple[dict[str, float], list[str]]:
    """Numbers of what was said, and why there are none: cameras that fail do not take depth with them."""
    values: dict[str, float] = {}
    reasons = []
    for given, score in ((said.disparity, depth_scores), (said.cam2world, camera_scores)):
        if given is None:
            continue
        try:
            values |= score(given, truth)
        except (ValueError, RuntimeError) as error:
            reasons.append(_reason(error))
    return values, reasons


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def trivial_scores(truth: Truth, tables: Mapping[str, int]) -> list[Score]:
    """The mean depth map of training clips and a camera that goes straight ahead, for the frames of each table."""
    scores = []
    for table, frames in tables.items():
        seen = truth.first(frames)
        walk = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
        walk[:, 2, 3] = torch.arange(frames, dtype=torch.float64)
        depth = mean_map(seen.video.size).expand(frames, -1, -1)
        values = depth_scores(1 / depth, seen) | camera_scores(walk, seen)
        scores.append(Score(clip=truth.seed, table=table, row=TRIVIAL, seed=0, values=dict(values)))
    return scores


def run(
    clips: Iterable[Truth],
    rows: Callable[[Truth], Iterable[Asked]],
    *,
    total: int,
    kept: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> list[Score]:
    """Every row on every clip.

    Args:
        clips: from `held_out_clips`.
        rows: asked for each clip.
        total: number of clips, for the progress.
        kept: a file to which the scores of finished clips are added; those in it are not made again.
        settings: what the scores depend on; a file of other settings is refused.
        progress: told after every clip.

    Raises:
        ValueError: the file was made with other settings, or is something else.
    """
    done = _opened(kept, jsonable(dict(settings or {}))) if kept is not None else {}
    scores: list[Score] = []
    for number, truth in enumerate(clips, start=1):
        found = done.get(truth.seed)
        if found is None:
            asked = list(rows(truth))
            found = trivial_scores(truth, {row.table: row.frames for row in asked})
            found += [judge(row, truth) for row in asked]
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps([asdict(score) for score in found]) + "\n")
        scores += found
        progress("ablation", number, total)
    return scores


def _opened(path: Path, settings: dict[str, Any]) -> dict[int, list[Score]]:
    """Finished clips in a file: a line of settings, then a line for each clip; the file is made if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"ablation": settings}) + "\n")
        return {}
    lines = path.read_text().splitlines()
    try:
        found = json.loads(lines[0])["ablation"]
    except (IndexError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no file of ablation scores; choose another.") from None
    if found != settings:
        raise ValueError(f"{path} was made with other weights or settings; choose another file or remove it.")
    clips: dict[int, list[Score]] = {}
    for line in lines[1:]:
        try:
            scores = [Score(**entry) for entry in json.loads(line)]
        except (ValueError, TypeError):
            break  # cut off while it was written: that clip is made again
        clips[scores[0].clip] = scores
    if len(clips) < len(lines) - 1:  # do not write behind half a line
        path.write_text("\n".join(lines[: len(clips) + 1]) + "\n")
    return clips
