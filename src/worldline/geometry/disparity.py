"""Depth <-> disparity (inverse depth)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def from_depth(depth: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """1 / depth; 0 (infinitely far) where the depth is infinite, not positive or not a number."""
    known = depth > 0
    return torch.where(known, 1 / torch.where(known, depth, torch.ones_like(depth)), torch.zeros_like(depth))


def to_depth(disparity: Float[Tensor, "*any"], far: float = float("inf")) -> Float[Tensor, "*any"]:
    """1 / disparity, at most `far`; `far` where the disparity is not positive or not a number."""
    known = disparity > 0
    inverse = 1 / torch.where(known, disparity, torch.ones_like(disparity))
    return torch.where(known, inverse, torch.full_like(disparity, far)).clamp(max=far)
