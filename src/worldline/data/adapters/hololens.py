"""HoloLens excerpt: images/*.png, depth/*.png (16 bit, millimetres, 0 unknown), poses*.txt (cam2world), K.txt.

The line number of a frame's pose is its own number less that of the first image: image 00003 has line 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from worldline.data.adapters import assemble, encodings
from worldline.scene import Scene4D

FPS = 5.0  # nominal: the excerpt has no times, and its frames are far apart (7 cm, 2.5-6.7 degrees)


def convert(root: Path) -> Iterator[Scene4D]:
    """The one sequence in root."""
    root = Path(root)
    images = sorted(encodings.require(root / "images").glob("*.png"))
    tables = sorted(root.glob("poses*.txt"))
    if not images or not tables:
        raise FileNotFoundError(f"{root} has no images/*.png or no poses*.txt.")
    first = int(images[0].stem)
    poses = encodings.read_numbers(tables[0]).reshape(-1, 4, 4)
    images = [path for path in images if int(path.stem) - first < len(poses)]
    lines = [int(path.stem) - first for path in images]
    yield assemble.scene_from_depth(
        dataset="hololens",
        sequence=root.name,
        images=[encodings.read_rgb(path) for path in images],
        depth=torch.stack([encodings.read_depth_image(root / "depth" / path.name, 1000.0) for path in images]),
        intrinsics=encodings.read_numbers(root / "K.txt"),
        cam2world=poses[lines],
        timestamps=assemble.even_times(len(images), FPS),
        settings={"first_frame": first},
    )
