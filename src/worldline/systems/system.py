"""What every system is: something that turns a video into a scene, under options a caller may choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from worldline.align.config import Priors
from worldline.io.partial import PartialRun
from worldline.scene import Progress, Scene4D, Video, no_progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller may choose about one reconstruction; None means the system's own default.

    Attributes:
        window: frames per window.
        overlap: frames that consecutive windows share.
        seed: for systems that draw random numbers.
        priors: what is known beforehand about cameras, motion and scale.
        cache: finished windows of an interrupted run.
        progress: receives (step, done, total).
    """

    window: int | None = None
    overlap: int | None = None
    seed: int = 0
    priors: Priors = field(default_factory=Priors)
    cache: PartialRun | None = None
    progress: Progress = no_progress


@runtime_checkable
class VideoSystem(Protocol):
    """Anything that turns a video into a scene."""

    @property
    def parameters(self) -> int:
        """Number of learned parameters (0: none)."""
        ...

    def reconstruct(self, video: Video, options: Options) -> Scene4D:
        """One scene for the whole video, at the video's resolution."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How to load a system.

    Attributes:
        device: where its networks run.
        dtype: precision of its networks; None is the system's own default.
        weights: folder or hub repository of other weights; None is the published or embedded ones.
        accept_license: the caller has read and accepts the licence of the weights.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    weights: str | None = None
    accept_license: bool = False
