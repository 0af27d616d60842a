"""Where the networks are while they work: all on one device, one at a time, block by block, or over several GPUs.

    none        everything on the device                                       generator + inpainter + umT5 + CLIP + VAE
    model       one network visits the device while it works                   the largest one
    sequential  weights of one layer visit the device while it works           one layer and the activations
    sharded     blocks of the transformers are spread over devices             each device a share

The autoencoder is small and always on the device. Hooks are Accelerate's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.pretrained import Places
from worldline.systems.system import Offload

ROOM = 1.3
"""Memory wanted per byte of weights, for activations."""

WHOLE = ("GuidedBlock", "WanTransformerBlock", "UMT5Block", "CLIPEncoderLayer")
"""Modules that stay on one device."""


def networks(model: MoRe4D) -> dict[str, nn.Module]:
    """The large networks by name, in the order in which they work."""
    found = {"text": model.text, "image": model.image, "generator": model.generator, "inpainter": model.inpainter}
    return {name: network for name, network in found.items() if network is not None}


def size_bytes(network: nn.Module) -> int:
    """Of parameters and buffers; also on the meta device."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def choose(sizes: Mapping[str, int], free: Mapping[str, int]) -> Offload:
    """The fastest mode that fits.

    Args:
        sizes: bytes of each network.
        free: bytes of each GPU; empty on a CPU.
    """
    if not free:
        return "none"
    first, wanted = next(iter(free.values())), ROOM * sum(sizes.values())
    if wanted <= first:
        return "none"
    if len(free) > 1 and wanted <= sum(free.values()):
        return "sharded"
    return "model" if ROOM * max(sizes.values()) <= first else "sequential"


def device_map(network: nn.Module, free: Mapping[str, int]) -> dict[str, str]:
    """Accelerate's device by module name, blocks whole, for a network that may be on the meta device.

    Raises:
        ValueError: it does not fit on the devices together.
    """
    from accelerate import infer_auto_device_map

    room = {_accelerates(name): int(size / ROOM) for name, size in free.items()}
    found = infer_auto_device_map(network, max_memory=room, no_split_module_classes=list(WHOLE))
    placed = {name: f"cuda:{device}" if isinstance(device, int) else str(device) for name, device in found.items()}
    if set(placed.values()) & {"disk"}:
        raise ValueError(
            f"A network of {size_bytes(network) / 1e9:.0f} GB does not fit on {', '.join(free)} together; "
            "use --offload sequential."
        )
    return placed


def _accelerates(device: str) -> int | str:
    """Accelerate's name of a device: GPUs are numbers."""
    return int(device.removeprefix("cuda:")) if device.startswith("cuda:") else device


def places(mapped: Mapping[str, str]) -> Places:
    """Device of a parameter: that of the longest module name of a device map that it is inside."""

    def place(name: str) -> torch.device:
        fitting = [module for module in mapped if not module or name == module or name.startswith(module + ".")]
        return torch.device(mapped[max(fitting, key=len)])

    return place


def placed(
    model: MoRe4D, device: torch.device, mode: Offload, maps: Mapping[str, Mapping[str, str]] | None = None
) -> MoRe4D:
    """The model made ready to work on a device in a mode (not "auto").

    Args:
        model: its networks, loaded where they are to stay: in memory, or by their device map.
        device: that computes.
        mode: see above.
        maps: device map of networks that are sharded.
    """
    from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model

    model.vae.to(device)
    if mode == "none":
        return model.to(device)
    if mode == "model":
        before = None
        for network in networks(model).values():
            _, before = cpu_offload_with_hook(network, device, prev_module_hook=before)
        return model
    for name, network in networks(model).items():
        if mode == "sequential":
            cpu_offload(network, device, offload_buffers=True)
        elif maps is not None and name in maps:
            dispatch_model(network, dict(maps[name]), main_device=str(device), force_hooks=True)
        else:
            network.to(device)
    return model
