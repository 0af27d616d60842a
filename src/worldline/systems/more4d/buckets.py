"""Pictures of different shapes in one training: each batch has one shape, the nearest of a table (spec 2.5).

Shapes are diffusers' PixArt table for 512 pixels (the published one has three more, not written in the spec), scaled by
456/512 and floored to multiples of 16: a record of 384x512 is trained at 368x512, cropped, never stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

TABLE = (
    (256, 1024), (256, 928), (288, 896), (288, 864), (288, 832), (320, 800), (320, 768), (352, 736), (352, 704),
    (352, 672), (384, 672), (384, 640), (416, 608), (416, 576), (448, 576), (448, 544), (480, 544), (480, 512),
    (512, 512), (512, 480), (544, 480), (544, 448), (576, 448), (576, 416), (608, 416), (640, 384), (672, 384),
    (704, 352), (736, 352), (768, 320), (800, 320), (864, 288), (1024, 256),
)  # fmt: skip
"""(H, W), from wide to high."""

SIDE, MULTIPLE = 456, 16
"""Published: `video_sample_size`, and what both sides are floored to."""


def bucket_of(size: tuple[int, int], side: int = SIDE, multiple: int = MULTIPLE) -> tuple[int, int]:
    """(H, W) that a picture is trained at: the table's nearest ratio of height to width, the wider one of two equal.

    Ratios are compared as the table names them, to two digits; `side` scales the table, whose own is 512.
    """
    ratio = size[0] / size[1]
    height, width = min(TABLE, key=lambda entry: round(abs(round(entry[0] / entry[1], 2) - ratio), 9))
    return tuple(max(multiple, int(length * side / 512) // multiple * multiple) for length in (height, width))  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Which records are trained together.

    Attributes:
        size: (H, W) of all of them.
        records: their numbers.
    """

    size: tuple[int, int]
    records: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Records grouped by shape; every pass sees each of them once, in another order.

    Attributes:
        sizes: (H, W) each record is trained at.
        batch_size: records per batch; what is left over in a shape is filled up from its beginning.
        seed: of the order.
    """

    sizes: Sequence[tuple[int, int]]
    batch_size: int
    seed: int

    @property
    def per_pass(self) -> int:
        """Batches in one pass."""
        return sum(-(-count // self.batch_size) for count in self._counts().values())

    def batch(self, index: int) -> Batch:
        """The batch of an index: a pure function, so that processes that take every n-th share the work evenly.

        Raises:
            ValueError: there are no records.
        """
        if not self.sizes:
            raise ValueError("There is nothing to train on: the folder holds no records.")
        passed, place = divmod(index, self.per_pass)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + passed) % 2**63)
        batches: list[Batch] = []
        for size in sorted(self._counts()):
            members = [number for number, own in enumerate(self.sizes) if own == size]
            order = [members[int(i)] for i in torch.randperm(len(members), generator=generator)]
            order += [order[i % len(order)] for i in range(-len(order) % self.batch_size)]
            starts = range(0, len(order), self.batch_size)
            batches += [Batch(size=size, records=tuple(order[s : s + self.batch_size])) for s in starts]
        return batches[int(torch.randperm(len(batches), generator=generator)[place])]

    def _counts(self) -> dict[tuple[int, int], int]:
        counts: dict[tuple[int, int], int] = {}
        for size in self.sizes:
            counts[size] = counts.get(size, 0) + 1
        return counts
