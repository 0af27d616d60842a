"""MoRe4D as a system of the registry: loaded weights and default settings; a picture in, tracks and videos out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.io.tensors import WeightsError
from worldline.scene import Progress, Provenance, Scene4D, Tracks4D, Video, no_progress
from worldline.systems.more4d import assembly, infer, pretrained
from worldline.systems.more4d.depth import DepthPrior
from worldline.systems.more4d.infer import SamplingConfig
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.system import Loading

MINI_CHECKPOINT = Path(__file__).parent / "weights" / "mini.safetensors"
"""The embedded checkpoint; its JSON lies beside it."""

MINI_SAMPLING = SamplingConfig(steps=1, shift=3.0, guidance=1.5)
"""Of the small networks, unless the card of their weights says better."""

MINI_ENLARGED = 6
"""Tracks of the small model have this many times its pixels along each side, where the picture has as many."""

Fill = Literal["model", "nearest", "none"]


@dataclass(frozen=True, kw_only=True)
class MoRe4DSystem:
    """A loaded model with its settings.

    Attributes:
        name: of the system, for the provenance.
        model: the networks.
        sampling: settings; seed, steps and guidance of the caller come before them.
        weights_sha256: hash of the weights.
        enlarged: largest number of track pixels per model pixel along each side.
        unreliable: outputs that do not beat their trivial predictor.
        about: what else the provenance says of the weights.
    """

    name: str
    model: MoRe4D
    sampling: SamplingConfig
    weights_sha256: str
    enlarged: int = 1
    unreliable: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def generate(
        self,
        picture: Float[Tensor, "H W 3"],
        prompt: str,
        depth_prior: DepthPrior,
        *,
        size: tuple[int, int] | None = None,
        progress: Progress = no_progress,
        source: str = "",
        **sampling: Any,
    ) -> Tracks4D:
        """Tracks of a picture in [0, 1]; `sampling` are values of `SamplingConfig`."""
        config = replace(self.sampling, **sampling)
        height, width = self.model.config.size
        if size is None:
            largest = min(picture.shape[0] // height, picture.shape[1] // width, self.enlarged)
            size = (height * max(1, largest), width * max(1, largest))
        provenance = Provenance(
            system=self.name,
            weights_sha256=self.weights_sha256,
            settings={**asdict(config), "prompt": prompt, "size": list(size), **self.about},
            source=source,
            unreliable=self.unreliable,
        )
        return infer.generate(
            picture, prompt, self.model, depth_prior, config, size=size, progress=progress, provenance=provenance
        )

    def synthesize(
        self,
        source: Tracks4D | Scene4D,
        path: Float[Tensor, "T 4 4"],
        *,
        prompt: str = "",
        size: tuple[int, int] | None = None,
        progress: Progress = no_progress,
        **sampling: Any,
    ) -> Video:
        """A video of tracks or a scene along a camera path, its holes inpainted."""
        config = replace(self.sampling, **sampling)
        return infer.synthesize(source, path, self.model, config, prompt=prompt, size=size, progress=progress)


def load_mini(loading: Loading) -> MoRe4DSystem:
    """The embedded small model, or another checkpoint file written by `worldline train more4d-mini`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        WeightsError: none is given and none is embedded, or it is damaged or does not fit.
    """
    if loading.weights is None and not MINI_CHECKPOINT.is_file():
        raise WeightsError(
            "more4d-mini has no embedded weights yet; train some with `worldline train more4d-mini`, "
            "then give --weights FILE."
        )
    path = MINI_CHECKPOINT if loading.weights is None else Path(loading.weights)
    loaded = pretrained.load_file(path, dtype=loading.dtype or torch.float32)
    return MoRe4DSystem(
        name="more4d-mini",
        model=loaded.model.to(loading.device),
        sampling=replace(MINI_SAMPLING, **loaded.card.get("sampling", {})),
        weights_sha256=loaded.sha256,
        enlarged=MINI_ENLARGED,
        unreliable=tuple(loaded.card.get("unreliable", ())),
    )


def load_published(loading: Loading) -> MoRe4DSystem:
    """The published model from the hub or from a folder, see `assembly`; bfloat16 on GPUs, float32 on the CPU.

    Raises:
        WeightsError: the licence is not accepted, or files are missing, damaged or do not fit.
        ValueError: it does not fit in the way of offloading that was asked for.
    """
    on_gpu = loading.device.type == "cuda"
    free = {}
    if on_gpu:
        free = {f"cuda:{n}": torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())}
        own = str(loading.device) if loading.device.index is not None else "cuda:0"
        free = {own: free[own]} | free  # the one that was asked for first
    assembled = assembly.load(
        loading.weights,
        loading.device,
        free,
        mode=loading.offload,
        dtype=loading.dtype or (torch.bfloat16 if on_gpu else torch.float32),
        accept_license=loading.accept_license,
    )
    return MoRe4DSystem(
        name="more4d",
        model=assembled.model,
        sampling=SamplingConfig(),
        weights_sha256=assembled.sha256,
        about={"offload": assembled.mode},
    )
