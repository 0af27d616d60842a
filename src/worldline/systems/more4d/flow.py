"""Flow matching as MoRe4D uses it: diffusers' Euler schedule with shift 5, guidance by text (spec 2.4, 3.6).

training   x_s = (1 - s) z + s e,   target e - z,   t = 1000 s,   s = 5 q / (1 + 4 q)
sampling   v = u + g (c - u),   x += (s_next - s) v
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.scene import Progress, no_progress

SHIFT = 5.0
STEPS = 50
GUIDANCE = 6.0
OUTLIER = 50.0
"""Errors of the velocity beyond this do not count in the loss (but in the number it is divided by)."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latent, t [B] = 1000 sigma) -> velocity."""


def scheduler(shift: float = SHIFT) -> Any:
    """Diffusers' flow-matching scheduler with the published settings."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)


def sigmas(steps: int, shift: float = SHIFT) -> Float[Tensor, " n"]:
    """Noise levels of a sampling with some steps, from 1 to 0; the last but one is the library's, shifted twice."""
    euler = scheduler(shift)
    euler.set_timesteps(steps)
    return euler.sigmas


def training_sigmas(shift: float = SHIFT) -> Float[Tensor, "1000"]:
    """The noise levels that training draws from, in float32 (published: rounded to bfloat16)."""
    return scheduler(shift).sigmas[:1000]


def noised(
    latents: Float[Tensor, "B *any"], noise: Float[Tensor, "B *any"], sigma: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B *any"], Float[Tensor, "B *any"]]:
    """Noisy latents, and the velocity to be predicted from them."""
    level = sigma.reshape(-1, *[1] * (latents.ndim - 1))
    return (1 - level) * latents + level * noise, noise - latents


def draw(count: int, generator: torch.Generator, rank: int = 0, ranks: int = 1) -> Int[Tensor, " count"]:
    """Indices into the training table, even over 0..999; each of several processes draws from its own share."""
    low, high = 1000 * rank // ranks, 1000 * (rank + 1) // ranks
    return torch.randint(low, high, (count,), generator=generator, device=generator.device)


def loss(
    prediction: Float[Tensor, "B *any"], target: Float[Tensor, "B *any"], weight: Float[Tensor, "B *some"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared error of the velocity in float32, outliers set to zero; the mean may be weighted."""
    error = prediction.float() - target.float()
    squared = error.square() * (error.abs() <= OUTLIER)
    return squared.mean() if weight is None else (squared * weight).mean() / weight.mean()


def guided(conditional: Velocity, unconditional: Velocity, guidance: float) -> Velocity:
    """U + g (c - u); with g = 1 the unconditional one is not asked."""
    if guidance == 1:
        return conditional

    def velocity(latent: Tensor, t: Tensor) -> Tensor:
        without = unconditional(latent, t)
        return without + guidance * (conditional(latent, t) - without)

    return velocity


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: Float[Tensor, "B *any"],
    *,
    steps: int = STEPS,
    shift: float = SHIFT,
    step_name: str = "sample",
    progress: Progress = no_progress,
) -> Float[Tensor, "B *any"]:
    """Integrate from noise to a latent in Euler steps, in float32."""
    euler = scheduler(shift)
    euler.set_timesteps(steps, device=noise.device)
    latent = noise.float()
    for index, t in enumerate(euler.timesteps):
        predicted = velocity(latent, t.expand(len(latent))).float()
        latent = euler.step(predicted, t, latent, return_dict=False)[0]
        progress(step_name, index + 1, steps)
    return latent
