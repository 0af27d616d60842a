"""Geo4D as a system of the registry: loaded weights, default settings, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worldline.align.config import AlignConfig
from worldline.align.observation import Observation
from worldline.scene import Provenance, Scene4D, Video
from worldline.systems.geo4d import pretrained
from worldline.systems.geo4d.infer import InferConfig, infer, observe_each
from worldline.systems.geo4d.networks import Geo4D
from worldline.systems.system import Loading, Options

MINI_CHECKPOINT = Path(__file__).with_name("weights") / "mini.safetensors"
"""The embedded checkpoint; its JSON lies beside it."""

MINI_MAX_PIXELS = 64 * 64
"""Larger frames are shrunk to this, padding included, for the small networks, which have only seen small pictures."""

MINI_RAY_FOCAL_SIGMA = 0.1
"""How far the mini's ray maps are off in focal length, however well they agree: believed to the alignment's usual half
a percent, they cost 1 to 7 percent points of AbsRel (benchmarks/RESULTS.md)."""

OFFLOAD_BELOW_BYTES = 8 * 1024**3
"""With less free GPU memory than this, networks visit the GPU one at a time."""


@dataclass(frozen=True, kw_only=True)
class Geo4DSystem:
    """A loaded model with its settings.

    Attributes:
        name: of the system, for the provenance.
        model: the networks.
        config: settings; overlap and seed of the caller's options come before them.
        weights_sha256: hash of the weights.
        unreliable: outputs that do not beat their trivial predictor.
    """

    name: str
    model: Geo4D
    config: InferConfig
    weights_sha256: str
    unreliable: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def reconstruct(self, video: Video, options: Options) -> Scene4D:
        """One scene for the whole video, at the video's resolution.

        Raises:
            ValueError: another window than the model's is asked for.
        """
        return infer(
            video,
            self.model,
            self._chosen(options),
            cache=options.cache,
            progress=options.progress,
            priors=options.priors,
            provenance=Provenance(system=self.name, weights_sha256=self.weights_sha256, unreliable=self.unreliable),
        )

    def observe(self, video: Video, options: Options) -> Iterator[Observation]:
        """What it says about every window, in order, one at a time; nothing is kept but in `options.cache`.

        Raises:
            ValueError: another window than the model's is asked for.
        """
        config = self._chosen(options)
        return observe_each(video, self.model, config, cache=options.cache, progress=options.progress)

    def _chosen(self, options: Options) -> InferConfig:
        """The settings, with what the caller chose."""
        window = self.model.config.window
        if options.window not in (None, window):
            raise ValueError(
                f"{self.name} looks at {window} frames at a time, for which its context is made; "
                f"leave out --window or give {window}."
            )
        stride = self.config.stride if options.overlap is None else window - options.overlap
        return replace(self.config, stride=stride, seeds=(options.seed,))


def load_mini(loading: Loading) -> Geo4DSystem:
    """The embedded small model, or another checkpoint file written by `worldline train geo4d-mini`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        WeightsError: it is damaged or does not fit.
    """
    path = MINI_CHECKPOINT if loading.weights is None else Path(loading.weights)
    loaded = pretrained.load_file(path, dtype=loading.dtype or torch.float32)
    return Geo4DSystem(
        name="geo4d-mini",
        model=loaded.model.to(loading.device),
        config=InferConfig(
            max_pixels=MINI_MAX_PIXELS,
            final="clean",
            ray_reduction=2,
            optical_flow=False,  # estimated flow makes its cameras worse and its depth no better (weights/README.md)
            align=AlignConfig(ray_focal_sigma=MINI_RAY_FOCAL_SIGMA),
        ),
        weights_sha256=loaded.sha256,
        unreliable=tuple(loaded.card.get("unreliable", ())),
    )


def load_published(loading: Loading) -> Geo4DSystem:
    """The published model from a folder written by `worldline models convert geo4d`.

    The U-Net in half precision on GPUs, float32 on the CPU; autoencoders always in float32. On a small GPU each network
    is there only while it works.

    Raises:
        WeightsError: no folder is given, or what is in it is damaged or does not fit.
    """
    half = torch.float32 if loading.device.type == "cpu" else torch.bfloat16
    loaded = pretrained.load_folder(loading.weights, dtype=loading.dtype or half)
    offload = loading.device.type == "cuda" and torch.cuda.mem_get_info(loading.device)[0] < OFFLOAD_BELOW_BYTES
    return Geo4DSystem(
        name="geo4d",
        model=loaded.model if offload else loaded.model.to(loading.device),
        config=InferConfig(device=str(loading.device)),
        weights_sha256=loaded.sha256,
    )
