"""RGB-D sets of the book "14 lectures on visual SLAM": color/N.png, depth/N.{png,pgm}, pose.txt (tx..qw, cam2world).

ch12's intrinsics (ICL-NUIM) have a negative fy: its camera frame has y up and its world is left-handed. Both are
mirrored, x_cv = D x with D = diag(1, -1, 1), which leaves rigid poses with OpenCV axes and fy > 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings
from worldline.data.clips import Sequence
from worldline.scene import Scene4D

FPS = 1.0  # nominal: key frames, far apart
KINECT_TOLERANCE = 0.1
"""Relative depth error of the Kinect of ch5: between its first two frames 48 % of the points beyond 6 m differ by more
than 5 %, and 6 % by more than 10 % (that sensor's far depth is distorted: Teichman, Miller, Thrun, RSS 2013).
"""
# folder: (fx, fy, cx, cy, depth units per metre)
SETS = {
    "ch5_rgbd": (518.0, 519.0, 325.5, 253.5, 1000.0),
    "ch12_dense_rgbd": (481.2, -480.0, 319.5, 239.5, 5000.0),
}


def sequences(root: Path) -> Iterator[Sequence]:
    """One per known folder in root."""
    root = Path(root)
    found = [name for name in SETS if (root / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{root} has none of the folders {', '.join(SETS)}.")
    for name in found:
        folder = root / name
        images = sorted((folder / "color").glob("*.png"), key=lambda path: int(path.stem))
        yield Sequence(name=name, frames=len(images), read=partial(_read, folder, images), facts={"static": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _depth_file(folder: Path, stem: str) -> Path:
    """The depth image of a frame, png or pgm."""
    return next((folder / "depth").glob(f"{stem}.*"), folder / "depth" / f"{stem}.png")


def _read(folder: Path, images: list[Path], start: int, stop: int) -> Scene4D:
    fx, fy, cx, cy, units_per_metre = SETS[folder.name]
    images = images[start:stop]
    rows = decode.rows(folder / "pose.txt", decode.one(encodings.read_numbers, folder / "pose.txt"), start, stop)
    cam2world = encodings.poses_from_translation_xyzw(rows)
    if fy < 0:
        mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
        cam2world, fy = mirror @ cam2world @ mirror, -fy
    depths = [_depth_file(folder, path.stem) for path in images]
    return assemble.scene_from_depth(
        dataset="slambook",
        sequence=folder.name,
        images=decode.stack(encodings.read_rgb, images),
        depth=decode.stack(encodings.read_depth_image, depths, units_per_metre),
        intrinsics=assemble.pinhole(fx, fy, cx, cy),
        cam2world=cam2world,
        timestamps=assemble.even_times(len(images), FPS),
        settings={"static": True} | ({"depth_tolerance": KINECT_TOLERANCE} if folder.name == "ch5_rgbd" else {}),
    )
