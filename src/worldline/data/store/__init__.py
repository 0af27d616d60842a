"""The clip store: clips with truth, sharded, one checksummed chunk per frame, on a disk or behind an fsspec URL.

Why not a folder of scenes as `io/store` writes: a Scene4D folder is a file per frame and array, 900 for a clip of 150
frames, and a dataset has thousands of clips. zarr's own shards would join the frames of one array, still six files per
clip, at 0.5 ms of Python per chunk; a training batch reads 200. Here the chunks are byte for byte those of `io/store`
(`io/chunks`), laid one after another in files of 256 MB, and an index says where. Reading one costs 0.02-0.05 ms
more than decompressing it, and a range of frames is one range of one file, which is what object stores are good at.
"""

from __future__ import annotations

from worldline.data.store.index import Entry
from worldline.data.store.reader import ClipStore, Damage, StoredClip
from worldline.data.store.writer import ShardWriter, begin, erase, finish

__all__ = ["ClipStore", "Damage", "Entry", "ShardWriter", "StoredClip", "begin", "erase", "finish"]
