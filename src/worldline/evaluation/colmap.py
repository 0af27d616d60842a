"""A COLMAP model, text or binary, as a scene: cameras of the registered images and the sparse points they see.

COLMAP's pixel centres lie at half integers, ours at integers, so 1/2 is taken off its principal point.
Distortion is left out: a distorted model is read as its pinhole part. Poses are world-to-camera in the file.
Source: the page "Output format" of COLMAP's documentation.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldline.evaluation.resizing import blank_video
from worldline.geometry import camera, pose
from worldline.scene import Cameras, Provenance, Scene4D

LONGEST_SIDE_PX = 640
"""Point maps are made at this size at most: the points are sparse, the images may be huge."""

_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}
_ONE_FOCAL = {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"}


@dataclass(frozen=True, kw_only=True)
class _Camera:
    model: str
    width: int
    height: int
    numbers: tuple[float, ...]

    def matrix(self) -> Tensor:
        """Pinhole part, pixel centres at integers."""
        if self.model in _ONE_FOCAL:
            focal, cx, cy = self.numbers[:3]
            fx = fy = focal
        else:
            fx, fy, cx, cy = self.numbers[:4]
        return torch.tensor([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class _Image:
    name: str
    camera: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    observed: list[tuple[float, float, int]]


def model_folder(path: Path) -> Path | None:
    """The folder with cameras and images at or below a path, or None."""
    for folder in (path, path / "sparse", path / "sparse" / "0", path / "0"):
        if any(
            (folder / f"cameras.{kind}").is_file() and (folder / f"images.{kind}").is_file() for kind in ("bin", "txt")
        ):
            return folder
    return None


def is_colmap(path: Path) -> bool:
    """Whether there is a COLMAP model at the path."""
    return path.is_dir() and model_folder(path) is not None


def read_colmap(path: Path) -> Scene4D:
    """Registered images in the order of their names; times are the last numbers in the names where they differ.

    Raises ValueError when there is no model, no image, or images of different sizes.
    """
    folder = model_folder(path)
    if folder is None:
        raise ValueError(f"{path} has no COLMAP model (cameras and images, .txt or .bin).")
    binary = (folder / "cameras.bin").is_file()
    cameras, images, points = _read_binary(folder) if binary else _read_text(folder)
    images = sorted(images, key=lambda image: image.name)
    sizes = {(cameras[image.camera].height, cameras[image.camera].width) for image in images}
    if len(sizes) != 1:
        raise ValueError(f"{path}: {len(images)} images of {len(sizes)} sizes; a video has one.")
    full = sizes.pop()
    shrink = min(1.0, LONGEST_SIDE_PX / max(full))
    size = (round(full[0] * shrink), round(full[1] * shrink))
    intrinsics = camera.resize(torch.stack([cameras[image.camera].matrix() for image in images]), full, size)
    rotation = pose.quaternion_to_matrix(torch.tensor([image.quaternion for image in images], dtype=torch.float64))
    translation = torch.tensor([image.translation for image in images], dtype=torch.float64)
    world, valid = _sparse_maps(images, points, full, size)
    return Scene4D(
        video=blank_video(len(images), size, _times(images)),
        points=world,
        valid=valid,
        cameras=Cameras(intrinsics=intrinsics, cam2world=pose.inverse(pose.from_rt(rotation, translation)), size=size),
        provenance=Provenance(system="colmap (files)"),
    )


def _sparse_maps(
    images: list[_Image], points: dict[int, tuple[float, float, float]], full: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    world = torch.zeros(len(images), *size, 3)
    valid = torch.zeros(len(images), *size, dtype=torch.bool)
    for time, image in enumerate(images):
        for x, y, point in image.observed:
            if point not in points:
                continue
            column, row = int(x / full[1] * size[1]), int(y / full[0] * size[0])
            if 0 <= row < size[0] and 0 <= column < size[1]:
                world[time, row, column] = torch.tensor(points[point])
                valid[time, row, column] = True
    return world, valid


def _times(images: list[_Image]) -> Tensor | None:
    numbers = [re.findall(r"\d+", Path(image.name).stem) for image in images]
    if not all(numbers):
        return None
    last = [int(found[-1]) for found in numbers]
    return torch.tensor(last, dtype=torch.float64) if sorted(set(last)) == last else None


def _read_text(folder: Path) -> tuple[dict[int, _Camera], list[_Image], dict[int, tuple[float, float, float]]]:
    cameras = {}
    for words in _lines(folder / "cameras.txt"):
        numbers = tuple(float(word) for word in words[4:])
        cameras[int(words[0])] = _Camera(model=words[1], width=int(words[2]), height=int(words[3]), numbers=numbers)
    images = []
    lines = [line for line in (folder / "images.txt").read_text().splitlines() if not line.startswith("#")]
    lines += [""] * (len(lines) % 2)  # the last image may see nothing
    for head, seen in zip(lines[::2], lines[1::2], strict=True):
        words, flat = head.split(maxsplit=9), [float(word) for word in seen.split()]
        observed = [(flat[i], flat[i + 1], int(flat[i + 2])) for i in range(0, len(flat), 3)]
        images.append(
            _Image(
                name=words[9],
                camera=int(words[8]),
                quaternion=tuple(float(word) for word in words[1:5]),
                translation=tuple(float(word) for word in words[5:8]),
                observed=observed,
            )
        )
    table = folder / "points3D.txt"
    rows = _lines(table) if table.is_file() else []
    return cameras, images, {int(words[0]): (float(words[1]), float(words[2]), float(words[3])) for words in rows}


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, path: Path) -> None:
        self._data, self._at, self._path = path.read_bytes(), 0, path

    def take(self, layout: str) -> tuple:
        try:
            values = struct.unpack_from("<" + layout, self._data, self._at)
        except struct.error as error:
            raise ValueError(f"{self._path} ends too early: it is damaged or no COLMAP file.") from error
        self._at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self._data.index(b"\0", self._at)
        word = self._data[self._at : end].decode()
        self._at = end + 1
        return word


def _read_binary(folder: Path) -> tuple[dict[int, _Camera], list[_Image], dict[int, tuple[float, float, float]]]:
    cursor, cameras = _Cursor(folder / "cameras.bin"), {}
    for _ in range(cursor.take("Q")[0]):
        identity, model, width, height = cursor.take("iiQQ")
        if model not in _MODELS:
            raise ValueError(f"{folder}/cameras.bin has a camera model {model} that is not known.")
        name, count = _MODELS[model]
        cameras[identity] = _Camera(model=name, width=width, height=height, numbers=cursor.take(f"{count}d"))
    cursor, images = _Cursor(folder / "images.bin"), []
    for _ in range(cursor.take("Q")[0]):
        head = cursor.take("i7di")
        name = cursor.text()
        observed = [cursor.take("ddq") for _ in range(cursor.take("Q")[0])]
        images.append(
            _Image(name=name, camera=head[8], quaternion=head[1:5], translation=head[5:8], observed=observed)  # type: ignore[arg-type]
        )
    points: dict[int, tuple[float, float, float]] = {}
    if (folder / "points3D.bin").is_file():
        cursor = _Cursor(folder / "points3D.bin")
        for _ in range(cursor.take("Q")[0]):
            identity, x, y, z, *_ = cursor.take("Q3d3Bd")
            points[identity] = (x, y, z)
            cursor.take(f"{2 * cursor.take('Q')[0]}i")
    return cameras, images, points
