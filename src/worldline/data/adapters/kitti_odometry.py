"""KITTI odometry excerpt: image_l/*.png (grey, camera 0), poses.txt (3x4 cam2world), calib.txt (bare P0 and P1).

There is no depth: the scene has cameras, and points that are nowhere valid. Images without a pose are left out. (The
last line of the excerpt's poses.txt has no line end: there are 51 poses, though `wc -l` counts 50.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from worldline.data.adapters import assemble, encodings
from worldline.scene import Scene4D

FPS = 10.0


def convert(root: Path) -> Iterator[Scene4D]:
    """The one sequence in root."""
    root = Path(root)
    poses = encodings.read_kitti_poses(root / "poses.txt")
    images = sorted(encodings.require(root / "image_l").glob("*.png"))[: len(poses)]
    projections = encodings.read_numbers(root / "calib.txt").reshape(-1, 3, 4)
    intrinsics = projections[0, :, :3]
    yield assemble.scene_from_depth(
        dataset="kitti_odometry",
        sequence=root.name,
        images=[encodings.read_rgb(path) for path in images],
        depth=None,
        intrinsics=intrinsics,
        cam2world=poses[: len(images)],
        timestamps=assemble.even_times(len(images), FPS),
        settings={"stereo_baseline_m": float(-projections[1, 0, 3] / intrinsics[0, 0])},
    )
