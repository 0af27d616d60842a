"""OmniWorld-Game: <scene>/{color/%06d.png, depth/%06d.png, split_info.json, camera/split_%d.json}.

split_info.json lists under "split" the frames of every contiguous part; camera/split_<i>.json has focals, cx, cy, quats
(w, x, y, z) and trans, world-to-camera with OpenCV axes. Depth is a 16-bit png, d = v / 65535, z = d / (1000 - 999 d) /
0.04, below 0.0015 too near, above 65500 / 65535 sky (motioncrafter.md 4.8; the data set's README). The unit is the
game's, so the scale is relative. No flow is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import Sequence, reading
from worldline.geometry import pose
from worldline.scene import Scene4D

FPS = 24.0
NEAREST, FARTHEST = 0.0015, 65500 / 65535
DOCUMENTED = (reprojection.DIRECTIONS[1], reprojection.OPENCV)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per contiguous part of every scene."""
    root = Path(root)
    tables = sorted(root.rglob("split_info.json"))
    if not tables:
        raise FileNotFoundError(f"No split_info.json below {root}; give the root of OmniWorld-Game.")
    for table in tables:
        scene = decode.name_of(table.parent, root)
        yield from decode.listed(scene, _listed, table, scene)


def _listed(table: Path, scene: str) -> Iterator[Sequence]:
    folder = table.parent
    with reading(table):
        parts = [list(frames) for frames in containers.read_json(table)["split"]]
    for part, frames in enumerate(parts):
        if (folder / "camera" / f"split_{part}.json").exists():
            name = f"{scene}/split_{part}"
            read = partial(_read, folder, part, name, frames)
            yield Sequence(name=name, frames=len(frames), read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_depth(path: Path) -> Tensor:
    """Depth in the game's unit, 0 where it is not known."""
    stored = encodings.read_depth_image(path, 65535.0).double()
    depth = stored / (1000 - 999 * stored) / 0.04
    return torch.where((stored >= NEAREST) & (stored <= FARTHEST), depth, torch.zeros_like(depth)).float()


def _cameras(path: Path) -> tuple[Tensor, Tensor]:
    """(intrinsics, world-to-camera) of the frames of a part."""
    found = containers.read_json(path)
    k = torch.stack([assemble.pinhole(f, f, found["cx"], found["cy"]) for f in found["focals"]])
    rotation = pose.quaternion_to_matrix(torch.tensor(found["quats"], dtype=torch.float64))
    return k, pose.from_rt(rotation, torch.tensor(found["trans"], dtype=torch.float64))


def _read(folder: Path, part: int, name: str, frames: list[int], start: int, stop: int) -> Scene4D:
    k, world2cam = decode.one(_cameras, folder / "camera" / f"split_{part}.json")
    with reading(folder / "camera" / f"split_{part}.json"):
        if len(k) != len(frames):
            raise ValueError(f"it has {len(k)} cameras, but split_info.json lists {len(frames)} frames")
    k, world2cam, frames = k[start:stop], world2cam[start:stop], frames[start:stop]
    depth = decode.stack(read_depth, [folder / "depth" / f"{n:06d}.png" for n in frames])
    axes = (reprojection.OPENCV, reprojection.OPENGL)
    cam2world, verdict = reprojection.choose_poses(name, world2cam, depth, k, DOCUMENTED, axes)
    return assemble.scene_from_depth(
        dataset="omniworld",
        sequence=name,
        images=decode.stack(encodings.read_rgb, [folder / "color" / f"{n:06d}.png" for n in frames]),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(frames), FPS),
        settings={"synthetic": True, "first_frame": frames[0], "pose_reading": verdict.record()},
        scale="relative",
    )
