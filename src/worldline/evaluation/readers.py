"""Other tools' outputs as scenes, so that they can be scored: one small reader each, recognised by what is in the file.

Points come out in the world of the tool's cameras; a tool without cameras (MotionCrafter) gives world points only. What
a tool does not say is None, NaN intrinsics, or (confidence) absent. Confidences without an upper bound become c/(1+c).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.adapters import encodings
from worldline.evaluation.colmap import is_colmap, read_colmap
from worldline.evaluation.resizing import blank_video, resize_video
from worldline.geometry import pointmap, pose
from worldline.io import store
from worldline.io.layout import Layout
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D, Video


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one tool's output is recognised and read.

    Attributes:
        what: what the tool writes, for help and errors.
        fits: whether a path is such an output; looks, does not read.
        read: the scene.
    """

    what: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], Scene4D]


def read(path: str | Path, like: Video | None = None) -> Scene4D:
    """A scene from whatever is at the path.

    With `like` (the true video), a prediction with as many frames takes over its times, and its pictures where the tool
    kept none.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: no reader knows what is there, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    for reader in READERS.values():
        if reader.fits(path):
            return _like(reader.read(path), like)
    kinds = "; ".join(reader.what for reader in READERS.values())
    raise ValueError(f"{path} is nothing that can be scored. Known are: {kinds}.")


def can_read(path: str | Path) -> bool:
    """Whether some reader knows what is at the path."""
    return any(reader.fits(Path(path)) for reader in READERS.values())


def find(path: str | Path) -> dict[str, Path]:
    """Outputs at a path by sequence name: the path itself, or every readable child of a folder, in order.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: nothing there can be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    if can_read(path):
        return {path.stem if path.is_file() else path.name: path}
    children = sorted(path.iterdir()) if path.is_dir() else []
    found = {child.stem if child.is_file() else child.name: child for child in children if can_read(child)}
    if not found:
        raise ValueError(f"{path} holds nothing that can be scored: no scenes, and no known tool's output.")
    return found


def _like(scene: Scene4D, like: Video | None) -> Scene4D:
    if like is None or len(like) != len(scene):
        return scene
    frames = scene.video.frames
    if not bool(frames.any()):
        frames = resize_video(like, scene.size).frames
    return replace(scene, video=Video(frames=frames, timestamps=like.timestamps))


def from_depth(
    depth: Float[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    *,
    tool: str,
    frames: Tensor | None = None,
    confidence: Float[Tensor, "T H W"] | None = None,
    times: Float[Tensor, " T"] | None = None,
) -> Scene4D:
    """A scene from depth maps and cameras; pixels without positive finite depth are not valid."""
    size = (depth.shape[1], depth.shape[2])
    valid = (depth > 0) & depth.isfinite()
    depth = torch.where(valid, depth, torch.zeros_like(depth)).float()
    video = blank_video(len(depth), size, times)
    return Scene4D(
        video=video if frames is None else replace(video, frames=frames),
        points=pointmap.to_world(pointmap.from_depth(depth, intrinsics.float()), cam2world),
        valid=valid,
        cameras=Cameras(intrinsics=intrinsics.double(), cam2world=cam2world.double(), size=size),
        confidence=confidence,
        provenance=Provenance(system=tool),
    )


def bounded(confidence: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """c/(1+c) of a non-negative confidence: in [0, 1), same order."""
    positive = confidence.float().clamp(min=0)
    return positive / (1 + positive)


def _npz_has(path: Path, *keys: str) -> bool:
    if path.suffix != ".npz" or not path.is_file():
        return False
    with np.load(path) as data:
        return all(key in data.files for key in keys)


def _arrays(path: Path, *keys: str) -> dict[str, Tensor]:
    """Those of the named arrays that an npz has (others may be pickles, which are not opened); float16 to float32."""
    with np.load(path) as data:
        found = {key: data[key] for key in keys if key in data.files}
    return {key: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float16 else a) for key, a in found.items()}


def read_motioncrafter(path: Path) -> Scene4D:
    """MotionCrafter's npz: world points and flow, float16, no cameras; the origin is the centroid, not a camera."""
    data = _arrays(path, "point_map", "valid_mask", "scene_flow", "deform_mask")
    points = data["point_map"].float()
    valid = data.get("valid_mask", torch.ones(points.shape[:3], dtype=torch.bool)).bool() & points.isfinite().all(-1)
    flow = flow_valid = None
    if "scene_flow" in data:
        flow = data["scene_flow"].float()
        flow_valid = valid & data.get("deform_mask", torch.ones_like(valid)).bool()
        flow_valid = torch.cat([flow_valid[:-1], torch.zeros_like(flow_valid[-1:])])
    return Scene4D(
        video=blank_video(len(points), (points.shape[1], points.shape[2])),
        points=points,
        valid=valid,
        scene_flow=flow,
        flow_valid=flow_valid,
        provenance=Provenance(system="motioncrafter (file)"),
    )


def read_vggt(path: Path) -> Scene4D:
    """VGGT's predictions.npz: depth and cameras (its more accurate branch); extrinsics are world-to-camera."""
    data = _arrays(path, "extrinsic", "intrinsic", "depth", "depth_conf", "images")
    cam2world = pose.inverse(_homogeneous(data["extrinsic"].double()))
    depth = data["depth"].float()
    depth = depth[..., 0] if depth.ndim == 4 else depth
    frames = None
    if "images" in data:
        pictures = data["images"].float()
        frames = pictures.permute(0, 2, 3, 1) if pictures.shape[1] == 3 else pictures
    confidence = bounded(data["depth_conf"]) if "depth_conf" in data else None
    intrinsics = data["intrinsic"].double()
    return from_depth(depth, intrinsics, cam2world, tool="vggt (file)", frames=frames, confidence=confidence)


def read_megasam(path: Path) -> Scene4D:
    """MegaSaM's *_sgd_cvd_hr.npz: images, depths, one intrinsic matrix, cam_c2w."""
    data = _arrays(path, "images", "depths", "intrinsic", "cam_c2w")
    depth = data["depths"].float()
    intrinsics = data["intrinsic"].double().expand(len(depth), 3, 3)
    frames = data["images"] if "images" in data and data["images"].shape[1:3] == depth.shape[1:3] else None
    return from_depth(depth, intrinsics, _homogeneous(data["cam_c2w"].double()), tool="megasam (file)", frames=frames)


def read_monst3r_folder(path: Path) -> Scene4D:
    """MonST3R's or Geo4D's folder: pred_traj.txt (t xyz and a quaternion w first), pred_intrinsics.txt, frame_*.npy."""
    rows = encodings.read_numbers(path / "pred_traj.txt")
    cam2world = pose.from_rt(pose.quaternion_to_matrix(rows[:, 4:8]), rows[:, 1:4])
    depth = torch.stack([torch.from_numpy(np.load(file)).float() for file in _numbered(path, "frame_*.npy")])
    if len(depth) != len(rows):
        raise ValueError(f"{path} has {len(depth)} depth maps for {len(rows)} poses; the output is not complete.")
    table = path / "pred_intrinsics.txt"
    if table.is_file():
        intrinsics = encodings.read_numbers(table).reshape(-1, 3, 3)
    else:
        height, width = depth.shape[1:]
        focal = encodings.read_numbers(path / "pred_focal.txt")[:, 0]
        intrinsics = torch.zeros(len(focal), 3, 3, dtype=torch.float64)
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
        intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = width / 2, height / 2, 1
    weights = _numbered(path, "conf_*.npy")
    confidence = None
    if len(weights) == len(depth):
        confidence = bounded(torch.stack([torch.from_numpy(np.load(file)).float() for file in weights]))
    pictures = _numbered(path, "frame_*.png")
    frames = torch.stack([encodings.read_rgb(file) for file in pictures]) if len(pictures) == len(depth) else None
    if frames is not None and frames.shape[1:3] != depth.shape[1:3]:
        frames = None
    intrinsics = intrinsics.expand(len(depth), 3, 3)
    return from_depth(
        depth, intrinsics, cam2world, tool="geo4d or monst3r (folder)", frames=frames, confidence=confidence
    )


def read_trajectory(path: Path) -> Scene4D:
    """A TUM (t xyz xyzw) or KITTI (3x4 rows) trajectory file: cameras only, one black invalid pixel per frame.

    Intrinsics are NaN: unknown. KITTI files have no times; frames are counted.
    """
    columns = encodings.read_numbers(path).shape[1]
    times = None
    if columns == 8:
        times, cam2world = encodings.read_tum_trajectory(path)
    elif columns == 12:
        cam2world = encodings.read_kitti_poses(path)
    else:
        raise ValueError(f"{path} has {columns} columns; a TUM trajectory has 8, a KITTI one 12.")
    count = len(cam2world)
    return Scene4D(
        video=blank_video(count, (1, 1), times),
        points=torch.zeros(count, 1, 1, 3),
        valid=torch.zeros(count, 1, 1, dtype=torch.bool),
        cameras=Cameras(
            intrinsics=torch.full((count, 3, 3), torch.nan, dtype=torch.float64), cam2world=cam2world, size=(1, 1)
        ),
        provenance=Provenance(system=path.stem),
    )


def _read_stored(path: Path) -> Scene4D:
    item = store.load(path)
    if isinstance(item, Tracks4D):
        raise ValueError(f"{path} holds tracks of one frame; give a scene.")
    return item


def _homogeneous(matrices: Float[Tensor, "T R 4"]) -> Float[Tensor, "T 4 4"]:
    return pose.from_rt(matrices[:, :3, :3], matrices[:, :3, 3])


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """Files in the order of the number in their names."""
    return sorted(folder.glob(pattern), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])


def _looks_like_numbers(path: Path) -> bool:
    """Whether the first line that is no comment holds 8 or 12 numbers."""
    if not path.is_file() or path.suffix not in (".txt", ".tum", ".kitti", ".traj"):
        return False
    with path.open(errors="replace") as lines:
        words = next((line.split() for line in lines if line.strip() and not line.startswith("#")), [])
    return len(words) in (8, 12) and all(re.fullmatch(r"[-+.\deEna]+", word) for word in words)


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "worldline": Reader(
            what="a scene this program stored", fits=lambda p: p.is_dir() and Layout(p).is_scene(), read=_read_stored
        ),
        "motioncrafter": Reader(
            what="MotionCrafter .npz (point_map)", fits=lambda p: _npz_has(p, "point_map"), read=read_motioncrafter
        ),
        "vggt": Reader(
            what="VGGT .npz (depth, extrinsic, intrinsic)",
            fits=lambda p: _npz_has(p, "depth", "extrinsic", "intrinsic"),
            read=read_vggt,
        ),
        "megasam": Reader(
            what="MegaSaM .npz (depths, cam_c2w)",
            fits=lambda p: _npz_has(p, "depths", "cam_c2w", "intrinsic"),
            read=read_megasam,
        ),
        "geo4d or monst3r": Reader(
            what="Geo4D or MonST3R folder (pred_traj.txt)",
            fits=lambda p: (p / "pred_traj.txt").is_file(),
            read=read_monst3r_folder,
        ),
        "colmap": Reader(what="COLMAP model, text or binary", fits=is_colmap, read=read_colmap),
        "trajectory": Reader(what="TUM or KITTI trajectory file", fits=_looks_like_numbers, read=read_trajectory),
    }
)
"""In the order they are tried."""
