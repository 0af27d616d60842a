"""BlinkVision (indoor): <scene>/{clean_uint8/*.png, depth/*.npz, poses.npz, metadata.json}, rendered with Blender.

poses.npz holds camera_poses [T, 2, 3]: translation in centimetres and Euler angles (x, then y, then z, fixed axes,
radians), camera-to-world with x right, y up, z back; metadata.json holds K_matrix; depth is metres, one array per file,
valid up to 30 m (motioncrafter.md 4.8; I found no document of the data set that says more, so direction and axes are
checked by reprojection). No flow is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 10.0  # nominal
CENTIMETRES = 100.0
FAR_METRES = 30.0
DOCUMENTED = (reprojection.DIRECTIONS[0], reprojection.OPENGL)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder with poses.npz and clean_uint8 below root."""
    root = Path(root)
    folders = sorted(path.parent for path in root.rglob("poses.npz") if (path.parent / "clean_uint8").is_dir())
    if not folders:
        raise FileNotFoundError(f"No folder with poses.npz and clean_uint8 below {root}; give the root of BlinkVision.")
    for folder in folders:
        name = decode.name_of(folder, root)
        stems = [path.stem for path in sorted((folder / "clean_uint8").glob("*.png"))]
        read = partial(_read, folder, name, stems)
        yield Sequence(name=name, frames=len(stems), read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_poses(path: Path) -> Tensor:
    """Poses [T, 4, 4] in metres of translations and Euler angles."""
    values = torch.from_numpy(containers.read_npz(path, "camera_poses")[0].astype(np.float64)).reshape(-1, 2, 3)
    angles, zero = values[:, 1], torch.zeros(len(values), dtype=torch.float64)
    about = [pose.so3_exp(torch.stack([angles[:, i] if i == j else zero for j in range(3)], -1)) for i in range(3)]
    return pose.from_rt(about[2] @ about[1] @ about[0], values[:, 0] / CENTIMETRES)


def _depth(path: Path) -> Tensor:
    (values,) = containers.read_npz(path)
    return torch.from_numpy(np.ascontiguousarray(np.squeeze(values)).astype(np.float32))


def _read(folder: Path, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    matrices = decode.rows(folder / "poses.npz", decode.one(read_poses, folder / "poses.npz"), start, stop)
    stems = stems[start:stop]
    with reading(folder / "metadata.json"):
        matrix = containers.read_json(folder / "metadata.json")["K_matrix"]
        k = torch.tensor(matrix, dtype=torch.float64).reshape(3, 3).expand(len(stems), 3, 3)
    stored = decode.stack(_depth, [folder / "depth" / f"{stem}.npz" for stem in stems])
    depth = torch.where((stored > 1e-3) & (stored < FAR_METRES), stored, torch.zeros_like(stored))
    cam2world, verdict = reprojection.choose_poses(name, matrices, depth, k, DOCUMENTED)
    return assemble.scene_from_depth(
        dataset="blinkvision",
        sequence=name,
        images=decode.stack(encodings.read_rgb, [folder / "clean_uint8" / f"{stem}.png" for stem in stems]),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(stems), FPS),
        settings={"synthetic": True, "pose_reading": verdict.record()},
    )
