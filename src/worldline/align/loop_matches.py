"""Matches between windows far apart in time: points of one that lie on surface patches of the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.rotations import dot
from worldline.geometry.pose import Similarity

_MISSED = 3.0  # times the floor; the truth itself has about twice the floor, since each registration fits its own noise
_MOST_WEIGHT = 256.0


@dataclass(frozen=True, kw_only=True)
class Loops:
    """Points of a window that lie on surface patches of a window far away in time.

    Attributes:
        window: [B] k of every match.
        other: [B] l.
        source: [B, 3] point in window k.
        normal: [B, 3] m of the patch in window l: m . P - offset is how much farther than the surface P is along its
            ray, relative to the distance.
        offset: [B].
        floor: median residual that registering the pairs one by one leaves; a closed loop has about this.
        weight: by how much more loops count than their noise says. A chain of windows is less certain than its pixels
            claim, as windows are also wrong as a whole; by how much shows in how far it misses the loops.
    """

    window: Int[Tensor, " B"]
    other: Int[Tensor, " B"]
    source: Float[Tensor, "B 3"]
    normal: Float[Tensor, "B 3"]
    offset: Float[Tensor, " B"]
    floor: float
    weight: float = 0.2

    def residual(self, windows: Similarity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Relative range error [B]; Y_k - t_k, Y_k - t_l and the patch's normal in the world [B, 3]."""
        k, l = self.window, self.other
        own = windows.scale[k][:, None] * (windows.rotation[k] @ self.source[..., None])[..., 0]
        far = own + windows.translation[k] - windows.translation[l]
        across = (windows.rotation[l] @ self.normal[..., None])[..., 0] / windows.scale[l][:, None]
        return dot(across, far) - self.offset, own, far, across

    def weighted(self, windows: Similarity) -> Loops:
        """The same loops, heavier when these windows miss them."""
        missed = float(self.residual(windows)[0].abs().median()) > _MISSED * self.floor
        return replace(self, weight=4 * self.weight) if missed and self.weight < _MOST_WEIGHT else self

    def jacobian(self, own: Tensor, far: Tensor, across: Tensor) -> Float[Tensor, "B 14"]:
        """Derivative of the residual by (phi, tau, lambda) of window k and of window l."""

        def half(arm: Tensor) -> Tensor:
            return torch.cat([torch.linalg.cross(arm, across, dim=-1), across, dot(across, arm)[:, None]], -1)

        return torch.cat([half(own), -half(far)], -1)
