"""The objectives of the three stages: who is trained, which mask judges flow, and that training matches sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import checkpoint_size
from checkpoint_size import MIB
from worldline.diffusion.edm import Preconditioning
from worldline.systems.motioncrafter import recipes
from worldline.systems.motioncrafter import train as runner
from worldline.systems.motioncrafter.config import mini_config
from worldline.systems.motioncrafter.networks import build
from worldline.systems.motioncrafter.objective import (
    Clips,
    ConditionNoise,
    GeometryVaeObjective,
    MotionVaeObjective,
    NoiseLevels,
    UNetObjective,
    denoised,
    latent_terms,
    noised,
    target_latents,
    train_only,
)
from worldline.systems.motioncrafter.sampling import euler_scheduler
from worldline.training import stages
from worldline.training.clips import clip_flow, frame_choice
from worldline.training.config import TrainConfig

SIZE = (16, 32)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are tiny: a second thread only waits, and on a busy machine it waits long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(paradigm="deterministic", fusion="unify"):
    """The mini with the fewest layers: same classes, a few thousand parameters."""
    config = mini_config(paradigm=paradigm, fusion=fusion)
    slim = replace(config.vae, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
    unet = replace(config.unet, block_out_channels=(32, 32), num_attention_heads=(1, 1), cross_attention_dim=16)
    eyes = replace(
        config.image_encoder, image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1
    )
    eyes = replace(eyes, num_attention_heads=1, projection_dim=16)
    torch.manual_seed(0)
    return build(replace(config, vae=slim, rgb_vae=slim, unet=unet, image_encoder=eyes))


def clips(batch=2, frames=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    flow_valid = torch.rand(batch, frames, *SIZE, generator=generator) > 0.3
    flow_valid[:, -1] = False
    points = 0.3 * randn(batch, frames, *SIZE, 3) + torch.tensor([0.0, 0.0, 2.0])
    return Clips(
        frames=torch.rand(batch, frames, *SIZE, 3, generator=generator),
        points=points,
        valid=torch.rand(batch, frames, *SIZE, generator=generator) > 0.2,
        cam2world=torch.eye(4).expand(batch, frames, 4, 4).clone(),
        scene_flow=0.1 * randn(batch, frames, *SIZE, 3) * flow_valid[..., None],
        flow_valid=flow_valid,
        intrinsics=torch.eye(3).expand(batch, frames, 3, 3).clone(),
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


STAGES = {
    "geometry": (GeometryVaeObjective(grids=(4,)), recipes.GEOMETRY),
    "decoder": (GeometryVaeObjective(grids=(4,)), recipes.GEOMETRY_DECODER),
    "motion": (MotionVaeObjective(), recipes.MOTION),
    "unet": (UNetObjective(grids=(4,)), recipes.UNET),
    "unet and condition": (UNetObjective(grids=(4,)), recipes.UNET + recipes.CONDITION),
}


def gradients(model, objective, data, names=None, seed=0):
    """Parameters that some loss term moves; with names, only those terms count."""
    terms = objective(model, data, generator(seed))
    model.zero_grad()
    sum(value for name, value in terms.items() if names is None or name in names).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_moves_exactly_the_parameters_it_should(stage):
    objective, prefixes = STAGES[stage]
    model = tiny()
    chosen = set(train_only(model, prefixes))
    assert chosen and all(name.startswith(prefixes) for name in chosen)
    moved = gradients(model, objective, clips())
    assert moved <= chosen
    still = chosen - moved
    # position embeddings of the one-token temporal attention cannot matter; everything else must be reached
    assert all("attn2" in name or "k_proj.bias" in name or "to_k" in name or "to_q" in name for name in still), still


def test_train_only_refuses_a_prefix_of_nothing():
    with pytest.raises(ValueError, match="vae.encoder_3"):
        train_only(tiny(), ("vae.encoder_3.",))


@pytest.mark.parametrize("term", ["point_squared", "depth", "normal", "local_depth", "flow"])
def test_fault_point_loss_never_reaches_the_unet(term):
    """Fault of the published trainer: decode() ran without gradient, so the point loss trained nothing."""
    model = tiny()
    train_only(model, recipes.UNET)
    moved = gradients(model, UNetObjective(grids=(4,)), clips(), {term})
    assert "unet.conv_in.weight" in moved and "unet.conv_out.weight" in moved
    assert all(name.startswith("unet.") for name in moved)


@pytest.mark.parametrize("objective", [MotionVaeObjective(), UNetObjective(grids=())])
def test_fault_flow_is_judged_under_the_mask_of_points(objective):
    """Fault of the published trainer: flow was compared under the mask of valid points, also where it is unknown."""
    model, data = tiny(), clips()
    other = data.scene_flow + torch.where(data.flow_valid[..., None], 0.0, 5.0)
    plain = objective(model, data, generator())["flow"]
    # the stage-2 encoder sees the flow it is given, where unknown flow is zero: to_channels sees to that
    if isinstance(objective, UNetObjective):
        torch.testing.assert_close(objective(model, replace(data, scene_flow=other), generator())["flow"], plain)
    known = replace(data, scene_flow=data.scene_flow + 1.0 * data.flow_valid[..., None])
    assert abs(float(objective(model, known, generator())["flow"].detach() - plain.detach())) > 1e-2
    nowhere = replace(data, flow_valid=torch.zeros_like(data.flow_valid))
    assert float(objective(model, nowhere, generator())["flow"].detach()) == 0.0


def test_latents_of_frames_without_flow_do_not_count():
    model, data = tiny(), clips()
    target = target_latents(model, data)
    prediction = torch.zeros_like(target)
    terms = latent_terms(model, prediction, target, data)
    torch.testing.assert_close(terms["latent_geometry"], target[:, :, :4].square().mean())
    torch.testing.assert_close(terms["latent_motion"], target[:, :-1, 4:].square().mean())
    without = data.flow_valid.clone()
    without[1] = False
    terms = latent_terms(model, prediction, target, replace(data, flow_valid=without))
    torch.testing.assert_close(terms["latent_motion"], target[:1, :-1, 4:].square().mean())


def test_chunked_decoding_changes_neither_losses_nor_gradients():
    model, data = tiny(), clips()
    train_only(model, recipes.UNET)
    found = {}
    for chunk in (None, 2):
        terms = UNetObjective(grids=(4,), chunk=chunk)(model, data, generator())
        (found[chunk],) = torch.autograd.grad(sum(terms.values()), model.unet.conv_in.weight)
    torch.testing.assert_close(found[None], found[2])


def test_decoding_some_frames_uses_their_own_cameras_and_masks():
    """With all frames drawn the terms are those of decoding everything; fewer frames give terms of those frames."""
    model, data = tiny(), clips()
    whole = UNetObjective(grids=(), decoded=None)(model, data, generator())
    every = UNetObjective(grids=(), decoded=3)(model, data, generator())
    for name in whole:
        torch.testing.assert_close(whole[name], every[name])
    picked = data.select([0, 2])
    assert torch.equal(picked.points, data.points[:, [0, 2]]) and picked.cam2world.shape == (2, 2, 4, 4)


@pytest.mark.parametrize("fusion", ["separate", "offset", "none"])
def test_every_fusion_can_be_trained(fusion):
    model, data = tiny(fusion=fusion), clips()
    prefixes = recipes.GEOMETRY if fusion == "none" else recipes.MOTION
    train_only(model, prefixes)
    assert gradients(model, MotionVaeObjective(), data) <= {n for n, p in model.named_parameters() if p.requires_grad}
    train_only(model, recipes.UNET)
    assert "unet.conv_in.weight" in gradients(model, UNetObjective(grids=(4,)), data)


# --- the denoising paradigm


class Ideal(nn.Module):
    """The network whose preconditioned output is the clean latent exactly."""

    def __init__(self, clean, sigma):
        super().__init__()
        self.clean, self.sigma = clean, sigma

    def forward(self, seen, timestep, tokens, ids):
        by = Preconditioning.of(self.sigma)
        wide = (slice(None), None, None, None, None)
        noisy = seen[:, :, : self.clean.shape[2]] / by.scale_in[wide]
        torch.testing.assert_close(timestep, self.sigma.log() / 4)
        return (self.clean - by.skip[wide] * noisy) / by.out[wide]


def test_fault_denoiser_is_trained_for_another_sampler():
    """With our preconditioning, one Euler step of the sampler from any noise level lands on the clean latent."""
    model = tiny("denoising")
    clean = torch.randn(1, 2, 8, 4, 4, generator=generator())
    condition, tokens, ids = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 16), torch.zeros(1, 3)
    scheduler = euler_scheduler(1)
    sigma = scheduler.sigmas[:1].float()
    ideal = Ideal(clean, sigma)
    model.unet = ideal
    noisy = noised(clean, sigma, generator(1))
    torch.testing.assert_close(denoised(model.unet, noisy, sigma, condition, tokens, ids), clean, atol=1e-3, rtol=1e-3)
    time = scheduler.timesteps[0]
    seen = torch.cat([scheduler.scale_model_input(noisy, time), condition], dim=2)
    stepped = scheduler.step(ideal(seen, time.reshape(1).float(), tokens, ids), time, noisy).prev_sample
    torch.testing.assert_close(stepped, clean, atol=1e-3, rtol=1e-3)


def test_fault_noise_levels_never_reach_the_samplers_start():
    """Fault of the published trainer: exp(N(-3, 1)) never comes near the 700 at which sampling starts."""
    levels = NoiseLevels().sample(4000, generator())
    scheduler = euler_scheduler(5)
    low, high = float(scheduler.sigmas[-2]), float(scheduler.sigmas[0])
    assert float(levels.min()) >= low * 0.999 and float(levels.max()) <= high * 1.001
    assert (levels > high / 3).float().mean() > 0.01 and (levels < low * 3).float().mean() > 0.01
    assert 1.0 < float(levels.median()) < 4.0


def test_denoising_loss_is_a_plain_error_of_the_network_output():
    """The weight (s^2+1)/s^2 undoes c_out^2: no noise level dominates."""
    model, data = tiny("denoising"), clips()

    class Silent(nn.Module):
        def forward(self, seen, timestep, tokens, ids):
            return torch.zeros_like(seen[:, :, :8])

    model.unet = Silent()
    for level in (0.01, 1.0, 500.0):
        narrow = NoiseLevels(log_mean=torch.tensor(level).log().item(), log_std=0.0, uniform_share=0.0)
        terms = UNetObjective(sigmas=narrow, condition_noise=None)(model, data, generator())
        # the ideal output is (z - c_skip x)/c_out, whose variance is about one at every level (unit-variance latents)
        assert 0.0 < float(terms["latent_geometry"]) < 3.0


def test_denoiser_trains_and_dropped_conditions_are_zero():
    model, data = tiny("denoising"), clips()
    train_only(model, recipes.UNET)
    assert "unet.conv_in.weight" in gradients(model, UNetObjective(), data)
    dropping = UNetObjective(condition_dropout=1.0, condition_noise=ConditionNoise())
    condition, tokens, ids = dropping._condition(model, data, generator())
    assert not condition.any() and not tokens.any() and bool((ids[:, 2] > 0).all())


# --- clips


def test_fault_reversed_frames_keep_forward_flow():
    """Fault of the published loader: reversed frames kept the forward flow."""
    chosen = frame_choice(3, 7)
    assert chosen == [0, 1, 2, 1, 0, 1, 2]
    points = torch.rand(3, 4, 6, 3) + torch.tensor([0.0, 0.0, 3.0])
    flow = torch.ones(3, 4, 6, 3)
    valid = torch.ones(3, 4, 6, dtype=torch.bool)
    valid[-1] = False
    eye, intrinsics = torch.eye(4).repeat(3, 1, 1), torch.eye(3).repeat(3, 1, 1)
    found, known = clip_flow(points, flow, valid, intrinsics, eye, chosen)
    assert known.flatten(1).all(1).tolist() == [True, True, False, False, True, True, False]
    assert not found[~known].any() and bool((found[known] - 1).abs().max() < 1e-5)


def test_strides_that_do_not_fit_are_lowered():
    assert frame_choice(10, 4, 3) == [0, 3, 6, 9]
    assert frame_choice(9, 4, 3) == [0, 2, 4, 6]
    assert frame_choice(10, 3, 2, start=99) == [5, 7, 9]
    assert frame_choice(1, 3) == [0, 0, 0]


def test_fault_flow_is_not_composed_over_a_stride():
    """A wall that recedes by 0.1, then 0.3: over two frames it moved 0.4."""
    frames, size = 3, (6, 8)
    intrinsics = torch.tensor([[8.0, 0, 3.5], [0, 8.0, 2.5], [0, 0, 1]]).repeat(frames, 1, 1)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    depth = torch.tensor([2.0, 2.1, 2.4])[:, None, None].expand(frames, *size)
    points = torch.stack([(columns - 3.5) / 8 * depth, (rows - 2.5) / 8 * depth, depth], -1)
    flow = torch.zeros_like(points)
    flow[0, ..., 2], flow[1, ..., 2] = 0.1, 0.3
    valid = torch.ones(frames, *size, dtype=torch.bool)
    valid[-1] = False
    found, known = clip_flow(points, flow, valid, intrinsics, torch.eye(4).repeat(frames, 1, 1), [0, 2])
    assert known[0].float().mean() > 0.4 and not known[1].any()
    torch.testing.assert_close(found[0][known[0]][:, 2], torch.full_like(found[0][known[0]][:, 2], 0.4))


def test_every_rendered_batch_is_seen_in_every_view():
    layout = recipes.ClipConfig(size=SIZE, views=((4, 1), (2, 3), (1, 1)), round=4)
    seen = {}
    for index in range(24):
        seen.setdefault(layout.scenes(index), []).append(len(layout.view(index)))
    assert sorted(seen) == list(range(8)) and all(sorted(lengths) == [1, 2, 4] for lengths in seen.values())


# --- recipes


def small_recipe():
    recipe = recipes.mini(seed=3)
    model = tiny()
    layout = recipes.ClipConfig(size=SIZE, views=((3, 1),), round=2)

    def short(stage):
        train = replace(stage.train, steps=2, batch_size=2, warmup_steps=1, checkpoint_every=1, precision="no")
        objective = stage.objective
        if not isinstance(objective, MotionVaeObjective):
            objective = replace(objective, grids=(4,))
        return replace(stage, train=replace(train, report_every=1), objective=objective, clips=layout)

    return replace(recipe, networks=model.config, stages=tuple(short(stage) for stage in recipe.stages))


def fake_source(stage, model, device):
    return lambda index: clips(seed=stage.clips.scenes(index))


def test_fault_resume_loads_nothing(tmp_path):
    recipe = small_recipe()
    whole = runner.run(recipe, tmp_path / "whole", source=fake_source)
    calls = 0
    while not (pieces := runner.run(recipe, tmp_path / "pieces", source=fake_source, minutes=1e-9)).finished:
        calls += 1
        assert calls < 20
    assert calls == 4  # every call does one step of the stage it is in, and one of each stage it begins
    expected, found = whole.model.state_dict(), pieces.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert whole.model.config == pieces.model.config and whole.model.config.scaling_factor != 0.18215


def test_export_holds_what_inference_needs_and_describes_itself(tmp_path):
    from worldline.systems.motioncrafter import pretrained

    model = tiny()
    path = runner.export(model, tmp_path / "mini.safetensors", {"unreliable": ["scene_flow"]})
    weights = load_file(path)
    assert not any(name.startswith(("vae.encoder", "vae.quant_conv")) for name in weights)
    assert all(value.dtype == torch.float16 for value in weights.values())
    loaded = pretrained.load_file(path)
    assert loaded.card["unreliable"] == ["scene_flow"] and loaded.model.config == model.config
    torch.testing.assert_close(
        loaded.model.unet.conv_in.weight, model.unet.conv_in.weight.half().float(), atol=0.0, rtol=0.0
    )


def test_mini_checkpoints_and_export_stay_within_their_budgets(tmp_path):
    recipe = recipes.mini()
    model = build(recipe.networks, meta=True)
    for stage in recipe.stages:
        train_only(model, stage.trainable)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        written = checkpoint_size.sizes(tmp_path / stage.train.name, trained)
        assert sum(written) < 60 * MIB and max(written) < 16 * MIB, stage.train.name
    inference = sum(p.numel() for p in build(recipe.networks, meta=True, encoders=False).parameters())
    assert inference * 2 <= 16_000_000


def test_paper_recipe_is_the_published_schedule():
    recipe = recipes.paper()
    assert [stage.train.steps for stage in recipe.stages] == [40_000, 20_000, 40_000]
    assert [stage.clips.views[0][0] for stage in recipe.stages] == [8, 8, 25]
    assert recipe.stages[0].train.weights["normal"] == 0.2 and recipe.stages[1].train.weights["flow_size"] == 0.01
    assert recipes.paper(strategy="decoder").stages[0].trainable == recipes.GEOMETRY_DECODER
    assert len(recipes.paper(strategy="original").stages) == 2
    for stage in recipe.stages:
        assert isinstance(stage.train, TrainConfig) and all(side % 64 == 0 for side in stage.clips.size)


def test_a_shorter_recipe_keeps_its_shape():
    recipe = stages.scaled(recipes.mini(), 0.1)
    assert [s.train.steps for s in recipe.stages] == [round(0.1 * s.train.steps) for s in recipes.mini().stages]
