"""Every system by name: what it does, where its weights come from, under which licence, and how to load it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worldline.systems.system import Loading as Loading
from worldline.systems.system import Options as Options
from worldline.systems.system import VideoSystem as VideoSystem


@dataclass(frozen=True, kw_only=True)
class Card:
    """What `worldline systems` says about one system."""

    name: str
    summary: str
    kind: Literal["video", "image"]
    weights: str
    licence: str
    embedded: bool
    """Runs with what is in the package; nothing to download or convert."""
    area: int
    """Pixels per frame it works at when nothing else is asked for."""
    multiple: int
    """Both sides are rounded to a multiple of this by default."""
    needs: tuple[str, ...]
    """Python packages beyond the core."""
    load: Callable[[Loading], VideoSystem]

    @property
    def installed(self) -> bool:
        """Whether the packages it needs are here."""
        return all(importlib.util.find_spec(package) is not None for package in self.needs)


def _motioncrafter_mini(loading: Loading) -> VideoSystem:
    from worldline.systems.motioncrafter.system import load_mini

    return load_mini(loading)


def _motioncrafter(loading: Loading) -> VideoSystem:
    from worldline.systems.motioncrafter.system import load_published

    return load_published(loading)


def _geo4d(loading: Loading) -> VideoSystem:
    from worldline.systems.geo4d.system import load_published

    return load_published(loading)


def _parallax(loading: Loading) -> VideoSystem:
    from worldline.systems.parallax.infer import load_parallax

    return load_parallax(loading)


CARDS = {
    card.name: card
    for card in (
        Card(
            name="parallax",
            summary="cameras, depth and motion from optical flow; no network",
            kind="video",
            weights="none",
            licence="Apache-2.0",
            embedded=True,
            area=192 * 320,
            multiple=2,
            needs=(),
            load=_parallax,
        ),
        Card(
            name="motioncrafter-mini",
            summary="MotionCrafter at laptop size: world points and scene flow in one pass",
            kind="video",
            weights="embedded (synthetic scenes only)",
            licence="Apache-2.0",
            embedded=True,
            area=96 * 160,
            multiple=2,
            needs=(),
            load=_motioncrafter_mini,
        ),
        Card(
            name="motioncrafter",
            summary="MotionCrafter as published: world points and scene flow in one pass",
            kind="video",
            weights="hub: TencentARC/MotionCrafter and Stable Video Diffusion (about 5 GB)",
            licence="academic, non-commercial, not intended for the EU",
            embedded=False,
            area=320 * 640,
            multiple=2,
            needs=(),
            load=_motioncrafter,
        ),
        Card(
            name="geo4d",
            summary="Geo4D as published: point, disparity and ray maps of windows, aligned",
            kind="video",
            weights="yours: `worldline models convert geo4d`, then --weights DIR (about 3 GB)",
            licence="none stated by its authors",
            embedded=False,
            area=320 * 512,
            multiple=2,
            needs=(),
            load=_geo4d,
        ),
    )
}


def card(name: str) -> Card:
    """The card of one system; ValueError names the known ones."""
    if name not in CARDS:
        raise ValueError(f"There is no system '{name}'; choose one of: {', '.join(CARDS)}.")
    return CARDS[name]
