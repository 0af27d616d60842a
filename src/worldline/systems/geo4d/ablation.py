"""The rows of the paper's tables 3 (modalities), 4 (stride), 6 (steps) and 7 (point decoder) on one clip.

A row is an answer to be asked for: depth, cameras, or both. Windows are seen once and used by every row they can serve.
What the rows are worth is judged elsewhere (`evaluation.ablation`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from worldline.diffusion import ddim
from worldline.geometry import pointmap
from worldline.scene import Scene4D, Video
from worldline.systems.geo4d import alone
from worldline.systems.geo4d.config import MODALITIES, Modality
from worldline.systems.geo4d.infer import WINDOW_KEY, InferConfig, infer, observe_all
from worldline.systems.geo4d.networks import Geo4D
from worldline.systems.geo4d.observe import PointDecoder

MODALITY_TABLE, STRIDE_TABLE = "modalities (table 3)", "stride (table 4)"
STEP_TABLE, DECODER_TABLE = "steps (table 6)", "point decoder (table 7)"

ALL = "points + disparity + rays"
TOLD: dict[str, tuple[Modality, ...]] = {
    "points": ("points",),
    "points + disparity": ("points", "disparity"),
    "points + rays": ("points", "ray_direction", "ray_moment"),
    ALL: MODALITIES,
}
STEPS = (1, 2, 5, 10, 25, 50)
ENDS_AT = (1, 5)
"""Step counts at which all three ends of the sampler are compared; elsewhere the configured one."""
DECODERS: dict[PointDecoder, str] = {
    "uncertain": "own decoder with uncertainty",
    "certain": "own decoder without uncertainty",
    "common": "common decoder",
}

Says = Literal["depth", "cameras"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a row says.

    Attributes:
        disparity: [T, H, W] up to one scale and shift, or None.
        cam2world: [T, 4, 4] up to a similarity, or None.
        seconds: CPU time of the networks for its windows, and of aligning them.
    """

    disparity: Float[Tensor, "T H W"] | None
    cam2world: Float[Tensor, "T 4 4"] | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table for one clip and one seed.

    Attributes:
        table, name: where it stands.
        seed: of the noise.
        frames: how many frames of the clip, from the first, it is about.
        says: what it owes.
        answer: makes it; may raise.
    """

    table: str
    name: str
    seed: int
    frames: int
    says: tuple[Says, ...]
    answer: Callable[[], Answer]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A finding of the paper: one row is better than another in one metric.

    Attributes:
        text: the finding, with the paper's numbers.
        table, metric: where to look.
        better, worse: rows.
    """

    text: str
    table: str
    metric: str
    better: str
    worse: str


class SeenWindows:
    """Windows kept in memory for all rows that need the same (an `infer.WindowCache`), and the CPU time of each.

    Nothing else is kept: every row aligns its windows itself.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._seconds: dict[str, float] = {}
        self._asked: list[str] = []
        self._since = 0.0

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was seen in a window, or None."""
        if not key.startswith(WINDOW_KEY):
            return None
        self._asked.append(key)
        self._since = time.process_time()
        return self._kept.get(key)

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep what was seen; it took the time since it was asked for."""
        if not key.startswith(WINDOW_KEY):
            return
        self._seconds[key] = time.process_time() - self._since
        self._kept[key] = tensors

    def timed(self, make: Callable[[], tuple[Tensor | None, Tensor | None]]) -> Answer:
        """An answer, its time as if every window had been seen for it alone."""
        before, known = time.process_time(), sum(self._seconds.values())
        self._asked.clear()
        disparity, cam2world = make()
        spent = time.process_time() - before - (sum(self._seconds.values()) - known)
        return Answer(
            disparity=disparity,
            cam2world=cam2world,
            seconds=spent + sum(self._seconds[key] for key in set(self._asked)),
        )


def rows(video: Video, model: Geo4D, config: InferConfig, seeds: Sequence[int] = (0,)) -> Iterator[Row]:
    """Every row of every table; the modalities for each seed, the rest for the first.

    A deterministic model has neither seeds nor steps: one seed counts, and the table of steps is left out.

    Args:
        video: longer than the model's window, or strides make no difference.
        model: the networks.
        config: how the system is used when nothing is varied.
        seeds: of the noise.
    """
    denoises = not model.config.deterministic
    seeds = seeds if denoises else seeds[:1]
    config = replace(config, seeds=(seeds[0],), modalities=MODALITIES, point_decoder="uncertain")
    seen = {seed: SeenWindows() for seed in seeds}
    for seed in seeds:
        yield from _modality_rows(video, model, replace(config, seeds=(seed,)), seen[seed])
    if len(seeds) > 1:
        together = replace(config, seeds=tuple(seeds))
        yield _scene_row(MODALITY_TABLE, together_name(seeds), video, model, together, SeenWindows())
    for stride in strides(model.config.window, config.stride or model.config.stride):
        name = stride_name(stride)
        yield _scene_row(STRIDE_TABLE, name, video, model, replace(config, stride=stride), seen[seeds[0]])
    first = video.select(slice(model.config.window))
    for steps in STEPS if denoises else ():
        ends: tuple[ddim.Final, ...] = ("published", "unscaled", "clean") if steps in ENDS_AT else (config.final,)
        for end in ends:
            varied = replace(config, steps=steps, final=end)
            yield _scene_row(STEP_TABLE, step_name(steps, end), first, model, varied, SeenWindows())
    for decoder, name in DECODERS.items():
        windows = seen[seeds[0]] if decoder == "uncertain" else SeenWindows()
        yield _scene_row(DECODER_TABLE, name, video, model, replace(config, point_decoder=decoder), windows)


def together_name(seeds: Sequence[int]) -> str:
    """Name of the row in which several seeds are one answer."""
    return f"{ALL}, {len(seeds)} seeds as one"


def stride_name(stride: int) -> str:
    """Name of a row of the stride table."""
    return f"stride {stride}"


def step_name(steps: int, end: str) -> str:
    """Name of a row of the step table."""
    return f"{steps} step{'s' if steps > 1 else ''}, {end} end"


def strides(window: int, usual: int) -> list[int]:
    """The paper's strides 15, 8, 4, 2 of 16 frames at another window, and the usual one; widest first."""
    return sorted({window - 1, max(1, window // 2), max(1, window // 4), max(1, window // 8), usual}, reverse=True)


def reference(table: str, model: Geo4D, config: InferConfig) -> str:
    """The row that the others of a table are compared with: how the system is used."""
    return {
        MODALITY_TABLE: ALL,
        STRIDE_TABLE: stride_name(config.stride or model.config.stride),
        STEP_TABLE: step_name(config.steps or model.config.steps, config.final),
        DECODER_TABLE: DECODERS["uncertain"],
    }[table]


def claims(window: int) -> tuple[Claim, ...]:
    """The paper's findings (Sintel), as far as a table here can hold or break them.

    Those about depth are asked of AbsRel, whose mean a few clips can carry, and of the share of pixels within 25 %.
    """
    close, far = stride_name(max(1, window // 8)), stride_name(window - 1)
    few, one, many = (step_name(steps, "clean") for steps in (5, 1, 25))
    depth, path = "abs_rel", "ate"
    modality = (
        ("All modalities have better depth than points alone (0.205 against 0.223).", depth, ALL, "points"),
        ("All modalities have better depth than disparity alone (0.205 against 0.211).", depth, ALL, "disparity"),
        ("Disparity alone has better depth than points alone (0.211 against 0.223).", depth, "disparity", "points"),
        ("All modalities have better cameras than rays alone (0.185 against 0.268).", path, ALL, "rays"),
        ("All modalities have better cameras than points alone (not in the paper's table).", path, ALL, "points"),
    )
    own, common = DECODERS["uncertain"], DECODERS["common"]
    found = (
        *(Claim(text=t, table=MODALITY_TABLE, metric=m, better=b, worse=w) for t, m, b, w in modality),
        Claim(
            text="More overlap gives better depth (stride 2 of 16: 0.204, 15 of 16: 0.213).",
            table=STRIDE_TABLE, metric=depth, better=close, worse=far,
        ),
        Claim(
            text="5 steps have better depth than 1 (0.205 against 0.221).",
            table=STEP_TABLE, metric=depth, better=few, worse=one,
        ),
        Claim(
            text="5 steps have better depth than 25 (0.205 against 0.220).",
            table=STEP_TABLE, metric=depth, better=few, worse=many,
        ),
        Claim(
            text="The published end of the sampler costs accuracy (our suspicion, not the paper's).",
            table=STEP_TABLE, metric=depth, better=few, worse=step_name(5, "published"),
        ),
        Claim(
            text="The fine-tuned point decoder has better depth than the common one (0.205 against 0.212).",
            table=DECODER_TABLE, metric=depth, better=own, worse=common,
        ),
    )  # fmt: skip
    twice = ((claim, replace(claim, metric="delta")) if claim.metric == depth else (claim,) for claim in found)
    return tuple(claim for both in twice for claim in both)


def _modality_rows(video: Video, model: Geo4D, config: InferConfig, seen: SeenWindows) -> Iterator[Row]:
    count, seed = len(video), config.seeds[0]

    def disparity() -> Answer:
        return seen.timed(lambda: (alone.join_disparity(observe_all(video, model, config, cache=seen), count), None))

    def rays(method: Literal["published", "paper"]) -> Answer:
        return seen.timed(
            lambda: (None, alone.join_cameras(observe_all(video, model, config, cache=seen), count, method))
        )

    def single(name: str, says: Says, answer: Callable[[], Answer]) -> Row:
        return Row(table=MODALITY_TABLE, name=name, seed=seed, frames=count, says=(says,), answer=answer)

    yield _scene_row(MODALITY_TABLE, "points", video, model, replace(config, modalities=TOLD["points"]), seen)
    yield single("disparity", "depth", disparity)
    yield single("rays", "cameras", lambda: rays("paper"))
    yield single("rays, published cameras", "cameras", lambda: rays("published"))
    for name in [name for name in TOLD if name != "points"]:
        yield _scene_row(MODALITY_TABLE, name, video, model, replace(config, modalities=TOLD[name]), seen)


def _scene_row(table: str, name: str, video: Video, model: Geo4D, config: InferConfig, seen: SeenWindows) -> Row:
    def depth_and_cameras() -> tuple[Tensor, Tensor | None]:
        scene = infer(video, model, config, cache=seen)
        return 1 / known_depth(scene), None if scene.cameras is None else scene.cameras.cam2world

    return Row(
        table=table,
        name=name,
        seed=config.seeds[0],
        frames=len(video),
        says=("depth", "cameras"),
        answer=lambda: seen.timed(depth_and_cameras),
    )


def known_depth(scene: Scene4D) -> Float[Tensor, "T H W"]:
    """Depth of every pixel; those the scene does not know count as the most distant one it does.

    Raises:
        ValueError: the scene knows no pixel.
    """
    depth = pointmap.scene_depth(scene)
    known = scene.valid & depth.isfinite()
    if not bool(known.any()):
        raise ValueError("The scene knows no pixel.")
    return depth.where(known, depth[known].max()).clamp(min=1e-4)
