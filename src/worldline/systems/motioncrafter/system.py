"""MotionCrafter as a system of the registry: loaded weights, default settings, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worldline.align.observation import Observation
from worldline.io.tensors import WeightsError
from worldline.scene import Provenance, Scene4D, Video, no_progress
from worldline.systems.motioncrafter import pretrained
from worldline.systems.motioncrafter.config import Paradigm
from worldline.systems.motioncrafter.infer import InferConfig, infer, observe_all, window_plan
from worldline.systems.motioncrafter.networks import MotionCrafter
from worldline.systems.system import Loading, Options

MINI_CHECKPOINT = Path(__file__).parent / "weights" / "mini.safetensors"
"""The embedded checkpoint; its JSON lies beside it."""

MINI_MAX_PIXELS = 48 * 64
"""Larger frames are shrunk to this for the small networks, which have only seen small pictures."""

MINI_INFERENCE = InferConfig(max_pixels=MINI_MAX_PIXELS, optical_flow=False)
"""Optical flow costs more than the networks and changes nothing yet (model card), so it is not estimated."""

OFFLOAD_BELOW_BYTES = 12 * 1024**3
"""With less free GPU memory than this, networks visit the GPU one at a time."""


@dataclass(frozen=True, kw_only=True)
class MotionCrafterSystem:
    """A loaded model with its settings.

    Attributes:
        name: of the system, for the provenance.
        model: the networks.
        config: settings; window, overlap and seed of the caller's options come before them.
        weights_sha256: hash of the weights.
        unreliable: outputs that do not beat their trivial predictor.
        runs: how often the denoising paradigm answers each window, with seeds one after the other; their spread is
            the confidence.
    """

    name: str
    model: MotionCrafter
    config: InferConfig
    weights_sha256: str
    unreliable: tuple[str, ...] = ()
    runs: int = 1

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def reconstruct(self, video: Video, options: Options) -> Scene4D:
        """One scene for the whole video, at the video's resolution."""
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
        """What it says about every window, in order, one at a time; nothing is kept but in `options.cache`."""
        config = self._chosen(options)
        plan = window_plan(len(video), self.model, config)
        for done, window in enumerate(plan, 1):
            yield observe_all(self.model, video, [window], config, options.cache, no_progress)[0]
            options.progress("windows", done, len(plan))

    def _chosen(self, options: Options) -> InferConfig:
        """The settings, with what the caller chose."""
        seeds = tuple(range(options.seed, options.seed + self.runs))
        config = replace(self.config, window=options.window, overlap=options.overlap, seeds=seeds)
        if options.window is not None and options.overlap is None:
            return replace(config, overlap=min(self.model.config.overlap, max(options.window - 1, 0)))
        return config


def load_mini(loading: Loading) -> MotionCrafterSystem:
    """The embedded small model, or another checkpoint file written by `worldline train`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        WeightsError: it is damaged or does not fit.
    """
    path = MINI_CHECKPOINT if loading.weights is None else Path(loading.weights)
    loaded = pretrained.load_file(path, dtype=loading.dtype or torch.float32)
    return MotionCrafterSystem(
        name="motioncrafter-mini",
        model=loaded.model.to(loading.device),
        config=MINI_INFERENCE,
        weights_sha256=loaded.sha256,
        unreliable=tuple(loaded.card.get("unreliable", ())),
    )


def load_published(
    loading: Loading, paradigm: Paradigm | None = None, *, steps: int = 5, runs: int = 1
) -> MotionCrafterSystem:
    """The published model from the hub or from folders; deterministic unless a folder has only the denoising U-Net.

    Half precision on GPUs, float32 on the CPU; both VAEs always in float32. On a small GPU each network is there only
    while it works. `steps` and `runs` (seeds per window) are the denoising paradigm's.

    Raises:
        WeightsError: see `io.weights.resolve`.
    """
    asked = paradigm
    if paradigm is None:
        paradigm = "deterministic" if loading.weights is None else _paradigm_of(Path(loading.weights))
    half = torch.float32 if loading.device.type == "cpu" else torch.float16
    loaded = pretrained.load(
        paradigm, source=loading.weights, accept_license=loading.accept_license, dtype=loading.dtype or half
    )
    offload = loading.device.type == "cuda" and torch.cuda.mem_get_info(loading.device)[0] < OFFLOAD_BELOW_BYTES
    return MotionCrafterSystem(
        name="motioncrafter" if asked != "denoising" else "motioncrafter-denoising",
        model=loaded.model if offload else loaded.model.to(loading.device),
        config=InferConfig(device=str(loading.device), steps=steps),
        weights_sha256=loaded.sha256,
        runs=runs,
    )


def load_denoising(loading: Loading) -> MotionCrafterSystem:
    """The published denoising U-Net: 5 steps, and 3 seeds per window whose spread is the confidence.

    Raises:
        WeightsError: see `io.weights.resolve`.
    """
    return load_published(loading, "denoising", steps=5, runs=3)


def _paradigm_of(folder: Path) -> Paradigm:
    present = [kind for kind, name in pretrained.UNET_FOLDERS.items() if (folder / name).is_dir()]
    if folder.is_dir() and not present:
        names = " or ".join(pretrained.UNET_FOLDERS.values())
        raise WeightsError(f"{folder} has no {names}; give the folder that holds the published subfolders.")
    return present[0] if len(present) == 1 else "deterministic"
