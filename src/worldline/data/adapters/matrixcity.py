"""MatrixCity: <city>/<aerial|street>/<block>/{rgb/%04d.png, depth/%04d.exr, transforms.json}.

transforms.json has camera_angle_x and, per frame, frame_index and rot_mat: camera-to-world with NeRF's axes (x right,
y up, z back), position in metres, the rotation scaled by 1/100 (the data set's README; images beside transforms.json,
without the folder rgb, are found too). Depth is the first channel of an EXR in centimetres, from 65504 invalid. One
published reader negates a rotation column and t_z instead of turning the axes, which mirrors the world
(motioncrafter.md 4.2); the axes, and whether depth is planar, are checked by reprojection. The city stands still.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import Sequence, reading
from worldline.scene import Scene4D

FPS = 10.0  # nominal
CENTIMETRES = 100.0
INVALID_FROM = 65504.0
DOCUMENTED = (reprojection.DIRECTIONS[0], reprojection.OPENGL)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per transforms.json below root."""
    containers.require_libraries("OpenEXR")
    root = Path(root)
    tables = sorted(root.rglob("transforms.json"))
    if not tables:
        raise FileNotFoundError(f"No transforms.json below {root}; give the root of MatrixCity.")
    for table in tables:
        name = decode.name_of(table.parent, root)
        yield from decode.listed(name, _listed, table, name)


def _listed(table: Path, name: str) -> Iterator[Sequence]:
    with reading(table):
        frames = [frame for frame in containers.read_json(table)["frames"] if _picture(table.parent, frame) is not None]
    facts = {"synthetic": True, "static": True}
    yield Sequence(name=name, frames=len(frames), read=partial(_read, table, name, frames), facts=facts)


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _picture(folder: Path, frame: Any) -> Path | None:
    """The image of a frame, if it is there."""
    name = f"{int(frame['frame_index']):04d}.png"
    return next((path for path in (folder / "rgb" / name, folder / name) if path.exists()), None)


def unscaled(matrices: Tensor) -> Tensor:
    """Camera matrices [T, 4, 4] whose rotation is scaled, with a rotation of scale 1."""
    out = matrices.clone()
    out[:, :3, :3] /= torch.linalg.det(matrices[:, :3, :3]).abs()[:, None, None] ** (1 / 3)
    return out


def _read(table: Path, name: str, frames: list[Any], start: int, stop: int) -> Scene4D:
    frames = frames[start:stop]
    angle = decode.one(containers.read_json, table)["camera_angle_x"]
    with reading(table):
        matrices = unscaled(torch.tensor([frame["rot_mat"] for frame in frames], dtype=torch.float64))
    images = decode.stack(encodings.read_rgb, [path for f in frames if (path := _picture(table.parent, f))])
    (height, width), count = images.shape[1:3], len(frames)
    focal = width / 2 / float(torch.tan(torch.tensor(angle / 2, dtype=torch.float64)))
    k = assemble.pinhole(focal, focal, (width - 1) / 2, (height - 1) / 2).expand(count, 3, 3)
    files = [table.parent / "depth" / f"{int(frame['frame_index']):04d}.exr" for frame in frames]
    stored = decode.stack(containers.read_exr, files)
    known = (stored > 0) & (stored < INVALID_FROM)
    stored = torch.where(known, stored / CENTIMETRES, torch.zeros_like(stored))
    cam2world, poses = reprojection.choose_poses(name, matrices, stored, k, DOCUMENTED)
    depth, reading_of_depth = reprojection.choose_depth(name, stored, k, cam2world, reprojection.PLANAR)
    settings = {"pose_reading": poses.record(), "depth_reading": reading_of_depth.record()}
    return assemble.scene_from_depth(
        dataset="matrixcity",
        sequence=name,
        images=images,
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(count, FPS),
        settings={"synthetic": True, "static": True, **settings},
    )
