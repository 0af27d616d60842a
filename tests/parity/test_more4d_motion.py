"""MoRe4D's autoencoder, motion normalisation, mask packing, sampler, splats and presets against golden numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from more4d_numbers import Numbers

from worldline.geometry.camera import project
from worldline.geometry.normalize import DepthGuidedMotion, MaxDistance
from worldline.geometry.pose import inverse, transform
from worldline.render.paths import look_at
from worldline.render.presets import preset_path
from worldline.render.splat import splat
from worldline.systems.more4d import flow
from worldline.systems.more4d.config import VaeConfig
from worldline.systems.more4d.published import vae_key
from worldline.systems.more4d.representation import (
    FirstFrameExtent,
    fold_in_time,
    inpainter_conditions,
    on_latent_grid,
    published_focal,
    to_channels,
    to_maps,
)
from worldline.systems.more4d.vae import MEAN, STD, MotionVae


@pytest.fixture(scope="module")
def numbers(golden_dir: Path) -> Numbers:
    return Numbers(golden_dir / "more4d")


def filled(numbers: Numbers, base: int) -> MotionVae:
    vae = MotionVae(VaeConfig(base_dim=base)).eval()
    names = {vae_key(key): key for key in numbers.json("vae_key_mapping")["map"]}
    numbers.fill(vae.vae, names.__getitem__)
    numbers.fill(vae.trajectory_encoder, lambda key: key)
    numbers.fill(vae.trajectory_decoder, lambda key: key)
    return vae


@pytest.fixture(scope="module")
def small(numbers: Numbers) -> MotionVae:
    return filled(numbers, 16)


def test_vae_key_mapping(numbers: Numbers) -> None:
    mapping = numbers.json("vae_key_mapping")
    assert {key: vae_key(key) for key in mapping["map"]} == mapping["map"]
    with torch.device("meta"):
        vae = MotionVae(VaeConfig())
    assert {vae_key("model." + key): tuple(shape) for key, shape in mapping["shapes"].items()} == {
        key: tuple(value.shape) for key, value in vae.vae.state_dict().items()
    }
    assert torch.allclose(torch.tensor(mapping["latent_mean"]), torch.tensor(MEAN))
    assert torch.allclose(torch.tensor(mapping["latent_std"]), torch.tensor(STD))
    adaptors = vae.trajectory_encoder, vae.trajectory_decoder
    counts = [sum(p.numel() for p in adaptor.parameters()) for adaptor in adaptors]
    assert counts == numbers.manifest["adaptor_params"]


def test_motion_vae_adaptors(numbers: Numbers, small: MotionVae) -> None:
    stored, x = numbers.load("motion_vae"), numbers.input("traj.x", 1, 3, 4, 16, 24)
    with torch.no_grad():
        numbers.check(stored["adaptor.enc"], small.trajectory_encoder(x))
        numbers.check(stored["adaptor.dec_of_x"], small.trajectory_decoder(x))
        fresh = MotionVae(VaeConfig(base_dim=8)).trajectory_encoder
        numbers.check(stored["adaptor.enc_zero_conv_out"], fresh(x))


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_motion_vae(numbers: Numbers, small: MotionVae, size: str) -> None:
    stored = {k.removeprefix(f"{size}."): v for k, v in numbers.load("motion_vae").items() if k.startswith(size)}
    vae = small if size == "small" else filled(numbers, 96)
    x = 0.5 * numbers.input(f"vae_{size}.x", *stored["in.x"].shape)
    x[:, :, 0] = 0
    noise = numbers.input(f"vae_{size}.noise", *stored["in.noise"].shape)
    with torch.no_grad():
        numbers.check(stored["pseudo_video"], vae.pseudo_video(x))
        posterior = vae.encode(x)
        numbers.check(stored["latent_mode"], posterior.mean)
        numbers.check(stored["logvar"], posterior.logvar)
        sample = posterior.sample(noise)
        numbers.check(stored["latent_sample"], sample)
        numbers.check(stored["recon_unclamped"], vae.decode_video(posterior.mean, clamp=False))
        numbers.check(stored["recon"], vae.decode_video(posterior.mean))
        numbers.check(stored["traj_from_mode"], vae.decode(posterior.mean))
        decoded = vae.decode(sample)
        numbers.check(stored["traj_from_sample"], decoded)
        z = numbers.input(f"vae_{size}.z", *stored["in.noise"].shape)
        numbers.check(stored["decode_of_z"], vae.decode_video(z, clamp=False))
    reconstruction, kl = (decoded - x).abs().sum(), posterior.kl().sum()
    found = torch.stack([reconstruction, kl, reconstruction + 1e-6 * kl])
    assert torch.allclose(found, stored["loss_terms"], rtol=1e-4)


def test_motion_normalisation(numbers: Numbers) -> None:
    g = numbers.load("motion_normalisation")
    coords = to_maps(g["coords"])
    for case in numbers.manifest["fx_fy_heuristic"]:
        found = published_focal(tuple(case["orig_hw"]), tuple(case["target_hw"]))
        assert found == pytest.approx((case["fx"], case["fy"]))
    published = DepthGuidedMotion(reference=coords[0], focal=g["fxfy_published"])
    numbers.check(g["published_z"], to_channels(published.apply(coords)), 1e-5)
    numbers.check(g["recovered_from_published"], to_channels(published.invert(to_maps(g["published_z"]))), 1e-5)
    extent = FirstFrameExtent.fit(coords[0])
    numbers.check(g["published_first_frame"], to_channels(extent.apply(coords)), 1e-5)
    assert torch.allclose(extent.invert(extent.apply(coords)), coords, atol=1e-5)
    numbers.check(g["published_none"], to_channels(coords - coords[0]), 1e-5)
    numbers.check(g["published_maxabs"], to_channels(MaxDistance.fit(coords).apply(coords)), 1e-5)
    fitted = DepthGuidedMotion.fit(coords[0])
    numbers.check(g["fxfy_exact_normalised"], fitted.focal, 1e-4)
    exact = DepthGuidedMotion(reference=coords[0], focal=g["fxfy_exact_normalised"])
    numbers.check(g["exact_z"], to_channels(exact.apply(coords)), 1e-5)
    numbers.check(g["recovered_from_exact"], to_channels(exact.invert(to_maps(g["exact_z"]))), 1e-5)
    picture = torch.tanh(g["exact_z"] / 2)
    numbers.check(g["pseudo_video_tanh"], picture, 1e-5)
    numbers.check(g["exact_from_atanh"], 2 * torch.atanh(picture), 1e-5)
    bad = DepthGuidedMotion(reference=to_maps(g["bad.coords"])[0], focal=g["fxfy_published"])
    torch.testing.assert_close(1 / bad.factor[..., 2], g["bad.z0_used"], atol=1e-5, rtol=0)
    found = to_channels(bad.apply(to_maps(g["bad.coords"])))
    torch.testing.assert_close(found, g["bad.published_z"], atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shift", [3, 5])
def test_flow_matching_tables_and_sampler(numbers: Numbers, shift: int) -> None:
    g = {k.removeprefix(f"shift{shift}."): v for k, v in numbers.load("flow_matching").items()}
    numbers.check(g["train_sigmas"], flow.training_sigmas(float(shift)), 1e-6)
    assert torch.allclose(1000 * flow.training_sigmas(float(shift)), g["train_timesteps"], atol=1e-3)
    numbers.check(g["sigmas50"], flow.sigmas(50, float(shift)), 1e-6)
    numbers.check(g["sigmas6"], flow.sigmas(6, float(shift)), 1e-6)
    assert torch.allclose(1000 * flow.sigmas(50, float(shift))[:-1], g["timesteps50"], atol=1e-3)

    def toy(name: str) -> flow.Velocity:
        c = numbers.input(f"flow.{name}", 1, 4, 2, 3, 4)
        return lambda z, t: 0.7 * torch.tanh(z) - c * (0.3 + 0.5 * t.reshape(-1, 1, 1, 1, 1) / 1000)

    states = []

    def seen(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states.append(z)
        return flow.guided(toy("cond"), toy("uncond"), 6.0)(z, t)

    start = numbers.input("flow.z", 1, 4, 2, 3, 4)
    states.append(flow.sample(seen, start, steps=6, shift=float(shift)))
    numbers.check(g["toy6_all"], torch.stack(states), 1e-5)
    numbers.check(g["toy50_final"], flow.sample(seen, start, steps=50, shift=float(shift)), 1e-4)


def test_flow_matching_training_values(numbers: Numbers) -> None:
    g = {k.removeprefix("train."): v for k, v in numbers.load("flow_matching").items()}
    sigma = flow.training_sigmas()[g["index"]]
    numbers.check(g["sigma"], sigma, 1e-6)
    assert torch.equal(sigma.bfloat16().float(), g["sigma_bf16"])
    noisy, target = flow.noised(g["in.z1"], g["in.eps"], sigma)
    numbers.check(g["noisy"], noisy, 1e-5)
    numbers.check(g["target"], target, 1e-5)
    numbers.check(g["loss_masked"], flow.loss(g["in.pred"], target), 1e-5)
    assert float(g["loss_unmasked"]) > float(g["loss_masked"])


def test_zbuffer(numbers: Numbers) -> None:
    g = numbers.load("zbuffer")
    centred = g["K"].clone()
    centred[:2, 2] -= 0.5  # their pixel centres are at +0.5
    size = (int(g["image_hw"][0]), int(g["image_hw"][1]))
    for index, cam2world in enumerate(g["c2w"]):
        e = {k.removeprefix(f"pose{index}."): v for k, v in g.items()}
        cam = transform(inverse(cam2world), g["in.points"])
        uv = project(cam, g["K"])
        numbers.check(e["uvz"], torch.cat([uv, cam[:, 2:]], -1), 1e-5)
        seen = splat(g["in.points"], g["in.colors"], cam2world, centred, size, radius_px=0)
        assert torch.equal(seen.index.int(), e["index"])
        assert torch.equal(~seen.coverage, e["hole"])
        visible = torch.zeros(len(cam), dtype=torch.bool)
        visible[seen.index[seen.coverage]] = True
        assert torch.equal(visible, e["visible"])
        numbers.check(e["depth"], seen.depth, 1e-5)
        numbers.check(e["color"], seen.image, 1e-6)
    black = (numbers.load("zbuffer")["in.colors"].amax(1) == 0).nonzero()[0, 0]
    first = splat(g["in.points"], g["in.colors"], g["c2w"][0], centred, size, radius_px=0)
    assert bool((first.index == black).any()) and bool(first.coverage[first.index == black].all())


@pytest.mark.parametrize("name", ["static", "forward_backward", "circle_rotating", "surrounding", "camera_rotate"])
@pytest.mark.parametrize("frames", [5, 49])
def test_camera_presets(numbers: Numbers, name: str, frames: int) -> None:
    g = numbers.load("camera_presets")
    identity = torch.eye(4)
    numbers.check(g[f"T{frames}.{name}"], preset_path(name, identity, g["center"], frames, as_published=True), 1e-5)
    numbers.check(g[f"T{frames}.{name}.rebased"], preset_path(name, identity, g["center"], frames), 1e-5)
    numbers.check(g["lookat_identity_check"], look_at(torch.zeros(3), torch.tensor([0.0, 0.0, 5.0])), 1e-5)


def test_vism_pack(numbers: Numbers, small: MotionVae) -> None:
    g = numbers.load("vism_pack")
    hole, rendered = g["in.hole_mask"], g["in.rendered"]
    numbers.check(rendered, torch.tanh(numbers.input("vism.rendered", 1, 3, 9, 16, 24)), 1e-6)
    order = fold_in_time(torch.arange(9.0)[None, None, :, None, None], 4)[0, :, :, 0, 0]
    assert torch.equal(order, g["frame_number_fold"])
    numbers.check(g["mask_folded_hole1"], fold_in_time(hole.float(), 4))
    numbers.check(g["mask_latent_known1"], on_latent_grid(fold_in_time(1 - hole.float(), 4), (2, 3)))
    numbers.check(g["masked_video"], torch.where(hole, torch.zeros_like(rendered), rendered))
    with torch.no_grad():
        y = inpainter_conditions(small, rendered, ~hole)
        nothing = inpainter_conditions(small, rendered, torch.zeros_like(hole))
    numbers.check(g["y20"], y)
    numbers.check(g["masked_video_latent"], y[:, 4:])
    numbers.check(g["x36"], torch.cat([numbers.input("vism.noise", 1, 16, 3, 2, 3), y], 1))
    assert torch.equal(nothing, g["all_hole.y20"])
