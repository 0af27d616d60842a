"""Geo4D's training: right targets, progressive modalities, runs that resume, recipes that say what they do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from worldline.data.synthetic import render_batch
from worldline.diffusion import ddim
from worldline.io.tensors import WeightsError
from worldline.systems.geo4d import objective as training
from worldline.systems.geo4d import pretrained, recipes
from worldline.systems.geo4d.config import MODALITIES, Geo4DConfig, UNetConfig, VaeConfig
from worldline.systems.geo4d.networks import build
from worldline.systems.geo4d.train import mixture, run, to_clips
from worldline.systems.geo4d.vae import laplace_nll, sigma_of
from worldline.training import stages

VAE = VaeConfig(channels=(8, 8), blocks=1, latent_channels=2, scaling_factor=0.5, norm_groups=4)
SMALL = Geo4DConfig(
    unet=UNetConfig(
        in_channels=10, out_channels=8, model_channels=8, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(0,),
        head_channels=4, context_dim=6, text_tokens=3, image_tokens=1, dropout=0.0, norm_groups=4,
    ),
    vae=VAE, point_vae=replace(VAE, uncertainty=True), condition_vae=VAE, window=3, stride=2, steps=1, fps=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def rendered():
    return render_batch([3, 8], frames=5, size=(16, 24))


@pytest.fixture(scope="module")
def clips(rendered):
    return to_clips(rendered, [0, 2, 4], moment_gain=2.0)


def test_clips_are_in_units_of_their_pictures(rendered, clips):
    for index, box in enumerate(clips.pictures.boxes):
        valid = clips.pictures.valid[index]
        depth = rendered.depth[index, [0, 2, 4]] / box.scale
        torch.testing.assert_close(clips.distance[index][valid], depth[valid], atol=1e-4, rtol=1e-3)
    assert clips.fps.tolist() == [12.0, 12.0]
    single = to_clips(rendered, [0, 2, 4])
    torch.testing.assert_close(clips.pictures.ray_moment, 2 * single.pictures.ray_moment)


def test_clips_of_sky_are_left_out(rendered):
    blind = replace(rendered, valid=rendered.valid & torch.tensor([True, False])[:, None, None, None])
    clips = to_clips(blind, [0, 1, 2])
    assert torch.equal(clips.frames[0], clips.frames[1])
    with pytest.raises(ValueError, match="No clip"):
        to_clips(replace(rendered, valid=torch.zeros_like(rendered.valid)), [0, 1, 2])


@pytest.mark.parametrize("last_share", [0.0, 1.0])
def test_an_oracle_has_no_denoising_loss(clips, last_share, monkeypatch):
    model = build(SMALL)
    clean = training.target_latents(model, clips.pictures)
    schedule, seen = ddim.zero_snr_schedule(), []

    def oracle(x, timestep, context, fps):
        seen.append(timestep)
        alpha, scale = (ddim.spread(t[timestep], clean) for t in (schedule.alphas_cumprod, schedule.scale))
        assert context.shape == (2, 6, 6) and torch.equal(fps, clips.fps)
        return (alpha.sqrt() * x[:, :8] - scale * clean) / (1 - alpha).sqrt()

    monkeypatch.setattr(model.unet, "forward", oracle)
    terms = training.DenoisingObjective(last_share=last_share, decoded=3)(
        model, clips, torch.Generator().manual_seed(1)
    )
    assert all(float(terms[name].detach()) < 1e-6 for name in MODALITIES)
    points = model.point_vae.decode(clean[:, :2].transpose(1, 2).flatten(0, 1) / VAE.scaling_factor)
    expected = training.point_terms(
        points,
        None,
        training.flat(clips.pictures.points),
        clips.pictures.valid.flatten(0, 1),
        clips.distance.flatten(0, 1),
    )
    assert float(terms["decoded_points"].detach()) == pytest.approx(float(expected["points"].detach()), rel=1e-3)
    assert bool((seen[0] == 999).all()) == (last_share == 1.0)


def test_uncertainty_learns_the_size_of_the_error():
    """Eq. 3 is smallest where sigma is sqrt(2) times the mean error."""
    raw = torch.zeros(1, 1, 1, 1, requires_grad=True)
    error = torch.full((1, 3, 1, 1), 0.3)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        laplace_nll(error, torch.zeros_like(error), raw).mean().backward()
        optimizer.step()
    assert float(sigma_of(raw)) == pytest.approx(2**0.5 * 0.3 * 3**0.5, rel=1e-2)


def test_point_terms_judge_only_what_is_there():
    truth, valid = torch.zeros(1, 3, 2, 2), torch.tensor([[[True, False], [False, False]]])
    predicted = truth.clone()
    predicted[..., 1] = 7.0
    terms = training.point_terms(predicted, None, truth, valid, torch.ones(1, 2, 2))
    assert float(terms["points"]) < 1e-3 and float(terms["points_mark"]) == pytest.approx(14 / 3)
    predicted[..., 0, 0] = 0.2
    near = training.point_terms(predicted, None, truth, valid, torch.full((1, 2, 2), 0.1))["points_relative"]
    far = training.point_terms(predicted, None, truth, valid, torch.full((1, 2, 2), 1.0))["points_relative"]
    assert float(near) == pytest.approx(10 * float(far), rel=1e-4)


SMALL_WITH_FLOW = replace(SMALL, optical_flow=True, unet=replace(SMALL.unet, in_channels=10 + 24))


def tiny(steps: int, *, direct: bool = False) -> recipes.Recipe:
    """The mini recipe with the smallest networks, sizes and steps."""
    mini = recipes.mini(direct=direct)

    def smaller(stage: recipes.Stage) -> recipes.Stage:
        train = replace(
            stage.train, steps=steps, warmup_steps=1, batch_size=2, checkpoint_every=1, report_every=1, precision="no"
        )
        clips = recipes.ClipConfig(sizes=((16, 24), (16, 16)), views=((3, 1), (3, 2)))
        return replace(stage, train=train, clips=clips, encoder=None)

    networks = replace(SMALL_WITH_FLOW, deterministic=True) if direct else SMALL
    return replace(mini, networks=networks, stages=tuple(smaller(stage) for stage in mini.stages))


class Killed(Exception):
    pass


@pytest.mark.parametrize(("direct", "cut"), [(False, "points"), (True, "direct")])
def test_a_recipe_runs_resumes_and_exports(direct, cut, tmp_path):
    whole = run(tiny(2, direct=direct), tmp_path / "whole")
    assert whole.finished and whole.model.config.modalities == MODALITIES

    def kill(name, done, total):
        if (name, done) == (cut, 1):
            raise Killed

    with pytest.raises(Killed):
        run(tiny(2, direct=direct), tmp_path / "killed", progress=kill)
    torch.randn(5)
    resumed = run(tiny(2, direct=direct), tmp_path / "killed")
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert whole.model.config == resumed.model.config
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert whole.model.config.vae.scaling_factor != VAE.scaling_factor  # measured

    path = pretrained.export(whole.model, tmp_path / "mini.safetensors", {"note": "tiny"})
    loaded = pretrained.load_file(path)
    assert loaded.model.config == whole.model.config and loaded.card["note"] == "tiny"
    assert torch.equal(loaded.model.context, whole.model.context.half().float())
    assert not hasattr(loaded.model.vae, "encoder") and not hasattr(loaded.model.point_vae, "encoder")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="not the file"):
        pretrained.load_file(path)
    with pytest.raises(FileNotFoundError):
        pretrained.load_file(tmp_path / "none.safetensors")


def test_stages_train_only_what_they_name(tmp_path):
    recipe = tiny(1)
    decoder = replace(recipe, stages=recipe.stages[1:2])
    torch.manual_seed(recipe.seed)
    before = build(SMALL.with_modalities(("points",))).state_dict()
    trained = run(decoder, tmp_path).model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], trained[name])}
    assert changed == {"point_vae"}


def test_modalities_join_step_by_step():
    for recipe in (recipes.mini(direct=False), recipes.paper()):
        denoising = [s for s in recipe.stages if isinstance(s.objective, training.DenoisingObjective)]
        assert [len(stage.modalities) for stage in denoising] == [1, 1, 4]
        assert [len(set(stage.clips.sizes)) > 1 for stage in denoising] == [False, True, True]
        window = recipe.networks.window
        assert all(frames == window for stage in denoising for frames, _ in stage.clips.views)
        for stage in denoising:
            multiple = recipe.networks.size_multiple
            assert all(side % multiple == 0 for size in stage.clips.sizes for side in size)
    assert recipes.paper().networks.with_modalities(("points",)).unet.in_channels == 8
    steps = [stage.train.steps for stage in recipes.mini().stages]
    assert [stage.train.steps for stage in stages.scaled(recipes.mini(), 0.5).stages] == [round(s / 2) for s in steps]


def test_every_size_meets_every_stride():
    config = recipes.ClipConfig(sizes=((16, 24), (32, 16), (8, 8)), views=((3, 1), (3, 2)))
    met = {(config.size(index), tuple(config.view(index))) for index in range(6)}
    assert len(met) == 6 and config.span == 5
    assert [config.stride(index) for index in range(6)] == [1, 1, 1, 2, 2, 2]


def test_a_mixture_keeps_its_ratios_everywhere():
    sources = {name: lambda stage, model, device, name=name: lambda index: name for name in "abcde"}
    ratios = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 2.0}
    batch = mixture(sources, ratios)(recipes.mini().stages[0], build(SMALL, meta=True), "cpu")
    drawn = [batch(index) for index in range(600)]
    assert [batch(index) for index in range(600)] == drawn
    for start in (0, 130, 477):
        part = drawn[start : start + 120]
        for name, ratio in ratios.items():
            assert abs(part.count(name) - 20 * ratio) <= 3.0
    with pytest.raises(ValueError, match="one positive ratio"):
        mixture(sources, {"a": 1.0})
