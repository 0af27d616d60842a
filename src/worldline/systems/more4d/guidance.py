"""Motion Perception Module: features of the first picture modulate the tokens of every block (spec 2.2).

    h <- h (1 + scale gate) + shift gate,    (scale, shift) = Linear(SiLU(features))        (code's form of eq. 5, 6)

The gate begins at zero and the linear map does not, so nothing changes at first and yet the gate has a gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from worldline.systems.more4d.config import Alignment


class SpatialGuidance(nn.Module):
    """Modulation of tokens by features at the same places."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.spatial_guide = nn.Sequential(nn.SiLU(), nn.Linear(features, 2 * dim))
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        tokens: Float[Tensor, "B L D"],
        features: Float[Tensor, "B M F"],
        alignment: Alignment = "prepended",
    ) -> Float[Tensor, "B L D"]:
        """Modulated tokens; the L - M tokens without features stay as they are.

        Those are the first ones ("prepended"), or the last ones ("published", where reference tokens that stand first
        are modulated with features of the video).

        Raises:
            ValueError: there are fewer tokens than features.
        """
        missing = tokens.shape[1] - features.shape[1]
        if missing < 0:
            raise ValueError(f"{features.shape[1]} rows of motion features cannot guide {tokens.shape[1]} tokens.")
        scale, shift = self.spatial_guide(features).chunk(2, dim=-1)
        padding = (0, 0, missing, 0) if alignment == "prepended" else (0, 0, 0, missing)
        scale, shift = (functional.pad(value * self.gate, padding) for value in (scale, shift))
        return tokens * (1 + scale) + shift


class FeatureAdapter(nn.Sequential):
    """Two convolutions on the square of features, then onto the grid of tokens, the same for every frame."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Conv2d(dim, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1))

    def forward(  # type: ignore[override]
        self, features: Float[Tensor, "B N F"], grid: tuple[int, int, int]
    ) -> Float[Tensor, "B M F"]:
        """Features [B, N = side^2, F] at the tokens of a (frames, rows, columns) grid, in that order."""
        return on_tokens(self.on_grid(features, grid[1:]), grid[0])

    def on_grid(self, features: Float[Tensor, "B N F"], grid: tuple[int, int]) -> Float[Tensor, "B F h w"]:
        """The adapted features on the token grid of one frame."""
        side = round(features.shape[1] ** 0.5)
        square = super().forward(features.transpose(1, 2).unflatten(-1, (side, side)))
        return functional.interpolate(square, grid, mode="bilinear", align_corners=False)


def on_tokens(grid: Float[Tensor, "B F h w"], frames: int) -> Float[Tensor, "B M F"]:
    """One frame's features repeated over latent frames, as rows in the order time, row, column."""
    return grid.flatten(2).transpose(1, 2).repeat(1, frames, 1)
