"""MVS-Synth: GTAV_*/%04d/{images/%04d.png, depths/%04d.exr, poses/%04d.json}, rendered by a game.

poses/*.json holds f_x, f_y, c_x, c_y and extrinsic, world-to-camera; depth is infinite in the sky. The axes are not
documented: OpenCV's are assumed and checked by reprojection. No flow (motioncrafter.md 4.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import Sequence, reading
from worldline.scene import Scene4D

FPS = 10.0  # nominal
DOCUMENTED = (reprojection.DIRECTIONS[1], reprojection.OPENCV)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder with images, depths and poses below root."""
    containers.require_libraries("OpenEXR")
    root = Path(root)
    folders = sorted(path.parent for path in root.rglob("images") if (path.parent / "depths").is_dir())
    if not folders:
        raise FileNotFoundError(f"No folder with images and depths below {root}; give the root of MVS-Synth.")
    for folder in folders:
        name = decode.name_of(folder, root)
        stems = [path.stem for path in sorted((folder / "images").glob("*.png"))]
        read = partial(_read, folder, name, stems)
        yield Sequence(name=name, frames=len(stems), read=read, facts={"synthetic": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _read(folder: Path, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    stems = stems[start:stop]
    stored = decode.stack(containers.read_exr, [folder / "depths" / f"{stem}.exr" for stem in stems])
    depth = torch.where((stored > 0) & stored.isfinite(), stored, torch.zeros_like(stored))
    matrices, intrinsics = [], []
    for stem in stems:
        path = folder / "poses" / f"{stem}.json"
        with reading(path):
            found = containers.read_json(path)
            intrinsics.append(assemble.pinhole(*(float(found[key]) for key in ("f_x", "f_y", "c_x", "c_y"))))
            matrices.append(torch.tensor(found["extrinsic"], dtype=torch.float64).reshape(4, 4))
    k = torch.stack(intrinsics)
    cam2world, verdict = reprojection.choose_poses(name, torch.stack(matrices), depth, k, DOCUMENTED)
    return assemble.scene_from_depth(
        dataset="mvs_synth",
        sequence=name,
        images=decode.stack(encodings.read_rgb, [folder / "images" / f"{stem}.png" for stem in stems]),
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(stems), FPS),
        settings={"synthetic": True, "pose_reading": verdict.record()},
    )
