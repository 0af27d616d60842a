"""MatrixCity: NeRF axes, rotations scaled by 1/100, positions in metres, depth EXR in centimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make


def write(root: Path) -> list[Expected]:
    truth = make(moving=False, metres=20.0)
    folder, frames = root / "small_city" / "aerial" / "block_1", []
    for t, pose in enumerate(truth.cam2world):
        nerf = pose.copy()
        nerf[:3, :3] = np.stack([pose[:3, 0], -pose[:3, 1], -pose[:3, 2]], -1) / 100  # right, up, back
        frames.append({"frame_index": t, "rot_mat": nerf.tolist()})
        packing.png(folder / f"rgb/{t:04d}.png", truth.rgb[t])
        stored = np.where(truth.depth[t] > 0, truth.depth[t] * 100, 65504)
        packing.exr(folder / f"depth/{t:04d}.exr", R=stored, G=stored, B=stored)
    angle = 2 * np.arctan(truth.depth.shape[2] / 2 / truth.k[0, 0])
    packing.dump(folder / "transforms.json", {"camera_angle_x": angle, "frames": frames})
    return [
        Expected(
            truth=truth,
            name="small_city/aerial/block_1",
            reason="float32 centimetres",
            settings={
                "pose_reading.chosen": "camera to world; x right, y up, z backward",
                "depth_reading.chosen": "planar depth",
            },
            damage=("**/0001.exr", "**/0002.png"),
        )
    ]
