"""`worldline train` and the embedded checkpoint it made."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from worldline.cli import main
from worldline.data.synthetic import render_batch
from worldline.geometry import fit
from worldline.systems.motioncrafter import pretrained
from worldline.systems.motioncrafter.infer import observe
from worldline.systems.motioncrafter.system import MINI_CHECKPOINT
from worldline.training.config import EVALUATION_SEEDS


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are tiny: a second thread only waits, and on a busy machine it waits long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_train_runs_to_the_end_in_chunks_and_refuses_a_used_folder(tmp_path, capsys):
    words = ["train", "motioncrafter-mini", "--out", str(tmp_path), "--fraction", "0.001", "--threads", "1", "--json"]
    assert main([*words, "--minutes", "1e-9", "--device", "cpu"]) == 0
    assert not json.loads(capsys.readouterr().out)["finished"]
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    loaded = pretrained.load_file(tmp_path / "mini.safetensors")
    assert answer["finished"] and loaded.card["seed"] == 7 and "scene_flow" in loaded.card["unreliable"]
    assert {path.stem for path in tmp_path.glob("*.jsonl")} == {"geometry-vae", "motion-vae", "unet", "video"}


@pytest.fixture(scope="module")
def embedded():
    return pretrained.load_file(MINI_CHECKPOINT)


def test_embedded_checkpoint_is_small_and_says_what_it_is(embedded):
    assert MINI_CHECKPOINT.stat().st_size <= 16_000_000
    card = json.loads(MINI_CHECKPOINT.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(MINI_CHECKPOINT.read_bytes()).hexdigest() == embedded.sha256
    assert card["license"] == "Apache-2.0" and card["command"] and card["git_revision"] and "seed" in card
    assert card["metrics"]["seeds_from"] >= EVALUATION_SEEDS
    for stage in card["stages"]:
        assert (MINI_CHECKPOINT.parent / f"{stage['name']}.jsonl").is_file()


def test_embedded_checkpoint_claims_only_what_was_measured(embedded):
    """An output is advertised only if it beat its trivial predictor by two standard errors on the validation split."""
    ours, unreliable = embedded.card["metrics"]["metrics"]["motioncrafter-mini"], embedded.card["unreliable"]
    for metric, sign in (("relp", 1), ("abs_rel", 1), ("inlier_0.25", -1)):
        assert sign * ours[metric]["versus_mean_map"] < -2 * ours[metric]["versus_mean_map_se"], metric
    flow = all(ours[m]["versus_mean_map"] < -2 * ours[m]["versus_mean_map_se"] for m in ("epe_all", "epe_moving"))
    assert ("scene_flow" in unreliable) == (not flow)


def test_embedded_checkpoint_looks_at_the_picture(embedded):
    """The right clip's points fit better than the same network's points of another clip."""
    clips = [render_batch([EVALUATION_SEEDS + 500_000 + i], frames=4, size=(48, 64)) for i in range(4)]
    clips = [clip for clip in clips if float(clip.valid.float().mean()) > 0.5]
    predictions = [observe(embedded.model, clip.rgb[0]).points for clip in clips]

    def error(points, clip):
        valid, truth = clip.valid[0], clip.points[0]
        scale, shift = fit.scale_shift3_l2(points[valid], truth[valid])
        return float(((scale * points + shift - truth)[valid].norm(dim=-1) / truth[valid].norm(dim=-1)).mean())

    right = sum(error(p, c) for p, c in zip(predictions, clips, strict=True))
    wrong = sum(error(p, c) for p, c in zip(predictions[1:] + predictions[:1], clips, strict=True))
    assert right < 0.85 * wrong
