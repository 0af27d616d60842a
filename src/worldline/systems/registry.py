"""Every system by name: what it does, where its weights come from, under which licence, and how to load it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worldline.systems.system import Loading as Loading
from worldline.systems.system import Options as Options
from worldline.systems.system import PictureSystem as PictureSystem
from worldline.systems.system import VideoSystem as VideoSystem
from worldline.systems.system import WindowSystem as WindowSystem


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
    load: Callable[[Loading], VideoSystem | PictureSystem]
    caution: str = ""
    """What it is known to be bad at."""

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


def _motioncrafter_denoising(loading: Loading) -> VideoSystem:
    from worldline.systems.motioncrafter.system import load_denoising

    return load_denoising(loading)


def _geo4d_mini(loading: Loading) -> VideoSystem:
    from worldline.systems.geo4d.system import load_mini

    return load_mini(loading)


def _geo4d(loading: Loading) -> VideoSystem:
    from worldline.systems.geo4d.system import load_published

    return load_published(loading)


def _more4d_mini(loading: Loading) -> PictureSystem:
    from worldline.systems.more4d.system import load_mini

    return load_mini(loading)


def _more4d(loading: Loading) -> PictureSystem:
    from worldline.systems.more4d.system import load_published

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
            caution="scene flow is no better than predicting no motion, and marked unreliable",
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
            name="motioncrafter-denoising",
            summary="MotionCrafter's denoising U-Net: three seeds, their spread is the confidence; 15 times slower",
            kind="video",
            weights="hub: TencentARC/MotionCrafter and Stable Video Diffusion (about 5 GB)",
            licence="academic, non-commercial, not intended for the EU",
            embedded=False,
            area=320 * 640,
            multiple=2,
            needs=(),
            load=_motioncrafter_denoising,
        ),
        Card(
            name="geo4d-mini",
            summary="Geo4D at laptop size: points, disparity and rays of windows, aligned",
            kind="video",
            weights="embedded (synthetic scenes only)",
            licence="Apache-2.0",
            embedded=True,
            area=96 * 160,
            multiple=2,
            needs=(),
            load=_geo4d_mini,
            caution="weak: points beat predictors that do not look at the video by a seventh of the error, cameras and "
            "disparity do not and are marked unreliable; auto does not use it",
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
        Card(
            name="more4d-mini",
            summary="MoRe4D at laptop size: a picture begins to move, seen along any camera path",
            kind="image",
            weights="embedded (synthetic scenes only)",
            licence="Apache-2.0",
            embedded=True,
            area=192 * 288,
            multiple=2,
            needs=(),
            load=_more4d_mini,
        ),
        Card(
            name="more4d",
            summary="MoRe4D as published: a picture begins to move, seen along any camera path",
            kind="image",
            weights="hub: Yanran21/MoGe4D and Wan2.1-Fun-V1.1-14B-InP (about 100 GB)",
            licence="MoRe4D's are not stated (code MIT), Wan2.1-Fun Apache-2.0, OmniMAE inside CC BY-NC 4.0",
            embedded=False,
            area=368 * 512,
            multiple=2,
            needs=(),
            load=_more4d,
        ),
    )
}


def card(name: str) -> Card:
    """The card of one system; ValueError names the known ones."""
    if name not in CARDS:
        raise ValueError(f"There is no system '{name}'; choose one of: {', '.join(CARDS)}.")
    return CARDS[name]


def of_kind(system: str, kind: str) -> Card:
    """The card of a system that does what is wanted.

    Raises:
        ValueError: there is none of that name, or it is of the other kind.
    """
    entry = card(system)
    if entry.kind != kind:
        names = ", ".join(name for name, other in CARDS.items() if other.kind == kind)
        does = {"image": "turns pictures into tracks", "video": "reconstructs videos"}
        raise ValueError(f"The system {system} {does[entry.kind]}; for this, choose one of: {names}.")
    return entry
