"""What a user knows about a video, in files and in pixels of the original, as `Priors` of the clip worked on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.config import KnownDistance, Priors
from worldline.align.optical_flow import dis_flow, learned_flow
from worldline.geometry.camera import resize
from worldline.geometry.pose import from_rt, quaternion_to_matrix
from worldline.scene import Video

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

FLOWS = {"dis": dis_flow, "learned": learned_flow}
"""How dense optical flow is found."""


@dataclass(frozen=True, kw_only=True)
class PriorFiles:
    """Everything may be absent; pixels and frame numbers (from 0) are those of the original video.

    Attributes:
        intrinsics: fx, fy, cx, cy; pixel centres at integers.
        distortion: OpenCV coefficients k1 k2 p1 p2 [k3] of the original; needs intrinsics.
        poses: text file of rows "frame tx ty tz qx qy qz qw", cam2world with OpenCV axes; frames may be missing.
        every_pose: the system needs a pose of every frame or none.
        static_camera: one pose for all frames.
        zoom: every frame has a focal of its own.
        masks: folder of pictures, one per frame, brighter than half where something moves.
        depth: folder of metric depth maps, one per frame, or one file for the first frame: .npy in metres, or
            16-bit .png in millimetres; 0 or NaN = unknown.
        distance: frame, x1, y1, x2, y2, metres between the two points.
        flow: dense optical flow that steadies the cameras: "dis" is OpenCV's, "learned" the embedded network's.
    """

    intrinsics: tuple[float, float, float, float] | None = None
    distortion: tuple[float, ...] | None = None
    poses: Path | None = None
    every_pose: bool = False
    static_camera: bool = False
    zoom: bool = False
    masks: Path | None = None
    depth: Path | None = None
    distance: tuple[float, float, float, float, float, float] | None = None
    flow: Literal["none", "dis", "learned"] = "none"

    def read(self, clip: Video, source: tuple[int, int], frames: slice | None) -> Priors:
        """The priors of a clip.

        Args:
            clip: the frames that are worked on, at the size worked at.
            source: (H, W) of the original.
            frames: which frames of the original the clip has.

        Raises:
            ValueError: a file that cannot be understood, or does not fit the video.
            FileNotFoundError: a file that is not there.
        """
        if self.distortion is not None and self.intrinsics is None:
            raise ValueError("Distortion coefficients need the intrinsics they were calibrated with.")
        start, step = (0, 1) if frames is None else (frames.start or 0, frames.step or 1)
        index = [start + step * i for i in range(len(clip))]
        poses = None if self.poses is None else read_poses(self.poses, index)
        if poses is not None and self.every_pose and not bool(torch.isfinite(poses).all()):
            raise ValueError(
                f"{self.poses} has no pose for some frames, and this system uses poses only when all are known; choose "
                "one that aligns windows, for instance motioncrafter-mini."
            )
        return Priors(
            intrinsics=_intrinsics(self.intrinsics, source, clip.size),
            distortion=self.distortion,
            poses=poses,
            static_camera=self.static_camera,
            moving_mask=None if self.masks is None else _stack(self.masks, index, clip.size, _read_mask),
            sensor_depth=None if self.depth is None else _stack(self.depth, index, clip.size, _read_depth),
            distance=None if self.distance is None else _distance(self.distance, index, source, clip.size),
            shared_focal=not self.zoom,
            optical_flow=None if self.flow == "none" or len(clip) < 2 else FLOWS[self.flow](clip),
        )


def _intrinsics(
    given: tuple[float, float, float, float] | None, source: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "3 3"] | None:
    if given is None:
        return None
    fx, fy, cx, cy = given
    if min(fx, fy) <= 0:
        raise ValueError(f"Focal lengths of {fx} and {fy} pixels make no sense; give positive ones.")
    K = torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return resize(K, source, size)


def read_poses(path: Path, index: list[int]) -> Float[Tensor, "T 4 4"]:
    """Known poses of some frames, NaN for the others.

    Raises:
        ValueError: rows that are not poses, or none for these frames.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of poses {path}.")
    try:
        rows = torch.from_numpy(np.loadtxt(path, dtype=np.float64, ndmin=2))
    except ValueError as error:
        raise ValueError(f"{path} is no table of numbers: {error}.") from error
    if rows.shape[1] != 8:
        raise ValueError(f"{path} has {rows.shape[1]} columns; write rows 'frame tx ty tz qx qy qz qw'.")
    found = from_rt(quaternion_to_matrix(rows[:, [7, 4, 5, 6]]), rows[:, 1:4])
    poses = torch.full((len(index), 4, 4), torch.nan, dtype=torch.float64)
    place = {frame: i for i, frame in enumerate(index)}
    for frame, pose in zip(rows[:, 0].tolist(), found, strict=True):
        if frame in place:
            poses[place[frame]] = pose
    if not bool(torch.isfinite(poses).any()):
        raise ValueError(f"{path} has no pose for any of the frames {index[0]} to {index[-1]}; count frames from 0.")
    return poses


def _distance(
    given: tuple[float, ...], index: list[int], source: tuple[int, int], size: tuple[int, int]
) -> KnownDistance:
    frame, x1, y1, x2, y2, metres = given
    if frame not in index:
        raise ValueError(f"The known distance is in frame {frame:g}, which is not among the frames worked on.")
    if metres <= 0:
        raise ValueError(f"A distance of {metres} metres makes no sense; give a positive one.")

    def moved(x: float, y: float) -> tuple[float, float]:
        if not (0 <= x < source[1] and 0 <= y < source[0]):
            raise ValueError(f"The pixel ({x:g}, {y:g}) of the known distance is outside the video.")
        return (x + 0.5) * size[1] / source[1] - 0.5, (y + 0.5) * size[0] / source[0] - 0.5

    return KnownDistance(frame=index.index(int(frame)), first=moved(x1, y1), second=moved(x2, y2), metres=metres)


def _stack(path: Path, index: list[int], size: tuple[int, int], read: Callable[[Path], np.ndarray]) -> Tensor:
    """Maps of all frames at the size worked at, nearest neighbour; one file alone is the first frame's."""
    files = _files(path, index)
    blank: np.ndarray | None = None
    maps = []
    for file in files:
        if file is not None:
            value = read(file)
            rows = ((np.arange(size[0]) + 0.5) * value.shape[0] / size[0]).astype(int)
            cols = ((np.arange(size[1]) + 0.5) * value.shape[1] / size[1]).astype(int)
            maps.append(np.ascontiguousarray(value[rows][:, cols]))
            blank = np.zeros_like(maps[-1])
        else:
            maps.append(blank if blank is not None else np.zeros(size, np.float32))
    return torch.from_numpy(np.stack(maps))


def _files(path: Path, index: list[int]) -> list[Path | None]:
    if path.is_file():
        return [path if i == 0 else None for i in range(len(index))]
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    every: list[Path | None] = [f for f in sorted(path.iterdir()) if f.suffix.lower() in (*_PICTURES, ".npy")]
    if len(every) == len(index):
        return every
    if len(every) <= index[-1]:
        raise ValueError(f"{path} has {len(every)} maps; give one for each of the {len(index)} frames.")
    return [every[n] for n in index]


def _read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    import cv2

    value = np.load(path) if path.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if value is None or value.ndim != 2:
        raise ValueError(f"{path} is no picture of one channel; masks are bright where something moves.")
    return value > (0 if value.dtype == bool else np.iinfo(value.dtype).max / 2 if value.dtype.kind in "ui" else 0.5)


def _read_depth(path: Path) -> Float[np.ndarray, "H W"]:
    import cv2

    if path.suffix == ".npy":
        value = np.load(path)
    else:
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.dtype != np.uint16:
            raise ValueError(f"{path} is no 16-bit picture; metric depth is .png in millimetres or .npy in metres.")
        value = None if raw is None else raw / 1000
    if value is None or value.ndim != 2:
        raise ValueError(f"{path} is no depth map; give .png with 16 bits (millimetres) or .npy (metres).")
    return value.astype(np.float32)
