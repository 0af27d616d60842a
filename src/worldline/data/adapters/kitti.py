"""What the KITTI recordings share: calibration files, and the pose of the car from GPS and inertia (oxts).

The rectified camera i sees x = P_rect_i R_rect_00 T_cam_velo X; P_rect_i = K [I | t] gives its place beside camera 0.
Positions are Mercator at the latitude of the first record, attitude is Rz(yaw) Ry(pitch) Rx(roll) of the inertial unit,
which looks along x with z up (the raw data development kit's documentation).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.adapters import encodings
from worldline.geometry import pose

EARTH_RADIUS_METRES = 6378137.0


def read_calibration(path: Path) -> dict[str, Tensor]:
    """The lines "key: numbers" of a calibration file; others (dates) are left out."""
    found = {}
    for line in encodings.require(path).read_text().splitlines():
        key, _, rest = line.partition(":")
        try:
            found[key.strip()] = torch.tensor([float(word) for word in rest.split()], dtype=torch.float64)
        except ValueError:
            continue
    return found


def split_projection(
    projection: Float[Tensor, "3 4"],
) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "4 4"]]:
    """(K, pose of this camera in rectified camera 0) of P = K [I | t]."""
    k = projection[:, :3]
    beside = torch.eye(4, dtype=torch.float64)
    beside[:3, 3] = -torch.linalg.solve(k, projection[:, 3])
    return k, beside


@dataclass(frozen=True, kw_only=True)
class Rig:
    """One camera of a day's calibration.

    Attributes:
        intrinsics: [3, 3] of the rectified image.
        cam_from_velo: [4, 4].
        cam_from_imu: [4, 4].
    """

    intrinsics: Tensor
    cam_from_velo: Tensor
    cam_from_imu: Tensor


def read_rig(day: Path, camera: str) -> Rig:
    """The calibration of a camera ("02") from the three files of a day."""
    cameras = read_calibration(day / "calib_cam_to_cam.txt")
    k, beside = split_projection(cameras[f"P_rect_{camera}"].reshape(3, 4))
    level = pose.from_rt(cameras["R_rect_00"].reshape(3, 3), torch.zeros(3, dtype=torch.float64))

    def step(name: str) -> Tensor:
        values = read_calibration(day / name)
        return pose.from_rt(values["R"].reshape(3, 3), values["T"])

    cam_from_velo = pose.inverse(beside) @ level @ step("calib_velo_to_cam.txt")
    return Rig(intrinsics=k, cam_from_velo=cam_from_velo, cam_from_imu=cam_from_velo @ step("calib_imu_to_velo.txt"))


def read_oxts(path: Path) -> Tensor:
    """Latitude, longitude (degrees), altitude (m), roll, pitch, yaw (rad) of one record."""
    return encodings.read_numbers(path)[0, :6]


def imu_poses(records: Float[Tensor, "T 6"]) -> Float[Tensor, "T 4 4"]:
    """Poses of the inertial unit, world = Mercator plane at the first record's latitude."""
    scale = torch.cos(torch.deg2rad(records[0, 0]))
    east = scale * EARTH_RADIUS_METRES * torch.deg2rad(records[:, 1])
    north = scale * EARTH_RADIUS_METRES * torch.log(torch.tan(torch.deg2rad((90 + records[:, 0]) / 2)))
    place = torch.stack([east - east[0], north - north[0], records[:, 2] - records[0, 2]], -1)
    zero = torch.zeros(len(records), dtype=torch.float64)
    about = lambda i: pose.so3_exp(torch.stack([records[:, 3 + i] if i == j else zero for j in range(3)], -1))  # noqa: E731
    return pose.from_rt(about(2) @ about(1) @ about(0), place)
