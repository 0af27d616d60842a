"""Clips of stores as training batches: which, from where, at what size, is a pure function of (seed, batch index).

So training resumes at any batch, processes take turns with the indices, and there may be any number of workers: none of
it changes a batch. Scene flow over a stride is composed; where it is not known it says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.data import resample
from worldline.data.mixture import Mixture, Opened
from worldline.data.store import Entry, StoredClip
from worldline.data.store.record import unproject
from worldline.geometry import pose, sceneflow

ATTEMPTS = 8
"""Windows drawn for one place in a batch before it is given up."""

NEEDS = frozenset({"points", "cameras"})
"""Flags without which a clip has nothing to teach here."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the clips of a batch look like.

    Attributes:
        frames: how many.
        stride: frames of the source from one to the next.
        size: (H, W) in pixels.
    """

    frames: int
    size: tuple[int, int]
    stride: int = 1

    @property
    def span(self) -> int:
        """Frames of the source from the first to the last."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How clips are drawn.

    Attributes:
        views: batch i has views[i % len(views)].
        batch_size: clips per batch.
        seed: of what is drawn.
        zoom: (least, most) by which the largest crop of the right shape is made smaller; (1, 1) takes the largest.
        anywhere: crops lie anywhere, not only in the middle.
        least_valid: windows with no larger share of valid pixels teach nothing: another one is drawn, by the same seed.
        workers: processes that read ahead; 0 reads when asked, in the asking thread.
        ahead: batches that each worker has ready.
    """

    views: tuple[View, ...]
    batch_size: int = 1
    seed: int = 0
    zoom: tuple[float, float] = (1.0, 1.0)
    anywhere: bool = False
    least_valid: float = 0.0
    workers: int = 0
    ahead: int = 2

    def __post_init__(self) -> None:
        """Refuse what gives no batch."""
        if not self.views or self.batch_size < 1 or self.workers < 0 or self.ahead < 1:
            raise ValueError("A loader needs a view, clips per batch, and no negative number of workers.")
        if not 1 <= self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"The zoom must be (least, most), 1 or more, got {self.zoom}.")


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """Clips with truth; world = first camera of each clip. The fields that `data.synthetic.SyntheticBatch` has too.

    Attributes:
        rgb: [B, T, H, W, 3] in [0, 1].
        points: [B, T, H, W, 3] world points, 0 where not valid.
        valid: [B, T, H, W].
        scene_flow: [B, T, H, W, 3] world displacement to the next frame OF THE CLIP; 0 where not valid.
        flow_valid: [B, T, H, W]; never in the last frame, nowhere for clips without flow.
        intrinsics: [B, T, 3, 3] pixels.
        cam2world: [B, T, 4, 4].
        fps: [B] frames per second of the clip (the stride counted).
        metric: [B] whether lengths are metres.
        captions: one each, empty if there is none.
        names: "STORE#CLIP@FRAME" each, for people.
    """

    rgb: Float[Tensor, "B T H W 3"]
    points: Float[Tensor, "B T H W 3"]
    valid: Bool[Tensor, "B T H W"]
    scene_flow: Float[Tensor, "B T H W 3"]
    flow_valid: Bool[Tensor, "B T H W"]
    intrinsics: Float[Tensor, "B T 3 3"]
    cam2world: Float[Tensor, "B T 4 4"]
    fps: Float[Tensor, " B"]
    metric: Bool[Tensor, " B"]
    captions: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device | str) -> ClipBatch:
        """The batch on another device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for one clip of a batch.

    Attributes:
        source: number of the source.
        entry: which clip.
        start: its first frame.
        zoom, place: of the crop.
    """

    source: int
    entry: Entry
    start: int
    zoom: float
    place: tuple[float, float]


@dataclass
class Loader:
    """Batches of a mixture by index: `loader(index)`; picklable.

    Clips shorter than a view are left out of its batches (their number is `left_out`), not run back and forth.

    Attributes:
        mixture: which stores, in which proportion.
        config: how.
        step: distance of the indices that this process asks for: the number of processes of a training started by
            torchrun. It only matters for reading ahead.
    """

    mixture: Mixture
    config: LoaderConfig
    step: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")))
    left_out: int = field(default=0, init=False)
    _sources: list[Opened] = field(default_factory=list, init=False, repr=False)
    _tables: list[list[tuple[list[Entry], np.ndarray]]] = field(default_factory=list, init=False, repr=False)
    _ready: Iterator[ClipBatch] | None = field(default=None, init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the stores.

        Raises:
            FileNotFoundError, ValueError, OSError: a store cannot be opened, or has no clip that is long enough.
        """
        self._sources = self.mixture.open()
        self.left_out = 0
        for opened in self._sources:
            tables = []
            for view in self.config.views:
                usable = [e for e in opened.entries if e.flags >= NEEDS and e.frames >= view.span]
                if not usable:
                    raise ValueError(f"No clip of {opened.source.store} has points, cameras and the {view.span} frames "
                                     f"that {view.frames} of them at stride {view.stride} need.")  # fmt: skip
                windows = np.cumsum([entry.frames - view.span + 1 for entry in usable])
                tables.append((usable, windows))
                self.left_out = max(self.left_out, len(opened.entries) - len(usable))
            self._tables.append(tables)
        if self.config.workers and not all(opened.store.storage.shared for opened in self._sources):
            raise ValueError("A memory:// store is seen by one process only; load it with workers=0.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None, "_next": -1}

    def __call__(self, index: int) -> ClipBatch:
        """The batch of an index; asked for in order, it is ready when workers are faster than training.

        Raises:
            ValueError: a chunk that it needs is damaged; says which.
            OSError: a store cannot be reached.
        """
        if not self.config.workers:
            return self.make(index)
        if self._ready is None or index != self._next:
            self._ready = iter(self._workers(index))
        self._next = index + self.step
        return next(self._ready)

    def _workers(self, first: int) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(
            _Indexed(self),  # type: ignore[arg-type]  # torch asks for no more than __getitem__ with a sampler
            batch_size=None,
            sampler=range(first, 1 << 62, self.step),  # type: ignore[arg-type]
            num_workers=self.config.workers,
            prefetch_factor=self.config.ahead,
            multiprocessing_context="spawn",  # forked torch and forked network clients hang
        )

    def close(self) -> None:
        """Stop reading ahead; the next call starts again."""
        self._ready, self._next = None, -1

    def draw(self, index: int) -> list[Drawn]:
        """What the batch of an index is made of, unless a window shows too little; nothing is read."""
        return [self._drawn(index, slot, 0) for slot in range(self.config.batch_size)]

    def _drawn(self, index: int, slot: int, attempt: int) -> Drawn:
        random = np.random.default_rng([self.config.seed, index, slot, attempt])
        return self._draw(random, index % len(self.config.views))

    def _draw(self, random: np.random.Generator, view: int) -> Drawn:
        """A source by its share, then one of all its windows; every frame of a store is as likely as any other."""
        source = int(np.searchsorted(np.cumsum(self.mixture.shares), random.random(), side="right"))
        source = min(source, len(self._sources) - 1)
        usable, windows = self._tables[source][view]
        window = int(random.integers(windows[-1]))
        number = int(np.searchsorted(windows, window, side="right"))
        start = window - (int(windows[number - 1]) if number else 0)
        zoom = float(random.uniform(*self.config.zoom))
        place = (float(random.random()), float(random.random())) if self.config.anywhere else (0.5, 0.5)
        return Drawn(source=source, entry=usable[number], start=start, zoom=zoom, place=place)

    def make(self, index: int) -> ClipBatch:
        """The batch of an index, made here and now; see `__call__`."""
        made = [self._one(index, slot) for slot in range(self.config.batch_size)]
        drawn = [one for one, _ in made]
        stacked = {name: torch.stack([part[name] for _, part in made]) for name in made[0][1]}
        return ClipBatch(
            **stacked,
            captions=tuple(one.entry.caption for one in drawn),
            names=tuple(f"{self._sources[d.source].source.store}#{d.entry.name}@{d.start}" for d in drawn),
        )

    def _one(self, index: int, slot: int) -> tuple[Drawn, dict[str, Tensor]]:
        """The clip of one slot: the first of a few draws that shows enough."""
        number = index % len(self.config.views)
        for attempt in range(ATTEMPTS):
            drawn = self._drawn(index, slot, attempt)
            stored = self._sources[drawn.source].store[drawn.entry.name]
            part = window_of(stored, drawn.start, self.config.views[number], drawn.zoom, drawn.place)
            if float(part["valid"].float().mean()) > self.config.least_valid:
                return drawn, part
        place = f"{self._sources[drawn.source].source.store}, clip {drawn.entry.name}"
        raise ValueError(
            f"{ATTEMPTS} windows in a row show almost no surface, the last in {place}; leave such clips out."
        )


class _Indexed:
    """A loader as torch's workers want it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, index: int) -> ClipBatch:
        torch.set_num_threads(1)
        return self._loader.make(index)


GEOMETRY = ("depth", "points", "valid", "scene_flow", "flow_valid")


def window_of(
    stored: StoredClip, start: int, view: View, zoom: float = 1.0, place: tuple[float, float] = (0.5, 0.5)
) -> dict[str, Tensor]:
    """Some frames of a stored clip at a size, by the names of `ClipBatch`, in the world of the first of them.

    Raises:
        IndexError: the clip has not as many frames.
        ValueError: a chunk is damaged.
    """
    # 1. Read: pictures of the chosen frames; geometry of those between them too, if flow is to be composed.
    chosen = list(range(start, start + view.span, view.stride))
    has_flow = "flow" in stored.entry.flags
    needed = list(range(start, start + view.span)) if has_flow else chosen
    arrays = stored.arrays(GEOMETRY if has_flow else GEOMETRY[:3], needed)
    rgb = stored.arrays(["rgb"], chosen)["rgb"]
    # 2. Crop and resize; every point is one that was there.
    box = resample.largest_box(stored.entry.size, view.size, zoom, place)
    matrices = torch.from_numpy(stored.whole("cam2world")[needed])
    poses = pose.inverse(matrices[:1]) @ matrices
    k_source = torch.from_numpy(stored.whole("intrinsics")[needed])
    k = resample.intrinsics_of(k_source, box, view.size)
    points, valid, flow, flow_valid = _geometry(arrays, stored.entry.size, box, view.size, k_source, matrices, poses)
    # 3. Flow from each chosen frame to the next one.
    steps = [needed.index(frame) for frame in chosen]
    if has_flow and view.stride > 1:
        flow, flow_valid = sceneflow.compose(points, flow, flow_valid, k.float(), poses.float(), view.stride)
    flow, flow_valid = flow[steps].clone(), flow_valid[steps].clone()
    flow[-1], flow_valid[-1] = 0, False
    times = stored.whole("timestamps")[chosen]
    fps = (len(chosen) - 1) / float(times[-1] - times[0]) if len(chosen) > 1 else 0.0
    return {
        "rgb": resample.pictures(rgb, box, view.size),
        "points": points[steps],
        "valid": valid[steps],
        "scene_flow": flow,
        "flow_valid": flow_valid,
        "intrinsics": k[steps].float(),
        "cam2world": poses[steps].float(),
        "fps": torch.tensor(fps),
        "metric": torch.tensor(stored.entry.scale == "metric"),
    }


def _geometry(
    arrays: dict[str, np.ndarray],
    source: tuple[int, int],
    box: resample.Box,
    size: tuple[int, int],
    intrinsics: Tensor,
    matrices: Tensor,
    poses: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, valid, flow, flow_valid of all frames at the output size, in the world of the first camera."""
    count = len(poses)
    points, flow = np.zeros((count, *size, 3), np.float32), np.zeros((count, *size, 3), np.float32)
    valid, flow_valid = np.zeros((count, *size), bool), np.zeros((count, *size), bool)
    to_first = pose.inverse(matrices[0]).numpy()
    turn = to_first[:3, :3].astype(np.float32)
    for t in range(count):
        inside = np.ascontiguousarray(arrays["valid"][t, box.rows, box.columns])
        index, valid[t] = resample.picks(inside, size)
        pixels = (index // box.width + box.top) * source[1] + index % box.width + box.left
        if "depth" in arrays:
            depth = np.where(valid[t], arrays["depth"][t].reshape(-1)[pixels], np.float32(0))
            points[t] = unproject(depth, intrinsics[t], poses[t], source, pixels)
        else:
            world = arrays["points"][t].reshape(-1, 3)[pixels].astype(np.float64)
            points[t] = (world @ to_first[:3, :3].T + to_first[:3, 3]) * valid[t][..., None]
        if "scene_flow" in arrays:
            flow_valid[t] = valid[t] & arrays["flow_valid"][t].reshape(-1)[pixels]
            flow[t] = (arrays["scene_flow"][t].reshape(-1, 3)[pixels] @ turn.T) * flow_valid[t][..., None]
    tensors = (torch.from_numpy(values) for values in (points, valid, flow, flow_valid))
    return tuple(tensors)  # type: ignore[return-value]
