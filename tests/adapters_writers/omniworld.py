"""OmniWorld-Game: 16-bit depth of a game's z-buffer, contiguous parts of a scene with a camera file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make


def write(root: Path) -> list[Expected]:
    truth = make(metres=0.25)  # near, where the z-buffer is fine
    folder, first, frames = root / "b04f88d1f85a", 7, len(truth.depth)
    for t in range(frames):
        packing.png(folder / f"color/{first + t:06d}.png", truth.rgb[t])
        near = 0.04 * truth.depth[t]
        packing.png(
            folder / f"depth/{first + t:06d}.png",
            packing.whole(np.where(near > 0, 1000 * near / (1 + 999 * near), 1) * 65535),
        )
    listed = [list(range(first)), list(range(first, first + frames))]
    packing.dump(folder / "split_info.json", {"scene_name": "b04f88d1f85a", "split_num": 2, "split": listed})
    packing.dump(
        folder / "camera" / "split_1.json",
        {
            "focals": [truth.k[0, 0]] * frames, "cx": truth.k[0, 2], "cy": truth.k[1, 2],
            "quats": [packing.wxyz(pose[:3, :3]).tolist() for pose in truth.world2cam],
            "trans": truth.world2cam[:, :3, 3].tolist(),
        },
    )  # fmt: skip

    def step(z: np.ndarray) -> np.ndarray:
        """Half a unit of the 16 bits: dz = (1 + 999 w)^2 / 1000 / 0.04 dd with w = 0.04 z."""
        return (1 + 999 * 0.04 * z) ** 2 / 1000 / 0.04 / 65535 / 2 * 1.05

    return [
        Expected(
            truth=truth,
            name="b04f88d1f85a/split_1",
            reason="a z-buffer's 16 bits",
            depth_step=step,
            scale="relative",
            settings={"pose_reading.chosen": "world to camera; x right, y down, z forward"},
            damage=("**/depth/000008.png", "**/color/000009.png", "**/split_1.json"),
        )
    ]
