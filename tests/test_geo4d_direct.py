"""Geo4D's regression: latents without noise, errors of cameras and aligned maps, clips shorter than the window."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import checkpoint_size
from checkpoint_size import MIB
from geo4d_tiny import SMALL, live, video
from worldline.data.synthetic import render_batch
from worldline.diffusion import ddim
from worldline.flow.neighbours import flow_between
from worldline.geometry import raymap
from worldline.systems import flow_input
from worldline.systems.geo4d import direct, frames, recipes
from worldline.systems.geo4d.config import mini_config
from worldline.systems.geo4d.frames import flow_cells
from worldline.systems.geo4d.networks import build, widened
from worldline.systems.geo4d.objective import target_latents
from worldline.systems.geo4d.observe import InferConfig, Observer
from worldline.systems.geo4d.train import _begin, to_clips
from worldline.training.stages import Start


@pytest.fixture(scope="module")
def model():
    return live(build(SMALL))


@pytest.fixture(scope="module")
def clips():
    return to_clips(render_batch([3, 8], frames=4, size=(16, 24)), [0, 1, 2, 3])


def test_an_oracle_has_no_latent_error(model, clips, monkeypatch):
    """v = -s z of the last timestep is the clean latent, and what it decodes to is judged against the truth."""
    clean = target_latents(model, clips.pictures)
    scale = float(ddim.zero_snr_schedule().scale[-1])
    seen = []

    def oracle(x, timestep, context, fps):
        seen.append((x, timestep, context))
        return -scale * clean

    monkeypatch.setattr(model.unet, "forward", oracle)
    terms = direct.DirectObjective(decoded=2)(model, clips, torch.Generator().manual_seed(0))
    assert all(float(terms[name]) < 1e-8 for name in SMALL.modalities)
    x, timestep, context = seen[0]
    assert bool((x[:, : SMALL.unet.out_channels] == 0).all()) and timestep.tolist() == [999, 999]
    assert context.shape[1] == SMALL.context_tokens
    weights = set(recipes.DIRECT_WEIGHTS)
    assert weights <= set(terms) and all(bool(torch.isfinite(value)) for value in terms.values())


def test_the_sampler_says_the_same_as_the_training(model):
    """Inference of a deterministic model is the training's prediction, whatever the seed."""
    config = replace(model.config, deterministic=True, steps=1)
    sure = build(config)
    sure.load_state_dict(model.state_dict())
    clip = video(4)
    observer = Observer(clip, sure.eval(), InferConfig(final="clean"))
    seen = observer.latents.of(range(4)) * sure.seeing.config.scaling_factor
    first, second = observer._denoise(seen, 0, 0), observer._denoise(seen, 5, 0)
    assert torch.equal(first, second)
    noisy = Observer(clip, model, InferConfig(final="clean", steps=1))
    assert not torch.equal(noisy._denoise(seen, 0, 0), noisy._denoise(seen, 5, 0))
    with torch.no_grad():
        trained = direct.direct_latents(sure, clip.rgb()[None], torch.tensor([24.0]))
    torch.testing.assert_close(trained[0], first.clone(), atol=1e-4, rtol=1e-4)


def test_a_short_clip_uses_the_first_frames_of_the_context(model, clips):
    with torch.no_grad():
        assert direct.direct_latents(model, clips.frames[:, :2], clips.fps).shape[2] == 2


def test_camera_errors_are_the_turn_and_the_move():
    intrinsics = torch.tensor([[20.0, 0, 11.5], [0, 20.0, 7.5], [0, 0, 1]]).expand(3, 3, 3).double()
    cameras = torch.eye(4).repeat(3, 1, 1).double()
    cameras[:, :3, 3] = torch.tensor([[0.0, 0, 0], [0.1, 0, 0.2], [0, -0.3, 0]])
    direction, moment = raymap.from_cameras(intrinsics, cameras, (16, 24))
    turn = torch.tensor([0.004, -0.002, 0.003]).double()
    move = torch.tensor([0.02, 0.01, -0.03]).double()
    found = (
        direction + torch.linalg.cross(turn.expand_as(direction), direction),
        moment + torch.linalg.cross(move.expand_as(direction), direction),
    )
    turned, moved = direct.camera_errors(found, (direction, moment))
    assert torch.allclose(turned, turn.norm().expand(3), rtol=2e-2)
    assert torch.allclose(moved, move.norm().expand(3), rtol=2e-2)
    nothing = direct.camera_errors((direction, moment), (direction, moment))
    assert float(torch.cat(nothing).max()) < 1e-4


def test_maps_are_aligned_where_they_count():
    true = torch.rand(2, 2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    found = (true - torch.tensor([0.3, -0.1, 0.2])) / torch.tensor([2.0, 0.5])[:, None, None, None, None]
    weight = torch.ones(2, 2, 4, 5)
    found[:, 0, 0], weight[:, 0, 0] = 9.0, 0.0
    found.requires_grad_()
    back = direct.aligned(found, true, weight)
    assert torch.allclose(back[:, 1], true[:, 1], atol=1e-5)
    upside_down = direct.aligned(-true, true, torch.ones(2, 2, 4, 5))
    assert float((upside_down[0, 0, 0, 0] - upside_down[0, 0, 0, 1])[0] * (true[0, 0, 0, 0] - true[0, 0, 0, 1])[0]) < 0
    back.sum().backward()
    assert torch.allclose(found.grad[0], torch.full_like(found.grad[0], 2.0), atol=1e-4)  # the scale is a constant


def test_a_stage_begins_with_the_encoder_it_names(tmp_path):
    networks = build(mini_config())
    path = tmp_path / "encoder.safetensors"
    given = {f"condition_vae.{k}": torch.full_like(v, 0.25) for k, v in networks.condition_vae.state_dict().items()}
    save_file(given, path)
    stage = replace(next(s for s in recipes.mini().stages if s.encoder), encoder=path, measure_latents=False)
    start = Start(batches=lambda model: None, kept=tmp_path / "kept.json")  # type: ignore[arg-type, return-value]
    begun = _begin(networks, stage, start)
    assert all(bool((value == 0.25).all()) for value in begun.condition_vae.state_dict().values())
    trained = {name.split(".")[0] for name, value in begun.named_parameters() if value.requires_grad}
    assert trained == {"unet", "condition_vae", "context", "point_vae", "vae"}


def test_the_shipped_encoder_fits():
    path = recipes.ENCODER
    stage = replace(next(s for s in recipes.mini().stages if s.encoder == path), measure_latents=False)
    networks = build(mini_config())
    start = Start(batches=lambda model: None, kept=path.with_name("none.json"))  # type: ignore[arg-type, return-value]
    before = networks.condition_vae.state_dict()["encoder.conv_in.weight"].clone()
    assert not torch.equal(_begin(networks, stage, start).condition_vae.state_dict()["encoder.conv_in.weight"], before)


def test_mini_checkpoints_and_export_stay_within_their_budgets(tmp_path):
    recipe, denoising = recipes.mini(), recipes.mini(direct=False)
    networks = build(recipe.networks, meta=True)
    largest = {}
    for stage in (*recipe.stages, *denoising.stages):
        trained = {name: value for name, value in networks.named_parameters() if stage.trains(name)}
        size = sum(value.numel() for value in trained.values())
        if size > largest.get("size", 0):
            largest = {"size": size, "trained": trained, "stage": stage.train.name}
    written = checkpoint_size.sizes(tmp_path, largest["trained"])
    assert sum(written) < 60 * MIB and max(written) < 16 * MIB, largest["stage"]
    assert sum(v.numel() for v in build(recipe.networks, meta=True, encoders=False).parameters()) * 2 <= 16_000_000


FLOW = replace(SMALL, optical_flow=True, unet=replace(SMALL.unet, in_channels=10 + 24), deterministic=True, steps=1)


def test_networks_that_read_flow_need_the_channels_for_it():
    with pytest.raises(ValueError, match="34 channels in"):
        replace(SMALL, optical_flow=True)
    assert FLOW.with_modalities(("points",)).unet.in_channels == 34 - 6
    same = widened(build(FLOW.with_modalities(("points",))), FLOW.modalities)
    assert same.config == FLOW


def test_flow_cells_are_means_at_their_places():
    maps = torch.arange(6.0)[:, None, None] + torch.zeros(2, 6, 8, 12)
    maps[:, 0, :2, :3] += 16  # the upper left place of the first cell of 2 x 2 cells
    cells = flow_cells(maps, (2, 2)).unflatten(1, (6, 2, 2))
    assert cells.shape == (2, 6, 2, 2, 2, 2)
    expected = torch.arange(6.0)[:, None, None, None, None].expand(6, 2, 2, 2, 2).clone()
    expected[0, 0, 0, 0, 0] += 16
    torch.testing.assert_close(cells[0], expected)


def test_training_and_inference_tell_the_network_the_same_flow(monkeypatch):
    """Exact flow of a scene, and estimated flow of its pictures: the same numbers but for errors."""
    exact = flow_input.FlowNoise(low=1e-7, high=2e-7, dropout=0.0)
    monkeypatch.setattr(flow_input, "FlowNoise", lambda: exact)
    rendered = render_batch([731_000_004], frames=4, size=(96, 128))
    told = to_clips(rendered, [0, 1, 2, 3], flow_seed=1).flow
    assert told is not None and told.shape == (1, 4, 6, 96, 128)
    clip = video(4, (96, 128))
    clip = replace(clip, frames=rendered.rgb[0])
    observer = Observer(clip, live(build(FLOW)), InferConfig(final="clean"))
    found, true = flow_cells(observer.flow.of(range(4)), (6, 8)), flow_cells(told[0], (6, 8))
    forward = [place for channel in (0, 1) for place in range(4 * channel, 4 * channel + 4)]
    assert float((found - true)[:3, forward].abs().median()) < 0.2 * float(true[:3, forward].abs().median())
    assert bool((found[3, :12] == 0).all()) and bool((found[0, 12:] == 0).all())  # no neighbour there


def test_each_pair_of_frames_is_estimated_once(monkeypatch):
    asked = []

    def counted(pictures):
        asked.append(len(pictures))
        return flow_between(pictures)

    monkeypatch.setattr(frames, "flow_between", counted)
    clip = video(8, (32, 48))
    flow = frames.FrameFlow(clip, frames.Fit.of(clip.size, 16), 16 * 24)
    whole = frames.FrameFlow(clip, frames.Fit.of(clip.size, 16), 16 * 24).of(range(8))
    first, second = flow.of(range(4)), flow.of(range(2, 6))
    assert asked == [8, 4, 3]  # frames 0 to 3, then 3 to 5
    torch.testing.assert_close(first[:3, :3], whole[:3, :3])
    torch.testing.assert_close(second[1:3], whole[3:5])
    assert first.shape == (4, 6, 32, 48)


@pytest.mark.parametrize(("count", "size"), [(1, (16, 24)), (3, (17, 40)), (4, (8, 12)), (3, (16, 900))])
def test_flow_reaches_the_network_unless_it_is_not_wanted(count, size):
    model, clip = live(build(FLOW)), video(count, size)
    config = InferConfig(final="clean")
    with_flow = Observer(clip, model, config).observe(range(count))
    without = Observer(clip, model, replace(config, optical_flow=False)).observe(range(count))
    assert bool(with_flow.points.isfinite().all()) and with_flow.points.shape == (count, *size, 3)
    seen = count > 1 and 16 <= min(size) and max(size) < 900  # there is a neighbour, and something to match
    assert torch.equal(with_flow.points, without.points) != seen


def test_flow_reaches_the_network_in_training():
    model = live(build(FLOW))
    told = to_clips(render_batch([3, 8], frames=4, size=(16, 24)), [0, 1, 2, 3], flow_seed=2)
    again = to_clips(render_batch([3, 8], frames=4, size=(16, 24)), [0, 1, 2, 3], flow_seed=2)
    assert torch.equal(told.flow, again.flow)
    with torch.no_grad():
        seen = direct.direct_latents(model, told.frames, told.fps, told.flow)
        blind = direct.direct_latents(model, told.frames, told.fps)
    assert not torch.equal(seen, blind)
