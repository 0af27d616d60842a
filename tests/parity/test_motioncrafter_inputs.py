"""MotionCrafter's sampler and CLIP resizing against the golden numbers."""

from __future__ import annotations

import pytest
import torch

from worldline.diffusion.edm import Preconditioning
from worldline.systems.motioncrafter import sampling
from worldline.systems.motioncrafter.conditioning import clip_pixels, resize_antialiased

pytestmark = pytest.mark.shared


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_motioncrafter_noise_levels(motioncrafter_golden, steps):
    scheduler = sampling.euler_scheduler(steps)
    motioncrafter_golden.check("scheduler", f"out.sigmas.{steps}", scheduler.sigmas)
    motioncrafter_golden.check("scheduler", f"out.timesteps.{steps}", scheduler.timesteps)
    start = torch.as_tensor(scheduler.init_noise_sigma).float()
    motioncrafter_golden.check("scheduler", f"out.init_noise_sigma.{steps}", start)
    sigmas = scheduler.sigmas[:-1]
    torch.testing.assert_close(Preconditioning.of(sigmas).noise, scheduler.timesteps.float(), atol=1e-5, rtol=1e-5)


def test_motioncrafter_euler_trajectory(motioncrafter_golden):
    golden, arrays, inputs = motioncrafter_golden, motioncrafter_golden.load("scheduler"), []

    def toy(latent, timestep):
        inputs.append(latent)
        x, c = latent[:, :, :8], latent[:, :, 8:]
        return 0.6 * x + 0.1 * x.flip(2) - 0.3 * torch.cat([c, c], 2) + 0.05 * timestep

    final = sampling.sample(toy, arrays["in.noise"], arrays["in.cond"], 5)
    golden.check("scheduler", "out.final", final)
    golden.check("scheduler", "out.x.step5", final)
    for step in (0, 2):
        golden.check("scheduler", f"out.model_input.step{step}", inputs[step])
    for step, sigma in enumerate(sampling.euler_scheduler(5).sigmas[:-1]):  # the input at step K is x.stepK, scaled
        golden.check("scheduler", f"out.x.step{step}", inputs[step][:, :, :8] * (sigma**2 + 1).sqrt())


CASES = {"up": (2, 3, 72, 100), "down": (1, 3, 320, 640), "mixed": (1, 3, 128, 448), "same": (1, 3, 224, 224)}


@pytest.mark.parametrize("case", CASES)
def test_motioncrafter_clip_resize(motioncrafter_golden, case):
    golden, arrays = motioncrafter_golden, motioncrafter_golden.load("clip_resize")
    images = (0.5 * golden.input(f"clip.{case}", CASES[case])).clamp(-1, 1)
    if f"in.{case}.corner8" in arrays:
        assert torch.equal(images[..., :8, :8], arrays[f"in.{case}.corner8"])
    else:
        assert torch.equal(images, arrays[f"in.{case}"])
    small = resize_antialiased(images, (224, 224))
    views = {
        "tl32": small[..., :32, :32],
        "br32": small[..., -32:, -32:],
        "centre48": small[..., 88:136, 88:136],
        "stride7": small[..., ::7, ::7],
        "channel_mean": small.mean((-2, -1)),
        "channel_std": small.std((-2, -1)),
    }
    for name, value in views.items():
        golden.check("clip_resize", f"out.{case}.{name}", value)
    if case == "down":
        golden.check("clip_resize", "out.down.full_f16", small)
        golden.check("clip_resize", "out.down.clip_normalised.centre48", clip_pixels(images, 224)[..., 88:136, 88:136])
