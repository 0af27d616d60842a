"""RGB-D sets of the book "14 lectures on visual SLAM": color/N.png, depth/N.{png,pgm}, pose.txt (tx..qw, cam2world).

ch12's intrinsics (ICL-NUIM) have a negative fy: its camera frame has y up and its world is left-handed. Both are
mirrored, x_cv = D x with D = diag(1, -1, 1), which leaves rigid poses with OpenCV axes and fy > 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from worldline.data.adapters import assemble, encodings
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


def convert(root: Path) -> Iterator[Scene4D]:
    """One scene per known folder in root."""
    root = Path(root)
    found = [name for name in SETS if (root / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{root} has none of the folders {', '.join(SETS)}.")
    for name in found:
        yield _scene(root / name, *SETS[name])


def _scene(folder: Path, fx: float, fy: float, cx: float, cy: float, units_per_metre: float) -> Scene4D:
    images = sorted((folder / "color").glob("*.png"), key=lambda path: int(path.stem))
    depths = [next((folder / "depth").glob(f"{path.stem}.*")) for path in images]
    cam2world = encodings.poses_from_translation_xyzw(encodings.read_numbers(folder / "pose.txt"))[: len(images)]
    if fy < 0:
        mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
        cam2world, fy = mirror @ cam2world @ mirror, -fy
    return assemble.scene_from_depth(
        dataset="slambook",
        sequence=folder.name,
        images=[encodings.read_rgb(path) for path in images],
        depth=torch.stack([encodings.read_depth_image(path, units_per_metre) for path in depths]),
        intrinsics=assemble.pinhole(fx, fy, cx, cy),
        cam2world=cam2world,
        timestamps=assemble.even_times(len(images), FPS),
        settings={"depth_tolerance": KINECT_TOLERANCE} if folder.name == "ch5_rgbd" else {},
    )
