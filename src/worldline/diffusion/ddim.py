"""DDIM for v-prediction with a schedule that ends in pure noise and latents that shrink with it (Geo4D, spec 1.8).

    x_t = sqrt(a_t) s_t x0 + sqrt(1 - a_t) n        a_999 = 0 (zero terminal SNR), s_t = 1 .. 0.7 ("dynamic rescale")
    v   = sqrt(a_t) n - sqrt(1 - a_t) s_t x0        what the network predicts
    step: x0 s_t = sqrt(a_t) x - sqrt(1 - a_t) v;  n = sqrt(a_t) v + sqrt(1 - a_t) x
          x <- sqrt(a_prev) (s_prev / s_t) (x0 s_t) + sqrt(1 - a_prev) n            (eta 0, no guidance)

The published sampler treats its last step like the others: it stops at a_0, not at 1, and at s of the last timestep,
not at 1. With 5 steps its answer is x0 times 0.85 plus 2.9 % noise; `Final` chooses between that and the remedies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Final = Literal["published", "unscaled", "clean"]
"""What is returned: as published; that divided by s of the last timestep; or the last step's x0 itself, unscaled."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Signal and scale of every timestep.

    Attributes:
        alphas_cumprod: [N] share of the signal's variance, 0 at the end.
        scale: [M >= N] factor of the clean latents.
    """

    alphas_cumprod: Float[Tensor, " N"]
    scale: Float[Tensor, " M"]

    def noised(
        self, clean: Float[Tensor, "B *rest"], noise: Float[Tensor, "B *rest"], timestep: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B *rest"], Float[Tensor, "B *rest"]]:
        """(x_t, v) of clean latents: what the network sees, and what it must say."""
        alpha, scale = (
            spread(table.to(clean.device)[timestep], clean).to(clean.dtype)
            for table in (self.alphas_cumprod, self.scale)
        )
        clean = clean * scale
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        return signal * clean + sigma * noise, signal * noise - sigma * clean

    def steps(self, count: int) -> Steps:
        """The tables of a sampler with `count` steps, timesteps spaced evenly and ending at the last.

        Raises:
            ValueError: no steps, or more than there are timesteps.
        """
        total = len(self.alphas_cumprod)
        if not 1 <= count <= total:
            raise ValueError(f"DDIM needs 1 to {total} steps, got {count}.")
        spaced = torch.arange(total, 0, -total / count, dtype=torch.float64)[:count]
        timesteps = (spaced.round().long() - 1).flip(0)
        alphas, scale = self.alphas_cumprod.double()[timesteps], self.scale.double()[timesteps]
        return Steps(
            timesteps=timesteps,
            alphas=alphas,
            alphas_prev=torch.cat([self.alphas_cumprod[:1].double(), alphas[:-1]]),
            scale=scale,
            scale_prev=torch.cat([scale[:1], scale[:-1]]),
        )


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Tables of a sampler, ascending in time; the entries of float32 tables, kept in float64.

    Attributes:
        timesteps: [S].
        alphas, alphas_prev: [S] cumulated alpha at a step and after it.
        scale, scale_prev: [S] factor of the clean latents at a step and after it.
    """

    timesteps: Int[Tensor, " S"]
    alphas: Float[Tensor, " S"]
    alphas_prev: Float[Tensor, " S"]
    scale: Float[Tensor, " S"]
    scale_prev: Float[Tensor, " S"]


def zero_snr_schedule(
    *,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    timesteps: int = 1000,
    base_scale: float = 0.7,
    turning_step: int = 400,
) -> Schedule:
    """Square-root-linear betas, shifted and stretched so that nothing of the signal is left at the end.

    The scale falls evenly from 1 to `base_scale` in `turning_step` timesteps, then stays.
    """
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64).square()
    root = (1 - beta).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha = root.square()
    ratio = torch.cat([alpha[:1], alpha[1:] / alpha[:-1]])  # as published: through betas and their product again
    falling = torch.linspace(1.0, base_scale, turning_step, dtype=torch.float64)
    return Schedule(
        alphas_cumprod=ratio.cumprod(0).float(),
        scale=torch.cat([falling, torch.full((timesteps,), base_scale, dtype=torch.float64)]).float(),
    )


def sample(
    network: Callable[[Tensor, Int[Tensor, " B"]], Tensor],
    noise: Float[Tensor, "B *rest"],
    schedule: Schedule,
    steps: int,
    *,
    final: Final = "published",
) -> Float[Tensor, "B *rest"]:
    """From noise to latents: `network(x, timestep)` gives v and is called once per step; x stays in float32."""
    table = schedule.steps(steps)
    x = noise.float()
    for index in reversed(range(steps)):
        timestep = table.timesteps[index].expand(len(x)).to(x.device)
        v = network(x, timestep).float()
        alpha, after = float(table.alphas[index]), float(table.alphas_prev[index])
        clean = alpha**0.5 * x - (1 - alpha) ** 0.5 * v
        direction = alpha**0.5 * v + (1 - alpha) ** 0.5 * x
        clean = clean * float(table.scale_prev[index] / table.scale[index])
        x = after**0.5 * clean + (1 - after) ** 0.5 * direction
    if final == "published":
        return x
    return (clean if final == "clean" else x) / float(table.scale_prev[0])


def spread(values: Float[Tensor, " B"], like: Float[Tensor, "B *rest"]) -> Tensor:
    """One number per batch entry, shaped to multiply `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
