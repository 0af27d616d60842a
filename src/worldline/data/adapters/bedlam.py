"""BEDLAM: <scene>/png/<sequence>/*.png, depth/<sequence>/*_depth.exr, ground_truth/camera/<sequence>_camera.csv.

The csv has a line per image: name, x, y, z (cm), yaw, pitch, roll (degrees), focal_length, sensor_width, sensor_height
(mm), in Unreal's left-handed axes (x forward, y right, z up). Depth is the channel "Depth" in centimetres, planar as
Unreal writes it unless the frames say otherwise. Images of the rotated (portrait) scenes are kept as they were
rendered, lying on their side: the roll in the csv belongs to them. There is no dense flow (data-formats.md 4.10).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import DamagedFile, Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 30.0
CENTIMETRES = 100.0
FAR_METRES = 1000.0  # the sky is drawn on a sphere, or not at all
OPENCV_FROM_UNREAL = torch.tensor([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per camera csv below root."""
    containers.require_libraries("OpenEXR")
    root = Path(root)
    tables = sorted(path for path in root.rglob("*_camera.csv") if path.parent.parent.name == "ground_truth")
    if not tables:
        raise FileNotFoundError(f"No ground_truth/camera/*_camera.csv below {root}; give the root of BEDLAM.")
    for table in tables:
        name = table.name.removesuffix("_camera.csv")
        title = f"{decode.name_of(table.parents[2], root)}/{name}"
        yield from decode.listed(title, _listed, table, name, title)


def _listed(table: Path, name: str, title: str) -> Iterator[Sequence]:
    base = table.parents[2]
    with reading(table):
        rows = [row for row in read_table(table) if (base / "png" / name / _image(row)).exists()]
    read = partial(_read, base, name, title, rows)
    yield Sequence(name=title, frames=len(rows), read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a camera csv as dictionaries."""
    with encodings.require(path).open(newline="") as file:
        return list(csv.DictReader(file))


def _image(row: dict[str, str]) -> str:
    return f"{Path(row['name']).stem}.png"


def unreal_rotation(
    yaw: Float[Tensor, " T"], pitch: Float[Tensor, " T"], roll: Float[Tensor, " T"]
) -> Float[Tensor, "T 3 3"]:
    """Columns forward, right, up of Unreal's rotator (degrees), in its left-handed world."""
    (sy, cy), (sp, cp), (sr, cr) = ((torch.sin(a), torch.cos(a)) for a in map(torch.deg2rad, (yaw, pitch, roll)))
    forward = torch.stack([cp * cy, cp * sy, sp], -1)
    right = torch.stack([sr * sp * cy - cr * sy, sr * sp * sy + cr * cy, -sr * cp], -1)
    up = torch.stack([-(cr * sp * cy + sr * sy), cy * sr - cr * sp * sy, cr * cp], -1)
    return torch.stack([forward, right, up], -1)


def _read(base: Path, name: str, title: str, rows: list[dict[str, str]], start: int, stop: int) -> Scene4D:
    rows = rows[start:stop]
    table = base / "ground_truth" / "camera" / f"{name}_camera.csv"
    try:
        column = lambda key: torch.tensor([float(row[key]) for row in rows], dtype=torch.float64)  # noqa: E731
        place = torch.stack([column(key) for key in "xyz"], -1) / CENTIMETRES
        rotation = unreal_rotation(column("yaw"), column("pitch"), column("roll"))
        focal = column("focal_length") / column("sensor_width")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(table, f"a column is missing or no number ({error})") from error
    swap = OPENCV_FROM_UNREAL
    cam2world = pose.from_rt(swap @ rotation @ swap.mT, place @ swap.mT)
    images = decode.stack(encodings.read_rgb, [base / "png" / name / _image(row) for row in rows])
    height, width = images.shape[1:3]
    k = torch.stack([assemble.pinhole(f, f, (width - 1) / 2, (height - 1) / 2) for f in (focal * width).tolist()])
    files = [base / "depth" / name / f"{Path(row['name']).stem}_depth.exr" for row in rows]
    settings: dict[str, object] = {"synthetic": True}
    depth = None
    if (base / "depth" / name).is_dir():
        stored = decode.stack(containers.read_exr, files, "Depth") / CENTIMETRES
        stored = torch.where((stored > 0) & (stored < FAR_METRES), stored, torch.zeros_like(stored))
        depth, verdict = reprojection.choose_depth(title, stored, k, cam2world, reprojection.PLANAR)
        settings["depth_reading"] = verdict.record()
    return assemble.scene_from_depth(
        dataset="bedlam",
        sequence=title,
        images=images,
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(rows), FPS),
        settings=settings,
    )
