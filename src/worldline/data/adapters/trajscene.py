"""TrajScene-60K, as released, and as `worldline data curate` makes it: <id>.mp4, <id>.txt, <id>_dt3d_pred.pkl ...

The .pkl holds coords [T, N, 3], colors [N, 3] and vis [T, N]: every pixel of the first frame (on the tracker's grid,
row by row) followed through time, in camera coordinates. In the published files camera motion is not removed: cameras
are the identity here (more4d.md 5). The files are pickles, read as data (inert.py): nothing in them is run.
The intrinsics are not stored: they are fitted to the first frame, whose points lie on the rays of their pixels. Where a
compact record of our own (<id>_record.npz) lies beside, it is read instead, with its cameras.

The scene has the size of the grid. Its points are those of the tracks: everywhere in the first frame, and in the others
where a visible track falls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, inert, tracks
from worldline.data.clips import DamagedFile, PointTracks, Sequence
from worldline.data.curate.record import SUFFIX, read_record
from worldline.geometry import pose
from worldline.io.video import VideoReader, load_video
from worldline.scene import Scale, Scene4D

PICKLE = "_dt3d_pred.pkl"
VISIBLE = 0.8  # of a probability, where vis is one
WIDEST = 4.0  # aspect ratio of a grid


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Tracks of the pixels of the first frame.

    Attributes:
        points: [T, H, W, 3] in the world of the first camera.
        visible: [T, H, W].
        valid: [H, W] where the first frame sees a surface.
        intrinsics: [T, 3, 3].
        cam2world: [T, 4, 4].
        timestamps: [T] seconds; None: those of the video.
        scale: of the world.
        settings: what is said of it.
    """

    points: Tensor
    visible: Tensor
    valid: Tensor
    intrinsics: Tensor
    cam2world: Tensor
    timestamps: Tensor | None
    scale: Scale
    settings: dict[str, Any]


def sequences(root: Path) -> Iterator[Sequence]:
    """One per sample below root."""
    root = Path(root)
    found = {path.with_name(path.name.removesuffix(PICKLE)) for path in root.rglob(f"*{PICKLE}")}
    found |= {path.with_name(path.name.removesuffix(SUFFIX)) for path in root.rglob(f"*{SUFFIX}")}
    if not found:
        raise FileNotFoundError(f"No *{PICKLE} or *{SUFFIX} below {root}; unpack TrajScene's archives there first.")
    for base in sorted(found):
        name = base.relative_to(root).as_posix()
        yield from decode.listed(name, _listed, base, name)


def _listed(base: Path, name: str) -> Iterator[Sequence]:
    yield Sequence(name=name, frames=_count(base), read=partial(_read, base, name), cuttable=False)


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sample."""
    return clips.scenes(sequences(root))


def _count(base: Path) -> int:
    """Frames of a sample."""
    record = base.with_name(base.name + SUFFIX)
    if record.exists():
        return int(decode.one(inert.npz_shapes, record)["timestamps"][0])
    path = base.with_name(f"{base.name}.mp4")
    told = decode.one(VideoReader, path).num_frames  # the .pkl is a hundred times larger
    return len(decode.one(load_video, path)) if told is None else told


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(value.copy())


def from_pickle(path: Path) -> Sample:
    """A sample of the published layout.

    Raises:
        ValueError: it holds no tracks of a pixel grid.
    """
    found = inert.read(path)
    coords, seen = _tensor(found["coords"]).float(), _tensor(found["vis"])
    visible = seen if seen.dtype == torch.bool else seen.float() > VISIBLE
    valid = (coords[0, :, 2] > 0) & coords[0].isfinite().all(-1)
    size, k, error_px = grid(coords[0], valid)
    frames = len(coords)
    return Sample(
        points=torch.where(coords.isfinite(), coords, torch.zeros_like(coords)).reshape(frames, *size, 3),
        visible=visible.reshape(frames, *size),
        valid=valid.reshape(size),
        intrinsics=k.expand(frames, 3, 3),
        cam2world=torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1),
        timestamps=None,
        scale="relative",
        settings={"camera_motion": "not removed, or none", "intrinsics_error_px": error_px},
    )


def grid(points: Tensor, valid: Tensor) -> tuple[tuple[int, int], Tensor, float]:
    """(size, intrinsics, median error in pixels) of the pixel grid that points [N, 3] lie on the rays of.

    Of all heights and widths with H W = N, the one under which u is linear in x / z and v in y / z.

    Raises:
        ValueError: there is none.
    """
    count = len(points)
    index = valid.nonzero()[:, 0]
    slope = (points[index, :2] / points[index, 2:]).double()
    best: tuple[float, tuple[int, int], Tensor] | None = None
    for height in range(1, count + 1):
        width = count // height
        if height * width != count or not 1 / WIDEST <= width / height <= WIDEST:
            continue
        lines, error = [], torch.zeros(len(index), dtype=torch.float64)
        for axis, pixel in ((0, index % width), (1, index // width)):
            ones = torch.ones(len(index), dtype=torch.float64)
            line = torch.linalg.lstsq(torch.stack([slope[:, axis], ones], -1), pixel.double()[:, None]).solution[:, 0]
            error = torch.maximum(error, (slope[:, axis] * line[0] + line[1] - pixel).abs())
            lines.append(line)
        k = assemble.pinhole(*(float(value) for value in (lines[0][0], lines[1][0], lines[0][1], lines[1][1])))
        score = float(error.median())
        if k[0, 0] > 0 and k[1, 1] > 0 and (best is None or score < best[0]):
            best = (score, (height, width), k)
    if best is None or best[0] > 1:
        raise ValueError(f"its {count} points are not on the rays of a grid of pixels")
    return best[1], best[2], round(best[0], 4)


def from_record(path: Path) -> Sample:
    """A sample of a compact record."""
    record = read_record(path)
    found = record.tracks
    assert found.cameras is not None
    return Sample(
        points=found.points,
        visible=found.visible,
        valid=record.valid,
        intrinsics=found.cameras.intrinsics,
        cam2world=found.cameras.cam2world,
        timestamps=found.timestamps,
        scale=found.scale,
        settings={"camera_motion": "removed"},
    )


def _read(base: Path, name: str, start: int, stop: int) -> Scene4D:
    record = base.with_name(base.name + SUFFIX)
    pickled = base.with_name(base.name + PICKLE)
    sample = decode.one(from_record, record) if record.exists() else decode.one(from_pickle, pickled)
    frames, size = len(sample.points), (sample.points.shape[1], sample.points.shape[2])
    path = base.with_name(f"{base.name}.mp4")
    video = decode.one(partial(load_video, size=size), path)
    if len(video) != frames:
        raise DamagedFile(path, f"it has {len(video)} frames, and the tracks have {frames}")
    relative = pose.relative_to_first(sample.cam2world.double())
    followed = PointTracks(
        points=sample.points.flatten(1, 2),
        known=sample.valid.flatten().expand(frames, -1),
        visible=(sample.visible & sample.valid).flatten(1),
    )
    depth = tracks.splat_depth(followed, sample.intrinsics, relative, size)
    depth[0] = torch.where(sample.valid, sample.points[0, ..., 2], torch.zeros(size))
    flow, flow_valid = tracks.splat_flow(followed, depth, sample.intrinsics, relative)
    caption = base.with_name(f"{base.name}.txt")
    settings = {"reference": 0, **sample.settings}
    if caption.exists():
        settings["caption"] = caption.read_text(encoding="utf-8").strip()
    return assemble.scene_from_depth(
        dataset="trajscene",
        sequence=name,
        images=(video.rgb() * 255).round().to(torch.uint8) if video.frames.dtype != torch.uint8 else video.frames,
        depth=depth,
        intrinsics=sample.intrinsics,
        cam2world=relative,
        timestamps=video.timestamps if sample.timestamps is None else sample.timestamps,
        scene_flow=flow,
        flow_valid=flow_valid,
        extras={"tracks": sample.points, "visible_from_reference": sample.visible & sample.valid},
        settings=settings,
        scale=sample.scale,
    )
