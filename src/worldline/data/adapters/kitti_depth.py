"""KITTI depth: {train,val}/<drive>_sync/proj_depth/groundtruth/image_02/%010d.png, 16 bit, metres = v / 256, 0 unknown.

The images, calibration and poses are those of KITTI raw, which must lie below the same root. The frames of
depth_selection/val_selection_cropped (image, groundtruth_depth, intrinsics) have no neighbours: each is a scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, kitti_raw
from worldline.data.clips import Sequence
from worldline.scene import Scene4D

FPS = 10.0


def sequences(root: Path) -> Iterator[Sequence]:
    """One per drive and camera that has both depth and raw images, and one per frame of the cropped selection."""
    root, found = Path(root), False
    raw = {folder.name: folder for folder in kitti_raw.drives(root)}
    for folder in sorted(path for path in root.rglob("proj_depth/groundtruth/image_0*") if path.is_dir()):
        drive, camera = folder.parents[2].name, folder.name
        if drive not in raw:
            raise FileNotFoundError(f"{drive} has depth but no images; put the raw data of KITTI below {root} too.")
        stems = [path.stem for path in sorted(folder.glob("*.png"))]
        found, split = True, folder.parents[3].name
        name = f"{split}/{drive}/{camera}"
        read = partial(_read, raw[drive], folder, name, stems)
        yield Sequence(name=name, frames=len(stems), read=read, facts={"split": split})
    for folder in sorted(root.rglob("val_selection_cropped")):
        for path in sorted((folder / "image").glob("*.png")):
            found = True
            yield Sequence(name=f"val_selection_cropped/{path.stem}", frames=1, read=partial(_read_single, path))
    if not found:
        raise FileNotFoundError(
            f"No proj_depth/groundtruth or val_selection_cropped below {root}; it is not KITTI depth."
        )


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def read_depth(path: Path) -> Tensor:
    """Metres, 0 where unknown."""
    return encodings.read_depth_image(path, 256.0)


def _read(drive: Path, folder: Path, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    stems = stems[start:stop]
    rig, cam2world = kitti_raw.rig_and_poses(drive, folder.name, stems)
    return assemble.scene_from_depth(
        dataset="kitti_depth",
        sequence=name,
        images=decode.stack(encodings.read_rgb, [drive / folder.name / "data" / f"{stem}.png" for stem in stems]),
        depth=decode.stack(read_depth, [folder / f"{stem}.png" for stem in stems]),
        intrinsics=rig.intrinsics,
        cam2world=cam2world,
        timestamps=torch.tensor([int(stem) - int(stems[0]) for stem in stems], dtype=torch.float64) / FPS,
        settings={"first_frame": stems[0], "split": name.split("/")[0]},
    )


def _read_single(image: Path, start: int, stop: int) -> Scene4D:
    base = image.parents[1]
    depth = base / "groundtruth_depth" / image.name.replace("_image_0", "_groundtruth_depth_0", 1)
    k = decode.one(encodings.read_numbers, base / "intrinsics" / f"{image.stem}.txt").reshape(3, 3)
    return assemble.scene_from_depth(
        dataset="kitti_depth",
        sequence=f"val_selection_cropped/{image.stem}",
        images=decode.stack(encodings.read_rgb, [image][start:stop]),
        depth=decode.stack(read_depth, [depth][start:stop]),
        intrinsics=k,
        cam2world=torch.eye(4, dtype=torch.float64)[None],
        timestamps=assemble.even_times(1, FPS),
        settings={"split": "val"},
    )
