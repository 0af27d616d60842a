"""The embedded geo4d-mini: small, described by what was measured, and a scene from clips of any length and shape."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch

import worldline as wl
from worldline import api
from worldline.cli import main
from worldline.data.synthetic import render_clip
from worldline.evaluation import ablation as judging
from worldline.systems.geo4d import ablation, recipes
from worldline.systems.geo4d.system import MINI_CHECKPOINT, load_mini
from worldline.systems.registry import card
from worldline.systems.system import Loading, Options

OUTPUTS = {"points": (ablation.ALL, "abs_rel"), "cameras": (ablation.ALL, "ate"), "disparity": ("disparity", "abs_rel")}


@pytest.fixture(scope="module")
def about() -> dict:
    return json.loads(MINI_CHECKPOINT.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def system():
    return load_mini(Loading(device=torch.device("cpu")))


def test_it_is_small_and_says_what_it_is(about, system):
    assert MINI_CHECKPOINT.stat().st_size <= 16_000_000
    assert about["sha256"] == hashlib.sha256(MINI_CHECKPOINT.read_bytes()).hexdigest() == system.weights_sha256
    assert about["license"] == "Apache-2.0" and about["command"] and about["git_revision"] and "seed" in about
    stages = [stage.train for stage in recipes.mini().stages]
    assert about["stages"] == [stage.to_json() for stage in stages]  # the recipe is what was run
    assert all((MINI_CHECKPOINT.parent / f"{stage.name}.jsonl").is_file() for stage in stages)
    assert "Apache-2.0" in (MINI_CHECKPOINT.parent / "README.md").read_text()


def test_it_claims_only_what_was_measured(about, system):
    """What does not beat its trivial predictor by two standard errors on held-out scenes is marked."""
    measured = about["metrics"]
    assert measured["seeds_from"] == judging.VALIDATION_START and measured["clips"] >= 32
    assert all(row["failed"] == 0 for row in measured["rows"])
    gain = {}
    for output, (row, metric) in OUTPUTS.items():
        entry = measured["trivial_minus"][output]
        assert (entry["row"], entry["metric"]) == (row, metric)
        gain[output] = entry["gain"] - 2 * entry["error"]
    assert set(system.unreliable) == {output for output, value in gain.items() if not value > 0}


def test_systems_and_auto_know_what_it_is_worth(capsys, about):
    assert card("geo4d-mini").embedded and api.AUTO_PRIOR != "geo4d-mini"
    assert main(["systems"]) == 0
    text = capsys.readouterr().out
    listed = text[text.index("geo4d-mini") :].split("geo4d ")[0]
    assert "embedded" in listed and card("geo4d-mini").caution in listed
    for output in about["unreliable"]:
        assert output in card("geo4d-mini").caution


def test_it_looks_at_the_video(system):
    """Its depth of a clip is better than its depth of another clip."""
    clips = list(judging.held_out_clips(3, system.model.config.window, (48, 64)))
    found = [1 / ablation.known_depth(system.reconstruct(clip.video, Options())) for clip in clips]
    own = [judging.depth_scores(depth, clip)["abs_rel"] for depth, clip in zip(found, clips, strict=True)]
    other = [
        judging.depth_scores(depth, clip)["abs_rel"] for depth, clip in zip(found[1:] + found[:1], clips, strict=True)
    ]
    assert sum(own) < sum(other)


@pytest.mark.parametrize(("count", "size"), [(1, (48, 64)), (5, (48, 48)), (10, (64, 40))])
def test_a_clip_becomes_one_world(count, size, tmp_path):
    truth = render_clip(1_000_400_007, frames=count, size=size)
    scene = wl.reconstruct(truth.video, system="geo4d-mini", device="cpu", resume_beside=tmp_path / "out")
    assert scene.cameras is not None and len(scene.cameras) == len(scene) == count and scene.size == size
    assert scene.confidence is not None and 0 < float(scene.confidence.max()) <= 1
    assert bool(torch.isfinite(scene.points).all() & torch.isfinite(scene.cameras.cam2world).all())
    assert float(scene.valid.float().mean()) > 0.1
    disparity = scene.extras["disparity"]
    assert disparity.shape == (count, *size) and bool(torch.isfinite(disparity).all()) and float(disparity.min()) >= 0
    assert (
        scene.provenance.system == "geo4d-mini"
        and scene.provenance.settings["windows"] == math.ceil((count - 4) / 4)
        or count < 9
    )
    wl.save(scene, tmp_path / "stored")
    assert torch.equal(wl.load(tmp_path / "stored").extras["disparity"].float(), disparity.float())
