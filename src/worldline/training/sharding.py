"""Tensors that processes share out among themselves (PyTorch's FSDP): put together, and shared out again.

Checkpoints hold whole tensors, so that a run on eight GPUs can go on on four, or on one.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def is_shared_out(value: Tensor) -> bool:
    """Whether each process holds only its part of a tensor."""
    return torch.distributed.is_available() and hasattr(value, "full_tensor")


def whole(value: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The whole tensor, in every process; all of them must ask."""
    shared: Any = value
    return shared.full_tensor() if is_shared_out(value) else value


def shared_out_like(value: Float[Tensor, "*any"], pattern: Float[Tensor, "*other"]) -> Float[Tensor, "*any"]:
    """A whole tensor, the same in every process, shared out as another one is; as it is if that one is whole.

    A tensor of another shape, such as an optimiser's count of steps, stays whole, too.
    """
    if not is_shared_out(pattern) or value.shape != pattern.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = pattern
    mesh, placements = like.device_mesh, like.placements
    # every process has read the file, so none needs to be sent anything
    return distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)


def kept_whole(model: nn.Module) -> list[nn.Module]:
    """Parts of a model that every process keeps whole: those it asks between steps, as far as they are not trained.

    Samples are encoded outside of a training step, where weights that are shared out cannot be used. A model names
    these parts in `asked_between_steps()`.
    """
    named = getattr(model, "asked_between_steps", None)
    parts: list[nn.Module] = [] if named is None else named()
    return [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]


def wait() -> None:
    """Until every process has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
