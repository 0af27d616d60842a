"""Where frames come from: video containers, picture files, folders of pictures, arrays.

Every source yields RGB frames one at a time, so nothing longer than a frame is ever held here. Alpha is composited on
black (what lies under full transparency is arbitrary, black is at least the same everywhere), grey becomes three equal
channels, rotation metadata and EXIF orientation are applied, non-square pixels are made square.
"""

from __future__ import annotations

import bisect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif"}
_PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
# Text art and playlists: FFmpeg would show a text file as a picture, or follow links out of the file.
_REFUSED_CONTAINERS = {"tty", "hls", "concat", "sdp", "dash", "webm_dash_manifest", "imf"}
_SEEK_AFTER = 100  # decoding this many frames costs about as much as indexing the file to seek
_REORDER = 16  # H.264 and HEVC reorder at most this many frames


class Source(ABC):
    """Frames that can be walked through again and again.

    Attributes:
        name: what to call it in messages.
        size: (H, W) of the frames yielded.
        announced: number of frames it claims to hold, None if it does not say.
        exact: whether `announced` is a count rather than duration times rate.
        fps: nominal frames per second.
        skipped: damaged units passed over in the current walk.
        unit: what is skipped, "packet" or "picture".
    """

    name: str
    size: tuple[int, int]
    announced: int | None
    exact: bool
    fps: float
    skipped: int
    unit: str = "picture"

    @abstractmethod
    def frames(self, chosen: slice) -> Iterator[tuple[int, float, np.ndarray | None]]:
        """Yield (index, seconds, RGB [H, W, 3]) up to chosen.stop; None instead of RGB where a frame is not chosen."""


def is_chosen(index: int, chosen: slice) -> bool:
    """Whether `index` is in the slice start:stop:step (start and step are set, stop may be None)."""
    return index >= chosen.start and (index - chosen.start) % chosen.step == 0


def open_source(source: str | Path | np.ndarray | Any, fps: float) -> Source:
    """Choose the reader for a path or an array.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it is empty, or neither a video nor a picture.
    """
    if not isinstance(source, (str, os.PathLike)):
        return ArraySource(source, fps)
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderSource(path, fps)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes).")
    if path.suffix == ".npy":
        return ArraySource(_load_npy(path), fps, name=str(path))
    try:
        with Image.open(path, formats=_PICTURE_FORMATS):
            pass
    except UnidentifiedImageError:
        return ContainerSource(path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    return PictureSource(path, fps)


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an array of numbers: {error}.") from error


def _on_black(rgba: np.ndarray) -> np.ndarray:
    """[H, W, 4] -> [H, W, 3], composited on black."""
    if rgba.dtype == np.uint8:
        return ((rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    return rgba[..., :3] * rgba[..., 3:]


# ---------------------------------------------------------------------------------------------------------- pictures


def _picture_rgb(image: Image.Image) -> np.ndarray:
    """One upright picture as uint8 [H, W, 3]."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("it holds floating-point values; convert it to 8 or 16 bits first")
    if image.mode.startswith("I"):  # 16-bit grey
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        return _on_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _read_picture(path: Path) -> np.ndarray | None:
    """The picture, or None when its data is damaged."""
    try:
        with Image.open(path, formats=_PICTURE_FORMATS) as image:
            return _picture_rgb(image)
    except (OSError, SyntaxError, EOFError):
        return None
    except (ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


class FolderSource(Source):
    """A folder of equally large pictures, in natural order, `fps` of them per second."""

    def __init__(self, folder: Path, fps: float) -> None:
        files = (p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))
        self._paths = sorted(files, key=_natural)
        if not self._paths:
            raise ValueError(f"The folder {folder} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).")
        self.name, self.fps, self.skipped = str(folder), fps, 0
        self.announced: int | None = len(self._paths)
        self.exact = True
        first = next((rgb for rgb in map(_read_picture, self._paths) if rgb is not None), None)
        if first is None:
            raise ValueError(f"None of the {len(self._paths)} pictures in {folder} can be read.")
        self.size: tuple[int, int] = first.shape[:2]

    def frames(self, chosen: slice) -> Iterator[tuple[int, float, np.ndarray | None]]:
        """See Source; only chosen pictures are opened, and a damaged one is passed over and counted."""
        self.skipped = 0
        for index in range(len(self._paths))[: chosen.stop]:
            if not is_chosen(index, chosen):
                yield index, index / self.fps, None
                continue
            rgb = _read_picture(self._paths[index])
            if rgb is None:
                self.skipped += 1
                continue
            if rgb.shape[:2] != self.size:
                (h, w), (h0, w0) = rgb.shape[:2], self.size
                raise ValueError(
                    f"The pictures in {self.name} differ in size: {self._paths[index].name} is {w}x{h}, the first is "
                    f"{w0}x{h0}; make them equal."
                )
            yield index, index / self.fps, rgb


class PictureSource(Source):
    """One picture file: a photo, or an animation (GIF, WebP, APNG, multi-page TIFF) with its own frame times."""

    def __init__(self, path: Path, fps: float) -> None:
        self.name, self._path, self._fps, self.skipped, self.exact = str(path), path, fps, 0, True
        with Image.open(path, formats=_PICTURE_FORMATS) as image:
            count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo and its thumbnails
        self.announced: int | None = count
        first = next((rgb for _, _, rgb in self.frames(slice(0, 1, 1)) if rgb is not None), None)
        if first is None:
            raise ValueError(f"{path} is damaged: its first picture cannot be read.")
        self.size: tuple[int, int] = first.shape[:2]
        self.fps = self._nominal_fps()

    def _nominal_fps(self) -> float:
        with Image.open(self._path, formats=_PICTURE_FORMATS) as image:
            image.load()
            return 1.0 / self._duration(image)

    def _duration(self, image: Image.Image) -> float:
        """Seconds the current picture stays."""
        return float(image.info.get("duration") or 1000 / self._fps) / 1000

    def frames(self, chosen: slice) -> Iterator[tuple[int, float, np.ndarray | None]]:
        """See Source; a file cut short ends early."""
        self.skipped, seconds = 0, 0.0
        with Image.open(self._path, formats=_PICTURE_FORMATS) as image:
            for index in range(self.announced or 0)[: chosen.stop]:
                try:
                    image.seek(index)
                    rgb = _picture_rgb(image) if is_chosen(index, chosen) else None
                except (OSError, EOFError, SyntaxError):
                    self.skipped += 1
                    return
                except ValueError as error:
                    raise ValueError(f"{self.name} cannot be read: {error}.") from error
                yield index, seconds, rgb
                seconds += self._duration(image)


# ------------------------------------------------------------------------------------------------------------ arrays


class ArraySource(Source):
    """Frames from an array or tensor [T, H, W, 3 | 1 | 4] or [T, H, W]; uint8, bool, uint16 or float in [0, 1]."""

    def __init__(self, array: Any, fps: float, name: str = "The array") -> None:
        array = array.detach().cpu().numpy() if hasattr(array, "detach") else np.asanyarray(array)
        self._array = array[..., None] if array.ndim == 3 else array
        self.name, self.fps, self.skipped, self.exact = name, fps, 0, True
        if self._array.ndim != 4 or self._array.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{name} must have shape [T, H, W, 3], [T, H, W, 1], [T, H, W, 4] or [T, H, W], "
                             f"got {list(array.shape)}.")  # fmt: skip
        if 0 in self._array.shape:
            raise ValueError(f"{name} is empty: its shape is {list(array.shape)}.")
        if self._array.dtype not in (np.uint8, np.uint16, np.bool_) and self._array.dtype.kind != "f":
            raise ValueError(f"{name} must be uint8, uint16, bool or float in [0, 1], got {array.dtype}.")
        self.announced: int | None = len(self._array)
        self.size: tuple[int, int] = self._array.shape[1:3]

    def frames(self, chosen: slice) -> Iterator[tuple[int, float, np.ndarray | None]]:
        """See Source; float arrays stay float32."""
        for index in range(len(self._array))[: chosen.stop]:
            yield index, index / self.fps, self._rgb(index) if is_chosen(index, chosen) else None

    def _rgb(self, index: int) -> np.ndarray:
        frame = np.asarray(self._array[index])
        if frame.dtype.kind == "f":
            if not np.isfinite(frame).all():
                raise ValueError(f"{self.name} holds NaN or infinite values in frame {index}; replace them first.")
            low, high = float(frame.min()), float(frame.max())
            if low < -1e-3 or high > 1 + 1e-3:
                raise ValueError(f"{self.name} is float with values from {low:.3g} to {high:.3g} in frame {index}; "
                                 f"scale it to [0, 1].")  # fmt: skip
            frame = frame.astype(np.float32).clip(0, 1)
        elif frame.dtype == np.uint16:
            frame = ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)
        elif frame.dtype == np.bool_:
            frame = frame.astype(np.uint8) * 255
        if frame.shape[-1] == 4:
            return _on_black(frame)
        return np.repeat(frame, 3, axis=2) if frame.shape[-1] == 1 else frame


# -------------------------------------------------------------------------------------------------------- containers


class ContainerSource(Source):
    """A video file, decoded by FFmpeg through PyAV; damaged packets are passed over and counted."""

    unit = "packet"

    def __init__(self, path: Path) -> None:
        self.name, self._path, self.skipped = str(path), path, 0
        with self._open() as container:
            stream = container.streams.video[0]
            first = next(self._decode(container, stream), None)
            if first is None:
                raise ValueError(f"{path} holds no video frame that can be decoded.")
            self.fps = float(stream.average_rate or stream.guessed_rate or 25)
            self._start = first.pts
            self.announced, self.exact = self._announced(container, stream)
            self._aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            self.size: tuple[int, int] = self._rgb(first).shape[:2]

    def _open(self) -> Any:
        import av
        from av.error import FFmpegError

        try:
            # "file:" because FFmpeg would take "a:b.mp4" for a protocol; the whitelist keeps it off the network.
            options = {"protocol_whitelist": "file"}
            container = av.open(f"file:{self._path.absolute()}", options=options, metadata_errors="ignore")
        except (FFmpegError, OSError) as error:
            raise ValueError(
                f"{self._path} cannot be read as a video or picture: it is something else, or was cut off before its "
                f"index was written ({getattr(error, 'strerror', None) or error})."
            ) from error
        refused = _REFUSED_CONTAINERS & set(container.format.name.split(","))
        if refused or not container.streams.video:
            container.close()
            reason = f"it is a {refused.pop()} file" if refused else "it has no video stream"
            raise ValueError(f"{self._path} is not a video: {reason}.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = min(4, os.cpu_count() or 1)  # each thread holds a frame: 8K adds up
        return container

    def _announced(self, container: Any, stream: Any) -> tuple[int | None, bool]:
        """Number of frames the file claims, and whether it is an exact count."""
        if stream.frames:
            return stream.frames, True
        if stream.duration and stream.time_base:
            return max(1, round(float(stream.duration * stream.time_base) * self.fps)), False
        if container.duration:
            return max(1, round(container.duration / 1e6 * self.fps)), False
        return None, False

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        """Frames in presentation order, past damaged packets."""
        from av.error import EOFError as EndOfFile
        from av.error import FFmpegError

        packets = container.demux(stream)
        failures_in_a_row = 0
        while failures_in_a_row < 1000:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
                failures_in_a_row = 0
            except EndOfFile:
                return
            except FFmpegError:
                self.skipped += 1
                failures_in_a_row += 1

    def _rgb(self, frame: Any) -> np.ndarray:
        """Upright RGB uint8 [H, W, 3] with square pixels."""
        has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"
        rgb = _on_black(frame.to_ndarray(format="rgba")) if has_alpha else frame.to_ndarray(format="rgb24")
        if self._aspect != 1.0:
            import cv2

            rgb = cv2.resize(rgb, (max(1, round(rgb.shape[1] * self._aspect)), rgb.shape[0]))
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def frames(self, chosen: slice) -> Iterator[tuple[int, float, np.ndarray | None]]:
        """See Source; a far start is reached by seeking, and the index counts frames that decode."""
        self.skipped = 0
        table: list[int] = []
        if chosen.start > _SEEK_AFTER:
            table = self._table()
        with self._open() as container:
            stream = container.streams.video[0]
            if table and chosen.start < len(table):
                container.seek(table[max(0, chosen.start - _REORDER)], stream=stream)
            else:
                table = []
            index, seconds = -1, -1.0 / self.fps
            for frame in self._decode(container, stream):
                index = bisect.bisect_left(table, frame.pts) if table and frame.pts is not None else index + 1
                if chosen.stop is not None and index >= chosen.stop:
                    return
                seconds = self._seconds(frame, stream.time_base, seconds)
                yield index, seconds, self._rgb(frame) if is_chosen(index, chosen) else None

    def _seconds(self, frame: Any, time_base: Fraction | None, previous: float) -> float:
        """Time of the frame after the first one; strictly increasing whatever the file says."""
        if frame.pts is None or self._start is None:
            return previous + 1 / self.fps
        return max(float((frame.pts - self._start) * (frame.time_base or time_base)), previous + 1e-4)

    def _table(self) -> list[int]:
        """Presentation times of all frames in ticks, without decoding; empty when the file does not say."""
        with self._open() as container:
            packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        if any(packet.pts is None for packet in packets):
            return []
        return sorted(packet.pts for packet in packets if not packet.is_discard)
