"""MotionCrafter's U-Net, 4D VAE, scheduler and the whole chain against the golden numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from worldline.systems.motioncrafter import published
from worldline.systems.motioncrafter.config import AutoencoderConfig, MotionCrafterConfig, UNetConfig
from worldline.systems.motioncrafter.networks import (
    DETERMINISTIC_TIMESTEP,
    TIME_IDS,
    GeometryMotionVAE,
    build_unet,
)

pytestmark = pytest.mark.shared

REDUCED_VAE = AutoencoderConfig(block_out_channels=(32, 32, 64, 64))
REDUCED = MotionCrafterConfig(
    vae=REDUCED_VAE,
    unet=UNetConfig(
        block_out_channels=(32, 64, 64, 64),
        num_attention_heads=(1, 2, 2, 2),
        cross_attention_dim=64,
        addition_time_embed_dim=32,
    ),
    image_encoder=replace(MotionCrafterConfig().image_encoder, projection_dim=64),
)
PARADIGMS = {"determ": ("deterministic", "sample4"), "diff": ("denoising", "sample12")}


def meta(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


def reduced_unet(golden, name):
    return golden.fill(meta(build_unet, replace(REDUCED, paradigm=PARADIGMS[name][0])), "unet_reduced")


@pytest.mark.parametrize("name", PARADIGMS)
def test_motioncrafter_unet_reduced(motioncrafter_golden, name):
    golden, unet = motioncrafter_golden, reduced_unet(motioncrafter_golden, name)
    arrays = golden.load("unet_reduced")
    with torch.inference_mode():
        for case in "AB":
            sample, ids = arrays[f"in.{case}.{PARADIGMS[name][1]}"], arrays[f"in.{case}.time_ids"]
            output = unet(sample, DETERMINISTIC_TIMESTEP, arrays[f"in.{case}.emb"], ids)
            golden.check("unet_reduced", f"out.{name}.{case}", output)
        sample = arrays[f"in.A.{PARADIGMS[name][1]}"]
        output = unet(sample, torch.tensor(-1.553652), arrays["in.A.emb"], arrays["in.A.time_ids"])
        golden.check("unet_reduced", f"out.{name}.A.tneg", output)


@pytest.mark.parametrize("name", PARADIGMS)
def test_motioncrafter_unet_reduced_in_float64(motioncrafter_golden, name):
    """Settles the eps of every norm, which float32 cannot."""
    golden, unet = motioncrafter_golden, reduced_unet(motioncrafter_golden, name).double()
    arrays = golden.load("unet_reduced")
    with torch.inference_mode():
        for case in "AB":
            sample, ids = arrays[f"in.{case}.{PARADIGMS[name][1]}"], arrays[f"in.{case}.time_ids"]
            output = unet(sample.double(), DETERMINISTIC_TIMESTEP, arrays[f"in.{case}.emb"].double(), ids)
            golden.check("unet_reduced", f"out64.{name}.{case}", output)


def vae_outputs(vae, arrays, dtype=torch.float32):
    geometry, motion = vae.encode(arrays["in.points"].to(dtype)), vae.encode_2(arrays["in.flow"].to(dtype))
    z_geometry, z_motion = arrays["in.z_geo"].to(dtype), arrays["in.z_mot"].to(dtype)
    return {
        "encode.mean": geometry.mean,
        "encode.logvar": geometry.logvar,
        "encode_2.mean": motion.mean,
        "encode_2.logvar": motion.logvar,
        "decode": vae.decode(z_geometry),
        "decode_2": vae.decode_2(z_motion, z_geometry),
    }


def test_motioncrafter_vae_reduced(motioncrafter_golden):
    golden = motioncrafter_golden
    vae, arrays = golden.fill(meta(GeometryMotionVAE, REDUCED_VAE), "vae_reduced"), golden.load("vae_reduced")
    with torch.inference_mode():
        for name, value in vae_outputs(vae, arrays).items():
            golden.check("vae_reduced", f"out.{name}", value)
        for name, value in vae_outputs(vae.double(), arrays, torch.float64).items():
            if f"out64.{name}" in arrays:
                golden.check("vae_reduced", f"out64.{name}", value)


def test_motioncrafter_chain_reduced(motioncrafter_golden):
    """Condition latents -> U-Net per window -> latents -> point map and scene flow -> published resizing."""
    golden, unet = motioncrafter_golden, reduced_unet(motioncrafter_golden, "determ")
    vae, arrays = golden.fill(meta(GeometryMotionVAE, REDUCED_VAE), "vae_reduced"), golden.load("chain_reduced")
    both, width = torch.cat([arrays["in.cond"].flatten(2), arrays["in.emb"]], dim=2), arrays["in.cond"][0, 0].numel()

    def process(chosen, _):
        condition, tokens = chosen[..., :width].unflatten(2, arrays["in.cond"].shape[2:]), chosen[..., width:]
        return -unet(condition, DETERMINISTIC_TIMESTEP, tokens, arrays["in.time_ids"])

    with torch.inference_mode():
        assert torch.equal(arrays["in.time_ids"], torch.tensor([TIME_IDS]))
        latents = published.stitch(both, 3, 0, process)
        golden.check("chain_reduced", "out.latents.ov0", latents)
        golden.check("chain_reduced", "out.latents.ov1", published.stitch(both, 3, 1, process))
        points, flow = vae.decode_joint(latents[0] / REDUCED.scaling_factor)
    golden.check("chain_reduced", "out.point_map", points.movedim(1, -1))
    golden.check("chain_reduced", "out.scene_flow", flow.movedim(1, -1))
    for name, maps in {"point_map": points, "scene_flow": flow}.items():
        small = F.interpolate(maps[:2], (48, 40), mode="bilinear", align_corners=False)
        golden.check("chain_reduced", f"out.{name}.resized48x40.frames01", small.movedim(1, -1))
    nearest = F.interpolate(points[:1], (48, 40), mode="nearest-exact")
    golden.check("chain_reduced", "out.point_map.nearest48x40.frame0", nearest.movedim(1, -1))


@pytest.mark.parametrize("frames", [8, 25, 26, 50, 77])
@pytest.mark.parametrize("overlap", [0, 5])
def test_motioncrafter_published_windows(motioncrafter_golden, frames, overlap):
    golden, arrays, name = motioncrafter_golden, motioncrafter_golden.load("windows"), f"T{frames}.ov{overlap}"
    windows = published.plan(frames, 25, overlap)
    assert [[w.start, w.stop] for w in windows] == arrays[f"out.plan.{name}"].tolist()
    used = [min(25, frames), overlap if frames > 25 else 0]
    assert [*used, used[0] - used[1]] == arrays[f"out.used.{name}"].tolist()

    def toy(chosen, number):
        inside = torch.arange(chosen.shape[1]).float()[:, None, None, None]
        return torch.cat([chosen, -chosen], 2) * (1 + 0.1 * number) + 0.01 * inside + 0.5 * number

    golden.check("windows", f"out.blend.{name}", published.stitch(arrays[f"in.T{frames}"], 25, overlap, toy))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARADIGMS)
def test_motioncrafter_unet_full(motioncrafter_golden, name):
    """1.5 billion weights, 6.7 GiB."""
    golden, config = motioncrafter_golden, MotionCrafterConfig(paradigm=PARADIGMS[name][0])
    unet, arrays = golden.fill(meta(build_unet, config), "unet_full"), golden.load("unet_full")
    with torch.inference_mode():
        output = unet(
            arrays[f"in.{PARADIGMS[name][1]}"], float(arrays["in.t"]), arrays["in.emb"], arrays["in.time_ids"]
        )
    golden.check("unet_full", f"out.{name}", output)


@pytest.mark.slow
def test_motioncrafter_vae_full(motioncrafter_golden):
    golden = motioncrafter_golden
    vae, arrays = golden.fill(meta(GeometryMotionVAE, AutoencoderConfig()), "vae_full"), golden.load("vae_full")
    with torch.inference_mode():
        for name, value in vae_outputs(vae, arrays).items():
            golden.check("vae_full", f"out.{name}", value)
