"""A scene on disk: a folder that is a zarr v3 group with one frame per chunk, and scene.json.

Points, scene flow and confidence are float32 (rounding of 8 micrometres at 100 m), RGB is uint8, masks are bytes whose
bits the bit shuffle packs. A chunk is bytes -> blosc (zstd, bit shuffle) -> crc32c. The folder is written beside its
final place and renamed, so what is there is always a whole scene. A missing or damaged chunk is an error, never zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.io.atomic import beside, explain, put_in_place, remove, remove_stale
from worldline.io.jsonable import jsonable
from worldline.io.layout import (
    FORMAT,
    VERSION,
    Layout,
    check_output,
    describe,
    seal,
)
from worldline.io.partial import PartialRun
from worldline.io.stored import StoredScene
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D

__all__ = ["PartialRun", "SceneWriter", "StoredScene", "check_output", "info", "load", "open_scene", "save"]

# ----------------------------------------------------------------------------------------------------------- writing


class _Draft:
    """A scene folder in the making, beside its final place; every disk problem is an OSError of one sentence."""

    def __init__(self, path: str | Path, overwrite: bool) -> None:
        import zarr

        check_output(path, overwrite)
        self.path = Path(path)
        self._final = Layout(path)
        remove_stale(self._final.root)
        self._layout = Layout(beside(self._final.root))
        self._arrays: dict[str, Any] = {}
        self._group: Any = None

        def create() -> None:
            self._final.root.parent.mkdir(parents=True, exist_ok=True)
            self._group = zarr.create_group(str(self._layout.root))

        self._write(create)

    def append(self, name: str, frames: np.ndarray) -> None:
        """Add frames [t, ...] to an array, which the first call creates."""
        self._write(lambda: self._append(name, frames))

    def _append(self, name: str, frames: np.ndarray) -> None:
        if name not in self._arrays:
            self._arrays[name] = self._create(name, frames)
        array = self._arrays[name]
        start = array.shape[0]
        array.resize((start + len(frames), *array.shape[1:]))
        for index, frame in enumerate(frames):
            array[start + index] = frame

    def _create(self, name: str, frames: np.ndarray) -> Any:
        from zarr.codecs import BloscCodec, Crc32cCodec

        return self._group.create_array(
            name,
            shape=(0, *frames.shape[1:]),
            chunks=(1, *frames.shape[1:]),
            dtype=frames.dtype,
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
            fill_value=np.nan if frames.dtype.kind == "f" else 0,
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},  # a frame of zeros is data; an absent one is damage
        )

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write scene.json and put the folder in place."""
        arrays = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in self._arrays.items()}
        text = seal({"format": FORMAT, "version": VERSION, **metadata, "arrays": arrays})

        def put() -> None:
            self._layout.metadata.write_text(text)
            put_in_place(self._layout.root, self._final.root)

        self._write(put)

    def _write(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            remove(self._layout.root)
            if isinstance(error, OSError) and error.errno:
                raise explain(error, self.path) from error
            raise

    def discard(self) -> None:
        """Leave nothing of it."""
        remove(self._layout.root)


class SceneWriter:
    """Writes a scene part by part, so that it need never be in memory as a whole.

    `with SceneWriter(path) as writer:` and in it `writer.append(part)` for each part, a Scene4D of consecutive frames.
    All parts have the same fields, size and scale, and share one world. The scene appears at `path` when the block
    ends well; otherwise nothing stays, and an older scene is untouched.

    Attributes:
        provenance: that of the whole scene; None for the last part's.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        """Check the place and start a folder beside it.

        Raises:
            OSError: it cannot be written there, see `check_output`.
        """
        self._draft = _Draft(path, overwrite)
        self.provenance: Provenance | None = None
        self._last: Scene4D | None = None
        self._signature: tuple[Any, ...] = ()
        self._times: list[Tensor] = []
        self._cameras: list[Cameras] = []

    def __enter__(self) -> SceneWriter:
        return self

    def append(self, part: Scene4D) -> None:
        """Add the frames of `part` at the end.

        Raises:
            ValueError: its fields, size, scale or cameras are not like those of the first part.
            OSError: the disk is full.
        """
        fields = _scene_fields(part)
        signature = (sorted(fields), part.size, part.scale, part.cameras is None)
        if self._times and signature != self._signature:
            raise ValueError(f"Every part of {self._draft.path} must have the fields, size, scale and cameras of the "
                             f"first: {self._signature}, not {signature}.")  # fmt: skip
        self._signature = signature
        for name, values in fields.items():
            self._draft.append(name, values)
        self._times.append(part.video.timestamps.detach().cpu().double())
        if part.cameras is not None:
            self._cameras.append(part.cameras)
        self._last = part.select(slice(len(part) - 1, len(part)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the scene in place, or leave nothing."""
        try:
            if kind is None:
                self._finish()
        finally:
            self._draft.discard()

    def _finish(self) -> None:
        if self._last is None or not sum(map(len, self._times)):
            raise ValueError(f"Cannot write {self._draft.path}: the scene has no frames.")
        cameras = None
        if self._cameras:
            cameras = Cameras(
                intrinsics=torch.cat([part.intrinsics.detach().cpu() for part in self._cameras]),
                cam2world=torch.cat([part.cam2world.detach().cpu() for part in self._cameras]),
                size=self._last.size,
            )
        metadata = describe(self._last, torch.cat(self._times), cameras)
        if self.provenance is not None:
            metadata["provenance"] = jsonable(self.provenance)
        self._draft.finish(metadata)


def save(scene: Scene4D | Tracks4D, path: str | Path, overwrite: bool = False) -> None:
    """Write a scene or tracks to the folder `path`, whole or not at all.

    Float RGB is rounded to uint8, points, flow and confidence to float32.

    Raises:
        FileExistsError: something is at `path` (a scene may be replaced with `overwrite`).
        OSError: it cannot be written (read-only, disk full), as one sentence; an older scene is untouched.
        ValueError: the scene has no frames.
    """
    if isinstance(scene, Scene4D):
        with SceneWriter(path, overwrite) as writer:
            writer.append(scene)
        return
    if not len(scene):
        raise ValueError(f"Cannot write {path}: the tracks have no frames.")
    draft = _Draft(path, overwrite)
    try:
        draft.append("points", _numpy(scene.points, np.float32))
        draft.append("visible", _numpy(scene.visible, np.bool_))
        draft.append("colors", _rgb8(scene.colors)[None])
        draft.finish(describe(scene, scene.timestamps.detach().cpu().double(), scene.cameras))
    finally:
        draft.discard()


def _scene_fields(scene: Scene4D) -> dict[str, np.ndarray]:
    """Array name -> [T, ...] as stored."""
    fields = {
        "rgb": _rgb8(scene.video.frames),
        "points": _numpy(scene.points, np.float32),
        "valid": _numpy(scene.valid, np.bool_),
    }
    if scene.scene_flow is not None and scene.flow_valid is not None:
        fields["scene_flow"] = _numpy(scene.scene_flow, np.float32)
        fields["flow_valid"] = _numpy(scene.flow_valid, np.bool_)
    if scene.confidence is not None:
        fields["confidence"] = _numpy(scene.confidence, np.float32)
    for name, values in scene.extras.items():
        fields[f"extras/{name}"] = _numpy(values.float() if values.dtype == torch.bfloat16 else values, None)
    return fields


def _numpy(tensor: Tensor, dtype: type | None) -> np.ndarray:
    array = tensor.detach().cpu().numpy()
    return array if dtype is None else array.astype(dtype, copy=False)


def _rgb8(frames: Tensor) -> np.ndarray:
    frames = frames.detach().cpu()
    return (frames if frames.dtype == torch.uint8 else (frames.clamp(0, 1) * 255).round().to(torch.uint8)).numpy()


# ----------------------------------------------------------------------------------------------------------- reading


def open_scene(path: str | Path) -> StoredScene:
    """Open a stored scene or tracks for reading frame by frame.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: what is there is not a scene, or its metadata is damaged.
    """
    return StoredScene(path)


def load(path: str | Path, frames: slice | None = None) -> Scene4D | Tracks4D:
    """Read a stored scene or tracks, or some frames of it, into memory.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is not a scene, a chunk is missing or damaged, or the range holds no frame.
    """
    stored = open_scene(path)
    return stored.scene(frames) if stored.kind == "scene" else stored.tracks(frames)


def info(path: str | Path) -> dict[str, Any]:
    """What a stored scene is, JSON-able, without reading its frames.

    Keys: kind, frames, height, width, fps, has_cameras, has_scene_flow, has_confidence, focal_px (median), scale,
    system, weights_sha256, peak_memory_bytes, seconds, source, unreliable, report, fields, bytes.

    Raises:
        FileNotFoundError, ValueError: see `open_scene`.
    """
    stored = open_scene(path)
    span = float(stored.timestamps[-1] - stored.timestamps[0])
    provenance = stored.provenance
    return {
        "kind": stored.kind,
        "frames": len(stored),
        "height": stored.size[0],
        "width": stored.size[1],
        "fps": (len(stored) - 1) / span if span > 0 else 0.0,
        "has_cameras": stored.cameras is not None,
        "has_scene_flow": "scene_flow" in stored.fields,
        "has_confidence": "confidence" in stored.fields,
        "focal_px": None if stored.cameras is None else float(stored.cameras.focal_px.median()),
        "scale": stored.scale,
        "system": provenance.system,
        "weights_sha256": provenance.weights_sha256,
        "peak_memory_bytes": provenance.peak_memory_bytes,
        "seconds": provenance.seconds,
        "source": provenance.source,
        "unreliable": list(provenance.unreliable),
        "report": dict(provenance.report),
        "fields": list(stored.fields),
        "bytes": sum(file.stat().st_size for file in Layout(path).root.rglob("*") if file.is_file()),
    }
