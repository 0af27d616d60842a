"""ScanNet++ (iPhone): <scene>/iphone/{rgb/frame_%06d.jpg, rgb_masks/*.png, depth/*.png, pose_intrinsic_imu.json}.

As the data set's toolkit extracts them. Depth is 16-bit millimetres at a lower resolution than the video (256x192 and
1920x1440): the scene has the depth's size, so that every point is measured, and the image is averaged down to it. Masks
are 255 where the image is clean. The json has "intrinsic" (of the video) and "pose" (camera-to-world) by frame, beside
rgb or in colmap. OpenCV axes are assumed, and checked by reprojection. The rooms stand still (motioncrafter.md 4.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, containers, decode, encodings, reprojection
from worldline.data.clips import Sequence, reading
from worldline.geometry import camera
from worldline.scene import Scene4D

FPS = 60.0
MILLIMETRES = 1000.0
DOCUMENTED = (reprojection.DIRECTIONS[0], reprojection.OPENCV)


def sequences(root: Path) -> Iterator[Sequence]:
    """One per folder "iphone" with rgb and depth below root."""
    root = Path(root)
    folders = sorted(p for p in root.rglob("iphone") if (p / "rgb").is_dir() and (p / "depth").is_dir())
    if not folders:
        raise FileNotFoundError(f"No iphone/rgb beside iphone/depth below {root}; extract ScanNet++ with its toolkit.")
    for folder in folders:
        name = decode.name_of(folder.parent, root)
        stems = [path.stem for path in sorted((folder / "rgb").glob("frame_*.jpg"))]
        read = partial(_read, folder, name, stems)
        yield Sequence(name=name, frames=len(stems), read=read, facts={"static": True})


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _averaged(path: Path, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """An image averaged down to a size, and the size it had."""
    from PIL import Image

    with Image.open(encodings.require(path)) as image:
        small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)), (image.height, image.width)


def _clean(path: Path, size: tuple[int, int]) -> Tensor:
    """Whether every pixel of a mask that falls into a pixel of the smaller size is 255."""
    from PIL import Image

    with Image.open(encodings.require(path)) as image:
        clean = Image.fromarray((np.array(image.convert("L")) == 255).astype(np.float32))
        return torch.from_numpy(np.array(clean.resize((size[1], size[0]), Image.Resampling.BOX))) > 0.999


def _read(folder: Path, name: str, stems: list[str], start: int, stop: int) -> Scene4D:
    stems = stems[start:stop]
    table = next((p for p in (folder / "pose_intrinsic_imu.json", folder / "colmap" / "pose_intrinsic_imu.json")
                  if p.exists()), folder / "pose_intrinsic_imu.json")  # fmt: skip
    depth_files = [folder / "depth" / f"{stem}.png" for stem in stems]
    depth = decode.stack(encodings.read_depth_image, depth_files, MILLIMETRES)
    size = (depth.shape[1], depth.shape[2])
    pictures = [decode.one(_averaged, folder / "rgb" / f"{stem}.jpg", size) for stem in stems]
    if (folder / "rgb_masks").is_dir():
        depth = depth * decode.stack(_clean, [folder / "rgb_masks" / f"{stem}.png" for stem in stems], size)
    with reading(table):
        found = containers.read_json(table)
        poses = torch.tensor([found[stem]["pose"] for stem in stems], dtype=torch.float64).reshape(-1, 4, 4)
        large = torch.tensor([found[stem]["intrinsic"] for stem in stems], dtype=torch.float64).reshape(-1, 3, 3)
    k = torch.stack([camera.resize(one, full, size) for one, (_, full) in zip(large, pictures, strict=True)])
    cam2world, verdict = reprojection.choose_poses(name, poses, depth, k, DOCUMENTED)
    return assemble.scene_from_depth(
        dataset="scannetpp",
        sequence=name,
        images=[image for image, _ in pictures],
        depth=depth,
        intrinsics=k,
        cam2world=cam2world,
        timestamps=assemble.even_times(len(stems), FPS),
        settings={"static": True, "pose_reading": verdict.record()},
    )
