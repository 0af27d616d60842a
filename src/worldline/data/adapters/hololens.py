"""HoloLens excerpt: images/*.png, depth/*.png (16 bit, millimetres, 0 unknown), poses*.txt (cam2world), K.txt.

The line number of a frame's pose is its own number less that of the first image: image 00003 has line 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings
from worldline.data.clips import Sequence
from worldline.scene import Scene4D

FPS = 5.0  # nominal: the excerpt has no times, and its frames are far apart (7 cm, 2.5-6.7 degrees)


def sequences(root: Path) -> Iterator[Sequence]:
    """The one sequence in root."""
    root = Path(root)
    images = sorted(encodings.require(root / "images").glob("*.png"))
    tables = sorted(root.glob("poses*.txt"))
    if not images or not tables:
        raise FileNotFoundError(f"{root} has no images/*.png or no poses*.txt.")
    first = int(images[0].stem)
    poses = decode.one(encodings.read_numbers, tables[0]).reshape(-1, 4, 4)
    images = [path for path in images if int(path.stem) - first < len(poses)]
    lines = [int(path.stem) - first for path in images]
    read = partial(_read, root, images, poses[lines], first)
    yield Sequence(name=root.name, frames=len(images), read=read, facts={"static": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """The one sequence in root, whole."""
    return clips.scenes(sequences(root))


def _read(root: Path, images: list[Path], poses: Tensor, first: int, start: int, stop: int) -> Scene4D:
    images = images[start:stop]
    return assemble.scene_from_depth(
        dataset="hololens",
        sequence=root.name,
        images=decode.stack(encodings.read_rgb, images),
        depth=decode.stack(encodings.read_depth_image, [root / "depth" / path.name for path in images], 1000.0),
        intrinsics=decode.one(encodings.read_numbers, root / "K.txt"),
        cam2world=poses[start:stop],
        timestamps=assemble.even_times(len(images), FPS),
        settings={"first_frame": first + start, "static": True},
    )
