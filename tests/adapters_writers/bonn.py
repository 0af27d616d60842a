"""Bonn RGB-D dynamic: TUM's files; the poses are the camera's, or those of a marker in motion-capture axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import tum
from adapters_writers.expected import Expected
from adapters_writers.truth import make

K = np.array([[542.822841, 0, 315.593520], [0, 542.576870, 237.756098], [0, 0, 1]])


def write(root: Path, marker: bool = False) -> list[Expected]:
    truth = make(K)
    poses = truth.cam2world
    if marker:
        axes = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
        offset = np.eye(4)  # where the camera sits on the marker, as far as four digits tell
        rough = np.array([[1.0157, 0.1828, -0.2389], [0.0009, -0.8431, -0.6413], [-0.3009, 0.6147, -0.8085]])
        for _ in range(30):  # the nearest rotation: Newton's iteration for the polar factor
            rough = (rough + np.linalg.inv(rough).T) / 2
        offset[:3, :3], offset[:3, 3] = rough, (0.0113, -0.0098, 0.0111)
        poses = np.linalg.inv(axes) @ poses @ np.linalg.inv(axes @ offset)
    tum.write_streams(root / "rgbd_bonn_balloon", truth, poses)
    return [
        Expected(
            truth=truth,
            name="rgbd_bonn_balloon",
            reason="depth in steps of 0.2 mm",
            depth_step=lambda z: 0.0001 + 0 * z,
            settings={"pose_reading.chosen": f"pose of the {'marker' if marker else 'camera'}"},
            damage=tum.DAMAGE,
        )
    ]
