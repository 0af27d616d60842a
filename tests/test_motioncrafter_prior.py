"""The prior in miniature and the ablations that ask what it is worth: sizes fit, runs resume, verdicts are earned."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import worldline
from worldline.cli import main
from worldline.data.synthetic import render_batch
from worldline.evaluation import motion_ablation as judging
from worldline.io.tensors import WeightsError
from worldline.systems.motioncrafter import ablation, prior, recipes
from worldline.systems.motioncrafter import train as runner
from worldline.systems.motioncrafter.ablation_rows import REFERENCE, ROWS, TABLES, Claim, claims
from worldline.systems.motioncrafter.networks import build
from worldline.training import stages

NETWORKS = ablation.networks()
PARTS = ("vae.encoder.conv_in.weight", "vae.decoder.conv_in.weight")


@pytest.fixture(scope="module")
def parent():
    torch.manual_seed(3)
    return prior.VideoPrior(NETWORKS).requires_grad_(False)


def frames(index: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, 3, generator=torch.Generator().manual_seed(index))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# --- the prior


@pytest.mark.parametrize("fusion", ["unify", "separate", "offset", "none"])
@pytest.mark.parametrize("paradigm", ["deterministic", "denoising"])
def test_every_model_can_start_from_the_prior(parent, fusion, paradigm):
    config = replace(NETWORKS, fusion=fusion, paradigm=paradigm)
    model = build(config)
    weights = prior.start_from(parent, config)
    stages.load_weights(model, weights)  # strict about names and shapes
    missing = set(model.state_dict()) - set(weights)
    assert all("_2." in name for name in missing), "only the motion branch is not in a prior of pictures"
    picture = torch.rand(1, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(model.vae.encode(picture).mode(), parent.vae.encode(picture).mode())
    torch.testing.assert_close(model.rgb_vae.encode(picture).mode(), parent.rgb_vae.encode(picture).mode())


def test_the_deterministic_unet_is_the_prior_that_sees_no_noise(parent):
    """At noisy channels of zero the prior's U-Net and the one that starts from it say the same, twice."""
    config = NETWORKS
    model = build(config)
    stages.load_weights(model, prior.start_from(parent, config))
    condition, tokens, ids = torch.randn(1, 2, 4, 4, 6), torch.randn(1, 2, 32), torch.tensor([[7.0, 127.0, 0.02]])
    ours = model.predict_latents(condition, tokens, ids)
    theirs = -parent.unet(torch.cat([torch.zeros_like(condition), condition], dim=2), 1.6378, tokens, ids)
    torch.testing.assert_close(ours, torch.cat([theirs, theirs], dim=2), atol=1e-5, rtol=1e-5)


def test_from_scratch_takes_no_vae_and_other_sizes_are_refused(parent):
    taken = prior.start_from(parent, NETWORKS, "scratch")
    assert taken and not any(name.startswith("vae.") for name in taken)
    assert set(prior.start_from(parent, NETWORKS, unet=False)) == {
        name for name in build(NETWORKS).state_dict() if name.startswith(recipes.GEOMETRY)
    }
    larger = replace(NETWORKS, unet=replace(NETWORKS.unet, layers_per_block=2))
    with pytest.raises(WeightsError, match="unet has other sizes"):
        prior.start_from(parent, larger)


def test_pictures_teach_both_autoencoders_and_nothing_else():
    model = prior.VideoPrior(NETWORKS)
    terms = prior.PictureObjective()(model, frames(), generator())
    sum(terms.values()).backward()
    reached = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert set(terms) == {"picture", "picture_condition", "kl"} and reached == {"vae", "rgb_vae"}


def test_videos_teach_the_denoiser_and_the_image_encoder():
    model = prior.VideoPrior(NETWORKS)
    for name, value in model.named_parameters():
        value.requires_grad_(name.startswith(prior.DENOISER))
    prior.DenoiserObjective()(model, frames(), generator())["denoise"].backward()
    assert model.unet.conv_in.weight.grad.abs().sum() > 0
    assert model.image_encoder.visual_projection.weight.grad.abs().sum() > 0
    blind = prior.DenoiserObjective(condition_dropout=1.0)
    other = frames()
    other[:, 0] = 0.5  # the shown frame
    different = [float(blind(model, video, generator())["denoise"].detach()) for video in (frames(), other)]
    assert different[0] != different[1], "the clean latents differ"
    model.zero_grad()
    blind(model, frames(), generator())["denoise"].backward()
    assert model.image_encoder.visual_projection.weight.grad.abs().sum() == 0


def test_the_denoiser_is_judged_by_clean_latents(monkeypatch):
    model = prior.VideoPrior(NETWORKS)
    clean = model.latents(frames() * 2 - 1)
    monkeypatch.setattr(prior, "denoised", lambda unet, noisy, sigma, condition, tokens, ids: clean)
    assert float(prior.DenoiserObjective()(model, frames(), generator())["denoise"]) == 0.0


def small_prior() -> recipes.Recipe:
    return prior.mini_prior(networks=NETWORKS, size=(16, 24), steps=(2, 2), batch_size=2)


class Killed(Exception):
    pass


def test_a_killed_prior_ends_the_same_and_can_be_started_from(tmp_path):
    def source(stage, model, device):
        return lambda index: frames(index)

    def kill(name, done, total):
        if (name, done) == ("video", 1):
            raise Killed

    recipe = small_prior()
    recipe = replace(
        recipe, stages=tuple(replace(s, train=replace(s.train, checkpoint_every=1)) for s in recipe.stages)
    )
    whole = prior.run(recipe, tmp_path / "whole", source=source)
    with pytest.raises(Killed):
        prior.run(recipe, tmp_path / "cut", source=source, progress=kill)
    cut = prior.run(recipe, tmp_path / "cut", source=source)
    expected, found = whole.model.state_dict(), cut.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert whole.model.config.scaling_factor != NETWORKS.scaling_factor  # measured

    path = prior.export(whole.model, tmp_path / "prior.safetensors", {"recipe": recipe.name})
    loaded = prior.load(path)
    assert loaded.config == whole.model.config
    torch.testing.assert_close(loaded.unet.conv_in.weight, whole.model.unet.conv_in.weight.half().float())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="not the file"):
        prior.load(path)


def test_train_the_prior_and_a_mini_that_starts_from_it(tmp_path, capsys):
    def colours(stage, model, device):
        return lambda index: frames(index)

    def scenes(stage, model, device):
        return lambda index: runner.to_clips(render_batch([2 * index, 2 * index + 1], frames=3, size=(16, 24)), [0, 1])

    assert main(["train", "motioncrafter-mini", "--out", str(tmp_path / "m"), "--strategy", "decoder"]) == 2
    assert "--prior" in capsys.readouterr().err and not (tmp_path / "m").exists()
    made = worldline.train("motioncrafter-prior", tmp_path / "p", recipe=small_prior(), source=colours, device="cpu")
    recipe = recipes.mini(strategy="decoder")
    short = [replace(s, train=replace(s.train, steps=1, warmup_steps=0, precision="no")) for s in recipe.stages]
    gridded = [i for i, s in enumerate(short) if hasattr(s.objective, "grids")]  # 16 x 24 pixels have no 16 patches
    for i in gridded:
        short[i] = replace(short[i], objective=replace(short[i].objective, grids=(4,)))
    recipe = replace(recipe, networks=NETWORKS, stages=tuple(short))
    begun = worldline.train(
        "motioncrafter-mini", tmp_path / "m", recipe=recipe, source=scenes, prior=made, device="cpu", strategy="decoder"
    )
    card = json.loads(begun.with_suffix(".json").read_text())
    assert card["prior"]["file"] == "prior.safetensors" and "--strategy decoder" in card["command"]
    trained = load_file(tmp_path / "m" / "geometry-vae.safetensors")
    assert all(name.startswith(recipes.GEOMETRY_DECODER) for name in trained)


def test_the_last_stage_alone_goes_on_from_something(tmp_path, capsys):
    words = ["train", "motioncrafter-mini", "--last-stage", "--out", str(tmp_path / "m"), "--device", "cpu"]
    assert main(words) == 2 and "--prior" in capsys.readouterr().err
    assert main([*words, "--paradigm", "denoising"]) == 2 and "--last-stage" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    (stage,) = recipes.mini(last_stage=True).stages
    assert stage == recipes.mini().stages[-1]


def test_train_from_python_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no training 'mini'"):
        worldline.train("mini", tmp_path / "out")
    with pytest.raises(ValueError, match="no option 'colour'"):
        worldline.train("motioncrafter-mini", tmp_path / "out", colour="red")
    with pytest.raises(FileNotFoundError, match="prior"):
        worldline.train("motioncrafter-mini", tmp_path / "out", prior=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="positive fraction"):
        worldline.train("motioncrafter-mini", tmp_path / "out", fraction=0.0)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        worldline.train("motioncrafter-mini", tmp_path / "used")


# --- the ablation


def test_every_row_of_every_table_and_claim_exists():
    named = {row for rows in TABLES.values() for row in rows}
    assert named == set(ROWS) and all(REFERENCE in rows for rows in TABLES.values())
    judged = claims("trivial")
    assert {row for claim in judged for pair in claim.pairs for row in pair} <= {*ROWS, "trivial"}
    assert all(claim.metric in judging.METRICS for claim in judged)
    assert len({claim.text for claim in judged}) == len(judged)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    settings = ablation.Settings(
        size=(16, 24), clips=6, batch_size=2, geometry_steps=1, motion_steps=1, unet_steps=1, prior_steps=(1, 1)
    )
    return ablation.Workshop(tmp_path_factory.mktemp("ablation"), settings)


def test_rows_share_stages_and_are_not_trained_again(shop, monkeypatch):
    trained = []
    real = runner.run

    def counting(recipe, folder, **rest):
        if not (folder / f"{recipe.stages[0].train.name}.safetensors").exists():
            trained.append(recipe.name)
        return real(recipe, folder, **rest)

    monkeypatch.setattr(runner, "run", counting)
    first = shop.row(ROWS[REFERENCE], 0)
    assert len(trained) == 3
    apart = shop.row(ROWS["separate VAE, two U-Nets"], 0)
    assert len(trained) == 6 and not any(name.startswith("geometry") for name in trained[3:])
    again = shop.row(ROWS[REFERENCE], 0)
    assert len(trained) == 6
    rgb = shop.clips["rgb"][0]
    for one, other in zip(first.predict(rgb), again.predict(rgb), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.predict(rgb)[0], apart.predict(rgb)[0])
    scores = judging.clip_scores(first.predict, first.reconstruct, {k: v[:2] for k, v in shop.clips.items()})
    assert set(scores) == set(judging.METRICS) and all(len(values) == 2 for values in scores.values())


def test_rows_differ_in_what_they_say_and_share_what_they_do_not(shop):
    kept = {}
    for name in ("mean, original", "mean, scratch", "mean, decoder", "mean, all"):
        weights, parent = shop._vae(ROWS[name], 0), shop.prior.state_dict()
        kept[name] = [torch.equal(weights[key], parent[key]) for key in PARTS]
    assert kept == {
        "mean, original": [True, True],
        "mean, scratch": [False, False],
        "mean, decoder": [True, False],
        "mean, all": [False, False],
    }


def test_a_folder_of_other_settings_is_refused(shop):
    with pytest.raises(ValueError, match="other settings"):
        ablation.Workshop(shop.folder, replace(shop.settings, unet_steps=2))


def test_clips_are_never_those_rows_are_scored_on(shop):
    from worldline.cli.bench_motioncrafter import HELD_OUT_SEEDS
    from worldline.training.config import EVALUATION_SEEDS, SEEDS_PER_RUN

    assert ablation.CLIP_SEED * SEEDS_PER_RUN + SEEDS_PER_RUN < EVALUATION_SEEDS <= HELD_OUT_SEEDS
    assert small_prior().seed != ablation.CLIP_SEED
    order = [int(i) for turn in range(2) for i in ablation._order(6, 0, turn)]
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))


def test_the_mean_map_is_the_mean(shop):
    mean = shop.mean_points()
    assert mean.shape == (4, 16, 24, 3) and bool(torch.isfinite(mean).all())
    assert float(mean[..., 2].mean()) == pytest.approx(0.0, abs=0.6)  # normalised clips are centred


def test_the_command_trains_scores_and_goes_on(tmp_path, capsys, monkeypatch):
    small = ablation.Settings

    def tiny(**chosen):
        return small(**{**chosen, "size": (16, 24)})

    monkeypatch.setattr(ablation, "Settings", tiny)
    words = ["bench", "motioncrafter-ablation", "--out", str(tmp_path), "--clips", "2", "--training-clips", "4"]
    words += ["--geometry-steps", "1", "--motion-steps", "1", "--unet-steps", "1", "--prior-steps", "1", "1"]
    words += ["--batch-size", "2", "--seeds", "1"]
    assert main([*words, "--rows", "nothing"]) == 2
    assert "mean, all" in capsys.readouterr().err
    assert main([*words, "--rows", "mean, original", "--json", "--markdown", str(tmp_path / "table.md")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"]["mean, original"]["seeds"] == [0] and answer["rows"]["mean, all"]["seeds"] == []
    table = (tmp_path / "table.md").read_text()
    assert "missing" in table and "no numbers" in table and "trivial" in table
    monkeypatch.setattr(ablation.Workshop, "row", lambda *_: pytest.fail("trained again"))
    assert main([*words, "--rows", "mean, original", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == answer["rows"]


# --- verdicts


def scores_of(gain: float, between_clips: float, between_seeds: float, seeds: int = 3, clips: int = 20):
    rng = np.random.default_rng(0)
    base = rng.uniform(20, 60, clips)
    shift = rng.normal(0, 1, seeds)
    shift = (shift - shift.mean()) / shift.std(ddof=1)
    per_clip = rng.normal(0, between_clips, clips)
    per_clip -= per_clip.mean()
    worse = {s: {"relp": base.tolist(), "inlier": base.tolist()} for s in range(seeds)}
    lower = {s: base - gain - per_clip - between_seeds * shift[s] for s in range(seeds)}
    better = {s: {"relp": v.tolist(), "inlier": (2 * base - v).tolist()} for s, v in lower.items()}
    return {"a": better, "b": worse}


@pytest.mark.parametrize("metric", ["relp", "inlier"])
def test_a_clear_gain_holds_in_both_directions(metric):
    scores = scores_of(gain=3.0, between_clips=2.0, between_seeds=0.3)
    found = judging.judge(scores, Claim(text="", pairs=(("a", "b"),), metric=metric))
    assert found.answer == "holds" and found.gain == pytest.approx(3.0)
    assert found.error == pytest.approx((np.var(np.array(scores["b"][0][metric]) - np.mean(
        [scores["a"][s][metric] for s in range(3)], axis=0), ddof=1) / 20 + 0.3**2 / 3) ** 0.5, rel=1e-6)  # fmt: skip
    assert judging.judge(scores, Claim(text="", pairs=(("b", "a"),), metric=metric)).answer == "the opposite holds"


def test_a_gain_within_the_spread_is_not_decided():
    claim = Claim(text="", pairs=(("a", "b"),), metric="relp")
    assert judging.judge(scores_of(1.0, 1.0, 3.0), claim).answer == "not decided"  # seeds disagree
    assert judging.judge(scores_of(0.2, 5.0, 0.01), claim).answer == "not decided"  # clips do
    single = {row: {0: seeds[0]} for row, seeds in scores_of(3.0, 1.0, 0.1).items()}
    assert judging.judge(single, claim).answer == "not decided"  # one seed proves nothing
    assert judging.judge({"a": {}, "b": {}}, claim).answer == "no numbers"


def test_clips_without_movers_leave_the_mean_and_nothing_else():
    scores = scores_of(gain=3.0, between_clips=1.0, between_seeds=0.1)
    for row in scores.values():
        for seed in row.values():
            seed["relp"][4] = math.nan
    found = judging.judge(scores, Claim(text="", pairs=(("a", "b"),), metric="relp"))
    assert (
        found.answer == "holds" and math.isfinite(found.gain) and math.isfinite(judging.means(scores, "a")["relp"][0])
    )


def test_scores_forgive_scale_and_shift_alone():
    clip = render_batch([11], frames=3, size=(16, 24))
    truth = {name: getattr(clip, name)[0] for name in ablation.MOVING}
    rest = {name: truth[name] for name in ("valid", "cam2world", "scene_flow", "flow_valid", "dynamic")}
    points, flow = truth["points"], truth["scene_flow"]
    right = judging.window_scores(2 * points + 1, 2 * flow, truth=points, **rest)
    assert right["relp"] < 1e-3 and right["inlier"] == pytest.approx(100) and right["epe_all"] < 1e-3
    wrong = judging.window_scores(2 * points + 1, flow + 0.1, truth=points, **rest)
    assert wrong["epe_all"] > 0.5
