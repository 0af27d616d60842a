"""The book's RGB-D sets: color/N.png, depth/N, pose.txt "tx ty tz qx qy qz qw"; ch12's frame has y up and fy < 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import Truth, narrow

UPWARD = np.diag([1.0, -1.0, 1.0, 1.0])


def write(root: Path) -> list[Expected]:
    kinect, rendered = narrow(518.0, 519.0, 325.5, 253.5), narrow(481.2, 480.0, 319.5, 239.5)
    _write(root / "ch5_rgbd", kinect, kinect.cam2world, 1000, first=1)
    _write(root / "ch12_dense_rgbd", rendered, UPWARD @ rendered.cam2world @ UPWARD, 5000, first=0)
    common = {"reason": "depth in whole steps"}
    return [
        Expected(
            truth=kinect,
            name="ch5_rgbd",
            depth_step=lambda z: 0.0005 + 0 * z,
            damage=("ch5_rgbd/depth/2.pgm", "ch5_rgbd/color/3.png"),
            **common,
        ),
        Expected(
            truth=rendered,
            name="ch12_dense_rgbd",
            depth_step=lambda z: 0.0001 + 0 * z,
            damage=("ch12_dense_rgbd/depth/1.png",),
            **common,
        ),
    ]


def pgm(path: Path, values: np.ndarray) -> None:
    """A 16-bit portable grey map, most significant byte first."""
    height, width = values.shape
    packing.folder(path).write_bytes(f"P5 {width} {height} 65535\n".encode() + values.astype(">u2").tobytes())


def _write(folder: Path, truth: Truth, poses: np.ndarray, per_metre: int, first: int) -> None:
    lines = []
    for t, pose in enumerate(poses):
        packing.png(folder / f"color/{first + t}.png", truth.rgb[t])
        depth = packing.whole(truth.depth[t] * per_metre)
        if per_metre == 1000:
            pgm(folder / f"depth/{first + t}.pgm", depth)
        else:
            packing.png(folder / f"depth/{first + t}.png", depth)
        w, x, y, z = packing.wxyz(pose[:3, :3])
        lines.append(packing.numbers([*pose[:3, 3], x, y, z, w]))
    packing.text(folder / "pose.txt", lines)
