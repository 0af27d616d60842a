"""MotionCrafter at inference: any size and length, windows, seeds, caches; and the upstream faults it avoids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align_worlds import make_world
from worldline.diffusion.edm import Preconditioning, loss_weight
from worldline.geometry.pose import so3_exp
from worldline.scene import Video
from worldline.systems.motioncrafter import infer as mc
from worldline.systems.motioncrafter import sampling
from worldline.systems.motioncrafter.conditioning import Padding, clip_pixels, cover_resize
from worldline.systems.motioncrafter.config import AutoencoderConfig, MotionCrafterConfig, UNetConfig, mini_config
from worldline.systems.motioncrafter.networks import (
    TIME_IDS,
    GeometryMotionVAE,
    build,
    build_unet,
    unet_weights_from_prior,
)
from worldline.systems.motioncrafter.representation import to_channels, to_maps
from worldline.systems.offload import placed


def small(**choices) -> MotionCrafterConfig:
    """Smaller than the mini, with the paper's latent channels: 1/4 resolution, three levels of U-Net."""
    autoencoder = AutoencoderConfig(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4)
    unet = UNetConfig(
        block_out_channels=(32, 32, 64),
        num_attention_heads=(1, 1, 2),
        layers_per_block=1,
        cross_attention_dim=64,
        addition_time_embed_dim=32,
    )
    return replace(mini_config(**choices), vae=autoencoder, rgb_vae=autoencoder, unet=unet, window=8, overlap=3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build(small(), encoders=False).eval()


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(1)
    return build(small(paradigm="denoising"), encoders=False).eval()


def frames(count=3, size=(32, 48), seed=0):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


def video(count, size=(32, 48)):
    return Video(frames=frames(count, size), timestamps=torch.arange(count, dtype=torch.float64))


# --- networks


def test_mini_fits_its_budget():
    for fusion in ("unify", "separate", "offset", "none"):
        for paradigm in ("deterministic", "denoising"):
            config = mini_config(fusion=fusion, paradigm=paradigm)
            parameters = sum(p.numel() for p in build(config, meta=True, encoders=False).parameters())
            assert parameters <= 8_000_000, (fusion, paradigm, parameters)


def test_published_parameter_counts():
    model = build(MotionCrafterConfig(), meta=True)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert (count(model.vae), len(model.vae.state_dict())) == (167_326_158, 496)
    assert (count(model.unet), len(model.unet.state_dict())) == (1_524_623_086, 1428)
    assert (count(model.rgb_vae), len(model.rgb_vae.state_dict())) == (34_163_664, 108)
    denoising = build(MotionCrafterConfig(paradigm="denoising"), meta=True)
    assert count(denoising.unet) == 1_524_646_126
    assert denoising.unet.conv_in.weight.shape == (320, 12, 3, 3)
    assert MotionCrafterConfig().size_multiple == 64


@pytest.mark.parametrize("fusion", ["unify", "separate", "offset", "none"])
def test_every_fusion_makes_points_and_flow(fusion):
    config = small(fusion=fusion)
    vae = GeometryMotionVAE(config.vae, fusion=fusion)
    points, flow = torch.randn(2, 3, 16, 24), 0.05 * torch.randn(2, 3, 16, 24)
    joint = vae.join(vae.encode(points).mode(), vae.encode_2(flow).mode())
    assert joint.shape == (2, config.latent_channels, 4, 6)
    decoded = vae.decode_joint(joint)
    assert [maps.shape for maps in decoded] == [points.shape, flow.shape]
    z_geometry, z_motion = vae.split(joint)
    assert torch.equal(decoded[0], vae.decode(z_geometry))
    depends = (vae.decode_2(z_motion, z_geometry) - vae.decode_2(z_motion, z_geometry + 1)).abs().max() > 0
    assert bool(depends) == (fusion == "unify")


def test_unify_reads_motion_first_then_geometry_without_its_own_convolution():
    vae = GeometryMotionVAE(small().vae)
    z_geometry, z_motion = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    expected = vae.decoder_2(torch.cat([vae.post_quant_conv_2(z_motion), z_geometry], dim=1)) / 10
    assert torch.equal(vae.decode_2(z_motion, z_geometry), expected)
    with torch.no_grad():
        vae.decoder_2.conv_in.weight[:, 4:] = 0
    assert torch.equal(vae.decode_2(z_motion, z_geometry), vae.decode_2(z_motion, 0 * z_geometry))


def test_motion_branch_starts_as_a_copy_with_both_halves_filled():
    vae = GeometryMotionVAE(small().vae)
    vae.start_motion_from_geometry()
    weight = vae.decoder.conv_in.weight
    assert torch.equal(vae.decoder_2.conv_in.weight, torch.cat([weight, weight], dim=1))
    assert torch.equal(vae.encoder_2.conv_out.weight, vae.encoder.conv_out.weight)
    flow = torch.randn(1, 3, 16, 16)
    assert torch.allclose(vae.encode_2(flow).mode(), vae.encode(10 * flow).mode(), atol=1e-5)


def test_offset_starts_without_disturbing_the_geometry():
    vae = GeometryMotionVAE(small().vae, fusion="offset")
    vae.start_motion_from_geometry()
    points, flow = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    z = vae.encode(points).mode()
    assert torch.allclose(vae.join(z, vae.encode_2(flow).sample()), z, atol=0.05)
    vae.encode_2(flow).mode().sum().backward()
    assert vae.quant_conv_2.weight.grad.abs().max() > 0, "and it can learn"


def test_equal_tokens_reproduce_the_stock_unet():
    from diffusers import UNetSpatioTemporalConditionModel

    ours = build_unet(small()).eval()
    stock = UNetSpatioTemporalConditionModel(**{k: v for k, v in ours.config.items() if not k.startswith("_")}).eval()
    stock.load_state_dict(ours.state_dict())
    sample, token, ids = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 1, 64), torch.tensor([TIME_IDS] * 2)
    with torch.inference_mode():
        expected = stock(sample, 1.6378, token, ids).sample
        assert torch.equal(ours(sample, 1.6378, token.expand(-1, 3, -1), ids), expected)
        other = token.expand(-1, 3, -1).clone()
        other[:, 1] += 1
        assert not torch.equal(ours(sample, 1.6378, other, ids), expected)


def test_unet_refuses_latents_it_cannot_halve(model):
    with pytest.raises(ValueError, match="multiples of 4"):
        model.unet(torch.randn(1, 1, 4, 6, 8), 1.0, torch.randn(1, 1, 64), torch.tensor([TIME_IDS]))


def test_fault_prior_condition_lands_on_noisy_motion():
    """The public trainer's initialisation puts the condition's weights on the noisy motion."""
    weight = torch.randn(32, 8, 3, 3)
    prior = {"conv_in.weight": weight, "conv_out.weight": torch.randn(4, 32, 3, 3), "conv_out.bias": torch.randn(4)}
    determ = unet_weights_from_prior(prior, small())
    assert torch.equal(determ["conv_in.weight"], weight[:, 4:])
    assert torch.equal(determ["conv_out.bias"][:4], determ["conv_out.bias"][4:])
    widened = unet_weights_from_prior(prior, small(paradigm="denoising"), noisy_motion="zero")
    assert torch.equal(widened["conv_in.weight"][:, 8:], weight[:, 4:])
    assert torch.equal(widened["conv_in.weight"][:, :4], weight[:, :4])
    assert not widened["conv_in.weight"][:, 4:8].any()
    shapes = {key: value.shape for key, value in build_unet(small(paradigm="denoising")).state_dict().items()}
    assert all(widened[key].shape == shapes[key] for key in widened)


def test_config_survives_json_and_refuses_unknown_keys():
    config = small(fusion="separate", normalization="max")
    assert MotionCrafterConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="no field depth"):
        MotionCrafterConfig.from_dict({**config.to_dict(), "depth": 3})


def test_fault_constructor_downloads_weights(monkeypatch):
    """Upstream's VAE fetches Stable Diffusion when it is built, even to overwrite every weight of it."""
    import socket

    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("the network was asked"))
    assert next(build(small()).parameters()).isfinite().all()


def test_fault_default_is_the_denoiser():
    """The paper's default is the deterministic pass; upstream's program runs the other one unless told."""
    from worldline.systems.motioncrafter import pretrained

    assert MotionCrafterConfig().paradigm == "deterministic"
    assert "unet_determ" in pretrained.weights()[0].subfolders


def test_fault_unet_time_embedding_in_half_precision(model):
    """The sinusoid of time and of the time ids is computed in float32 whatever the network runs in."""
    import copy

    seen = []
    half = copy.deepcopy(model.unet).to(torch.bfloat16)
    half.time_proj.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    half.add_time_proj.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.inference_mode():
        half(torch.randn(1, 1, 4, 8, 8), 1.6378, torch.randn(1, 1, 64), torch.tensor([TIME_IDS]))
    assert [tensor.dtype for pair in seen for tensor in pair] == [torch.float32] * 4
    assert any(torch.equal(given, torch.tensor(TIME_IDS)) for given, _ in seen)


# --- sampling


def test_sampler_is_the_preconditioning_the_denoiser_is_trained_with():
    """Upstream trains with timestep 1000 sigma and no input scale; its sampler uses ln(sigma)/4 and 1/sqrt(s^2+1)."""
    scheduler = sampling.euler_scheduler(5)
    for step, timestep in enumerate(scheduler.timesteps):
        noisy, output = torch.randn(1, 2, 8, 2, 2), torch.randn(1, 2, 8, 2, 2)
        sigma = scheduler.sigmas[step].reshape(1).float()
        by = Preconditioning.of(sigma)
        torch.testing.assert_close(by.noise, timestep.reshape(1).float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scheduler.scale_model_input(noisy, timestep), by.network_input(noisy))
        result = scheduler.step(output, timestep, noisy)
        torch.testing.assert_close(result.pred_original_sample, by.denoised(noisy, output), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(loss_weight(sigma) * by.out**2, torch.ones(1))


def test_perfect_denoiser_is_recovered_from_any_seed(denoiser):
    clean = torch.randn(1, 2, 8, 4, 4)

    def perfect(latent, timestep):
        sigma = (4 * timestep).exp()
        noisy = latent[:, :, :8] * (sigma**2 + 1).sqrt()
        return (noisy / (sigma**2 + 1) - clean) * (sigma**2 + 1).sqrt() / sigma

    for seed in (0, 1):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        found = sampling.sample(perfect, noise, torch.zeros(1, 2, 4, 4, 4), steps=10)
        torch.testing.assert_close(found, clean, atol=2e-3, rtol=0)


# --- frames


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([16, 64]))
def test_padding_is_undone_exactly(height, width, multiple):
    padding = Padding.to_multiple((height, width), multiple)
    images = torch.rand(1, 3, height, width)
    padded = padding.apply(images)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-1] % multiple == 0
    assert padded.shape[-2] < height + multiple and padded.shape[-1] < width + multiple
    assert torch.equal(padding.crop(padded), images)


def test_fault_clip_resize_blurs_all_frames_at_once():
    images = torch.rand(5, 3, 90, 130) * 2 - 1
    assert torch.equal(clip_pixels(images, 32, chunk=2), clip_pixels(images, 32, chunk=5))


@pytest.mark.parametrize("size", [(480, 854), (624, 1232), (33, 17)])
def test_fault_cover_resize_never_falls_a_pixel_short(size):
    """int() in place of round() made 480x854 into 539x959 for 512x960, and a negative crop start left one column."""
    images = torch.linspace(0, 1, size[1]).expand(1, 3, *size)
    covered = cover_resize(images, (512, 960))
    assert covered.shape == (1, 3, 512, 960)
    assert (covered[..., -1] - covered[..., 0]).min() > 0.4


# --- observe


@pytest.mark.parametrize("size", [(32, 48), (37, 51), (17, 90)])
def test_fault_sizes_that_are_no_multiple_of_64_fail(model, size):
    """Upstream refuses any video whose sides are not multiples of 64."""
    seen = mc.observe(model, frames(2, size), frames=(4, 5))
    assert seen.points.shape == (2, *size, 3) and seen.frames == (4, 5)
    assert seen.points.isfinite().all() and (seen.confidence == 1).all()


def test_fault_last_frame_of_a_window_claims_scene_flow(model):
    """No loss ever looks at it upstream, yet it is returned as valid."""
    seen = mc.observe(model, frames(3))
    assert seen.flow_valid[:2].all() and not seen.flow_valid[2].any()
    assert not mc.observe(model, frames(1)).flow_valid.any()


def test_chunks_do_not_change_the_answer(model):
    a = mc.observe(model, frames(5), mc.InferConfig(chunk=2))
    b = mc.observe(model, frames(5), mc.InferConfig(chunk=5))
    torch.testing.assert_close(a.points, b.points, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.scene_flow, b.scene_flow, atol=1e-4, rtol=1e-4)


def test_observation_is_the_networks_in_order(model):
    """The same numbers by hand, without padding, chunks or cropping."""
    rgb = frames(2)
    images = rgb.movedim(-1, 1) * 2 - 1
    with torch.inference_mode():
        condition = model.rgb_vae.encode(images).mode()
        tokens = model.image_encoder(clip_pixels(images, 64)).image_embeds
        latents = model.predict_latents(condition[None], tokens[None], torch.tensor([TIME_IDS]))[0]
        points, flow = model.vae.decode_joint(latents / model.config.scaling_factor)
    seen = mc.observe(model, rgb)
    torch.testing.assert_close(seen.points, points.movedim(1, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.scene_flow[0], flow.movedim(1, -1)[0], atol=1e-5, rtol=1e-5)


def test_deterministic_ignores_seeds(model):
    a, b = (mc.observe(model, frames(2), mc.InferConfig(seeds=(seed,))) for seed in (1, 2))
    assert torch.equal(a.points, b.points)


def test_seeds_repeat_and_their_spread_is_the_confidence(denoiser):
    def look(*seeds):
        return mc.observe(denoiser, frames(2), mc.InferConfig(seeds=seeds, steps=2))

    one, other = look(1), look(2)
    assert torch.equal(one.points, look(1).points)
    assert not torch.equal(one.points, other.points)
    assert (one.confidence == 1).all()
    assert (look(1, 1).confidence == 1).all()
    both = look(1, 2).confidence
    distance = (one.points - other.points).norm(dim=-1)
    assert both.min() > 0 and both.max() < 1
    near, far = distance <= distance.quantile(0.1), distance >= distance.quantile(0.9)
    assert both[near].min() > both[far].max()


def test_fault_window_noise_depends_on_what_ran_before(denoiser):
    """Upstream draws from the global generator, so a window's answer depends on how many windows came before it."""
    settings = mc.InferConfig(steps=1, seeds=(3,))
    torch.manual_seed(0)
    first = mc.observe(denoiser, frames(2), settings)
    torch.manual_seed(5)
    assert torch.equal(first.points, mc.observe(denoiser, frames(2), settings).points)


def test_fault_maps_are_not_interpolated_across_edges(model):
    """Upstream enlarges point maps bilinearly; here every enlarged pixel is a pixel of the network's map."""
    rgb = frames(1, (32, 48)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    seen = mc.observe(model, rgb, mc.InferConfig(max_pixels=32 * 48))
    assert seen.points.shape == (1, 64, 96, 3)
    values = seen.points.reshape(-1, 3)
    assert len(values.unique(dim=0)) <= 32 * 48
    assert torch.equal(seen.points[0, 0, 0], seen.points[0, 1, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32(model, dtype):
    import copy

    half = copy.deepcopy(model)
    half.unet.to(dtype), half.image_encoder.to(dtype)
    a, b = mc.observe(model, frames(2)), mc.observe(half, frames(2))
    assert b.points.dtype == torch.float32
    scale = a.points.std()
    assert (a.points - b.points).abs().mean() < 0.05 * scale
    assert not torch.equal(a.points, b.points)


def test_fault_models_cannot_be_offloaded():
    class Traveller(torch.nn.Linear):
        trips: list[torch.device] = []

        def to(self, device):
            self.trips.append(device)
            return self

    network, there, home = Traveller(1, 1), torch.device("cuda"), torch.device("cpu")
    with placed(network, home):
        assert network.trips == []
    with pytest.raises(KeyboardInterrupt), placed(network, there):
        assert network.trips == [there]
        raise KeyboardInterrupt
    assert network.trips == [there, home]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu_and_offload_leaves_the_model_home(model, denoiser):
    for network in (model, denoiser):
        settings = mc.InferConfig(steps=2, seeds=(1, 2), device="cuda")
        there = mc.observe(network, frames(3), settings)
        here = mc.observe(network, frames(3), replace(settings, device=None))
        assert there.points.device.type == "cpu" and next(network.unet.parameters()).device.type == "cpu"
        torch.testing.assert_close(there.points, here.points, atol=2e-2, rtol=2e-2)


def test_exported_checkpoint_loads_and_runs_as_a_system(model, tmp_path, monkeypatch):
    from worldline.io.tensors import WeightsError
    from worldline.systems.motioncrafter import system, train
    from worldline.systems.system import Loading

    path = train.export(model, tmp_path / "mine.safetensors", {"unreliable": ["scene_flow"]})
    loading = Loading(device=torch.device("cpu"), weights=str(path))
    loaded = system.load_mini(loading)
    assert loaded.model.config == model.config and loaded.unreliable == ("scene_flow",)
    assert len(loaded.weights_sha256) == 64
    assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())
    a, b = mc.observe(loaded.model, frames(2)), mc.observe(model, frames(2))
    assert (a.points - b.points).abs().mean() < 0.01 * b.points.std()  # fp16 on disk
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(WeightsError, match="not the file that mine.json describes"):
        system.load_mini(loading)
    with pytest.raises(FileNotFoundError, match="no .*other.safetensors"):
        system.load_mini(replace(loading, weights=str(tmp_path / "other.safetensors")))


# --- windows


class Shelf(dict):
    """A window cache in memory."""

    def get(self, key):
        return super().get(key)

    def put(self, key, tensors):
        self[key] = tensors


def test_finished_windows_are_not_computed_again(model, monkeypatch):
    shelf, clip = Shelf(), video(6)
    settings = mc.InferConfig(window=4, overlap=2)
    made = [
        mc._cached(shelf, w, lambda w=w: mc.observe_window(model, clip, w, settings))
        for w in mc.window_plan(6, model, settings)
    ]
    monkeypatch.setattr(mc, "observe", lambda *a, **k: pytest.fail("computed again"))
    kept = [
        mc._cached(shelf, w, lambda w=w: mc.observe_window(model, clip, w, settings))
        for w in mc.window_plan(6, model, settings)
    ]
    assert len(kept) == 2
    for a, b in zip(made, kept, strict=True):
        assert a.frames == b.frames and torch.equal(a.points, b.points) and torch.equal(a.flow_valid, b.flow_valid)


def test_fault_overlap_is_ignored(model):
    """Upstream passes 0 whatever --overlap says; windows that share no frame cannot be joined at all."""
    settings = mc.InferConfig(window=25, overlap=5)
    plan = mc.window_plan(77, model, settings)
    assert all(len(set(a) & set(b)) >= 5 for a, b in zip(plan, plan[1:], strict=False))
    assert all(len(w) == 25 for w in plan) and plan[-1].stop == 77
    with pytest.raises(ValueError, match="overlap of at least 1"):
        mc.window_plan(77, model, replace(settings, overlap=0))
    assert mc.window_plan(20, model, replace(settings, overlap=0)) == [range(20)]


def test_fault_windows_are_joined(model, monkeypatch):
    """Each window answers in a world of its own; upstream concatenates them, here they end up in one world."""
    world = make_world(77, size=(18, 27), focal=25.0)

    def true_window(model, clip, window, config):
        """What a perfect network would say, and then in any gauge: turned, moved and scaled at random."""
        chosen = list(window)
        channels = to_channels(
            world.points[None, chosen].float(),
            torch.ones(1, len(window), *world.size, dtype=torch.bool),
            world.pose[None, chosen],
            world.flow[None, chosen].float(),
            torch.ones(1, len(window), *world.size, dtype=torch.bool),
        )
        generator = torch.Generator().manual_seed(window.start)
        draw = torch.randn(7, generator=generator)
        turn, unit = so3_exp(0.3 * draw[:3]), (0.4 * draw[6]).exp()
        return mc.Observation(
            frames=tuple(window),
            points=unit * (to_maps(channels.points[0]) @ turn.T + draw[3:6]),
            confidence=torch.ones(len(window), *world.size),
            scene_flow=unit * (to_maps(channels.scene_flow[0]) @ turn.T),
            flow_valid=channels.flow_valid[0],
        )

    monkeypatch.setattr(mc, "observe_window", true_window)
    scene = mc.infer(video(77, world.size), model, mc.InferConfig(window=25, overlap=5))
    assert scene.provenance.settings["windows"] == 4
    # the unit of the whole clip is free; no similarity per window, no rotation: the world is the first camera's
    first, ours = world.points[0], scene.points[0].double()
    scale = (first * ours).sum() / (ours * ours).sum()
    error = (scale * scene.points.double() - world.points).norm(dim=-1)[scene.valid]
    assert scene.valid.float().mean() > 0.99
    assert error.mean() < 0.005 * world.extent
    assert scene.flow_valid is not None and scene.flow_valid[:-1].all() and not scene.flow_valid[-1].any()
    slip = (scale * scene.scene_flow.double() - world.flow).norm(dim=-1)[:-1]
    assert slip.mean() < 0.005 * world.extent


# --- gradients


def test_fault_gradient_reaches_unet_through_frozen_decoder():
    """Upstream decodes points under no_grad, so its point loss never trains the U-Net."""
    torch.manual_seed(0)
    model = build(small(), encoders=False)
    model.vae.requires_grad_(False)
    latents = model.predict_latents(torch.randn(1, 2, 4, 8, 8), torch.randn(1, 2, 64), torch.tensor([TIME_IDS]))
    points, flow = model.vae.decode_joint(latents[0] / model.config.scaling_factor)
    for output in (points, flow):
        (gradient,) = torch.autograd.grad(output.square().mean(), model.unet.conv_in.weight, retain_graph=True)
        assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.vae.parameters())


def test_fault_gradient_checkpointing_gives_the_same_gradients():
    """The old diffusers switch recurses without end; the stock one works with our forward."""
    torch.manual_seed(0)
    unet = build_unet(small()).train()
    inputs = (torch.randn(1, 2, 4, 8, 8), 1.6378, torch.randn(1, 2, 64), torch.tensor([TIME_IDS]))

    def gradient():
        unet.zero_grad()
        unet(*inputs).square().mean().backward()
        return unet.conv_in.weight.grad.clone()

    plain = gradient()
    unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)
