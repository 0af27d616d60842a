"""Optical flow as an input of the small MotionCrafter: exact where it should be, spoilt as asked, harmless at first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from worldline.data.synthetic import render_batch
from worldline.flow.neighbours import flow_between
from worldline.systems import flow_input
from worldline.systems.flow_input import FlowNoise
from worldline.systems.motioncrafter import prior
from worldline.systems.motioncrafter.config import mini_config
from worldline.systems.motioncrafter.infer import InferConfig, observe
from worldline.systems.motioncrafter.networks import build
from worldline.systems.motioncrafter.objective import UNetObjective
from worldline.systems.motioncrafter.train import to_clips

EXACT = FlowNoise(low=1e-7, high=2e-7, dropout=0.0)


@pytest.fixture(scope="module")
def clips():
    return to_clips(render_batch([731_000_005, 731_000_009], frames=7, size=(48, 64)), [0, 3, 6])


def maps_of(clips, noise=EXACT, seed=0):
    truth = (clips.points, clips.scene_flow, clips.valid, clips.flow_valid, clips.intrinsics, clips.cam2world)
    return flow_input.from_truth(*truth, noise, torch.Generator().manual_seed(seed))


def test_exact_flow_leads_to_where_the_moved_points_are_seen(clips):
    maps = maps_of(clips)
    known = clips.flow_valid[:, :-1]
    moved = clips.points + clips.scene_flow
    into = torch.linalg.inv(clips.cam2world[:, 1:])[:, :, None, None]
    camera = (into[..., :3, :3] @ moved[:, :-1, ..., None])[..., 0] + into[..., :3, 3]
    seen = (clips.intrinsics[:, 1:, None, None] @ camera[..., None])[..., 0]
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    expected = seen[..., :2] / seen[..., 2:] - torch.stack([u, v], -1)
    short = expected.norm(dim=-1) < 0.4 * 64
    error = (maps[:, :-1, ..., :2] * 64 / flow_input.GAIN - expected).norm(dim=-1)[known & short]
    assert float(error.max()) < 1e-2
    assert (maps[:, :-1, ..., 2][known] > 0.99).all()


def test_backward_flow_returns(clips):
    maps = maps_of(clips)
    forward, backward = maps[:, 0, ..., :2] * 64 / 8, maps[:, 1, ..., 3:5] * 64 / 8
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    there = torch.stack([u, v], -1) + backward
    back = flow_input._read(forward, there)
    sure = maps_of(clips, replace(EXACT, low=5e-3, high=5.1e-3, unknown=100.0, doubt=0.0))[:, 1, ..., 5] > 0.3
    assert float((back + backward).norm(dim=-1)[sure].median()) < 0.05
    assert 0.3 < float(sure.float().mean()) < 1


def test_ends_have_no_neighbour_and_dropout_leaves_nothing(clips):
    maps = maps_of(clips, FlowNoise(dropout=0.0))
    assert not maps[:, -1, ..., :3].any() and not maps[:, 0, ..., 3:].any()
    assert not maps_of(clips, FlowNoise(dropout=1.0)).any()


def test_claimed_confidence_follows_the_error_that_was_made(clips):
    flows = torch.zeros(8, 2, 2, 48, 64, 2)
    noise = FlowNoise(low=0.001, high=0.02)
    made, claimed = flow_input.spoilt(flows, torch.ones(8, 2, 2, 48, 64) > 0, noise, torch.Generator().manual_seed(1))
    sizes, said = (value.flatten(1).mean(1) for value in (made.norm(dim=-1), claimed))
    assert torch.corrcoef(torch.stack([sizes, said]))[0, 1] > 0.95


def test_estimated_channels_are_those_of_the_truth(clips):
    batch = render_batch([731_000_005], frames=7, size=(96, 128))
    found = flow_input.estimated(flow_between(batch.rgb[0, [0, 3, 6]]), (48, 64)).movedim(1, -1)
    truth = maps_of(clips)[0]
    both = (truth[..., 2] > 0.5) & (found[..., 2] > 0.5) & clips.flow_valid[0]
    error = (found - truth)[..., :2].norm(dim=-1)[both] * 64 / flow_input.GAIN
    assert both.float().mean() > 0.1 and float(error.median()) < 0.5


def test_a_checkpoint_without_flow_goes_on_as_it_was(clips):
    torch.manual_seed(0)
    plain = build(replace(mini_config(), scaling_factor=0.4))
    wide = build(mini_config(optical_flow=True))
    wide.load_state_dict(prior.fitted(plain.state_dict(), plain.config, wide.config))
    rgb = clips.frames[0]
    one, two = (observe(model.eval(), rgb, InferConfig()) for model in (plain, wide))
    assert torch.allclose(one.points, two.points, atol=1e-4)


def test_the_networks_learn_from_the_flow_they_are_given(clips):
    model = build(mini_config(optical_flow=True)).train()
    objective = UNetObjective(grids=(), latents=False, flow_noise=FlowNoise(dropout=0.0))
    terms = objective(model, clips, torch.Generator().manual_seed(0))
    assert "latent_geometry" not in terms
    (terms["flow_distance"] + terms["point_relative"]).backward()
    gradient = model.rgb_vae.encoder.conv_in.weight.grad
    assert gradient is not None and (gradient[:, 3:].abs().sum((0, 2, 3)) > 0).all()


def test_flow_can_be_left_out_at_inference(clips):
    model = build(mini_config(optical_flow=True)).eval()
    with_flow, without = (observe(model, clips.frames[0], InferConfig(optical_flow=seen)) for seen in (True, False))
    assert not torch.equal(with_flow.points, without.points)
