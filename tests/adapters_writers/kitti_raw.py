"""KITTI raw: laser points in the velodyne's frame, GPS positions in degrees, attitude as roll, pitch, yaw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import Truth, make, rigid, to, turn

DAY, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"
LEVEL = turn((1, 2, 3), 0.02)  # R_rect_00
CAM_FROM_VELO = rigid(np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ turn((0, 1, 0), 0.01), (0.02, -0.08, -0.27))
VELO_FROM_IMU = rigid(turn((1, 1, 0), 0.02), (-0.81, 0.32, -0.8))
BESIDE = rigid(np.eye(3), (-0.06, 0.002, 0.003))  # camera 2 in rectified camera 0


def scene() -> Truth:
    return make(metres=2.0)


def projection(k: np.ndarray, pose: np.ndarray) -> np.ndarray:
    return k @ np.linalg.inv(pose)[:3]


def write(root: Path) -> list[Expected]:
    truth = scene()
    write_drive(root, truth)
    return [
        Expected(
            truth=truth,
            name=f"{DRIVE}/image_02",
            reason="laser points are float32; a degree with 12 digits is 0.1 micrometre",
            depth_step=lambda z: 2e-6 * z,
            pose_step=2e-6,
            damage=("**/image_02/data/0000000001.png", "**/velodyne_points/data/0000000002.bin"),
        )
    ]


def write_drive(root: Path, truth: Truth) -> None:
    day, folder = root / DAY, root / DAY / DRIVE
    cam_from_velo = np.linalg.inv(BESIDE) @ rigid(LEVEL, (0, 0, 0)) @ CAM_FROM_VELO
    cam_from_imu = cam_from_velo @ VELO_FROM_IMU
    lines = lambda pose: [f"R: {packing.numbers(pose[:3, :3])}", f"T: {packing.numbers(pose[:3, 3])}"]  # noqa: E731
    text = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.95e-02", f"R_rect_00: {packing.numbers(LEVEL)}"]
    text.append(f"P_rect_02: {packing.numbers(projection(truth.k, BESIDE))}")
    packing.text(day / "calib_cam_to_cam.txt", text)
    packing.text(day / "calib_velo_to_cam.txt", ["calib_time: 15-Mar-2012 11:37:16", *lines(CAM_FROM_VELO)])
    packing.text(day / "calib_imu_to_velo.txt", lines(VELO_FROM_IMU))
    latitude, longitude, altitude, earth = 49.0, 8.4, 110.0, 6378137.0
    scale = np.cos(np.radians(latitude))
    start = None
    for t, pose in enumerate(truth.cam2world):
        imu = pose @ cam_from_imu
        start = imu[:3, 3] if start is None else start
        x, y, z = imu[:3, 3] - start
        lon = longitude + np.degrees(x / scale / earth)
        merc = np.log(np.tan(np.radians((90 + latitude) / 2))) + y / scale / earth
        lat = 2 * np.degrees(np.arctan(np.exp(merc))) - 90
        r = imu[:3, :3]
        angles = (np.arctan2(r[2, 1], r[2, 2]), -np.arcsin(r[2, 0]), np.arctan2(r[1, 0], r[0, 0]))
        record = " ".join(f"{value:.13f}" for value in (lat, lon, altitude + z, *angles)) + " 0" * 24
        stem = f"data/{t:010d}"
        packing.text(folder / f"oxts/{stem}.txt", [record])
        packing.png(folder / f"image_02/{stem}.png", truth.rgb[t])
        seen = truth.local[t][truth.depth[t] > 0]
        behind = np.array([[0.3, 0.2, -5.0], [1.0, 0.0, -2.0]])  # the laser looks all around
        farther = seen[::7] * 1.5  # and past what hides it from the camera
        points = to(np.linalg.inv(cam_from_velo), np.concatenate([farther, seen, behind]))
        stored = np.concatenate([points, np.zeros((len(points), 1))], -1).astype("<f4")
        packing.folder(folder / f"velodyne_points/{stem}.bin").write_bytes(stored.tobytes()[: 16 * len(points)])
