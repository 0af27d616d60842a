"""Kubric MOVi in both layouts: rendered files, and TFDS records packed by hand (protobuf, TFRecord framing)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import Truth, make


def quantised(values: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    low, high = float(np.float32(values.min())), float(np.float32(values.max()))
    return packing.whole((values - low) / (high - low) * 65535), (low, high)


def content(truth: Truth) -> dict[str, Any]:
    """What both layouts hold. The camera looks along -z, y up; the ball is instance 1, after one that is not seen."""
    distance = np.linalg.norm(truth.local, axis=-1)
    camera = truth.cam2world[:, :3, :3] * np.array([1.0, -1.0, -1.0])
    ball = truth.ball.copy()
    ball[:, :3, 3] += ball[:, :3, :3] @ np.array([0.1, 0.2, -0.1])  # the object's origin is not its centre
    turned = np.stack([packing.wxyz(r) for r in ball[:, :3, :3]])
    other = np.tile([1.0, 0, 0, 0], (len(ball), 1))
    flow = np.concatenate([truth.optical, np.zeros_like(truth.optical[:1])])[..., ::-1]  # rows first
    return {
        "distance": distance, "flow": flow, "ids": np.where(truth.object_id == 1, 2, 0).astype(np.uint8),
        "camera": (truth.cam2world[:, :3, 3], np.stack([packing.wxyz(r) for r in camera])),
        "instances": [(np.zeros_like(ball[:, :3, 3]), other), (ball[:, :3, 3], turned)],
        "focal": 35.0 * truth.k[0, 0] / truth.depth.shape[2],
    }  # fmt: skip


def expected(truth: Truth, name: str, **changes: Any) -> Expected:
    values: dict[str, Any] = {
        "truth": truth,
        "name": name,
        "flow_step": lambda z: 1e-6 * z,
        "settings": {"optical_flow_explained": 1.0},
        "reason": "float32 distance; the pose of the ball is text or float32",
    }
    return Expected(**(values | changes))


def write(root: Path) -> list[Expected]:
    truth = make(sky=False)  # a dome closes MOVi's scenes
    raw = write_folder(root / "1234", truth)
    return [raw, write_record(root / "movi_e-train.tfrecord-00000-of-00001", truth)]


def write_folder(folder: Path, truth: Truth) -> Expected:
    from PIL import Image

    found = content(truth)
    flow, limits = quantised(found["flow"])
    for t in range(len(truth.depth)):
        alpha = np.full((*truth.depth[t].shape, 1), 255, np.uint8)
        packing.png(folder / f"rgba_{t:05d}.png", np.concatenate([truth.rgb[t], alpha], -1))
        Image.fromarray(found["distance"][t].astype(np.float32)).save(folder / f"depth_{t:05d}.tiff")
        ids = Image.fromarray(found["ids"][t], mode="P")
        ids.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        ids.save(folder / f"segmentation_{t:05d}.png")
        third = np.zeros((*truth.depth[t].shape, 1), np.uint16)
        packing.png(folder / f"forward_flow_{t:05d}.png", np.concatenate([flow[t], third], -1))
    packing.dump(folder / "data_ranges.json", {"forward_flow": {"min": limits[0], "max": limits[1]}})
    place, turned = found["camera"]
    packing.dump(
        folder / "metadata.json",
        {
            "metadata": {"num_frames": len(truth.depth), "num_instances": 2},
            "camera": {"focal_length": found["focal"], "sensor_width": 35.0,
                       "positions": place.tolist(), "quaternions": turned.tolist()},
            "instances": [{"positions": p.tolist(), "quaternions": q.tolist()} for p, q in found["instances"]],
        },
    )  # fmt: skip
    damage = (
        "1234/depth_00001.tiff",
        "1234/segmentation_00002.png",
        "1234/rgba_00000.png",
        "1234/forward_flow_00001.png",
    )
    return expected(truth, "1234", damage=damage)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def piece(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def feature(values: Any) -> bytes:
    if isinstance(values, list):
        return piece(1, b"".join(piece(1, data) for data in values))
    flat = np.asarray(values).ravel()
    if flat.dtype.kind == "f":
        return piece(2, piece(1, flat.astype("<f4").tobytes()))
    return piece(3, piece(1, b"".join(varint(int(value)) for value in flat)))


def masked_crc(data: bytes) -> bytes:
    """CRC-32C (Castagnoli, reflected 0x82F63B78), rotated by 15 and offset, as TFRecord wants it."""
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ 0x82F63B78 * (n & 1)
        table.append(n)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def write_record(path: Path, truth: Truth) -> Expected:
    found = content(truth)
    depth, depth_range = quantised(found["distance"])
    step = (depth_range[1] - depth_range[0]) / 65535 / 2
    flow, flow_range = quantised(found["flow"])
    (place, turned), instances = found["camera"], found["instances"]
    features = {
        "video": [packing.png_bytes(image) for image in truth.rgb],
        "segmentations": [packing.png_bytes(ids) for ids in found["ids"]],
        "depth": [packing.png_bytes(values) for values in depth],
        "forward_flow": flow,
        "metadata/num_frames": np.array([len(depth)]),
        "metadata/video_name": [b"1234"],
        "metadata/depth_range": np.array(depth_range),
        "metadata/forward_flow_range": np.array(flow_range),
        "camera/focal_length": np.array([found["focal"]]),
        "camera/sensor_width": np.array([35.0]),
        "camera/positions": place,
        "camera/quaternions": turned,
        "instances/positions": np.stack([p for p, _ in instances]),
        "instances/quaternions": np.stack([q for _, q in instances]),
    }
    entries = b"".join(piece(1, piece(1, key.encode()) + piece(2, feature(value))) for key, value in features.items())
    data = piece(1, entries)
    length = struct.pack("<Q", len(data))
    packing.folder(path).write_bytes(length + masked_crc(length) + data + masked_crc(data))
    return expected(
        truth,
        f"{path.name}/000000",
        reason="16-bit depth over the range of the clip, float32 poses",
        depth_step=lambda z: step + 0 * z,
        pose_step=2e-6,
        flow_step=lambda z: 1e-5 * z,
        damage=(),
    )
