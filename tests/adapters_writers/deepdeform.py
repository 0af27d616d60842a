"""DeepDeform: millimetre depth, flow files with an int32 header and channels first, -inf where unknown; no poses."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make


def flow_file(path: Path, values: np.ndarray) -> None:
    height, width, channels = values.shape
    planes = b"".join(values[..., c].astype("<f4").tobytes() for c in range(channels))
    packing.folder(path).write_bytes(struct.pack("<iii", width, height, channels) + planes)


def write(root: Path) -> list[Expected]:
    truth = make(frames=2)
    folder = root / "train" / "seq001"
    known = (truth.depth[0] > 0) & (truth.object_id[0] == 1)
    moved = np.where(known[..., None], truth.ahead[0] - truth.local[0], -np.inf)
    flow_file(folder / "scene_flow/shirt_000000_000110.sflow", moved)
    flow_file(folder / "optical_flow/shirt_000000_000110.oflow", np.where(known[..., None], truth.optical[0], -np.inf))
    for t, number in enumerate(("000000", "000110")):
        packing.jpg(folder / f"color/{number}.jpg", truth.rgb[t])
        packing.png(folder / f"depth/{number}.png", packing.whole(truth.depth[t] * 1000))
    packing.png(folder / "mask/000000_shirt.png", known.astype(np.uint16))
    k = np.eye(4)
    k[:3, :3] = truth.k
    packing.text(folder / "intrinsics.txt", [packing.numbers(row) for row in k])
    return [
        Expected(
            truth=truth,
            name="train/seq001/shirt_000000_000110",
            reason="depth is rounded to millimetres",
            depth_step=lambda z: 0.0005 + 0 * z,
            flow_step=lambda z: 1e-6 * z,
            flow_known=np.stack([known, np.zeros_like(known)]),
            rgb_step=6,
            cameras=False,
            damage=("**/*.sflow", "**/depth/000110.png", "**/color/000000.jpg"),
        )
    ]
