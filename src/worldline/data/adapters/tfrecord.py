"""TFRecord files of tf.train.Example, read without TensorFlow: the framing, and the protobuf wire format.

A record is a uint64 length, the masked CRC-32C of the length, the bytes, and their masked CRC-32C. An Example is nested
messages: features (1) of map entries (1) with a key (1) and a Feature (2), which holds one of bytes_list (1),
float_list (2) and int64_list (3), each with its values in field 1, packed for numbers.
(https://www.tensorflow.org/tutorials/load_data/tfrecord, https://protobuf.dev/programming-guides/encoding)
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Buffer = bytes | memoryview
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def records(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of every record's bytes; only the framing is read.

    Raises:
        ValueError: the file ends inside a record.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if at + 16 + length > size:
                raise ValueError(f"{path} ends inside the record that starts at byte {at}; the file is cut off.")
            yield at + 12, length
            at += 16 + length


def read_record(path: Path, offset: int, length: int) -> bytes:
    """The bytes of a record.

    Raises:
        ValueError: the check sum is wrong.
    """
    from google_crc32c import value

    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length + 4)
    crc = value(data[:length])
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    if len(data) != length + 4 or struct.unpack("<I", data[length:])[0] != masked:
        raise ValueError(f"{path} is damaged: the check sum of the record at byte {offset - 12} is wrong.")
    return data[:length]


def peek(path: Path, offset: int, length: int, names: tuple[str, ...]) -> dict[str, list[bytes] | np.ndarray]:
    """Some features of a record without reading the others' bytes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with memoryview(mapped) as whole, whole[offset : offset + length] as view:
            return example(view, names)


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: Buffer) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start, end) of the fields of a message; for a varint, start is where it stands."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, end = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            end = at + length
        elif kind in (_FIXED32, _FIXED64):
            end = at + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"Wire type {kind} is not one of protobuf's.")
        if end > len(data):
            raise ValueError("A protobuf field reaches past the end of its message.")
        yield number, kind, at, end
        at = end


def varints(data: Buffer) -> np.ndarray:
    """Packed varints as int64."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64)
    last = np.flatnonzero(raw < 0x80)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(first, last - first + 1)
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, first).astype(np.int64)


def _values(data: Buffer) -> list[bytes] | np.ndarray:
    """The list in a Feature message: bytes, float32 or int64."""
    for number, _, start, end in _fields(data):
        inner = data[start:end]
        if number == 1:
            return [bytes(inner[a:b]) for _, _, a, b in _fields(inner)]
        dtype = np.float32 if number == 2 else np.int64
        parts = [np.zeros(0, dtype)]
        for _, _, a, b in _fields(inner):
            whole = bytes(inner[a:b])
            parts.append(np.frombuffer(whole, "<f4") if number == 2 else varints(whole))
        return np.concatenate(parts)
    return []


def example(data: Buffer, names: tuple[str, ...] | None = None) -> dict[str, list[bytes] | np.ndarray]:
    """The features of an Example by name; of all names, or of the given ones only.

    Raises:
        ValueError: the bytes are no Example.
    """
    found: dict[str, list[bytes] | np.ndarray] = {}
    for number, _, start, end in _fields(data):
        if number != 1:
            continue
        features = data[start:end]
        for _, _, a, b in _fields(features):
            entry = features[a:b]
            parts = {field: entry[s:e] for field, _, s, e in _fields(entry)}
            name = bytes(parts[1]).decode()
            if names is None or name in names:
                found[name] = _values(parts[2])
    return found
