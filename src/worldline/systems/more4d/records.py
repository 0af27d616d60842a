"""Curated clips as the transformers are trained on at full size: batches of one shape, everything frozen encoded once.

bucket    each record at its nearest shape, batches of one shape (`buckets`)
latents   one file per record beside the run: autoencoder, motion prior, image encoder are not asked twice
texts     one file per caption; the text encoder can leave once they are written (`latents.RememberedTexts`)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.systems.more4d import curated, pool
from worldline.systems.more4d.buckets import MULTIPLE, SIDE, Buckets, bucket_of
from worldline.systems.more4d.latents import FillLatents as FillLatents
from worldline.systems.more4d.latents import Kept, RememberedTexts, encode_fill, encode_motion, fingerprint
from worldline.systems.more4d.latents import MotionLatents as MotionLatents
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.recipes import Stage
from worldline.systems.more4d.train import Source
from worldline.training.loop import Batches


def bucketed(folder: Path, kept: Path, *, side: int = SIDE, multiple: int = MULTIPLE) -> Source:
    """A source of samples for `train.run` from a folder of records.

    Args:
        folder: of `worldline data curate`.
        kept: where latents and texts are kept.
        side, multiple: of the shapes; see `bucket_of`.

    Raises:
        FileNotFoundError: the folder holds no records.
    """
    records = curated.find_records(folder)
    sizes = [bucket_of(size_of(path), side, multiple) for path in records]

    def source(stage: Stage, model: MoRe4D, device: str) -> Batches:
        frames = model.config.frames
        buckets = Buckets(sizes=sizes, batch_size=stage.train.batch_size, seed=stage.train.seed)
        if model.text is not None and not any(p.requires_grad for p in model.text.parameters()):
            remembered = isinstance(model.text, RememberedTexts)
            model.text = model.text if remembered else RememberedTexts(model.text, kept / "texts")

        def raw(number: int, size: tuple[int, int]) -> Any:
            clip = curated.read_clip(records[number], frames, size)
            if stage.samples.startswith("motion"):
                return curated.moving([clip], model.config.focal, device)
            return curated.holed([clip], [curated.read_video(records[number], frames, size)], device)

        one = raw if not stage.samples.endswith("latents") else _encoded(raw, records, stage, model, kept)

        def batch(index: int) -> Any:
            chosen = buckets.batch(index)
            samples = [one(number, chosen.size) for number in chosen.records]
            return pool.moved(pool.together(samples), device)

        return batch

    return source


def size_of(record: Path) -> tuple[int, int]:
    """(H, W) of a record, without reading the rest of it."""
    with np.load(record, allow_pickle=False) as stored:
        _, height, width = (int(n) for n in stored["shape"])
    return height, width


def _encoded(
    raw: Callable[[int, tuple[int, int]], Any], records: list[Path], stage: Stage, model: MoRe4D, kept: Path
) -> Callable[[int, tuple[int, int]], Any]:
    """The latents of a record, from the folder or made and kept."""
    motion = stage.samples == "motion latents"
    folder = Kept(folder=kept / f"{stage.samples.replace(' ', '-')}-{fingerprint(*pool.frozen(model, motion))}")

    @lru_cache(maxsize=4096)
    def caption(number: int) -> str:
        return curated.read_record(records[number]).facts.get("caption", "")

    def one(number: int, size: tuple[int, int]) -> Any:
        def make() -> dict[str, Tensor]:
            encode: Callable[[MoRe4D, Any], Any] = encode_motion if motion else encode_fill
            made = vars(encode(model, raw(number, size)))
            return {key: value.half() for key, value in made.items() if isinstance(value, torch.Tensor)}

        name = f"{records[number].stem}-{size[0]}x{size[1]}"
        return pool.latents_of(folder.get(name, make), (caption(number),), motion)

    return one
