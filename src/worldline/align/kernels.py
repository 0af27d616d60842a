"""Robust kernels: what a squared residual norm costs, and the weight that re-weighted least squares gives it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NormKernel:
    """rho = sqrt(s + eps^2): the unsquared norm of the published objective, smoothed at 0.

    Attributes:
        eps: where the norm becomes quadratic, in the unit of the residual.
    """

    eps: float = 1e-4

    def cost(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Cost of squared norms s."""
        return (s + self.eps**2).sqrt()

    def weight(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """IRLS weight 2 d rho / d s."""
        return 1 / (s + self.eps**2).sqrt()


@dataclass(frozen=True, kw_only=True)
class CauchyKernel:
    """rho = c^2/2 log(1 + s/c^2), for residuals in units of their standard deviation.

    Attributes:
        width: c; 2.385 is 95 % efficient on Gaussian noise.
    """

    width: float = 2.0

    def cost(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Cost of squared norms s."""
        return 0.5 * self.width**2 * torch.log1p(s / self.width**2)

    def weight(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """IRLS weight 2 d rho / d s."""
        return 1 / (1 + s / self.width**2)


Kernel = NormKernel | CauchyKernel
