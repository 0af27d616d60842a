"""Synthetic scenes as jobs that make a store: one clip per seed, the same bits whoever renders it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from worldline.data.build import Job
from worldline.data.synthetic import CATEGORY_NAMES, RenderConfig, SensorConfig, render_clip
from worldline.scene import Scene4D


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """What is rendered.

    Attributes:
        clips: how many.
        seed: of the first clip; the others follow.
        frames: of each clip.
        size: (H, W) in pixels.
        category: one of the generator's, None for a random one each.
        sensor: add the exposure, tone and noise errors of a real camera.
        extras: which per-pixel truth to keep besides points and flow.
    """

    clips: int = 100
    seed: int = 0
    frames: int = 24
    size: tuple[int, int] = (128, 192)
    category: str | None = None
    sensor: bool = True
    extras: tuple[str, ...] = ("object_id",)

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if self.clips < 1 or self.seed < 0 or self.frames < 1:
            raise ValueError(f"Cannot render {self.clips} clips of {self.frames} frames from seed {self.seed}.")
        if self.category is not None and self.category not in CATEGORY_NAMES:
            raise ValueError(f"There is no category {self.category!r}; choose one of {', '.join(CATEGORY_NAMES)}.")


def jobs(config: SynthesisConfig) -> Iterator[Job]:
    """One job per clip."""
    for seed in range(config.seed, config.seed + config.clips):
        yield Job(name=f"{seed:08d}", make=partial(_render, seed, config))


def _render(seed: int, config: SynthesisConfig) -> Scene4D:
    render = RenderConfig(sensor=SensorConfig() if config.sensor else None)
    scene = render_clip(seed, frames=config.frames, size=config.size, category=config.category, config=render)
    facts: Mapping[str, Any] = {"dataset": "synthetic", "split": "train", "synthetic": True}
    provenance = replace(scene.provenance, settings={**scene.provenance.settings, **facts})
    kept = {name: values for name, values in scene.extras.items() if name in config.extras}
    return replace(scene, provenance=provenance, extras=kept)
