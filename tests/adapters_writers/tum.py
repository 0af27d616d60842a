"""TUM RGB-D: three streams with their own clocks, depth at 5000 per metre, poses "t tx ty tz qx qy qz qw"."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import Truth, narrow

DAMAGE = ("**/depth/1.png", "**/rgb/2.png")


def write(root: Path) -> list[Expected]:
    truth = narrow(535.4, 539.2, 320.1, 247.6)
    write_streams(root / "rgbd_dataset_freiburg3_test", truth, truth.cam2world)
    return [
        Expected(
            truth=truth,
            name="rgbd_dataset_freiburg3_test",
            reason="depth in steps of 0.2 mm",
            depth_step=lambda z: 0.0001 + 0 * z,
            damage=DAMAGE,
        )
    ]


def write_streams(folder: Path, truth: Truth, poses: np.ndarray) -> None:
    rgb, depth, lines = ["# color images"], ["# depth maps"], ["# timestamp tx ty tz qx qy qz qw"]
    for t, pose in enumerate(poses):
        seconds = 1305031102.175304 + t / 30
        packing.png(folder / f"rgb/{t}.png", truth.rgb[t])
        packing.png(folder / f"depth/{t}.png", packing.whole(truth.depth[t] * 5000))
        rgb.append(f"{seconds:.6f} rgb/{t}.png")
        depth.append(f"{seconds - 0.011:.6f} depth/{t}.png")
        w, x, y, z = packing.wxyz(pose[:3, :3])
        lines.append(f"{seconds + 0.003:.4f} {packing.numbers([*pose[:3, 3], x, y, z, w])}")
        lines.append(f"{seconds + 0.016:.4f} 9 9 9 0 0 0 1")  # a pose between two images, to be passed over
    for name, content in (("rgb", rgb), ("depth", depth), ("groundtruth", lines)):
        packing.text(folder / f"{name}.txt", content)
