"""SYNTHIA: centimetre depth in three equal channels, poses column by column, cameras that look along -z."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path, grey: bool = False) -> list[Expected]:
    truth = default()
    base, view = root / "SYNTHIA-SEQS-01-SPRING", "Stereo_Left/Omni_F"
    for t, pose in enumerate(truth.cam2world):
        packing.png(base / f"RGB/{view}/{t:06d}.png", truth.rgb[t])
        depth = packing.whole(np.where(truth.depth[t] > 0, truth.depth[t] * 100, 65535))
        packing.png(base / f"Depth/{view}/{t:06d}.png", depth if grey else np.stack([depth] * 3, -1))
        stored = pose * np.array([1, 1, -1, 1])  # the third column points backward
        packing.text(base / f"CameraParams/{view}/{t:06d}.txt", [packing.numbers(stored.T)])
    k = truth.k
    packing.text(base / "CameraParams/intrinsics.txt", [f"{k[0, 0]}", "", f"{k[0, 2]}", "", f"{k[1, 2]}", "", "0.8"])
    return [
        Expected(
            truth=truth,
            name=f"SYNTHIA-SEQS-01-SPRING/{view}",
            reason="depth is rounded to centimetres",
            depth_step=lambda z: 0.005 + 0 * z,
            settings={"pose_reading.chosen": "camera to world; x right, y down, z backward"},
            damage=("**/Depth/**/000001.png", "**/RGB/**/000002.png", "**/000003.txt"),
        )
    ]
