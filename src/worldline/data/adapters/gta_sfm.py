"""GTA-SfM: one HDF5 file per scene with image_%d (encoded bytes), depth_%d, K_%d and pose_%d.

The documents do not say which way the poses go; they are read as camera-to-world with OpenCV axes, as published readers
do (motioncrafter.md 4.8), unless the depth agrees better under another direction or other axes. No flow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, reprojection
from worldline.data.clips import Sequence, reading
from worldline.scene import Scene4D

FPS = 10.0  # nominal
FAR_METRES = 256.0
DOCUMENTED = (reprojection.DIRECTIONS[0], reprojection.OPENCV)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per HDF5 file below root."""
    containers.require_libraries("h5py")
    root = Path(root)
    files = sorted(path for end in ("*.hdf5", "*.h5") for path in root.rglob(end))
    if not files:
        raise FileNotFoundError(f"No .hdf5 file below {root}; give the root of GTA-SfM.")
    for path in files:
        name = path.relative_to(root).with_suffix("").as_posix()
        yield from decode.listed(name, _listed, path, name)


def _listed(path: Path, name: str) -> Iterator[Sequence]:
    numbers = decode.one(_numbers, path)
    yield Sequence(name=name, frames=len(numbers), read=partial(_read, path, name, numbers), facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _numbers(path: Path) -> list[int]:
    """Numbers of the images in a file."""
    import h5py

    with h5py.File(path, "r") as file:
        return sorted(int(key.split("_")[1]) for key in file if key.startswith("image_"))


def _image(data: np.ndarray) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data.astype(np.uint8).tobytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def _read(path: Path, name: str, numbers: list[int], start: int, stop: int) -> Scene4D:
    images, depths, matrices, poses = [], [], [], []
    for number in numbers[start:stop]:
        keys = [f"{kind}_{number}" for kind in ("image", "depth", "K", "pose")]
        with reading(path):
            image, depth, k, matrix = containers.read_hdf5(path, *keys)
            images.append(_image(image.ravel()))
            depths.append(torch.from_numpy(depth.astype(np.float32).reshape(images[-1].shape[:2])))
            matrices.append(torch.from_numpy(k.astype(np.float64).reshape(3, 3)))
            poses.append(torch.from_numpy(matrix.astype(np.float64).reshape(4, 4)))
    stored, intrinsics = torch.stack(depths), torch.stack(matrices)
    depth_known = torch.where((stored > 0) & (stored < FAR_METRES), stored, torch.zeros_like(stored))
    cam2world, verdict = reprojection.choose_poses(name, torch.stack(poses), depth_known, intrinsics, DOCUMENTED)
    return assemble.scene_from_depth(
        dataset="gta_sfm",
        sequence=name,
        images=images,
        depth=depth_known,
        intrinsics=intrinsics,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(images), FPS),
        settings={"synthetic": True, "pose_reading": verdict.record()},
    )
