"""TartanAir: image_left/*.png, depth_left/*.npy (z-depth, metres), pose_left.txt (NED axes, cam2world).

The NED camera looks along x, with y to the right and z down: x_cv = M x_ned. Negating tz and qz instead, as some public
converters do, is wrong (data-formats.md 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from worldline.data.adapters import assemble, encodings
from worldline.geometry import pose
from worldline.scene import Scene4D

CAMERA_FROM_NED = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
INTRINSICS = (320.0, 320.0, 320.0, 240.0)
FPS = 10.0  # nominal: the data set has no times
SKY_METRES = 1000.0  # the renderer writes a huge depth (10000) into the sky


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence below root, a folder with image_left, depth_left and pose_left*.txt."""
    folders = sorted(path.parent for path in Path(root).rglob("image_left") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"No image_left folder below {root}; give the folder of a TartanAir environment.")
    for folder in folders:
        yield _sequence(folder, str(folder.relative_to(root)))


def _sequence(folder: Path, name: str) -> Scene4D:
    images = sorted((folder / "image_left").glob("*_left.png"))
    numbers = [int(path.name.split("_")[0]) for path in images]
    tables = sorted(folder.glob("pose_left*.txt"))
    if not tables:
        raise FileNotFoundError(f"{folder} has no pose_left.txt.")
    rows = encodings.read_numbers(tables[0])
    if len(rows) != len(images):  # a whole sequence's poses beside some of its frames: pick by frame number
        rows = rows[numbers]
    ned = encodings.poses_from_translation_xyzw(rows)
    swap = pose.from_rt(torch.tensor(CAMERA_FROM_NED, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    depth = torch.stack(
        [torch.from_numpy(np.load(folder / "depth_left" / f"{n:06d}_left_depth.npy")).float() for n in numbers]
    )
    return assemble.scene_from_depth(
        dataset="tartanair",
        sequence=name,
        images=[encodings.read_rgb(path) for path in images],
        depth=torch.where(depth < SKY_METRES, depth, torch.zeros_like(depth)),
        intrinsics=assemble.pinhole(*INTRINSICS),
        cam2world=ned @ pose.inverse(swap),
        timestamps=assemble.even_times(len(images), FPS),
        settings={"first_frame": numbers[0]},
    )
