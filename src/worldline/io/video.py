"""Video in and out: any container FFmpeg knows, picture folders, animations, arrays -> Video -> H.264."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from worldline.io.arena import Arena
from worldline.io.atomic import atomic_file, explain
from worldline.io.sources import open_source
from worldline.scene import Video

WRITABLE_SUFFIXES = (".mp4", ".mov", ".mkv")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def parse_frames(text: str) -> slice:
    """Read a frame range: "A:B:S", any part left out, or "A" for one frame; frames count from 0, B is not included.

    Raises:
        ValueError: it is not such a range, is negative, or is empty.
    """
    parts = text.strip().split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 3 or numbers == [None]:
        raise ValueError(f'The frame range "{text}" is not of the form START:STOP:STEP, such as 0:50 or ::2.')
    if len(numbers) == 1:
        first = numbers[0] or 0
        return _checked(slice(first, first + 1, 1), text)
    return _checked(slice(*numbers), text)


def _checked(frames: slice | None, text: str | None = None) -> slice:
    """The range with start and step filled in; refuses negative numbers and ranges with no frame in them."""
    frames = frames or slice(None)
    start = 0 if frames.start is None else int(frames.start)
    step = 1 if frames.step is None else int(frames.step)
    stop = None if frames.stop is None else int(frames.stop)
    shown = text or f"{start}:{'' if stop is None else stop}:{step}"
    if start < 0 or (stop is not None and stop < 0):
        raise ValueError(f"The frame range {shown} is negative; frames count from 0.")
    if step < 1:
        raise ValueError(f"The frame range {shown} has step {step}; it must be at least 1.")
    if stop is not None and stop <= start:
        raise ValueError(f"The frame range {shown} holds no frames; its end must lie after its start.")
    return slice(start, stop, step)


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What went wrong while reading, if anything did.

    Attributes:
        source: name of the file.
        frames: frames decoded, whether asked for or only passed on the way.
        expected: frames that should have been there (up to the end of the range asked for); None if unknown.
        skipped: damaged units passed over.
        unit: what was skipped, "packet" or "picture".
        asked: end of the range asked for when it lies behind the last frame, else None.
    """

    source: str
    frames: int = 0
    expected: int | None = None
    skipped: int = 0
    unit: str = "packet"
    asked: int | None = None

    @property
    def missing(self) -> int:
        """Frames announced and not found."""
        return max(0, (self.expected or 0) - self.frames)

    @property
    def message(self) -> str:
        """One sentence on what went wrong; empty when nothing did."""
        parts = []
        if self.skipped:
            parts.append(f"{self.skipped} damaged {self.unit}{'s were' if self.skipped > 1 else ' was'} skipped")
        if self.missing:
            parts.append(f"{self.missing} of {self.expected} frames are missing (cut short or damaged)")
        if self.asked is not None:
            parts.append(f"the range asked for ends at {self.asked}, but there are only {self.frames} frames")
        return f"{self.source}: {' and '.join(parts)}." if parts else ""


class VideoReader:
    """A video read frame by frame, so that a long or large one is never in memory as a whole.

    Opening it decodes one frame: `size` is as shown (after rotation metadata, with square pixels).

    Attributes:
        name: what to call it in messages.
        num_frames: frames announced by the file, None if it does not say; what decodes may be fewer, see `report`.
        fps: nominal frames per second; exact times come with the frames.
        size: (H, W) in pixels.
        report: what the last complete or partial walk found.
    """

    def __init__(self, source: str | Path | np.ndarray | Tensor, *, fps: float = 24.0) -> None:
        """Open a file, a folder of pictures, or an array [T, H, W, 3 | 1 | 4]; `fps` is for sources without times.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: it is empty, not a video, or an array of the wrong kind.
        """
        if fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}.")
        self._source = open_source(source, fps)
        self.name = self._source.name
        self.num_frames = self._source.announced
        self.fps = self._source.fps
        self.size = self._source.size
        self.report = ReadReport(source=self.name, expected=self.num_frames)

    def frames(
        self, frames: slice | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[tuple[float, Shaped[np.ndarray, "H W 3"]]]:
        """Yield (seconds since the first frame of the video, RGB) of the chosen frames, resized to `size` if given.

        RGB is uint8, or float32 in [0, 1] from a float array. Shrinking averages areas. After the walk `report` tells
        what was skipped or missing.

        Raises:
            ValueError: the range holds no frame of the video.
        """
        chosen = _checked(frames)
        found = last = 0
        for index, seconds, rgb in self._source.frames(chosen):
            last = index + 1
            if rgb is not None:
                found += 1
                yield seconds, rgb if size is None or rgb.shape[:2] == size else _resized(rgb, size)
            self.report = self._report(last, chosen, ended=False)
        self.report = self._report(last, chosen, ended=True)
        if not found and last <= chosen.start:
            there = f"{last} frames (0 to {last - 1})" if last else "no frames that can be read"
            stop = "" if chosen.stop is None else chosen.stop
            raise ValueError(f"The frame range {chosen.start}:{stop} lies outside {self.name}, which has {there}.")

    def __iter__(self) -> Iterator[tuple[float, Shaped[np.ndarray, "H W 3"]]]:
        return self.frames()

    def _report(self, decoded: int, chosen: slice, *, ended: bool) -> ReadReport:
        source, announced = self._source, self._source.announced
        found = ReadReport(source=self.name, frames=decoded, skipped=source.skipped, unit=source.unit)
        if not ended or announced is None:
            return found
        if not source.exact and abs(announced - decoded) <= max(2, announced // 50):
            announced = decoded  # duration times rate is only about right
        if chosen.stop is None:
            return replace(found, expected=announced)
        asked = chosen.stop if chosen.stop > max(announced, decoded) else None
        return replace(found, expected=min(announced, chosen.stop), asked=asked)


def _resized(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] -> [h, w, 3]: area average when shrinking, cubic when growing."""
    import cv2

    shrinks = size[0] <= rgb.shape[0] and size[1] <= rgb.shape[1]
    resized = cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized if rgb.dtype == np.uint8 else resized.clip(0, 1)


def _target(own: tuple[int, int], size: tuple[int, int] | None, max_area: int | None) -> tuple[int, int]:
    """The (H, W) to read at."""
    if size is not None and max_area is not None:
        raise ValueError("Give size or max_area, not both.")
    if size is not None:
        if min(size) < 1:
            raise ValueError(f"The frame size {size[0]}x{size[1]} (HxW) must be positive.")
        return size
    if max_area is None or own[0] * own[1] <= max_area:
        return own
    if max_area < 1:
        raise ValueError(f"max_area must be positive, got {max_area}.")
    shrink = (max_area / (own[0] * own[1])) ** 0.5
    height = max(1, int(own[0] * shrink))
    return height, max(1, min(int(own[1] * shrink + 0.5), max_area // height))


def load_video(
    source: str | Path | np.ndarray | Tensor,
    *,
    frames: slice | None = None,
    size: tuple[int, int] | None = None,
    max_area: int | None = None,
    fps: float = 24.0,
    on_warning: Callable[[str], None] = _warn,
    arena: Arena | None = None,
) -> Video:
    """Read a video file, a folder of pictures, a picture, an animation or an array into memory.

    Frames are decoded and resized one by one, so memory is that of the result, or none to speak of with an `arena`.
    Variable frame rates are kept as timestamps (seconds since the first frame of the file). Alpha is composited on
    black.

    Args:
        source: path, or array [T, H, W, 3 | 1 | 4] or [T, H, W], uint8, uint16, bool or float in [0, 1].
        frames: range of frames to keep, counted from 0; a range that ends behind the last frame is cut with a warning.
        size: (H, W) to resize to, aspect ratio not kept.
        max_area: shrink, keeping the aspect ratio, until H * W <= max_area.
        fps: frames per second of sources that do not say (folders, arrays).
        on_warning: told in one sentence when packets were skipped or frames are missing.
        arena: where the frames live; by default in memory.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it is empty, not a video, has no frame in the range, does not fit in memory, or holds NaN.
    """
    reader = VideoReader(source, fps=fps)
    chosen, (height, width) = _checked(frames), _target(reader.size, size, max_area)
    room = _count(chosen, reader.num_frames)
    if room is not None and arena is None:
        _refuse_too_large(reader.name, room, height, width)
    times: list[float] = []
    store = np.empty((0, height, width, 3), np.uint8)
    for seconds, rgb in reader.frames(chosen, (height, width)):
        if len(times) == len(store):  # the count was unknown or too small: double the room
            shape = (max(1, 2 * len(store), room or 16), height, width, 3)
            grown = np.empty(shape, rgb.dtype) if arena is None else arena.zeros(shape, rgb.dtype)
            grown[: len(times)] = store
            store = grown
        store[len(times)] = rgb
        times.append(seconds)
        if arena is not None and len(times) % 64 == 0:
            arena.release()
    if reader.report.message:
        on_warning(reader.report.message)
    if not times:
        raise ValueError(f"No frame of {reader.name} in the chosen range can be read.")
    return Video(frames=torch.from_numpy(store[: len(times)]), timestamps=torch.tensor(times, dtype=torch.float64))


def _count(chosen: slice, announced: int | None) -> int | None:
    """How many frames a range holds, as far as that is known."""
    ends = [end for end in (chosen.stop, announced) if end is not None]
    return len(range(chosen.start, min(ends), chosen.step)) if ends else None


def _refuse_too_large(name: str, count: int, height: int, width: int) -> None:
    needed, memory = count * height * width * 3, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"{count} frames of {width}x{height} of {name} need {needed / 2**30:.0f} GiB, and this machine has "
            f"{memory / 2**30:.0f}; choose fewer frames or a smaller size."
        )


def from_array(array: np.ndarray | Tensor, *, fps: float = 24.0) -> Video:
    """A Video from [T, H, W, 3 | 1 | 4] or [T, H, W], uint8, uint16, bool or float in [0, 1]; see `load_video`."""
    return load_video(array, fps=fps)


def write_video(path: str | Path, video: Video, fps: float | None = None) -> None:
    """Write H.264 (yuv420p, which every player knows), keeping the timestamps unless `fps` is given.

    Odd sizes are padded by repeating the last row or column. The file appears whole or not at all.

    Raises:
        ValueError: the suffix is not .mp4, .mov or .mkv, the video is empty, or its times do not increase.
        OSError: it cannot be written (disk full, read-only).
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"Cannot write {path}: its name must end in {', '.join(WRITABLE_SUFFIXES)}.")
    if not len(video) or 0 in video.size:
        raise ValueError(f"Cannot write {path}: the video has no frames.")
    if fps is not None and fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}.")
    times = video.timestamps.double() if fps is None else torch.arange(len(video), dtype=torch.float64) / fps
    ticks = ((times - times[0]) * 90_000).round().long()
    if (ticks.diff() <= 0).any():
        raise ValueError(f"Cannot write {path}: the timestamps do not increase; give fps instead.")
    try:
        with atomic_file(path) as draft:
            _encode(draft, path.suffix.lower(), video, ticks.tolist())
    except OSError as error:
        raise (explain(error, path) if error.errno else error) from error


def _encode(draft: Path, suffix: str, video: Video, ticks: list[int]) -> None:
    import av

    form, options = ("matroska", {}) if suffix == ".mkv" else (suffix[1:], {"movflags": "+faststart"})
    height, width = video.size
    rate = Fraction(video.fps or 1.0).limit_denominator(1001)
    with av.open(str(draft), "w", format=form, options=options) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
        last = max(1, round(90_000 / float(rate)))
        for index, tick in enumerate(ticks):
            rgb = video.frames[index].detach().cpu()
            rgb = rgb if rgb.dtype == torch.uint8 else (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
            padded = np.pad(rgb.numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 90_000)
            frame.duration = ticks[index + 1] - tick if index + 1 < len(ticks) else last
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
