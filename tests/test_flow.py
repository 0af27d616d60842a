"""The learned flow: exact truth, what the network is before and after a few steps, sizes, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.data.synthetic import RenderConfig
from worldline.flow import learned
from worldline.flow.dis import DisFlow
from worldline.flow.network import FlowNetwork, NetworkConfig, _lookup, _pyramid, warp
from worldline.systems.optical_flow import pairs, recipes, train

TINY = NetworkConfig(widths=(8, 12, 16), features=16, hidden=16, context=8, levels=2, radius=2, iterations=2, refine=8)


def test_exact_flow_carries_the_second_picture_onto_the_first() -> None:
    batch = pairs.make_pairs(range(70, 76), 1, (64, 96), hinted=False, config=RenderConfig(shadows=False))
    seen = warp(batch.target, batch.flow)
    still = (batch.target - batch.source).abs().mean(1)
    carried = (seen - batch.source).abs().mean(1)
    matter = batch.known & (batch.flow.norm(dim=1) > 1)
    assert matter.sum() > 1000
    assert carried[matter].median() < 0.25 * still[matter].median()


def test_gap_of_a_pair_is_the_motion_over_those_frames() -> None:
    near, far = (pairs.rendered_pairs([81], gap, (32, 48)) for gap in (1, 4))
    long = pairs.render_specs([pairs.sample_scene(81, frames=5)], size=(32, 48), device="cpu", config=RenderConfig())
    assert torch.allclose(far.cam2world[0, 1], long.cam2world[0, 4], atol=1e-5)
    assert torch.allclose(far.depth[0, 0], long.depth[0, 0], atol=1e-4)
    assert not torch.allclose(near.cam2world[0, 1], far.cam2world[0, 1])


def test_untrained_network_hands_the_hint_through() -> None:
    torch.manual_seed(0)
    network = FlowNetwork(TINY).eval()
    hint = torch.randn(1, 2, 32, 40)
    found = network(torch.rand(1, 3, 32, 40), torch.rand(1, 3, 32, 40), hint)
    whole = network(torch.rand(1, 3, 32, 40), torch.rand(1, 3, 32, 40)).flow
    assert (found.flow - hint).norm() < (found.coarse[-1].mean() - hint).norm()
    assert whole.isfinite().all()


def test_lookup_finds_the_correlation_where_a_cell_goes() -> None:
    torch.manual_seed(1)
    one, two = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)
    flow = torch.zeros(1, 2, 5, 6)
    flow[:, 0] = 1  # one cell to the right
    seen = _lookup(_pyramid(one, two, 1), flow, 1).reshape(1, 3, 3, 5, 6)
    expected = (one[0, :, 2, 3] * two[0, :, 2, 4]).sum() / 2
    below = (one[0, :, 2, 3] * two[0, :, 3, 4]).sum() / 2
    assert torch.isclose(seen[0, 1, 1, 2, 3], expected, atol=1e-5)
    assert torch.isclose(seen[0, 2, 1, 2, 3], below, atol=1e-5)


def test_network_says_which_sizes_it_takes() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        FlowNetwork(TINY)(torch.rand(1, 3, 33, 40), torch.rand(1, 3, 33, 40))


def test_training_exports_a_checkpoint_that_loads_and_takes_any_size(tmp_path: Path) -> None:
    one = recipes.PairConfig(sizes=((32, 40),), gaps=(1,), unhinted=2)
    recipe = recipes.mini(batch_size=2, steps=2, network=TINY, pairs=one)
    trained = train.run(recipe, tmp_path / "run")
    assert trained.finished
    path = train.export(trained.model, tmp_path / "mini.safetensors", {"seed": recipe.seed})
    flow = learned.load(path)
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 255, (37, 51), dtype=np.uint8) for _ in range(2))
    found, error = flow.with_error(one, two)
    assert found.shape == (37, 51, 2) and error.shape == (37, 51) and (error > 0).all()
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, flow(one, two))  # remembered encodings change nothing


def test_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    one = recipes.PairConfig(sizes=((32, 40),), gaps=(1,), unhinted=2)
    recipe = recipes.mini(batch_size=1, steps=4, network=TINY, pairs=one)
    whole = train.run(recipe, tmp_path / "whole").model.state_dict()
    assert not train.run(recipe, tmp_path / "cut", minutes=0.0).finished
    again = train.run(recipe, tmp_path / "cut").model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_wrong_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no flow checkpoint"):
        learned.load(tmp_path / "none.safetensors")
    path = train.export(FlowNetwork(TINY), tmp_path / "a.safetensors", {})
    text = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(text.replace('"hidden": 16', '"hidden": 24'))
    with pytest.raises(ValueError, match="does not hold the network"):
        learned.load(path)
    path.with_suffix(".json").write_text(text.replace('"hidden"', '"hiden"'))
    with pytest.raises(ValueError, match="no 'hiden'"):
        learned.load(path)


def test_embedded_flow_beats_its_hint_on_held_back_scenes() -> None:
    if not learned.EMBEDDED.exists():
        pytest.skip("no flow checkpoint is embedded yet")
    flow, dis = learned.load(), DisFlow()
    held_back = pairs.make_pairs(range(1_000_700_000, 1_000_700_006), 2, (96, 128), hinted=False)
    pictures = [(x * 255).byte().permute(0, 2, 3, 1).numpy() for x in (held_back.source, held_back.target)]

    def error(method: learned.LearnedFlow | DisFlow) -> float:
        found = [method(a, b) for a, b in zip(*pictures, strict=True)]
        gap = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) - held_back.flow
        return float(gap.norm(dim=1)[held_back.known].mean())

    assert error(flow) < error(dis)
