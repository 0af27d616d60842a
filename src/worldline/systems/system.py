"""What every system is: something that turns a video into a scene, under options a caller may choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from worldline.align.config import Priors
from worldline.align.observation import Observation
from worldline.io.partial import PartialRun
from worldline.scene import Progress, Scene4D, Tracks4D, Video, no_progress

Offload = Literal["auto", "none", "model", "sequential", "sharded"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller may choose about one reconstruction; None means the system's own default.

    Attributes:
        window: frames per window.
        overlap: frames that consecutive windows share.
        seed: for systems that draw random numbers.
        priors: what is known beforehand about cameras, motion and scale.
        flow: dense optical flow of systems that see motion: "dis", or "learned", which takes longer.
        cache: finished windows of an interrupted run.
        progress: receives (step, done, total).
    """

    window: int | None = None
    overlap: int | None = None
    seed: int = 0
    priors: Priors = field(default_factory=Priors)
    flow: Literal["dis", "learned"] = "dis"
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


@runtime_checkable
class WindowSystem(VideoSystem, Protocol):
    """A system that looks at windows of a video; others may use what it says without having it aligned."""

    @property
    def weights_sha256(self) -> str:
        """Hash of its weights."""
        ...

    def observe(self, video: Video, options: Options) -> Iterator[Observation]:
        """What it says about every window, in order, one at a time; nothing is kept but in `options.cache`."""
        ...


@runtime_checkable
class PictureSystem(Protocol):
    """Anything that turns a picture into tracks, and tracks or scenes into videos along a camera path."""

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        ...

    def generate(self, picture: Any, prompt: str, depth_prior: Any, **options: Any) -> Tracks4D:
        """Tracks of the picture's pixels."""
        ...

    def synthesize(self, source: Tracks4D | Scene4D, path: Any, **options: Any) -> Video:
        """A video along a path of cam2world poses."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How to load a system.

    Attributes:
        device: where its networks run.
        dtype: precision of its networks; None is the system's own default.
        weights: folder or hub repository of other weights; None is the published or embedded ones.
        accept_license: the caller has read and accepts the licence of the weights.
        offload: for the largest networks on a GPU: "none" holds everything there, "model" one network at a time,
            "sequential" one block at a time, "sharded" spreads blocks over all GPUs; "auto" by what fits.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    weights: str | None = None
    accept_license: bool = False
    offload: Offload = "auto"
