"""MPI-Sintel: .dpt, .cam (float32 tag, then float64), .flo, masks as grey png; one flow fewer than frames."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default


def write(root: Path) -> list[Expected]:
    truth = default()
    base = root / "training"
    for t in range(len(truth.depth)):
        stem = f"alley_1/frame_{t + 1:04d}"
        packing.png(base / f"final/{stem}.png", truth.rgb[t])
        packing.sintel_map(base / f"depth/{stem}.dpt", np.where(truth.depth[t] > 0, truth.depth[t], 1e5))
        camera = truth.k.astype("<f8").tobytes() + truth.world2cam[t][:3].astype("<f8").tobytes()
        packing.folder(base / f"camdata_left/{stem}.cam").write_bytes(struct.pack("<f", 202021.25) + camera)
        if t + 1 < len(truth.depth):
            packing.sintel_map(base / f"flow/{stem}.flo", truth.optical[t])
            packing.png(base / f"occlusions/{stem}.png", np.where(truth.seen[t], 0, 255).astype(np.uint8))
            packing.png(base / f"invalid/{stem}.png", np.zeros(truth.depth[t].shape, np.uint8))
    seen = np.concatenate([truth.seen, np.zeros_like(truth.seen[:1])])
    return [
        Expected(
            truth=truth,
            name="final/alley_1",
            reason="the next position is read off the depth grid, whose pixels are 1/30 of the depth wide and slanted",
            depth_step=lambda z: 1e-6 * z,
            flow_step=lambda z: z / 15,
            flow_known=seen,
            flow_at_least=True,
            damage=("**/frame_0002.dpt", "**/frame_0001.flo", "**/final/*/frame_0003.png"),
        )
    ]
