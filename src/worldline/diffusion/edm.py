"""EDM preconditioning with unit data variance: one network, all noise levels (Karras et al. 2022, table 1).

    D(x; s) = c_skip(s) x + c_out(s) F(c_in(s) x; c_noise(s))          x = x0 + s n,  n ~ N(0, 1)
    c_skip = 1/(s^2+1)    c_out = -s/sqrt(s^2+1)    c_in = 1/sqrt(s^2+1)    c_noise = ln(s)/4

F is then the (negative) v-prediction that Stable Video Diffusion's Euler sampler expects; the training weight
(s^2+1)/s^2 makes the loss on D a plain squared error on F. The sampler itself is diffusers' EulerDiscreteScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """The four coefficients for a batch of noise levels; all [B]."""

    skip: Float[Tensor, " B"]
    out: Float[Tensor, " B"]
    scale_in: Float[Tensor, " B"]
    noise: Float[Tensor, " B"]

    @staticmethod
    def of(sigma: Float[Tensor, " B"]) -> Preconditioning:
        """Coefficients of noise levels sigma > 0."""
        total = sigma**2 + 1
        return Preconditioning(skip=1 / total, out=-sigma / total.sqrt(), scale_in=total.rsqrt(), noise=sigma.log() / 4)

    def network_input(self, noisy: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """c_in x: the noisy latent at unit variance."""
        return noisy * _spread(self.scale_in, noisy)

    def denoised(self, noisy: Float[Tensor, "B ..."], output: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """D: the estimate of the clean latent from the network's output."""
        return noisy * _spread(self.skip, noisy) + output * _spread(self.out, noisy)


def loss_weight(sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Weight of the squared error of D at each noise level: (s^2+1)/s^2."""
    return (sigma**2 + 1) / sigma**2


def draw_sigma(
    count: int, *, mean: float = 0.7, std: float = 1.6, generator: torch.Generator | None = None
) -> Float[Tensor, " count"]:
    """Noise levels to train on, exp(N(mean, std)), on the generator's device; the defaults are SVD's."""
    device = "cpu" if generator is None else generator.device
    return torch.exp(mean + std * torch.randn(count, generator=generator, device=device))


def _spread(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
