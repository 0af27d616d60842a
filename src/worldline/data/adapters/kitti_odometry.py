"""KITTI odometry: sequences/%02d/{image_0 or image_2, calib.txt, times.txt} and poses/%02d.txt (3x4 cam2world).

There is no depth: the scene has cameras, and points that are nowhere valid. The poses are of camera 0; those of image_2
are moved beside it by calib.txt. Images without a pose are left out. The excerpt has image_l/*.png (grey, camera 0),
poses.txt and calib.txt (bare P0 and P1) in one folder; the last line of its poses.txt has no line end: there are 51
poses, though `wc -l` counts 50.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from worldline.data import clips
from worldline.data.adapters import assemble, decode, encodings, kitti
from worldline.data.clips import Sequence, reading
from worldline.scene import Scene4D

FPS = 10.0


def sequences(root: Path) -> Iterator[Sequence]:
    """One per sequence with poses, or the excerpt."""
    root = Path(root)
    if (root / "image_l").is_dir():
        poses = decode.one(encodings.read_kitti_poses, root / "poses.txt")
        images = sorted((root / "image_l").glob("*.png"))[: len(poses)]
        projections = decode.one(_bare, root / "calib.txt")
        yield Sequence(name=root.name, frames=len(images), read=partial(_read, root.name, images, poses, projections))
        return
    tables = sorted((root / "poses").glob("*.txt"))
    if not tables:
        raise FileNotFoundError(f"{root} has neither poses/*.txt nor image_l; give the root of KITTI odometry.")
    for table in tables:
        yield from decode.listed(table.stem, _listed, table, root / "sequences" / table.stem)


def _listed(table: Path, folder: Path) -> Iterator[Sequence]:
    view = next((name for name in ("image_2", "image_0") if (folder / name).is_dir()), None)
    if view is None:
        return
    found = decode.one(kitti.read_calibration, folder / "calib.txt")
    with reading(folder / "calib.txt"):
        projections = [found[f"P{number}"].reshape(3, 4) for number in (view[-1], int(view[-1]) + 1)]
    poses = decode.one(encodings.read_kitti_poses, table)
    images = sorted((folder / view).glob("*.png"))[: len(poses)]
    yield Sequence(name=table.stem, frames=len(images), read=partial(_read, table.stem, images, poses, projections))


def convert(root: Path) -> Iterator[Scene4D]:
    """Every sequence, whole."""
    return clips.scenes(sequences(root))


def _bare(path: Path) -> list[Tensor]:
    return list(encodings.read_numbers(path).reshape(-1, 3, 4))


def _read(name: str, images: list[Path], poses: Tensor, projections: list[Tensor], start: int, stop: int) -> Scene4D:
    (k, beside), (_, partner) = (kitti.split_projection(p) for p in projections[:2])
    return assemble.scene_from_depth(
        dataset="kitti_odometry",
        sequence=name,
        images=decode.stack(encodings.read_rgb, images[start:stop]),
        depth=None,
        intrinsics=k,
        cam2world=poses[start:stop] @ beside,
        timestamps=assemble.even_times(stop - start, FPS),
        settings={"stereo_baseline_m": float(partner[0, 3] - beside[0, 3])},
    )
