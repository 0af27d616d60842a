"""The training loop: resumes bit for bit, trains what it should, averages and schedules as its formulas say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from worldline.training import checkpoint, curve
from worldline.training.config import EVALUATION_SEEDS, SEEDS_PER_RUN, TrainConfig, scene_seeds
from worldline.training.ema import Ema
from worldline.training.loop import train

CONFIG = TrainConfig(
    name="toy",
    steps=9,
    batch_size=4,
    weights={"error": 1.0},
    learning_rate=1e-2,
    warmup_steps=3,
    ema_decay=0.9,
    checkpoint_every=2,
    report_every=1,
)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 5).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 1))


def toy():
    torch.manual_seed(1)
    return Toy()


def batches(index):
    seeds = scene_seeds(CONFIG, index)
    return torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def objective(model, batch, generator):
    noise = 0.1 * torch.randn(batch.shape, generator=generator)
    value = model.body(model.frozen(batch + noise))[:, 0]
    return {"error": (value - batch.prod(-1)).square().mean(), "size": value.square().mean()}


class Killed(Exception):
    pass


def kill_at(step):
    def progress(name, done, total):
        if done == step:
            raise Killed

    return progress


def losses_of(folder):
    lines = [line for line in curve.read(folder / "toy.jsonl") if "step" in line]
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_continues_bit_for_bit(tmp_path, accumulate):
    config = replace(CONFIG, accumulate=accumulate)
    whole = train(toy(), objective, batches, config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(toy(), objective, batches, config, tmp_path / "killed", progress=kill_at(5))
    torch.randn(17)  # whatever the process drew in between must not matter
    with pytest.raises(Killed):
        train(toy(), objective, batches, config, tmp_path / "killed", progress=kill_at(8))
    resumed = train(toy(), objective, batches, config, tmp_path / "killed")

    assert whole.finished and resumed.finished and resumed.step == config.steps
    expected, found = load_file(whole.weights), load_file(resumed.weights)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "killed")
    assert [line["step"] for line in losses_of(tmp_path / "killed")] == list(range(1, config.steps + 1))


def test_minutes_end_a_chunk_with_a_checkpoint(tmp_path):
    first = train(toy(), objective, batches, CONFIG, tmp_path, minutes=0.0)
    assert not first.finished and first.step == 1 and first.weights is None
    last = train(toy(), objective, batches, CONFIG, tmp_path)
    reference = train(toy(), objective, batches, CONFIG, tmp_path / "whole")
    expected, found = load_file(reference.weights), load_file(last.weights)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_only_parameters_with_gradient_are_trained_and_written(tmp_path):
    model = toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = train(model, objective, batches, CONFIG, tmp_path)
    assert set(load_file(outcome.weights)) == {name for name in before if name.startswith("body.")}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("body.")}


def test_stages_of_different_precision_run_in_one_process(tmp_path):
    seen = []

    def watching(model, batch, generator):
        seen.append(model.body(model.frozen(batch)).dtype)
        return objective(model, batch, generator)

    for precision in ("no", "bf16", "no"):
        train(toy(), watching, batches, replace(CONFIG, steps=1, precision=precision), tmp_path / f"{len(seen)}")
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


def test_the_objective_is_learnt(tmp_path):
    config = replace(CONFIG, steps=150, learning_rate=3e-2, checkpoint_every=150)
    train(toy(), objective, batches, config, tmp_path)
    errors = [line["error"] for line in losses_of(tmp_path)]
    assert sum(errors[-50:]) < 0.9 * sum(errors[:50])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(toy(), objective, batches, CONFIG, tmp_path, minutes=0.0)
    with pytest.raises(ValueError, match="learning_rate"):
        train(toy(), objective, batches, replace(CONFIG, learning_rate=1e-3), tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    def broken(model, batch, generator):
        return {"error": objective(model, batch, generator)["error"] * float("nan")}

    with pytest.raises(FloatingPointError, match="toy"):
        train(toy(), broken, batches, CONFIG, tmp_path)


def test_the_curve_says_how_to_repeat_the_run(tmp_path):
    train(toy(), objective, batches, CONFIG, tmp_path)
    first = json.loads((tmp_path / "toy.jsonl").read_text().splitlines()[0])
    assert first["run"]["seed"] == CONFIG.seed and first["run"]["steps"] == CONFIG.steps
    assert "git_revision" in first


def test_checkpoints_are_packed_in_small_files_and_only_the_newest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 1000)
    tensors = {f"t{i}": torch.full((60,), float(i)) for i in range(10)} | {"step": torch.tensor(3.0)}
    checkpoint.save(tmp_path, 1, tensors, {"note": "old"})
    newest = checkpoint.save(tmp_path, 2, tensors, {"note": "new"})
    assert checkpoint.latest(tmp_path) == newest and len(list(tmp_path.iterdir())) == 1
    payloads = [sum(t.numel() * 4 for t in load_file(p).values()) for p in newest.glob("*.safetensors")]
    assert len(payloads) == 3 and max(payloads) <= 1000
    found, info = checkpoint.load(newest)
    assert info == {"step": 2, "note": "new"} and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    old = checkpoint.save(tmp_path, 1, {"t": torch.ones(3)}, {})
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        checkpoint.save(tmp_path, 2, {"t": torch.zeros(3)}, {})
    assert checkpoint.latest(tmp_path) == old
    assert torch.equal(checkpoint.load(old)[0]["t"], torch.ones(3))


def test_average_is_the_weighted_sum_it_claims():
    values = [torch.tensor([float(i)]) for i in range(1, 6)]
    ema = Ema({"x": values[0]}, decay=0.5)
    expected = values[0].clone()
    for k, value in enumerate(values[1:]):
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * value
        ema.update({"x": value}, k)
    torch.testing.assert_close(ema.average["x"], expected)
    assert float(values[0]) == 1.0, "the average must not share memory with the weights"


def test_rate_warms_up_and_falls_as_a_cosine():
    config = replace(CONFIG, steps=103, warmup_steps=3, learning_rate=1.0, final_rate=0.1)
    assert [round(config.rate(step), 4) for step in (0, 1, 2)] == [0.3333, 0.6667, 1.0]
    assert config.rate(53) == pytest.approx(0.55) and config.rate(103) == pytest.approx(0.1)
    falling = [config.rate(step) for step in range(3, 104)]
    assert falling == sorted(falling, reverse=True)


def test_training_never_draws_an_evaluation_seed():
    last = EVALUATION_SEEDS // SEEDS_PER_RUN - 1
    config = replace(CONFIG, seed=last)
    assert scene_seeds(config, SEEDS_PER_RUN // 4 - 1).stop <= EVALUATION_SEEDS
    with pytest.raises(ValueError, match="needs over"):
        scene_seeds(config, SEEDS_PER_RUN // 4)
    with pytest.raises(ValueError, match="seed"):
        replace(CONFIG, seed=last + 1)


def test_runs_with_different_seeds_see_different_scenes():
    first, second = (scene_seeds(replace(CONFIG, seed=s), 0) for s in (1, 2))
    assert not set(first) & set(second)
    assert not set(scene_seeds(CONFIG, 0)) & set(scene_seeds(CONFIG, 1))
