"""The published file layout (spec section 5), file by file, and its archives.

<id>.mp4                       the clip
<id>.txt                       its caption
<id>_dt3d_pred.pkl             coords [T, N, 3] float32, colors [N, 3] 0..255, vis [T, N]; N = H * W, row by row
<id>_dt3d_render.mp4           the first frame's points at each time, seen by the source camera
<id>_mask_render.mp4           holes of that, white
<id>_mask_render_binary.npy    holes [T, H, W], exact

Different from the published data: `coords` are in the world of the first camera, so the camera's motion is not in them,
and holes are where no point falls, not where the picture is black.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from worldline.data.curate.tracked import Splatter, Tracked
from worldline.io.atomic import atomic_file
from worldline.io.video import write_video
from worldline.scene import Video

CLIP, CAPTION = ".mp4", ".txt"
PUBLISHED = (
    CLIP,
    CAPTION,
    "_dt3d_pred.pkl",
    "_dt3d_render.mp4",
    "_mask_render.mp4",
    "_mask_render_binary.npy",
)
"""Endings of a sample's files, after its id."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The first frame's points at each time, seen by the camera of that time.

    Attributes:
        frames: [T, H, W, 3] uint8, black in holes.
        covered: [T, H, W] where a point falls.
    """

    frames: UInt8[Tensor, "T H W 3"]
    covered: Bool[Tensor, "T H W"]


def render(tracked: Tracked, splat: Splatter) -> Rendering:
    """Render the tracks from the source cameras.

    Raises:
        ValueError: the tracks have no cameras.
    """
    tracks, cameras = tracked.tracks, tracked.tracks.cameras
    if cameras is None:
        raise ValueError("Tracks are rendered from their cameras, and these have none.")
    colors = (tracks.colors[tracked.valid] * 255).round().to(torch.uint8)
    painted = [
        splat(tracks.points[t, tracked.valid], colors, cameras.cam2world[t], cameras.intrinsics[t], cameras.size)
        for t in range(len(tracks))
    ]
    return Rendering(frames=torch.stack([p.image for p in painted]), covered=torch.stack([p.coverage for p in painted]))


def write_clip(folder: Path, name: str, video: Video, caption: str) -> None:
    """Write the clip and its caption, which every layout has."""
    write_video(folder / f"{name}{CLIP}", video)
    with atomic_file(folder / f"{name}{CAPTION}") as draft:
        draft.write_text(caption + "\n", encoding="utf-8")


def write_published(folder: Path, name: str, tracked: Tracked, rendering: Rendering) -> None:
    """Write the other four files of the published layout.

    Raises:
        OSError: the disk is full or read-only.
    """
    tracks = tracked.tracks
    content = {
        "coords": tracks.points.flatten(1, 2).float(),
        "colors": (tracks.colors * 255).round().flatten(0, 1),
        "vis": tracks.visible.flatten(1, 2),
    }
    with atomic_file(folder / f"{name}_dt3d_pred.pkl") as draft, draft.open("wb") as stream:
        _Repeatable(stream, protocol=4).dump({key: value.contiguous() for key, value in content.items()})
    holes = ~rendering.covered
    with atomic_file(folder / f"{name}_mask_render_binary.npy") as draft, draft.open("wb") as stream:
        np.save(stream, holes.numpy().astype(np.uint8), allow_pickle=False)
    white = holes[..., None].expand(*holes.shape, 3).to(torch.uint8) * 255
    for ending, frames in (("_dt3d_render.mp4", rendering.frames), ("_mask_render.mp4", white)):
        write_video(folder / f"{name}{ending}", Video(frames=frames, timestamps=tracks.timestamps))


class _Repeatable(pickle.Pickler):
    """Pickles tensors as torch does, but the same ones to the same bytes: torch would write the storage's address."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.TypedStorage):
            return NotImplemented
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return torch.storage._load_from_bytes, (buffer.getvalue(),)


def archive(folder: Path, names: Sequence[str], target: Path) -> Path:
    """Pack the published files of samples into `<first>-<last>.tar.gz`; the same files give the same bytes.

    Raises:
        FileNotFoundError: a sample lacks a file.
        OSError: the disk is full or read-only.
    """
    path = target / f"{names[0]}-{names[-1]}.tar.gz"
    with atomic_file(path) as draft, draft.open("wb") as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=1) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name in names:
                    for ending in PUBLISHED:
                        _add(tar, folder / f"{name}{ending}")
    return path


def _add(tar: tarfile.TarFile, path: Path) -> None:
    entry = tarfile.TarInfo(path.name)
    entry.size = path.stat().st_size
    with path.open("rb") as stream:
        tar.addfile(entry, stream)


def pack(folder: Path, names: Sequence[str], target: Path, samples: int) -> list[Path]:
    """Archives of so many samples each; those whose files are older than the archive stay as they are.

    Raises:
        FileNotFoundError: a sample lacks a file.
        OSError: the disk is full or read-only.
    """
    groups = [list(names[i : i + samples]) for i in range(0, len(names), samples)]
    wanted = []
    for group in groups:
        path = target / f"{group[0]}-{group[-1]}.tar.gz"
        files = [folder / f"{name}{ending}" for name in group for ending in PUBLISHED]
        fresh = path.is_file() and all(f.stat().st_mtime_ns <= path.stat().st_mtime_ns for f in files)
        wanted.append(path if fresh and _members(path) == len(files) else archive(folder, group, target))
    for old in set(target.glob("*.tar.gz")) - set(wanted):
        old.unlink()  # of an earlier choice of samples: two archives would hold the same ones
    return wanted


def _members(path: Path) -> int:
    with tarfile.open(path) as tar:
        return len(tar.getnames())
