"""TUM RGB-D: rgb.txt, depth.txt (16 bit, 5000 per metre), groundtruth.txt (t tx ty tz qx qy qz qw, cam2world).

The three streams have their own clocks; each image takes the nearest depth and the nearest pose. Lens distortion of
freiburg1 and freiburg2 is not removed (freiburg3 is rectified).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.adapters import assemble, encodings
from worldline.scene import Scene4D

INTRINSICS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
ROS_DEFAULT = (525.0, 525.0, 319.5, 239.5)
UNITS_PER_METRE = 5000.0
TOLERANCE_SECONDS = 0.02


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence below root, a folder with rgb.txt, depth.txt and groundtruth.txt."""
    folders = sorted(path.parent for path in Path(root).rglob("groundtruth.txt"))
    if not folders:
        raise FileNotFoundError(f"No groundtruth.txt below {root}; give the folder of a TUM RGB-D sequence.")
    for folder in folders:
        yield _sequence(folder)


def nearest_in_time(
    wanted: Float[Tensor, " N"], available: Float[Tensor, " M"], tolerance: float = TOLERANCE_SECONDS
) -> list[int | None]:
    """Index of the available time nearest to each wanted one, None if it is further than the tolerance."""
    distance, index = (wanted[:, None] - available[None]).abs().min(1)
    return [int(i) if float(d) <= tolerance else None for d, i in zip(distance, index, strict=True)]


def _listing(path: Path) -> tuple[Tensor, list[str]]:
    """Times and file names of rgb.txt or depth.txt."""
    lines = [line.split() for line in encodings.require(path).read_text().splitlines()]
    lines = [words for words in lines if words and not words[0].startswith("#")]
    return torch.tensor([float(words[0]) for words in lines], dtype=torch.float64), [words[1] for words in lines]


def _sequence(folder: Path) -> Scene4D:
    times, images = _listing(folder / "rgb.txt")
    depth_times, depths = _listing(folder / "depth.txt")
    pose_times, poses = encodings.read_tum_trajectory(folder / "groundtruth.txt")
    matches = [
        (i, d, p)
        for i, (d, p) in enumerate(
            zip(nearest_in_time(times, depth_times), nearest_in_time(times, pose_times), strict=True)
        )
        if d is not None and p is not None
    ]
    if not matches:
        raise ValueError(f"In {folder} no image has depth and a pose within {TOLERANCE_SECONDS} s; check the clocks.")
    chosen = next((values for name, values in INTRINSICS.items() if name in folder.name), ROS_DEFAULT)
    kept = torch.tensor([i for i, _, _ in matches])
    return assemble.scene_from_depth(
        dataset="tum",
        sequence=folder.name,
        images=[encodings.read_rgb(folder / images[i]) for i, _, _ in matches],
        depth=torch.stack([encodings.read_depth_image(folder / depths[d], UNITS_PER_METRE) for _, d, _ in matches]),
        intrinsics=assemble.pinhole(*chosen),
        cam2world=poses[[p for _, _, p in matches]],
        timestamps=times[kept] - times[kept[0]],
        settings={"unmatched_frames": len(times) - len(matches)},
    )
