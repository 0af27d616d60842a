"""What the flow network is trained for: every iteration nearer to the truth, and an honest expected error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.flow.network import CELL, FlowNetwork
from worldline.systems.optical_flow.pairs import Pairs


@dataclass(frozen=True, kw_only=True)
class FlowObjective:
    """Losses of a batch of pairs.

    Attributes:
        decay: weight of an iteration relative to the next one (RAFT section 3.4).
        largest: flows longer than this share of the picture's width do not count: nothing there can be matched.
        moving: extra weight of what moves by itself.
        softening: pixels below which an error counts quadratically.
    """

    decay: float = 0.85
    largest: float = 0.6
    moving: float = 2.0
    softening: float = 0.1

    def __call__(self, model: FlowNetwork, batch: Pairs, generator: torch.Generator) -> dict[str, Tensor]:
        """`coarse` (all iterations, 1/8 resolution), `whole` (recurrence alone), `flow`, `likelihood` of its error.

        Raises:
            ValueError: the pairs have no hints.
        """
        if batch.hint is None or batch.back is None:
            raise ValueError("The flow network is trained with hints; make the pairs with one.")
        found = model(batch.source, batch.target, batch.hint, batch.back)
        counts = batch.known & (batch.flow.norm(dim=1) < self.largest * batch.flow.shape[-1])
        weight = counts * (1 + self.moving * batch.moving)
        error = self._length(found.flow - batch.flow)
        size = found.log_error[:, 0]
        likelihood = error.detach() / size.exp() + size  # Laplace; its gradient shapes the error bar only
        return {
            "coarse": self._coarse(found.coarse, batch.flow, weight),
            "whole": _mean(self._length(found.whole - batch.flow), weight),
            "flow": _mean(error, weight),
            "likelihood": _mean(likelihood, counts.float()),
        }

    def _length(self, difference: Tensor) -> Tensor:
        return (difference.square().sum(1) + self.softening**2).sqrt() - self.softening

    def _coarse(self, estimates: list[Tensor], truth: Tensor, weight: Tensor) -> Tensor:
        cells = F.avg_pool2d(weight[:, None].float(), CELL)
        known = weight[:, None] > 0
        share = F.avg_pool2d(known.float(), CELL)
        target = F.avg_pool2d(torch.where(known, truth, 0.0), CELL) / share.clamp(min=1e-6)
        losses = [_mean(self._length(estimate - target), cells[:, 0]) for estimate in estimates]
        powers = [self.decay ** (len(losses) - 1 - i) for i in range(len(losses))]
        return torch.stack([p * loss for p, loss in zip(powers, losses, strict=True)]).sum() / sum(powers)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)
