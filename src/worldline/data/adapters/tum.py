"""TUM RGB-D: rgb.txt, depth.txt (16 bit, 5000 per metre), groundtruth.txt (t tx ty tz qx qy qz qw, cam2world).

The three streams have their own clocks; each image takes the nearest depth and the nearest pose. Lens distortion of
freiburg1 and freiburg2 is not removed (freiburg3 is rectified).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings
from worldline.data.clips import DamagedFile, Sequence
from worldline.scene import Scene4D

INTRINSICS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
ROS_DEFAULT = (525.0, 525.0, 319.5, 239.5)
UNITS_PER_METRE = 5000.0
TOLERANCE_SECONDS = 0.02


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder below root with rgb.txt, depth.txt and groundtruth.txt."""
    for folder in folders(root):
        name = decode.name_of(folder, Path(root))
        yield from decode.listed(name, _listed, folder, name)


def _listed(folder: Path, name: str) -> Iterator[Sequence]:
    chosen = next((values for key, values in INTRINSICS.items() if key in folder.name), ROS_DEFAULT)
    matches = match(folder)
    read = partial(read_range, "tum", folder, assemble.pinhole(*chosen), matches)
    yield Sequence(name=name, frames=len(matches.images), read=read)


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def folders(root: Path) -> list[Path]:
    """The folders of sequences below root.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(path.parent for path in Path(root).rglob("groundtruth.txt"))
    if not found:
        raise FileNotFoundError(f"No groundtruth.txt below {root}; give the folder of an RGB-D sequence.")
    return found


def nearest_in_time(
    wanted: Float[Tensor, " N"], available: Float[Tensor, " M"], tolerance: float = TOLERANCE_SECONDS
) -> list[int | None]:
    """Index of the available time nearest to each wanted one, None if it is further than the tolerance."""
    distance, index = (wanted[:, None] - available[None]).abs().min(1)
    return [int(i) if float(d) <= tolerance else None for d, i in zip(distance, index, strict=True)]


def _listing(path: Path) -> tuple[Tensor, list[str]]:
    """Times and file names of rgb.txt or depth.txt."""
    lines = [line.split() for line in encodings.require(path).read_text().splitlines()]
    lines = [words for words in lines if words and not words[0].startswith("#")]
    return torch.tensor([float(words[0]) for words in lines], dtype=torch.float64), [words[1] for words in lines]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Images that have depth and a pose near their time.

    Attributes:
        images: file names.
        depths: file names of their depth.
        poses: [N, 4, 4] cam2world.
        times: [N] seconds from the first.
        unmatched: how many images have no partner.
    """

    images: list[str]
    depths: list[str]
    poses: Tensor
    times: Tensor
    unmatched: int


def match(folder: Path) -> Matches:
    """Partners of the images of a sequence.

    Raises:
        DamagedFile: a list is damaged, or no image has any.
    """
    times, images = decode.one(_listing, folder / "rgb.txt")
    depth_times, depths = decode.one(_listing, folder / "depth.txt")
    pose_times, poses = decode.one(encodings.read_tum_trajectory, folder / "groundtruth.txt")
    pairs = zip(nearest_in_time(times, depth_times), nearest_in_time(times, pose_times), strict=True)
    found = [(i, d, p) for i, (d, p) in enumerate(pairs) if d is not None and p is not None]
    if not found:
        reason = f"no image has depth and a pose within {TOLERANCE_SECONDS} s; check the clocks"
        raise DamagedFile(folder / "rgb.txt", reason)
    kept = torch.tensor([i for i, _, _ in found])
    return Matches(
        images=[images[i] for i, _, _ in found],
        depths=[depths[d] for _, d, _ in found],
        poses=poses[[p for _, _, p in found]],
        times=times[kept] - times[kept[0]],
        unmatched=len(times) - len(found),
    )


def read_range(
    dataset: str, folder: Path, intrinsics: Float[Tensor, "3 3"], matches: Matches, start: int, stop: int
) -> Scene4D:
    """A range of the matched images of a sequence."""
    depths = [folder / name for name in matches.depths[start:stop]]
    return assemble.scene_from_depth(
        dataset=dataset,
        sequence=folder.name,
        images=decode.stack(encodings.read_rgb, [folder / name for name in matches.images[start:stop]]),
        depth=decode.stack(encodings.read_depth_image, depths, UNITS_PER_METRE),
        intrinsics=intrinsics,
        cam2world=matches.poses[start:stop],
        timestamps=matches.times[start:stop] - matches.times[start],
        settings={"unmatched_frames": matches.unmatched},
    )
