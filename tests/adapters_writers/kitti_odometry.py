"""KITTI odometry: 3x4 poses of camera 0, projections of all cameras, images of camera 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path) -> list[Expected]:
    truth = default()
    beside = np.eye(4)
    beside[:3, 3] = (0.06, -0.002, 0.001)
    zeroth = truth.cam2world @ np.linalg.inv(beside)
    zeroth = np.linalg.inv(zeroth[0]) @ zeroth
    lines = []
    for number, place in enumerate((0.0, 0.54, None, 0.48)):
        pose = np.eye(4) if place is not None else beside
        pose = pose + np.array([[0, 0, 0, place or 0.0]] + [[0] * 4] * 3)
        lines.append(f"P{number}: {packing.numbers(truth.k @ np.linalg.inv(pose)[:3])}")
    packing.text(root / "sequences/07/calib.txt", [*lines, "Tr: " + packing.numbers(np.eye(4)[:3])])
    packing.text(root / "poses/07.txt", [packing.numbers(pose[:3]) for pose in zeroth])
    for t, image in enumerate(truth.rgb):
        packing.png(root / f"sequences/07/image_2/{t:06d}.png", image)
    return [
        Expected(
            truth=truth,
            name="07",
            reason="poses have nine digits; there is no depth",
            valid=np.zeros(truth.depth.shape, bool),
            damage=("**/000002.png",),
        )
    ]
