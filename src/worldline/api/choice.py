"""What "auto" runs: the published network where it can run and may be used, else the embedded one; with the reason.

Nothing is downloaded and no licence is accepted on the way: `worldline models download NAME --accept-license` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worldline.io import weights as hub
from worldline.io.ledger import accepted

EMBEDDED = "motioncrafter-mini"
"""The network of "auto" where nothing better can run."""

PUBLISHED = "motioncrafter"
"""The published network that "auto" would rather use. Its denoising variant is 15 times slower; Geo4D's weights are
converted into a folder of the user's own, so nobody but the user knows where they are."""

PUBLISHED_NEEDS_BYTES = 10 << 30
"""GPU memory: U-Net 3 GB in half precision, float32 autoencoders, activations of 25 frames of 320x640. Estimated."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where networks would run: kind of device ("cpu", "cuda", "mps") and its memory, 0 where it does not matter."""

    device: str
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published network, and whether it may and can be loaded here.

    Attributes:
        name: of the system.
        needs_bytes: GPU memory without which it does not run.
        licences: names of its licences that the user has not accepted.
        missing: repositories whose weights are not completely on this machine.
    """

    name: str
    needs_bytes: int
    licences: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The system whose depth "auto" begins with, and why this one, in a sentence."""

    system: str
    reason: str


def choose(machine: Machine, published: Sequence[Published]) -> Choice:
    """The first published network that may and can run on this machine, else the embedded one."""
    if machine.device != "cuda":
        return Choice(system=EMBEDDED, reason=f"published networks need a CUDA GPU, this runs on {machine.device}")
    against = []
    for network in published:
        why = _obstacle(machine, network)
        if why is None:
            reason = "there is a CUDA GPU, its licences are accepted, and its weights are here"
            return Choice(system=network.name, reason=reason)
        against.append(f"{network.name} is not used: {why}")
    return Choice(system=EMBEDDED, reason="; ".join(against) or "there is no published network")


def _obstacle(machine: Machine, network: Published) -> str | None:
    """Why a published network is not used on a GPU, or None."""
    fetch = f"`worldline models download {network.name}`"
    if machine.memory_bytes < network.needs_bytes:
        has, needs = machine.memory_bytes / 2**30, network.needs_bytes / 2**30
        return f"the GPU has {has:.0f} GiB of memory, it needs {needs:.0f}"
    if network.licences:
        return f"its licence ({', '.join(network.licences)}) is not accepted; {fetch} shows it"
    if network.missing:
        return f"{', '.join(network.missing)} is not on this machine; {fetch} fetches it"
    return None


def machine_of(device: torch.device) -> Machine:
    """The facts about a device that the choice depends on."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Machine(device=device.type, memory_bytes=memory)


def published_networks(accept_license: bool = False) -> list[Published]:
    """The published networks and their state on this machine; never asks the network.

    `accept_license` counts their licences as accepted.
    """
    from worldline.systems.motioncrafter import pretrained

    parts = pretrained.weights("deterministic")
    asked = () if accept_license else tuple(p.licence for p in parts if p.licence.must_accept)
    return [
        Published(
            name=PUBLISHED,
            needs_bytes=PUBLISHED_NEEDS_BYTES,
            licences=tuple(licence.name for licence in asked if not accepted(licence)),
            missing=tuple(part.repo for part in parts if hub.find(part) is None),
        )
    ]
