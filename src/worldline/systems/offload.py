"""Model offload: a network is on the computing device only while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A network on a device while it works, then back where it was."""
    home = next(module.parameters()).device
    if home == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
