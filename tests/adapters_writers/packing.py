"""Encoders of the file formats data sets use, written from the formats' descriptions."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np


def folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def png(path: Path, values: np.ndarray) -> None:
    """8- or 16-bit grey or colour png, made of its chunks (PNG specification; filter 0 on every line)."""
    folder(path).write_bytes(png_bytes(values))


def png_bytes(values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    color = {1: 0, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    lines = np.ascontiguousarray(values.astype(">u2" if values.dtype == np.uint16 else np.uint8))
    raw = b"".join(b"\0" + line.tobytes() for line in lines)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16 if values.dtype == np.uint16 else 8, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpg(path: Path, values: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(values).save(folder(path), quality=95, subsampling=0)


def whole(values: np.ndarray) -> np.ndarray:
    """Nearest 16-bit integers."""
    return np.clip(np.round(values), 0, 65535).astype(np.uint16)


def pfm(path: Path, values: np.ndarray) -> None:
    """Bottom row first, little endian."""
    kind = b"PF" if values.ndim == 3 else b"Pf"
    header = b"%s\n%d %d\n-1.0\n" % (kind, values.shape[1], values.shape[0])
    folder(path).write_bytes(header + b"".join(row.astype("<f4").tobytes() for row in reversed(values)))


def sintel_map(path: Path, values: np.ndarray) -> None:
    """.flo and .dpt: the tag 202021.25, width, height, values row by row."""
    header = struct.pack("<fii", 202021.25, values.shape[1], values.shape[0])
    folder(path).write_bytes(header + values.astype("<f4").tobytes())


def text(path: Path, lines: list[str]) -> None:
    folder(path).write_text("\n".join(lines) + "\n")


def dump(path: Path, value: Any, zipped: bool = False) -> None:
    data = json.dumps(value).encode()
    folder(path).write_bytes(gzip.compress(data) if zipped else data)


def npy(path: Path, values: np.ndarray) -> None:
    np.save(folder(path), values)


def hdf5(path: Path, **arrays: np.ndarray) -> None:
    import h5py

    with h5py.File(folder(path), "w") as file:
        for name, values in arrays.items():
            file[name] = values


def exr(path: Path, **channels: np.ndarray) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    values = {name: np.ascontiguousarray(value.astype(np.float32)) for name, value in channels.items()}
    OpenEXR.File(header, values).write(str(folder(path)))


def numbers(row: np.ndarray) -> str:
    """Nine digits after the point: metres in text lose a nanometre."""
    return " ".join(f"{value:.9f}" for value in np.asarray(row).ravel())


def wxyz(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion of a rotation matrix: the eigenvector of its symmetric 4x4 form (Bar-Itzhack)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    form = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.linalg.eigh(form)[1][:, -1]


def damage(path: Path) -> None:
    """Keep the first two thirds of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
