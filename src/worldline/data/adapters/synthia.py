"""SYNTHIA video sequences: SYNTHIA-SEQS-*/{RGB,Depth,CameraParams}/Stereo_{Left,Right}/Omni_{F,B,L,R}/%06d.{png,txt}.

Depth is 16 bit in centimetres (from 640 m: sky), grey or the same in all channels; CameraParams/intrinsics.txt starts
with the focal length and the principal point; a pose is 16 numbers, the columns of a 4x4 matrix (public readers of the
data set reshape it column by column). Its axes are not documented: camera-to-world with z backward is assumed
(motioncrafter.md 4.8) and checked by reprojection. No flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, reprojection
from worldline.data.clips import Sequence
from worldline.scene import Scene4D

FPS = 5.0
SKY_METRES = 640.0
DOCUMENTED = (reprojection.DIRECTIONS[0], "x right, y down, z backward")


def sequences(root: Path) -> Iterator[Sequence]:
    """One per sequence, side of the stereo pair and direction of view."""
    root = Path(root)
    folders = sorted(path for path in root.rglob("RGB/Stereo_*/*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"No RGB/Stereo_*/* below {root}; give the root of the SYNTHIA video sequences.")
    for folder in folders:
        base, view = folder.parents[2], f"{folder.parent.name}/{folder.name}"
        name = f"{decode.name_of(base, root)}/{view}"
        stems = [path.stem for path in sorted(folder.glob("*.png"))]
        read = partial(_read, base, view, name, stems)
        yield Sequence(name=name, frames=len(stems), read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_depth(path: Path) -> Tensor:
    """Depth in metres of a 16-bit png, grey or with equal channels; 0 in the sky."""
    if encodings.require(path).read_bytes()[25:26] == b"\x02":  # colour type of a png: three channels
        depth = encodings.read_rgb16(path)[..., 0].float() / 100
    else:
        depth = encodings.read_depth_image(path, 100.0)
    return torch.where(depth < SKY_METRES, depth, torch.zeros_like(depth))


def _columns(path: Path) -> Tensor:
    """A 4x4 matrix stored column by column."""
    values = [float(word) for word in encodings.require(path).read_text().split()]
    return torch.from_numpy(np.array(values, dtype=np.float64).reshape(4, 4).T.copy())


def _intrinsics(path: Path) -> Tensor:
    focal, cx, cy = (float(word) for word in encodings.require(path).read_text().split()[:3])
    return assemble.pinhole(focal, focal, cx, cy)


def _read(base: Path, view: str, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    stems = stems[start:stop]
    files = lambda kind, end: [base / kind / view / f"{stem}{end}" for stem in stems]  # noqa: E731
    k = decode.one(_intrinsics, base / "CameraParams" / "intrinsics.txt").expand(len(stems), 3, 3)
    depth = decode.stack(read_depth, files("Depth", ".png"))
    matrices = decode.stack(_columns, files("CameraParams", ".txt"))
    cam2world, verdict = reprojection.choose_poses(name, matrices, depth, k, DOCUMENTED)
    return assemble.scene_from_depth(
        dataset="synthia",
        sequence=name,
        images=decode.stack(encodings.read_rgb, files("RGB", ".png")),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(stems), FPS),
        settings={"synthetic": True, "pose_reading": verdict.record()},
    )
