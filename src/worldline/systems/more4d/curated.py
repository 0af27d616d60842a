"""Training samples from curated clips (`worldline data curate`): their compact records, and their videos for holes.

    pictures that move    the record's tracks, at the model's size and number of frames
    videos with holes     the record's points, moved and seen by the source camera; the clip is the truth

The second is what the published inpainter was trained on (spec 4.6), with holes where no point falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.data.curate.record import SUFFIX, read_record
from worldline.data.curate.release import CLIP
from worldline.data.curate.tracked import grid_in, resized
from worldline.geometry import camera
from worldline.geometry.pointmap import depth_edges
from worldline.io.video import load_video
from worldline.render.splat import splat
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.recipes import Stage
from worldline.systems.more4d.samples import FillSamples, MotionSamples, motion_samples
from worldline.systems.more4d.splatting import EDGE
from worldline.systems.more4d.train import Source
from worldline.training.loop import Batches

KEPT = 64
"""Clips that stay in memory at the model's size."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A curated clip at a model's size.

    Attributes:
        rgb: [H, W, 3] first frame in [0, 1].
        tracks: [T, H, W, 3] world of the first camera.
        visible: [T, H, W].
        valid: [H, W].
        intrinsics: [T, 3, 3] pixels.
        cam2world: [T, 4, 4].
        caption: what it shows.
    """

    rgb: Float[Tensor, "H W 3"]
    tracks: Float[Tensor, "T H W 3"]
    visible: Bool[Tensor, "T H W"]
    valid: Bool[Tensor, "H W"]
    intrinsics: Float[Tensor, "T 3 3"]
    cam2world: Float[Tensor, "T 4 4"]
    caption: str


def find_records(folder: Path) -> list[Path]:
    """Compact records in a folder or below it, sorted.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(Path(folder).rglob(f"*{SUFFIX}"))
    if not found:
        raise FileNotFoundError(
            f"There are no records (*{SUFFIX}) below {folder}; `worldline data curate` makes them unless its --layout "
            "is released."
        )
    return found


def curated(folder: Path) -> Source:
    """A source of samples for `train.run`; every clip is seen once before any is seen again.

    Raises:
        FileNotFoundError: the folder holds no records.
    """
    records = find_records(folder)

    def source(stage: Stage, model: MoRe4D, device: str) -> Batches:
        sizes = model.config
        clip = lru_cache(maxsize=KEPT)(lambda path: read_clip(path, sizes.frames, sizes.size))

        def batch(index: int) -> MotionSamples | FillSamples:
            chosen = [records[i] for i in order(len(records), stage.train.batch_size, index, stage.train.seed)]
            clips = [clip(path) for path in chosen]
            if stage.samples.startswith("motion"):
                return moving(clips, sizes.focal, device)
            videos = [read_video(path, sizes.frames, sizes.size) for path in chosen]
            return holed(clips, videos, device)

        return batch

    return source


def order(count: int, batch_size: int, index: int, seed: int) -> list[int]:
    """Which clips make batch `index`: shuffled anew each time all were seen."""
    chosen = []
    for place in range(index * batch_size, (index + 1) * batch_size):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place // count)
        chosen.append(int(torch.randperm(count, generator=generator)[place % count]))
    return chosen


def frame_places(available: int, wanted: int) -> list[int]:
    """Frames spread over a clip from its first to its last; the last is repeated if there are too few (spec 2.5)."""
    if available >= wanted:
        return torch.linspace(0, available - 1, wanted).round().long().tolist()
    return [min(i, available - 1) for i in range(wanted)]


def central(size: tuple[int, int], target: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the largest central part with the target's aspect ratio (spec 2.5 crops, never stretches)."""
    (height, width), ratio = size, target[0] / target[1]
    rows, columns = min(height, round(width * ratio)), min(width, round(height / ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def read_clip(path: Path, frames: int, size: tuple[int, int]) -> Clip:
    """One record at a model's number of frames and size.

    Raises:
        ValueError: the record is damaged.
    """
    record = read_record(path)
    tracks, cameras = record.tracks, record.tracks.cameras
    assert cameras is not None
    rows, columns = central(cameras.size, size)
    part = (rows.stop - rows.start, columns.stop - columns.start)
    places = frame_places(len(tracks), frames)
    near = grid_in(size, part).round().long()
    v, u = near[..., 1].clamp(0, part[0] - 1) + rows.start, near[..., 0].clamp(0, part[1] - 1) + columns.start
    k = camera.resize(camera.crop(cameras.intrinsics[places], rows.start, columns.start), part, size)
    return Clip(
        rgb=resized(tracks.colors[None, rows, columns], size)[0],
        tracks=tracks.points[places][:, v, u],
        visible=tracks.visible[places][:, v, u],
        valid=record.valid[v, u],
        intrinsics=k,
        cam2world=cameras.cam2world[places],
        caption=str(record.facts.get("caption", "")),
    )


def read_video(path: Path, frames: int, size: tuple[int, int]) -> Float[Tensor, "T H W 3"]:
    """The clip beside a record, cut and resized as its tracks.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.
    """
    video = load_video(path.with_name(path.name.removesuffix(SUFFIX) + CLIP))
    rows, columns = central(video.size, size)
    return resized(video.frames[frame_places(len(video), frames)][:, rows, columns], size)


def moving(clips: Sequence[Clip], focal: tuple[float, float] | None, device: str) -> MotionSamples:
    """Pictures that begin to move."""
    return motion_samples(
        torch.stack([clip.rgb for clip in clips]).to(device),
        torch.stack([clip.tracks for clip in clips]).to(device),
        torch.stack([clip.visible for clip in clips]).to(device),
        torch.stack([clip.valid for clip in clips]).to(device),
        torch.stack([clip.intrinsics[0] for clip in clips]).float().to(device),
        torch.stack([clip.cam2world[0] for clip in clips]).float().to(device),
        [clip.caption for clip in clips],
        focal=focal,
    )


def holed(clips: Sequence[Clip], videos: Sequence[Float[Tensor, "T H W 3"]], device: str) -> FillSamples:
    """Videos, and what the moved points of their first frames show of them; points at depth edges are left out."""
    rendered, known = [], []
    for clip in clips:
        depth = torch.where(clip.valid, clip.tracks[0, ..., 2], torch.zeros_like(clip.tracks[0, ..., 2]))
        solid = clip.valid & ~depth_edges(depth, EDGE)
        size = (int(solid.shape[0]), int(solid.shape[1]))
        painted = [
            splat(clip.tracks[t][solid], clip.rgb[solid], clip.cam2world[t], clip.intrinsics[t], size)
            for t in range(len(clip.tracks))
        ]
        rendered.append(torch.stack([p.image for p in painted]))
        known.append(torch.stack([p.coverage for p in painted]))
    return FillSamples(
        video=torch.stack(list(videos)).to(device),
        rendered=torch.stack(rendered).to(device),
        known=torch.stack(known).to(device),
        captions=tuple(clip.caption for clip in clips),
    )
