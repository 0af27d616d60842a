"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor


class Ema:
    """A moving average with a warm-up: decay_k = min(decay, (1 + k) / (10 + k)) after k updates.

    Early weights, which are noise, are forgotten quickly; later ones are averaged over about 1 / (1 - decay) steps.
    """

    def __init__(self, parameters: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in parameters.items()}

    def decay_at(self, updates: int) -> float:
        """Decay of the update after `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, parameters: dict[str, Tensor], updates: int) -> None:
        """Set average <- decay * average + (1 - decay) * parameters."""
        ordered = [parameters[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), ordered, 1 - self.decay_at(updates))
