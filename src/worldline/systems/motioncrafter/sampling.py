"""From condition latents to joint latents: one deterministic pass, or N Euler steps from noise (spec 1.6, 1.7).

deterministic   z = -U(c, 0.25 ln 700)
denoising       x_N ~ sqrt(700^2 + 1) N(0, 1);  x <- x + (x - D(x; s)) / s (s' - s)   along Karras' noise levels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from worldline.systems.motioncrafter.networks import MotionCrafter


def euler_scheduler(steps: int) -> EulerDiscreteScheduler:
    """SVD's sampler: Karras noise levels 700 to 0.002, v-prediction, timestep = ln(sigma)/4."""
    if steps < 1:
        raise ValueError(f"Denoising needs at least 1 step, got {steps}.")
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        interpolation_type="linear",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def sample(
    network: Callable[[Tensor, Tensor], Tensor],
    noise: Float[Tensor, "B T C h w"],
    condition: Float[Tensor, "B T D h w"],
    steps: int,
) -> Float[Tensor, "B T C h w"]:
    """Denoise: `network(input [B, T, C + D, h, w], timestep)` is called once per step, latent first, condition last.

    The latent stays in float32 whatever the network runs in.
    """
    scheduler = euler_scheduler(steps)
    latent = noise.float() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latent, timestep)
        output = network(torch.cat([scaled, condition.to(scaled.dtype)], dim=2), timestep)
        (latent, *_) = scheduler.step(output.float(), timestep, latent, return_dict=False)
    return latent


def predict(
    model: MotionCrafter,
    condition: Float[Tensor, "B T D h w"],
    tokens: Float[Tensor, "B T E"],
    *,
    steps: int = 5,
    seed: int = 0,
) -> Float[Tensor, "B T C h w"]:
    """Scaled joint latents of a clip in float32; steps and seed only matter for the denoising paradigm.

    Noise is drawn on the CPU, so that a seed means the same on every device.
    """
    ids = model.time_ids(condition)
    if model.config.paradigm == "deterministic":
        return model.predict_latents(condition, tokens, ids).float()
    shape = (*condition.shape[:2], model.config.latent_channels, *condition.shape[3:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(condition.device)
    return sample(lambda latent, timestep: model.unet(latent, timestep, tokens, ids), noise, condition, steps)
