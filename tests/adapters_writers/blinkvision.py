"""BlinkVision: translations in centimetres, Euler angles about fixed x, y, z, Blender's camera axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path) -> list[Expected]:
    truth = default()
    folder, poses = root / "indoor" / "00000", []
    for t, pose in enumerate(truth.cam2world):
        r = np.stack([pose[:3, 0], -pose[:3, 1], -pose[:3, 2]], -1)  # right, up, back
        angles = [np.arctan2(r[2, 1], r[2, 2]), -np.arcsin(r[2, 0]), np.arctan2(r[1, 0], r[0, 0])]
        poses.append([pose[:3, 3] * 100, angles])
        packing.png(folder / f"clean_uint8/{t:06d}.png", truth.rgb[t])
        depth = np.where(truth.depth[t] > 0, truth.depth[t], 1e10).astype(np.float32)
        np.savez_compressed(packing.folder(folder / f"depth/{t:06d}.npz"), depth=depth)
    np.savez(folder / "poses.npz", camera_poses=np.array(poses))
    packing.dump(folder / "metadata.json", {"K_matrix": truth.k.tolist()})
    return [
        Expected(
            truth=truth,
            name="indoor/00000",
            reason="float32 depth",
            settings={"pose_reading.chosen": "camera to world; x right, y up, z backward"},
            damage=("**/depth/000001.npz", "**/poses.npz", "**/clean_uint8/000002.png", "**/metadata.json"),
        )
    ]
