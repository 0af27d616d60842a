"""A fixed pool of synthetic scenes on disk, seen again and again: samples of every stage of the embedded model.

Rendering costs more than a training step of so small a model, so each scene is rendered once, twice used (as it is, and
in the mirror with left and right exchanged in its caption), and kept as bytes and halves. Shards are made when they are
first asked for, in order, so that a run that is stopped early has not rendered what it never saw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, reduce
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldline.systems.more4d.latents import (
    FillLatents,
    Kept,
    MotionLatents,
    encode_fill,
    encode_motion,
    fingerprint,
)
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.samples import FillSamples, MotionSamples, fill_samples, motion_samples
from worldline.training.config import SEEDS_PER_RUN
from worldline.training.loop import Batches

Seen = Literal["motion", "fill", "motion latents", "fill latents"]
Samples = MotionSamples | FillSamples | MotionLatents | FillLatents
ENCODED_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which scenes there are.

    Attributes:
        shards: files; each is one bundle of scenes.
        scenes: per shard; with their mirror images there are twice as many samples.
        clip: frames of the clips that the autoencoder is trained on; the others see all. None: all.
    """

    shards: int = 48
    scenes: int = 32
    clip: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The pool of one run.

    Attributes:
        config: which scenes.
        folder: where they are kept.
        seed: of the run; it owns the scene seeds.
        size: (H, W).
        frames: T.
        focal: constants of the normalisation; None: each camera's own.
        device: where scenes are rendered.
    """

    config: PoolConfig
    folder: Path
    seed: int
    size: tuple[int, int]
    frames: int
    focal: tuple[float, float] | None = None
    device: str = "cpu"

    def shard(self, number: int) -> tuple[MotionSamples, FillSamples]:
        """All samples of a shard, mirrored ones in the second half."""
        stored = Kept(folder=self.folder).get(self._name(number), lambda: self._render(number))
        captions = tuple(json.loads(bytes(stored.pop("captions").tolist())))
        value = {key: _wide(entry) for key, entry in stored.items()}
        motion = MotionSamples(
            image=value["video"][:, 0], depth=value["depth"], motion=value["motion"], weight=value["weight"],
            captions=captions, video=value["video"],
        )  # fmt: skip
        fill = FillSamples(
            video=value["video"], rendered=value["rendered"], known=stored["known"].bool(), captions=captions
        )
        return motion, fill

    def _name(self, number: int) -> str:
        return f"scenes-{self.size[0]}x{self.size[1]}x{self.frames}-{self.seed}-{self.config.scenes}-{number:04}"

    def _render(self, number: int) -> dict[str, Tensor]:
        from worldline.data.synthetic import RenderConfig, SensorConfig, render_batch

        first = self.seed * SEEDS_PER_RUN + number * self.config.scenes
        clips = render_batch(
            range(first, first + self.config.scenes), frames=self.frames, size=self.size, device=self.device,
            config=RenderConfig(sensor=SensorConfig(), tracks=True),
        )  # fmt: skip
        assert clips.tracks is not None and clips.visible is not None
        motion = motion_samples(
            clips.rgb[:, 0], clips.tracks, clips.visible, clips.valid[:, 0], clips.intrinsics[:, 0],
            clips.cam2world[:, 0], clips.captions, focal=self.focal,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(first)
        fills = [
            fill_samples(clips.rgb, clips.depth, clips.valid, clips.intrinsics, clips.captions, generator)
            for _ in range(2)  # the mirror image has other cameras, and so other holes
        ]
        both = _joined(motion, mirrored_motion(motion)), _joined(fills[0], mirrored_fill(fills[1]))
        captions = json.dumps(both[0].captions).encode()
        return {
            "video": _bytes(both[1].video),
            "rendered": _bytes(both[1].rendered),
            "known": both[1].known.to(torch.uint8),
            "motion": both[0].motion.half(),
            "weight": both[0].weight.half(),
            "depth": both[0].depth.half(),
            "captions": torch.frombuffer(bytearray(captions), dtype=torch.uint8),
        }


def mirrored_motion(samples: MotionSamples) -> MotionSamples:
    """The same scenes in a mirror; exact for cameras whose axis is in the middle of the picture."""
    motion = samples.motion.flip(3) * samples.motion.new_tensor([-1.0, 1.0, 1.0])
    return MotionSamples(
        image=samples.image.flip(2),
        depth=samples.depth.flip(2),
        motion=motion,
        weight=samples.weight.flip(3),
        captions=tuple(map(mirrored_caption, samples.captions)),
        video=None if samples.video is None else samples.video.flip(3),
    )


def mirrored_fill(samples: FillSamples) -> FillSamples:
    """The same videos in a mirror."""
    return FillSamples(
        video=samples.video.flip(3),
        rendered=samples.rendered.flip(3),
        known=samples.known.flip(3),
        captions=tuple(map(mirrored_caption, samples.captions)),
    )


def mirrored_caption(text: str) -> str:
    """Left for right and right for left."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda match: other[match[1]], text)


def batches(pool: Pool, kind: Seen, batch_size: int, model: MoRe4D) -> Batches:
    """Batches by index: shards in an order that changes with every pass, shuffled inside.

    Raises:
        ValueError: a shard does not hold a whole number of batches.
    """
    per_shard = 2 * pool.config.scenes
    if per_shard % batch_size:
        raise ValueError(f"Batches of {batch_size} do not divide shards of {per_shard} samples.")
    parts, shard = per_shard // batch_size, _reader(pool, kind, model)

    def batch(index: int) -> Samples:
        turn, part = divmod(index, parts)
        number, passed = turn % pool.config.shards, turn // pool.config.shards
        if passed:
            number = int(_order(pool.config.shards, pool.seed + passed)[number])
        chosen = _order(per_shard, pool.seed * 1_000_003 + turn)[part * batch_size : (part + 1) * batch_size]
        samples = picked(shard(number), chosen)
        if isinstance(samples, MotionSamples) and pool.config.clip is not None:
            return shortened(samples, pool.config.clip, index)
        return samples

    return batch


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))


def _reader(pool: Pool, kind: Seen, model: MoRe4D) -> Callable[[int], Samples]:
    """The samples of a shard, encoded if the kind says so; latents are few and stay in memory."""
    if not kind.endswith("latents"):
        return lru_cache(maxsize=2)(lambda number: pool.shard(number)[kind == "fill"])
    motion = kind == "motion latents"
    kept = Kept(folder=pool.folder / f"{kind.replace(' ', '-')}-{fingerprint(*frozen(model, motion))}")

    @cache
    def encoded(number: int) -> Samples:
        found: list[tuple[str, ...]] = []

        def make() -> dict[str, Tensor]:
            samples = pool.shard(number)[not motion]
            found.append(samples.captions)
            return _encoded(model, samples)

        stored = kept.get(pool._name(number), make)
        captions = found[0] if found else pool.shard(number)[0].captions
        return latents_of(stored, captions, motion)

    return encoded


def frozen(model: MoRe4D, motion: bool) -> list[nn.Module]:
    """The networks that latents of motion, or of videos with holes, depend on."""
    networks: list[nn.Module] = [model.vae]
    if motion and model.generator.guided:
        networks.append(model.generator.omnimae_extractor)
    if not motion and model.image is not None:
        networks.append(model.image)
    return networks


def latents_of(stored: Mapping[str, Tensor], captions: tuple[str, ...], motion: bool) -> MotionLatents | FillLatents:
    """Latents from what was kept of them."""
    value: dict[str, Any] = {key: entry.float() for key, entry in stored.items()}
    value.setdefault("features" if motion else "context", None)
    return (MotionLatents if motion else FillLatents)(**value, captions=captions)


def _encoded(model: MoRe4D, samples: MotionSamples | FillSamples) -> dict[str, Tensor]:
    """Latents of a shard as halves."""
    encode: Callable[[MoRe4D, Any], Any] = encode_motion if isinstance(samples, MotionSamples) else encode_fill
    where = str(next(model.parameters()).device)
    parts = [
        {
            key: value.half()
            for key, value in vars(encode(model, moved(picked(samples, chosen), where))).items()
            if _is(value)
        }
        for chosen in torch.arange(len(samples.captions)).split(ENCODED_AT_ONCE)
    ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def picked(samples: Any, chosen: Tensor) -> Any:
    """Some of the samples, of any kind."""
    fields = {
        name: tuple(value[int(i)] for i in chosen) if name == "captions" else value if value is None else value[chosen]
        for name, value in vars(samples).items()
    }
    return type(samples)(**fields)


def shortened(samples: MotionSamples, frames: int, index: int) -> MotionSamples:
    """Clips of fewer frames: every other batch the first ones, else some spread over the whole clip."""
    total = samples.motion.shape[1]
    if frames >= total:
        return samples
    step = (total - 1) // (frames - 1) if index % 2 else 1
    chosen = torch.arange(frames) * step
    video = None if samples.video is None else samples.video[:, chosen]
    return replace(samples, motion=samples.motion[:, chosen], weight=samples.weight[:, chosen], video=video)


def moved(samples: Any, device: str) -> Any:
    """Samples on a device."""
    fields = {name: value.to(device) if _is(value) else value for name, value in vars(samples).items()}
    return type(samples)(**fields)


def together(samples: Sequence[Any]) -> Any:
    """Samples of one kind as one batch."""
    return reduce(_joined, samples)


def _joined(first: Any, second: Any) -> Any:
    fields = {
        name: None if value is None else value + vars(second)[name] if name == "captions" else
        torch.cat([value, vars(second)[name]])
        for name, value in vars(first).items()
    }  # fmt: skip
    return type(first)(**fields)


def _bytes(value: Tensor) -> Tensor:
    return (value.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _wide(value: Tensor) -> Tensor:
    return value.float() / 255 if value.dtype == torch.uint8 else value.float()
