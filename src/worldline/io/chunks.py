"""One array as checksummed bytes: bytes -> blosc (zstd, bit shuffle) -> crc32c, the chunks that `io/store` writes.

zarr makes the same bytes from the same array (a test compares them). Without zarr around it, a chunk of a small frame
is read ten times faster, and its place may be anywhere in a larger file.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_BLOSC_BITSHUFFLE = 2
_CHECKSUM = struct.Struct("<I")
_SIZE = struct.Struct("<4xI8x")  # blosc's header of 16 bytes: the uncompressed size follows four of versions and flags


class DamagedChunk(ValueError):
    """The bytes of a chunk are not what was written."""


def encode(array: np.ndarray) -> bytes:
    """The chunk of an array; its dtype and shape are not in it."""
    import google_crc32c
    from numcodecs import blosc

    array = np.ascontiguousarray(array)
    packed = blosc.compress(array, b"zstd", 3, _BLOSC_BITSHUFFLE)
    return packed + _CHECKSUM.pack(google_crc32c.value(packed))


def decode(chunk: bytes, dtype: Any, shape: tuple[int, ...], out: np.ndarray | None = None) -> np.ndarray:
    """The array of a chunk, into `out` if given (contiguous, same dtype and shape).

    Raises:
        DamagedChunk: the checksum is wrong, or it is the chunk of another kind of array.
    """
    import google_crc32c
    from numcodecs import blosc

    packed = chunk[: -_CHECKSUM.size]
    if len(chunk) <= _CHECKSUM.size or google_crc32c.value(packed) != _CHECKSUM.unpack(chunk[-_CHECKSUM.size :])[0]:
        raise DamagedChunk("its checksum is wrong" if chunk else "it is missing")
    out = np.empty(shape, dtype) if out is None else out
    size = _SIZE.unpack_from(packed)[0] if len(packed) >= _SIZE.size else -1
    if size != out.nbytes:
        raise DamagedChunk(f"it holds {size} bytes, not the {out.nbytes} of {out.dtype} {list(out.shape)}")
    try:
        if size:
            blosc.decompress(packed, out)
    except (RuntimeError, TypeError) as error:
        raise DamagedChunk(str(error)) from error
    return out
