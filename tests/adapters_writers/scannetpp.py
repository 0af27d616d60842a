"""ScanNet++ on the iPhone: images of eight times the depth's size, millimetre depth, masks that are 255 where good."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make

TIMES = 8


def write(root: Path) -> list[Expected]:
    truth = make(moving=False)
    folder, table = root / "0a5c013435" / "iphone", {}
    large = truth.k.copy()
    large[:2] *= TIMES
    large[:2, 2] += (TIMES - 1) / 2  # the middle of the first block of pixels is pixel 0
    mask = np.full([TIMES * n for n in truth.depth.shape[1:]], 255, np.uint8)
    mask[TIMES * 20 : TIMES * 22 - 3, TIMES * 5 : TIMES * 9] = 0
    for t, pose in enumerate(truth.cam2world):
        stem = f"frame_{t:06d}"
        packing.jpg(folder / f"rgb/{stem}.jpg", np.kron(truth.rgb[t], np.ones((TIMES, TIMES, 1), np.uint8)))
        packing.png(folder / f"rgb_masks/{stem}.png", mask)
        packing.png(folder / f"depth/{stem}.png", packing.whole(truth.depth[t] * 1000))
        table[stem] = {"pose": pose.tolist(), "intrinsic": large.tolist(), "timestamp": t / 60}
    packing.dump(folder / "pose_intrinsic_imu.json", table)
    valid = truth.depth > 0
    valid[:, 20:22, 5:9] = False
    return [
        Expected(
            truth=truth,
            name="0a5c013435",
            reason="depth is rounded to millimetres; the colours are a jpeg's",
            depth_step=lambda z: 0.0005 + 0 * z,
            valid=valid,
            rgb_step=4,
            settings={"static": True, "pose_reading.chosen": "camera to world; x right, y down, z forward"},
            damage=("**/depth/frame_000001.png", "**/rgb/frame_000002.jpg", "**/rgb_masks/frame_000000.png"),
        )
    ]
