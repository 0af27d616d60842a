"""The learned flow: exact truth, what the network is before and after a few steps, sizes, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.data.synthetic import RenderConfig
from worldline.flow import learned
from worldline.flow.dis import DisFlow, sized
from worldline.flow.network import (
    FlowNetwork,
    NetworkConfig,
    _lookup,
    _pyramid,
    explained,
    filled,
    histograms,
    trusted,
    warp,
)
from worldline.systems.optical_flow import pairs, recipes, train

TINY = NetworkConfig(widths=(8, 12, 16), features=16, hidden=16, context=8, levels=2, radius=2, iterations=2, refine=8)


def test_exact_flow_carries_the_second_picture_onto_the_first() -> None:
    batch = pairs.make_pairs(range(70, 76), 1, (64, 96), config=RenderConfig(shadows=False))
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


def test_untrained_network_keeps_the_hint_where_it_is_trusted() -> None:
    torch.manual_seed(0)
    network = FlowNetwork(TINY).eval()
    hint = torch.full((1, 2, 32, 40), 1.5)
    found = network(torch.rand(1, 3, 32, 40), torch.rand(1, 3, 32, 40), hint, -hint)
    assert (found.flow - hint).norm() < (found.whole - hint).norm()
    assert found.whole.isfinite().all()


def test_trust_is_lost_where_the_way_back_does_not_return_or_the_picture_is_left() -> None:
    hint, back = torch.zeros(1, 2, 32, 40), torch.zeros(1, 2, 32, 40)
    hint[:, 0], back[:, 0] = 3, -3
    back[:, 1, :, 20:] = 4  # the right half comes back elsewhere
    trust, missed = trusted(hint, back)
    assert (trust[..., :16] > 0.99).all() and (trust[..., 18:] < 0.01).all()
    assert torch.allclose(missed[..., 20:36], torch.tensor(4.0))
    assert (trusted(hint, -hint)[0][..., 37:] == 0).all()  # beyond the border


def test_hint_that_explains_the_picture_is_trusted_although_the_way_back_is_lost() -> None:
    cells = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(5))
    still = torch.nn.functional.interpolate(cells, scale_factor=4, mode="bicubic").clamp(0, 1)
    moved, hint = still.clone(), torch.zeros(1, 2, 48, 64)
    moved[..., 8:40, 24:56], hint[:, 0, 8:40, 8:40] = still[..., 8:40, 8:40], 16  # a square goes right
    given = explained(still, moved, hint, torch.zeros_like(hint))
    square = (..., slice(16, 32), slice(26, 36))  # what stood there is covered now: staying explains nothing
    assert (trusted(hint, torch.zeros_like(hint))[0][square] < 0.01).all()
    assert given.trust[square].mean() > 0.8 and (given.filled[:, :1][square] - 16).abs().mean() < 2
    wrong = explained(still, still, hint, torch.zeros_like(hint))  # nothing moved: the same hint is filled in
    assert wrong.trust[square].mean() < 0.1 and wrong.filled[square].abs().mean() < 1


def test_filling_keeps_what_is_trusted_and_takes_the_rest_from_around() -> None:
    values, weight = torch.full((1, 2, 19, 30), 2.0), torch.ones(1, 1, 19, 30)
    values[..., 5:9, 10:14], weight[..., 5:9, 10:14] = 50, 0
    assert (filled(values, weight) - 2).abs().max() < 1e-3
    ramp = torch.arange(30.0).expand(1, 1, 19, 30)
    assert (filled(ramp, torch.ones_like(ramp)) - ramp).abs().max() < 0.2
    assert (filled(values, torch.zeros_like(weight)) == 0).all()  # nothing known: nothing invented


def test_gradient_histograms_match_what_moved_by_a_cell() -> None:
    wide = torch.nn.functional.interpolate(
        torch.rand(1, 3, 16, 28, generator=torch.Generator().manual_seed(4)), scale_factor=4, mode="bicubic"
    )
    one, two = histograms(wide[..., 8:104]), histograms(wide[..., :96])  # everything moves right by one cell
    likeness = torch.einsum("cp,cq->pq", one[0].flatten(1), two[0].flatten(1)).reshape(8, 12, 8, 12)
    best = likeness[2:6, 2:9].flatten(2).argmax(-1)
    rows, columns = torch.meshgrid(torch.arange(2, 6), torch.arange(2, 9), indexing="ij")
    assert (best == rows * 12 + columns + 1).float().mean() > 0.95


def test_lookup_finds_the_correlation_where_a_cell_goes() -> None:
    torch.manual_seed(1)
    one, two = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)
    flow = torch.zeros(1, 2, 5, 6)
    flow[:, 0] = 1  # one cell to the right
    volume = torch.einsum("bdp,bdq->bpq", one.flatten(2), two.flatten(2)).reshape(1, 30, 5, 6) / 2
    seen = _lookup(_pyramid(volume, 1), flow, 1).reshape(1, 3, 3, 5, 6)
    assert torch.isclose(seen[0, 1, 1, 2, 3], (one[0, :, 2, 3] * two[0, :, 2, 4]).sum() / 2, atol=1e-5)
    assert torch.isclose(seen[0, 2, 1, 2, 3], (one[0, :, 2, 3] * two[0, :, 3, 4]).sum() / 2, atol=1e-5)


def test_network_says_which_sizes_it_takes() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        FlowNetwork(TINY)(*(torch.rand(1, channels, 33, 40) for channels in (3, 3, 2, 2)))


def test_training_exports_a_checkpoint_that_loads_and_takes_any_size(tmp_path: Path) -> None:
    one = recipes.PairConfig(sizes=((32, 40),), gaps=(1,), block=1)
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
    one = recipes.PairConfig(sizes=((32, 40),), gaps=(1,), block=1)
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


def test_a_batch_is_shown_again_in_the_mirror_and_stays_exact() -> None:
    config = recipes.PairConfig(block=2, turns=3)
    assert [config.shown(i) for i in range(8)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 0), (3, 0)]
    batch = pairs.make_pairs(range(70, 72), 1, (48, 64), hint=DisFlow(), config=RenderConfig(shadows=False))
    for turn in range(4):
        seen = batch.mirrored(turn)
        assert batch.hint is not None and seen.hint is not None
        off = ((warp(seen.target, seen.flow) - seen.source).abs().mean(1) * seen.known).mean()
        assert off < 1.05 * ((warp(batch.target, batch.flow) - batch.source).abs().mean(1) * batch.known).mean() + 1e-4
        gaps = [(one.hint - one.flow).norm(dim=1)[one.known].mean() for one in (batch, seen)]  # type: ignore[operator]
        assert torch.isclose(gaps[0], gaps[1], rtol=1e-4)
    with pytest.raises(ValueError, match="1 to 4 turns"):
        recipes.PairConfig(turns=5)


def test_embedded_flow_beats_dis_on_held_back_scenes_and_knows_where_it_fails() -> None:
    flow, dis = learned.load(), sized(DisFlow())
    held_back = pairs.make_pairs((1_000_701_003, 1_000_701_007), 1, (96, 128))
    pictures = [(x * 255).byte().permute(0, 2, 3, 1).numpy() for x in (held_back.source, held_back.target)]
    found, doubt = (torch.from_numpy(np.stack(x)) for x in zip(*map(flow.with_error, *pictures), strict=True))
    hinted = torch.from_numpy(np.stack([dis(a, b) for a, b in zip(*pictures, strict=True)]))
    truth = held_back.flow.permute(0, 2, 3, 1)
    for i, known in enumerate(held_back.known):
        errors, others = ((x[i] - truth[i]).norm(dim=-1)[known] for x in (found, hinted))
        assert errors.mean() < others.mean()
        sure = doubt[i][known] < doubt[i][known].median()
        assert errors[sure].mean() < 0.7 * errors[~sure].mean()
