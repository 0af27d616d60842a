"""Videos of a run: found, fingerprinted, and read as clips of the wanted length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worldline.data.curate.config import CurateConfig
from worldline.io.ledger import sha256
from worldline.io.video import VideoReader, load_video
from worldline.scene import Video

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts", ".wmv", ".flv")


class Damaged(ValueError):
    """A video cannot be read whole."""


class TooShort(ValueError):
    """A video has too few frames for a clip."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video and what it is called: its path within the folder that was given, without the ending."""

    path: Path
    name: str


def find(places: Sequence[Path], limit: int | None = None) -> list[Source]:
    """Videos of files and folders (with what is below), sorted within each, at most `limit`.

    A folder named itself may also hold the pictures of one video; below a folder, only video files are looked for.

    Raises:
        FileNotFoundError: a place does not exist.
        ValueError: there are no videos.
    """
    found: list[Source] = []
    for place in places:
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found += [Source(path=p, name=p.relative_to(place).with_suffix("").as_posix()) for p in files]
            if not files and any(place.iterdir()):
                found.append(Source(path=place, name=place.name))
        elif place.exists():
            found.append(Source(path=place, name=place.stem))
        else:
            raise FileNotFoundError(f"There is no video or folder {place}.")
    if not found:
        raise ValueError(f"There are no videos in {', '.join(str(p) for p in places)}.")
    return found if limit is None else found[:limit]


def fingerprint(path: Path) -> str | None:
    """Hash of a video's content, of a folder's pictures together; None if it cannot be read."""
    try:
        if path.is_dir():
            parts = [f"{p.name} {sha256(p)}" for p in sorted(path.iterdir()) if p.is_file()]
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return sha256(path)
    except OSError:
        return None


def read_clip(path: Path, config: CurateConfig) -> Video:
    """The first frames of a video, `stride` apart, at no more than `video_area` pixels; times from 0.

    Raises:
        Damaged: it cannot be read, or not whole.
        TooShort: it has too few frames.
    """
    said: list[str] = []
    needed = (config.frames - 1) * config.stride + 1
    try:
        announced = VideoReader(path).num_frames
        chosen = slice(0, needed, config.stride)
        clip = load_video(path, frames=chosen, max_area=config.video_area, on_warning=said.append)
    except (ValueError, OSError) as error:
        raise Damaged(" ".join(str(error).split())) from error
    if len(clip) < config.frames and (announced is None or announced < needed):
        raise TooShort(f"{path.name} has {announced or len(clip)} frames, and a clip needs {needed}.")
    if said or len(clip) < config.frames:
        raise Damaged(said[0] if said else f"{path.name} announces {announced} frames and has fewer.")
    times = clip.timestamps.double() - float(clip.timestamps[0])
    if bool((times.diff() <= 0).any()):  # some containers repeat times
        times = torch.arange(len(clip), dtype=torch.float64) * config.stride / 24.0
    return replace(clip, timestamps=times)
