"""HoloLens excerpt: numbered pictures from 00003 on, depth in millimetres, one row-major 4x4 pose a line, K.txt."""

from __future__ import annotations

from pathlib import Path

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import narrow

DAMAGE = ("**/depth/00004.png", "**/images/00005.png")
FIRST = 3


def write(root: Path) -> list[Expected]:
    truth = narrow(531.2, 529.8, 322.7, 236.1)
    for t, (picture, depth) in enumerate(zip(truth.rgb, truth.depth, strict=True)):
        packing.png(root / f"images/{FIRST + t:05d}.png", picture)
        packing.png(root / f"depth/{FIRST + t:05d}.png", packing.whole(depth * 1000))
    packing.text(root / "K.txt", [packing.numbers(row) for row in truth.k])
    packing.text(root / "poses_first9.txt", [packing.numbers(pose.reshape(-1)) for pose in truth.cam2world])
    return [
        Expected(
            truth=truth,
            name=root.name,
            reason="depth in millimetres",
            depth_step=lambda z: 0.0005 + 0 * z,
            damage=DAMAGE,
        )
    ]
