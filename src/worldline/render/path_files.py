"""Camera paths in files: JSON key frames, TUM trajectories, COLMAP images.txt and nerfstudio camera paths.

A path file gives poses at times; `poses` of a wanted number of frames are interpolated between them: rotation on the
shortest arc, centre on the straight line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.geometry.pose import from_rt, interpolate, inverse, quaternion_to_matrix
from worldline.render.paths import look_at


@dataclass(frozen=True, kw_only=True)
class PathFile:
    """Poses at increasing times.

    Attributes:
        times: [N] in any unit.
        cam2world: [N, 4, 4] OpenCV axes.
        relative: the poses are in the axes of the input camera; otherwise in the world.
    """

    times: Float[Tensor, " N"]
    cam2world: Float[Tensor, "N 4 4"]
    relative: bool = True

    def poses(self, frames: int, start: Float[Tensor, "4 4"]) -> Float[Tensor, "frames 4 4"]:
        """As many poses, evenly spread over the file's times; `start` is the pose of the input camera."""
        wanted = torch.linspace(float(self.times[0]), float(self.times[-1]), frames, dtype=torch.float64)
        after = torch.searchsorted(self.times, wanted, right=True).clamp(1, max(len(self.times) - 1, 1))
        if len(self.times) == 1:
            path = self.cam2world.expand(frames, 4, 4)
        else:
            low, high = self.times[after - 1], self.times[after]
            fraction = ((wanted - low) / (high - low)).clamp(0, 1)
            path = interpolate(self.cam2world[after - 1], self.cam2world[after], fraction)
        return start @ path.to(start) if self.relative else path.to(start)


def load_path(file: str | Path) -> PathFile:
    """Read a path file; its kind is told by its contents.

    JSON of ours: {"keyframes": [{"time": 0, "cam2world": [[...] x4]} | {"time", "position", "look_at"} | {"time",
    "position", "rotation_wxyz"}, ...], "relative": true}; `time` may be left out. JSON of nerfstudio: "camera_path".
    Text: TUM ("time tx ty tz qx qy qz qw") or COLMAP images.txt (sorted by name).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be understood; says in which line or key frame.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no camera path file {path}.")
    text = path.read_text()
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}).") from error
        return _from_json(content, path)
    return _from_lines(text.splitlines(), path)


def _checked(times: list[float], poses: list[Tensor], relative: bool, path: Path) -> PathFile:
    if not poses:
        raise ValueError(f"{path} holds no camera poses.")
    order = torch.tensor(times, dtype=torch.float64)
    stacked = torch.stack(poses).double()
    if bool((order[1:] <= order[:-1]).any()):
        raise ValueError(f"The times in {path} must increase.")
    rotation = stacked[:, :3, :3]
    wrong = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2)) > 1e-3
    if not bool(stacked.isfinite().all()) or bool((wrong | (torch.linalg.det(rotation) < 0)).any()):
        raise ValueError(f"{path} has a pose that is no rotation and translation.")
    return PathFile(times=order, cam2world=stacked, relative=relative)


def _vector(entry: dict[str, Any], name: str, size: int, where: str) -> Tensor:
    value = torch.tensor(entry.get(name, []), dtype=torch.float64)
    if value.shape != (size,):
        raise ValueError(f"{where} needs {name!r} with {size} numbers.")
    return value


def _key_frame(entry: dict[str, Any], where: str) -> Tensor:
    if "cam2world" in entry:
        pose = torch.tensor(entry["cam2world"], dtype=torch.float64)
        if pose.shape != (4, 4):
            raise ValueError(f"{where} needs 'cam2world' with 4x4 numbers.")
        return pose
    position = _vector(entry, "position", 3, where)
    if "look_at" in entry:
        return look_at(position, _vector(entry, "look_at", 3, where))
    rotation = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    if "rotation_wxyz" in entry:
        rotation = _vector(entry, "rotation_wxyz", 4, where)
    return from_rt(quaternion_to_matrix(rotation), position)


def _from_json(content: Any, path: Path) -> PathFile:
    if isinstance(content, dict) and isinstance(content.get("camera_path"), list):
        poses = []
        for entry in content["camera_path"]:  # nerfstudio: row-major, OpenGL axes (y up, looking along -z)
            pose = torch.tensor(entry["camera_to_world"], dtype=torch.float64).reshape(4, 4)
            poses.append(pose * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
        return _checked([float(i) for i in range(len(poses))], poses, False, path)
    if not isinstance(content, dict) or not isinstance(content.get("keyframes"), list):
        raise ValueError(f"{path} needs a list 'keyframes' (or nerfstudio's 'camera_path').")
    entries = content["keyframes"]
    poses = [_key_frame(entry, f"Key frame {i} of {path}") for i, entry in enumerate(entries)]
    times = [float(entry.get("time", i)) for i, entry in enumerate(entries)]
    return _checked(times, poses, bool(content.get("relative", True)), path)


def _from_lines(lines: list[str], path: Path) -> PathFile:
    rows = [(i + 1, line.split()) for i, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    if rows and len(rows[0][1]) == 10:
        return _colmap(rows, path)
    times, poses = [], []
    for number, words in rows:
        try:
            time, x, y, z, qx, qy, qz, qw = (float(word) for word in words)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not 'time tx ty tz qx qy qz qw'.") from error
        times.append(time)
        rotation = quaternion_to_matrix(torch.tensor([qw, qx, qy, qz], dtype=torch.float64))
        poses.append(from_rt(rotation, torch.tensor([x, y, z], dtype=torch.float64)))
    return _checked(times, poses, False, path)


def _colmap(rows: list[tuple[int, list[str]]], path: Path) -> PathFile:
    """images.txt: "id qw qx qy qz tx ty tz camera name" (world to camera), each followed by a line of points."""
    named = []
    for number, words in (row for row in rows if len(row[1]) == 10):
        try:
            w, qx, qy, qz, x, y, z = (float(word) for word in words[1:8])
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not a line of COLMAP's images.txt.") from error
        rotation = quaternion_to_matrix(torch.tensor([w, qx, qy, qz], dtype=torch.float64))
        pose = inverse(from_rt(rotation, torch.tensor([x, y, z], dtype=torch.float64)))
        named.append((words[9], pose))
    named.sort(key=lambda entry: entry[0])
    return _checked([float(i) for i in range(len(named))], [pose for _, pose in named], False, path)
