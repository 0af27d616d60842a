"""TartanAir: poses "tx ty tz qx qy qz qw" of a camera that looks along x with z down (NED), sky 10000 m."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import narrow


def write(root: Path) -> list[Expected]:
    truth = narrow(320, 320, 320, 240)
    folder, rows = root / "office" / "Easy" / "P001", []
    known = np.concatenate([truth.seen & (truth.object_id[:-1] == 0), np.zeros_like(truth.seen[:1])])
    for t, pose in enumerate(truth.cam2world):
        packing.png(folder / f"image_left/{t:06d}_left.png", truth.rgb[t])
        depth = np.where(truth.depth[t] > 0, truth.depth[t], 10000)
        packing.npy(folder / f"depth_left/{t:06d}_left_depth.npy", depth.astype(np.float32))
        # both frames are NED: the camera's (forward, right, down) are OpenCV's (z, x, y); so are the world's
        order = [2, 0, 1]
        ned, place = pose[:3, :3][order][:, order], pose[:3, 3][order]
        w, x, y, z = packing.wxyz(ned)
        rows.append(packing.numbers([*place, x, y, z, w]))
        if t + 1 < len(truth.depth):
            stem = folder / f"flow/{t:06d}_{t + 1:06d}"
            packing.npy(Path(f"{stem}_flow.npy"), truth.optical[t].astype(np.float32))
            packing.npy(Path(f"{stem}_mask.npy"), np.where(known[t], 0, 10).astype(np.uint8))
    packing.text(folder / "pose_left.txt", rows)
    still = np.zeros_like(truth.flow)
    return [
        Expected(
            truth=truth.__class__(**{**truth.__dict__, "flow": still}),
            name="office/Easy/P001",
            reason="float32 depth; poses have nine digits",
            flow_step=lambda z: 0 * z,
            flow_known=known,
            settings={"optical_flow_explained": 1.0},
            damage=("**/000001_left_depth.npy", "**/000000_000001_flow.npy", "**/000002_left.png"),
        )
    ]
