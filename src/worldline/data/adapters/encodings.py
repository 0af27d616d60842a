"""Readers of the file encodings that data sets share: pfm, flo, KITTI png, sflow/oflow, dpt, poses, depth png.

Every reader returns tensors in plain units (pixels, metres) and a mask where the encoding has one.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, UInt8
from torch import Tensor

from worldline.geometry import pose

_SINTEL_TAG = 202021.25


def require(path: Path) -> Path:
    """The path itself, if it exists.

    Raises:
        FileNotFoundError: it does not.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; check that the folder is the data set's root.")
    return path


def read_rgb(path: Path) -> UInt8[Tensor, "H W 3"]:
    """An image as RGB; grey images are repeated over the channels."""
    from PIL import Image

    with Image.open(require(path)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def read_depth_image(path: Path, units_per_metre: float) -> Float[Tensor, "H W"]:
    """Depth in metres of a 16-bit grey image (png, pgm); 0 stays 0, which means unknown."""
    from PIL import Image

    with Image.open(require(path)) as image:
        values = np.array(image)
    if values.ndim != 2 or values.dtype == np.uint8:
        raise ValueError(f"{path} is not a 16-bit grey image, so it cannot hold depth.")
    return torch.from_numpy(values.astype(np.float32) / np.float32(units_per_metre))


def read_pfm(path: Path) -> Float[Tensor, "H W *channels"]:
    """A portable float map, [H, W] or [H, W, 3]; the file stores the bottom row first."""
    data = require(path).read_bytes()
    header: list[str] = []
    start = 0
    while len(header) < 4:  # "Pf"/"PF", width, height, scale, separated by white space
        end = start
        while data[end : end + 1] not in (b" ", b"\n", b"\t", b"\r", b""):
            end += 1
        if end > start:
            header.append(data[start:end].decode("ascii"))
        if end >= len(data):
            raise ValueError(f"{path} ends inside its header; the file is damaged.")
        start = end + 1
    kind, width, height, scale = header[0], int(header[1]), int(header[2]), float(header[3])
    if kind not in ("Pf", "PF"):
        raise ValueError(f"{path} is not a portable float map (it starts with {kind!r}).")
    channels = 3 if kind == "PF" else 1
    values = np.frombuffer(data, "<f4" if scale < 0 else ">f4", width * height * channels, offset=start)
    rows = values.reshape(height, width, channels)[::-1].astype(np.float32)
    return torch.from_numpy(rows if channels == 3 else rows[..., 0])


def read_flo(path: Path) -> tuple[Float[Tensor, "H W 2"], Bool[Tensor, "H W"]]:
    """Middlebury optical flow (u, v) in pixels, and where it is known (|flow| < 1e9)."""
    data = require(path).read_bytes()
    tag, (width, height) = np.frombuffer(data, "<f4", 1)[0], np.frombuffer(data, "<i4", 2, offset=4)
    if tag != np.float32(_SINTEL_TAG):
        raise ValueError(f"{path} is not a .flo file (tag {tag}).")
    values = np.frombuffer(data, "<f4", int(width) * int(height) * 2, offset=12)
    flow = torch.from_numpy(values.reshape(height, width, 2).copy())
    return flow, (flow.abs() < 1e9).all(-1)


def check_png(path: Path) -> None:
    """Refuse a png that ends early or whose bytes changed: OpenCV decodes such files without a word.

    Raises:
        ValueError: the signature, a chunk's check sum or the end is wrong.
    """
    data = require(path).read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is not a png file.")
    at, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data) or zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"{path} is cut off or damaged {at} bytes from its start.")
        at = end


def read_rgb16(path: Path) -> Int32[Tensor, "H W 3"]:
    """A 16-bit colour png, channels in the order red, green, blue."""
    import cv2

    check_png(path)
    bgr = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if bgr is None or bgr.dtype != np.uint16 or bgr.ndim != 3 or bgr.shape[2] != 3:
        raise ValueError(f"{path} is not a 16-bit three-channel png.")
    return torch.from_numpy(bgr[..., ::-1].astype(np.int32))


def read_float16_depth(path: Path) -> Float[Tensor, "H W"]:
    """A 16-bit grey png whose bits are those of float16 values."""
    from PIL import Image

    with Image.open(require(path)) as image:
        values = np.array(image)
    if values.ndim != 2 or values.dtype == np.uint8:
        raise ValueError(f"{path} is not a 16-bit grey image, so it cannot hold depth.")
    return torch.from_numpy(values.astype(np.uint16).view(np.float16).astype(np.float32))


def read_kitti_flow(path: Path) -> tuple[Float[Tensor, "H W 2"], Bool[Tensor, "H W"]]:
    """KITTI optical flow png: 16 bit (64 u + 32768, 64 v + 32768, valid)."""
    rgb = read_rgb16(path).float()
    valid = rgb[..., 2] > 0
    return (rgb[..., :2] - 32768) / 64 * valid[..., None], valid


def read_kitti_disparity(path: Path) -> tuple[Float[Tensor, "H W"], Bool[Tensor, "H W"]]:
    """KITTI disparity (or depth) png: 16 bit, value / 256, 0 unknown."""
    values = read_depth_image(path, 256.0)
    return values, values > 0


def read_deepdeform_flow(path: Path) -> tuple[Float[Tensor, "H W C"], Bool[Tensor, "H W"]]:
    """DeepDeform .sflow (metres, 3 channels) and .oflow (pixels, 2 channels); unknown is -inf and becomes 0.

    The header is three int32 (width, height, channels), the values are float32, channel after channel.
    """
    data = require(path).read_bytes()
    width, height, channels = (int(n) for n in np.frombuffer(data, "<i4", 3))
    if len(data) != 12 + 4 * width * height * channels:
        raise ValueError(f"{path} holds {len(data)} bytes, not a {width}x{height} flow of {channels} channels.")
    values = np.frombuffer(data, "<f4", offset=12).reshape(channels, height, width)
    flow = torch.from_numpy(np.ascontiguousarray(values.transpose(1, 2, 0)))
    valid = flow.isfinite().all(-1)
    return torch.where(valid[..., None], flow, torch.zeros_like(flow)), valid


def read_dpt(path: Path) -> Float[Tensor, "H W"]:
    """MPI-Sintel depth in its own unit (metres)."""
    data = require(path).read_bytes()
    tag, (width, height) = np.frombuffer(data, "<f4", 1)[0], np.frombuffer(data, "<i4", 2, offset=4)
    if tag != np.float32(_SINTEL_TAG):
        raise ValueError(f"{path} is not a .dpt file (tag {tag}).")
    values = np.frombuffer(data, "<f4", int(width) * int(height), offset=12)
    return torch.from_numpy(values.reshape(height, width).copy())


def read_sintel_camera(path: Path) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "4 4"]]:
    """MPI-Sintel .cam: intrinsics and cam2world (the file stores world-to-camera)."""
    data = require(path).read_bytes()
    if np.frombuffer(data, "<f4", 1)[0] != np.float32(_SINTEL_TAG):
        raise ValueError(f"{path} is not a .cam file.")
    values = torch.from_numpy(np.frombuffer(data, "<f8", 21, offset=4).copy())
    world2cam = values[9:].reshape(3, 4)
    return values[:9].reshape(3, 3), pose.inverse(pose.from_rt(world2cam[:, :3], world2cam[:, 3]))


def read_numbers(path: Path) -> Float[Tensor, "N C"]:
    """A table of numbers separated by white space; # starts a comment. float64."""
    return torch.from_numpy(np.loadtxt(require(path), dtype=np.float64, ndmin=2))


def poses_from_translation_xyzw(rows: Float[Tensor, "N 7"]) -> Float[Tensor, "N 4 4"]:
    """Poses of rows "tx ty tz qx qy qz qw" (the scalar last)."""
    return pose.from_rt(pose.quaternion_to_matrix(rows[:, [6, 3, 4, 5]]), rows[:, :3])


def read_tum_trajectory(path: Path) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 4 4"]]:
    """TUM trajectory "t tx ty tz qx qy qz qw": seconds and cam2world."""
    rows = read_numbers(path)
    if rows.shape[1] != 8:
        raise ValueError(f"{path} has {rows.shape[1]} columns; a TUM trajectory has 8.")
    return rows[:, 0], poses_from_translation_xyzw(rows[:, 1:])


def read_kitti_poses(path: Path) -> Float[Tensor, "N 4 4"]:
    """KITTI odometry poses: 12 numbers per line, the 3x4 cam2world of the left camera."""
    rows = read_numbers(path)
    if rows.shape[1] != 12:
        raise ValueError(f"{path} has {rows.shape[1]} columns; KITTI poses have 12.")
    matrix = rows.reshape(-1, 3, 4)
    return pose.from_rt(matrix[..., :3], matrix[..., 3])
