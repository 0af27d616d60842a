"""Where the parts of a stored scene are, and what its scene.json says.

OUT/scene.json           what it is: kind, size, timestamps, cameras, scale, provenance, list of arrays (checksummed)
OUT/zarr.json            zarr's own metadata, so that any zarr reader can open the arrays
OUT/points/c.12.0.0.0    frame 12 of the points
OUT.partial/             what an unfinished run has so far, see partial.py
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from worldline.io.atomic import check_parent
from worldline.io.jsonable import jsonable
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D

FORMAT = "worldline scene"
VERSION = 1


class Layout:
    """Every path of a stored scene."""

    def __init__(self, root: str | Path) -> None:
        """Follow a symbolic link, so that what it points to is replaced and not the link."""
        self.root = Path(root).expanduser().resolve()
        self.metadata = self.root / "scene.json"
        self.group = self.root / "zarr.json"
        self.partial = self.root.with_name(f"{self.root.name}.partial")

    def chunk(self, name: str, frame: int, ndim: int) -> Path:
        """The file of one frame of an array with `ndim` dimensions; the name may contain a slash."""
        return self.root / name / ".".join(["c", str(frame), *["0"] * (ndim - 1)])

    def is_scene(self) -> bool:
        """Whether a scene is there (perhaps a damaged one)."""
        return self.metadata.is_file() and self.group.is_file()


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Find out before any work whether a scene can be written to `path`; creates nothing.

    Only an empty folder or, with `overwrite`, a scene may be replaced.

    Raises:
        FileExistsError: something is there.
        NotADirectoryError: a parent of the path is a file.
        PermissionError: the parent folder is read-only.
        OSError: the disk is full.
    """
    layout = Layout(path)
    if layout.is_scene():
        if not overwrite:
            raise FileExistsError(f"{path} already holds a scene; choose another name or allow overwriting.")
    elif layout.root.is_dir():
        if any(layout.root.iterdir()):
            raise FileExistsError(f"{path} is a folder with other things in it; choose another name.")
    elif layout.root.exists():
        raise FileExistsError(f"{path} is a file, and a scene is a folder; choose another name.")
    check_parent(layout.root)


def describe(item: Scene4D | Tracks4D, timestamps: torch.Tensor, cameras: Cameras | None) -> dict[str, Any]:
    """What scene.json says besides the arrays; `timestamps` and `cameras` are those of all frames."""
    is_scene = isinstance(item, Scene4D)
    height, width = item.points.shape[1:3]
    return {
        "kind": "scene" if is_scene else "tracks",
        "frames": len(timestamps),
        "height": height,
        "width": width,
        "scale": item.scale,
        "reference": None if isinstance(item, Scene4D) else item.reference,
        "timestamps": timestamps.tolist(),
        "cameras": None if cameras is None else _cameras_to_json(cameras),
        "provenance": jsonable(item.provenance),
    }


def _cameras_to_json(cameras: Cameras) -> dict[str, Any]:
    return {
        "convention": "OpenCV axes, camera to world, pixel centres at integers",
        "dtype": str(cameras.cam2world.dtype).removeprefix("torch."),
        "intrinsics": jsonable(cameras.intrinsics),
        "cam2world": jsonable(cameras.cam2world),
    }


def cameras_from_json(entry: Mapping[str, Any] | None, size: tuple[int, int]) -> Cameras | None:
    """The inverse of what `describe` does; null becomes NaN."""
    if entry is None:
        return None
    dtype = getattr(torch, entry["dtype"])
    intrinsics, cam2world = (torch.tensor(_null_to_nan(entry[k]), dtype=dtype) for k in ("intrinsics", "cam2world"))
    return Cameras(intrinsics=intrinsics, cam2world=cam2world, size=size)


def _null_to_nan(value: Any) -> Any:
    return [_null_to_nan(item) for item in value] if isinstance(value, list) else math.nan if value is None else value


def provenance_from_json(entry: Mapping[str, Any]) -> Provenance:
    """The inverse of what `describe` does."""
    return Provenance(**{**entry, "unreliable": tuple(entry["unreliable"])})


def seal(content: Mapping[str, Any]) -> str:
    """The text of scene.json, with a checksum."""
    return json.dumps({**content, "crc32": _crc32(content)}, indent=1)


def unseal(text: str | bytes) -> dict[str, Any] | None:
    """What `seal` wrote, without its checksum; None when it is damaged."""
    try:
        content = json.loads(text)
        stored = content.pop("crc32")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return content if stored == _crc32(content) else None


def read_metadata(layout: Layout, path: str | Path) -> dict[str, Any]:
    """Read and check scene.json.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: what is there is not a scene, a damaged one, or one of a newer version.
    """
    if not layout.metadata.is_file():
        unfinished = f" An unfinished run is in {layout.partial.name}: run the same command again to resume it."
        hint = unfinished if layout.partial.is_dir() else ""
        if not layout.root.exists():
            raise FileNotFoundError(f"There is no scene at {path}: it does not exist.{hint}")
        raise ValueError(f"{path} is not a Worldline scene (no scene.json in it).{hint}")
    try:
        content = json.loads(layout.metadata.read_text())
        stored = content.pop("crc32")
        kind, version = content["format"], content["version"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{layout.metadata} is damaged; the scene cannot be read.") from error
    if kind != FORMAT:
        raise ValueError(f"{path} is not a Worldline scene.")
    if version > VERSION:
        raise ValueError(f"{path} was written by a newer Worldline (format {version}, this one reads {VERSION}).")
    if stored != _crc32(content):
        raise ValueError(f"{layout.metadata} is damaged: its checksum is wrong.")
    return content


def _crc32(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
