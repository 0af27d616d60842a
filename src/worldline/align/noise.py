"""How noisy observations are, read off their own residuals: nothing about a network's errors is assumed.

Networks' errors grow with depth and shrink with confidence, have heavy tails, and neighbouring pixels share them. So
scales are medians in bins of confidence, and a term counts as many samples as there are independent ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NORMAL_MEDIAN = 0.6745  # of |x| for a standard normal x
RAYLEIGH_MEDIAN = 1.1774  # of the length of a standard normal 2-vector


@dataclass(frozen=True, kw_only=True)
class ScaleTable:
    """Standard deviation as a step function of a key.

    Attributes:
        edges: [B-1] increasing keys between the bins.
        values: [B].
    """

    edges: Float[Tensor, " E"]
    values: Float[Tensor, " B"]

    def at(self, key: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Standard deviation where the key has these values."""
        return self.values.to(key)[torch.bucketize(key, self.edges.to(key))]

    def at_least(self, floor: float) -> ScaleTable:
        """The same table with no value under floor."""
        return ScaleTable(edges=self.edges, values=self.values.clamp_min(floor))


def constant_scale(value: float) -> ScaleTable:
    """The same standard deviation everywhere."""
    return ScaleTable(edges=torch.zeros(0, dtype=torch.float64), values=torch.tensor([value], dtype=torch.float64))


def measure_scale(
    size: Float[Tensor, "*n"], key: Float[Tensor, "*n"], used: Bool[Tensor, "*n"], median: float, bins: int = 8,
    least: int = 60,
) -> ScaleTable:  # fmt: skip
    """Standard deviation in quantile bins of a key: median of |residual| over the median for unit noise.

    Args:
        size: lengths of residuals.
        key: what the noise may depend on (confidence, disparity).
        used: elements that count.
        median: the median of such a length for unit noise.
        bins: at most this many.
        least: fewest elements in a bin.
    """
    values, keys = size[used], key[used]
    if len(values) == 0:
        return constant_scale(1.0)
    count = max(1, min(bins, len(values) // least))
    edges = torch.quantile(keys[:: max(1, len(keys) // 100_000)], torch.linspace(0, 1, count + 1, dtype=keys.dtype))
    edges = edges[1:-1].unique()
    label = torch.bucketize(keys, edges)
    table = torch.full((len(edges) + 1,), float(values.median()), dtype=size.dtype)
    for i in range(len(table)):
        inside = values[label == i]
        if len(inside) >= least:
            table[i] = inside.median()
    return ScaleTable(edges=edges, values=(table / median).clamp_min(1e-3 * float(table.max()) / median + 1e-12))


def normal_scale(size: Float[Tensor, "*n"], components: int) -> float:
    """Robust standard deviation per component from lengths of residual vectors of 1, 2 or 3 components."""
    median = {1: NORMAL_MEDIAN, 2: RAYLEIGH_MEDIAN, 3: 1.5382}[components]
    return float(size.median()) / median if size.numel() else 0.0


def inflation(
    residual: Float[Tensor, "V n c"], used: Bool[Tensor, "V n"], block: Int[Tensor, "V n"], blocks: int
) -> float:
    """How many times more the mean over an image block varies than it would if its samples were independent.

    Args:
        residual: in units of standard deviations.
        used: samples that count.
        block: image block of each sample.
        blocks: number of blocks per view.
    """
    r = torch.where(used[..., None], residual.clamp(-3, 3), torch.zeros_like(residual))
    shape = (len(r), blocks, r.shape[-1])
    total = torch.zeros(shape, dtype=r.dtype).scatter_add_(1, block[..., None].expand_as(r), r)
    square = torch.zeros(shape, dtype=r.dtype).scatter_add_(1, block[..., None].expand_as(r), r * r)
    count = torch.zeros(shape[:2], dtype=r.dtype).scatter_add_(1, block, used.to(r))[..., None]
    enough = (count >= 3).expand(shape)
    if not bool(enough.any()):
        return 1.0
    ratio = (total**2)[enough].sum() / square[enough].sum().clamp_min(1e-30)  # sum (sum r)^2 = I n sigma^2
    return max(1.0, float(ratio))
