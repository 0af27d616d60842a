"""What every verb begins and ends with: a device, frames at the size to work at, and how the result was made."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldline.io.arena import Arena
from worldline.io.video import load_video, parse_frames
from worldline.scene import Scene4D, Tracks4D, Video
from worldline.systems.registry import Card

SMALLEST_SIDE_PX = 16
MEMORY_BYTES = 256 << 20  # frames beyond this live in a temporary file


def choose_device(name: str) -> torch.device:
    """The torch device for a name; "auto" is CUDA, else MPS, else the CPU."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"There is no device '{name}'; use auto, cpu, cuda, cuda:N or mps.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def working_size(source: tuple[int, int], entry: Card) -> tuple[int, int]:
    """(H, W) a system works at: near its area, the source's aspect ratio, multiples it likes, never enlarged."""
    height, width = source
    shrink = min(1.0, (entry.area / (height * width)) ** 0.5)
    return tuple(max(entry.multiple, round(side * shrink / entry.multiple) * entry.multiple) for side in source)


def check_size(source: tuple[int, int], size: tuple[int, int] | None, entry: Card) -> tuple[int, int]:
    """The (H, W) to work at; ValueError when the source or the size asked for is too small to see parallax in."""
    if min(source) < SMALLEST_SIDE_PX:
        raise ValueError(
            f"The video is {source[1]} pixels wide and {source[0]} high; "
            f"give one with at least {SMALLEST_SIDE_PX} on each side."
        )
    size = size or working_size(source, entry)
    if min(size) < SMALLEST_SIDE_PX:
        raise ValueError(f"The size {size[0]}x{size[1]} is too small; use at least {SMALLEST_SIDE_PX} on each side.")
    return size


def clip_of(video: str | Path | Video, frames: slice | str | None, size: tuple[int, int]) -> Video:
    """The chosen frames of a video, read or taken from memory, at the size to work at; long ones live in a file."""
    arena = Arena(MEMORY_BYTES)
    chosen = parse_frames(frames) if isinstance(frames, str) else frames
    if not isinstance(video, Video):
        return load_video(video, frames=chosen, size=size, arena=arena)
    kept = load_video(video.frames, frames=chosen, size=size, arena=arena)
    return replace(kept, timestamps=video.timestamps[chosen or slice(None)].double())


def settings_of(video: str | Path | Video, clip: Video, **chosen: Any) -> dict[str, Any]:
    """Everything that decides the result, JSON-able: an interrupted run resumes only if all of it is the same."""
    return {**chosen, "size": list(clip.size), "source": "memory" if isinstance(video, Video) else str(video)}


def provenance_of(scene: Scene4D | Tracks4D, settings: Mapping[str, Any], started: float) -> Any:
    """The provenance of a finished result: what was chosen, how long it took since `started`, peak memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return replace(
        scene.provenance,
        settings={**scene.provenance.settings, **settings},
        source=settings["source"],
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
    )
