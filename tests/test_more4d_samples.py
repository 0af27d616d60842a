"""What MoRe4D is trained on: the pool of scenes, latents that are encoded once, shapes, and launch files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import worldline.training as training
from curate_case import noise_video, tracked
from more4d_tiny import TINY, fill, motion
from worldline.data.curate.record import write_record
from worldline.data.curate.release import render
from worldline.render.splat import splat
from worldline.systems.more4d import pool, recipes, records, train
from worldline.systems.more4d.buckets import Buckets, bucket_of
from worldline.systems.more4d.latents import Kept, RememberedTexts, encode_fill, encode_motion
from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.pool import Pool, PoolConfig

SMALL = PoolConfig(shards=2, scenes=2, clip=3)


@pytest.fixture(scope="module")
def model() -> MoRe4D:
    torch.manual_seed(0)
    return build(TINY)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("kept")
    return Pool(config=SMALL, folder=folder, seed=3, size=TINY.size, frames=TINY.frames)


def test_scenes_are_rendered_once_and_seen_in_the_mirror(scenes: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    moves, holes = scenes.shard(0)
    monkeypatch.setattr(Pool, "_render", lambda *args: pytest.fail("rendered again"))
    again, _ = scenes.shard(0)
    assert torch.equal(moves.motion, again.motion) and moves.captions == again.captions and len(moves.captions) == 4
    torch.testing.assert_close(moves.motion[2, ..., 0], -moves.motion[0].flip(2)[..., 0])
    torch.testing.assert_close(moves.motion[2, ..., 1:], moves.motion[0].flip(2)[..., 1:])
    torch.testing.assert_close(moves.image[2], moves.image[0].flip(1))
    torch.testing.assert_close(holes.video[3], holes.video[1].flip(2))
    assert not bool(moves.motion[:, 0].any()) and torch.equal(moves.image, holes.video[:, 0])
    assert not torch.equal(holes.known[2], holes.known[0].flip(2)) or bool(holes.known.all())  # other cameras


def test_captions_in_the_mirror() -> None:
    assert pool.mirrored_caption("A car drives to the left, lefty, right") == "A car drives to the right, lefty, left"
    assert pool.mirrored_caption(pool.mirrored_caption("to the left")) == "to the left"


def test_a_pass_sees_every_sample_once(scenes: Pool, model: MoRe4D) -> None:
    make = pool.batches(scenes, "fill", 2, model)
    videos = torch.cat([make(index).video for index in range(4)])
    known = torch.cat([scenes.shard(number)[1].video for number in range(2)])
    found = sorted(float(v.double().sum()) for v in videos)
    assert found == pytest.approx(sorted(float(v.double().sum()) for v in known))
    assert torch.equal(make(1).video, make(1).video)
    with pytest.raises(ValueError, match="do not divide"):
        pool.batches(scenes, "fill", 3, model)
    clip = pool.batches(scenes, "motion", 4, model)
    assert clip(0).motion.shape[1] == 3 and clip(0).video.shape[1] == 3


@pytest.mark.parametrize("kind", ["motion", "fill"])
def test_kept_latents_give_the_same_loss(kind: str, scenes: Pool, model: MoRe4D) -> None:
    stage = recipes.mini(networks=TINY).stages[-1 if kind == "motion" else 2]
    kept = pool.batches(scenes, f"{kind} latents", 4, model)(0)  # type: ignore[arg-type]
    files = list(scenes.folder.glob(f"{kind}-latents-*/*.safetensors"))
    assert files
    direct = pool.batches(replace(scenes, config=replace(SMALL, clip=None)), kind, 4, model)(0)  # type: ignore[arg-type]
    losses = [
        stage.objective(model, samples, torch.Generator().manual_seed(1))["velocity"] for samples in (kept, direct)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=1e-3)
    with torch.no_grad():  # other weights: other latents
        model.vae.vae.quant_conv.bias.add_(1.0)
        pool.batches(scenes, f"{kind} latents", 4, model)(0)  # type: ignore[arg-type]
        model.vae.vae.quant_conv.bias.sub_(1.0)
    assert len(list(scenes.folder.glob(f"{kind}-latents-*"))) == 2


def test_a_killed_run_on_kept_latents_resumes_to_the_same_weights(tmp_path: Path) -> None:
    stages = tuple(
        replace(s, pool=SMALL, train=replace(s.train, steps=2, batch_size=2, warmup_steps=1, checkpoint_every=1))
        for s in recipes.mini(networks=TINY).stages
    )
    recipe = replace(recipes.mini(networks=TINY), stages=stages)
    whole = train.run(recipe, tmp_path / "whole")
    for _ in range(20):
        parts = train.run(recipe, tmp_path / "parts", minutes=0.0)
        if parts.finished:
            break
    assert whole.finished and parts.finished
    for (name, one), other in zip(whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_texts_are_encoded_once(tmp_path: Path, model: MoRe4D) -> None:
    asked: list[str] = []

    class Encoder(nn.Module):
        def forward(self, texts: list[str]) -> torch.Tensor:
            asked.extend(texts)
            return torch.full((len(texts), 3, 2), float(len(texts[0])))

    texts = RememberedTexts(Encoder(), tmp_path)
    rows = texts(["ball", "", "ball"])
    assert asked == ["ball", ""] and rows.shape == (3, 3, 2) and torch.equal(rows[0], rows[2])
    texts.encoder = None
    assert torch.equal(texts(["ball"]), rows[:1])
    with pytest.raises(ValueError, match="not encoded beforehand"):
        texts(["a bear"])


def test_what_is_kept_is_whole(tmp_path: Path) -> None:
    kept = Kept(folder=tmp_path)
    with pytest.raises(RuntimeError, match="stop"):
        kept.get("a", lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    assert not list(tmp_path.iterdir())
    assert torch.equal(kept.get("a", lambda: {"x": torch.ones(2)})["x"], torch.ones(2))
    assert torch.equal(kept.get("a", lambda: {"x": torch.zeros(2)})["x"], torch.ones(2))


def test_encoding_does_not_train(model: MoRe4D) -> None:
    assert not encode_motion(model, motion()).mean.requires_grad
    assert not encode_fill(model, fill()).conditions.requires_grad


def test_shapes_of_the_published_table() -> None:
    assert bucket_of((384, 512)) == (368, 512)  # spec 2.4
    assert bucket_of((512, 512)) == (448, 448)
    height, width = bucket_of((1080, 1920))
    assert height % 16 == width % 16 == 0 and height / width == pytest.approx(9 / 16, abs=0.05)
    assert bucket_of((1920, 1080)) == (width, height)


def test_batches_have_one_shape_and_a_pass_sees_everything() -> None:
    sizes = [(16, 24)] * 5 + [(24, 16)] * 2
    buckets = Buckets(sizes=sizes, batch_size=2, seed=1)
    batches = [buckets.batch(index) for index in range(buckets.per_pass)]
    assert buckets.per_pass == 4 and {r for b in batches for r in b.records} == set(range(7))
    assert all(sizes[record] == batch.size for batch in batches for record in batch.records)
    assert all(len(batch.records) == 2 for batch in batches)
    assert batches[0] == buckets.batch(0)
    assert [buckets.batch(4 + i) for i in range(4)] != batches
    with pytest.raises(ValueError, match="nothing to train on"):
        Buckets(sizes=[], batch_size=2, seed=1).batch(0)


LAUNCH = Path(training.__file__).parent / "launch"


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp"])
def test_accelerate_understands_the_launch_files(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type.value == ("FSDP" if name == "fsdp" else "DEEPSPEED")
    words = ["--config_file", str(LAUNCH / f"{name}.yaml"), "-m", "worldline"]
    args, _, from_config = _validate_launch_command(launch_command_parser().parse_args(words))
    assert from_config and args.mixed_precision == "bf16"
    assert args.use_fsdp == (name == "fsdp") and args.use_deepspeed == (name != "fsdp")
    if name == "fsdp":
        from worldline.systems.more4d.transformer import GuidedBlock

        assert args.fsdp_transformer_layer_cls_to_wrap == GuidedBlock.__name__
    else:
        assert args.zero_stage == int(name[-1])


@pytest.fixture(scope="module")
def curated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    for number, size in enumerate([(32, 48), (48, 32), (32, 48)]):
        clip = tracked(noise_video(size), size)
        write_record(
            folder / f"{number:06}_record.npz", clip, render(clip, splat).covered, {"caption": f"clip {number}"}
        )
    return folder


def test_records_are_trained_in_their_shapes_and_encoded_once(
    curated_folder: Path, model: MoRe4D, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recipes.mini(networks=TINY).stages[-1]
    stage = replace(stage, train=replace(stage.train, batch_size=2))
    make = records.bucketed(curated_folder, tmp_path, side=24, multiple=8)(stage, model, "cpu")
    batches = [make(index) for index in range(2)]
    shapes = {tuple(batch.mean.shape[-2:]) for batch in batches}
    assert shapes == {(4, 6), (6, 4)}  # a wide batch and a high one, a cell for 4x4 pixels
    assert {caption for batch in batches for caption in batch.captions} == {"clip 0", "clip 1", "clip 2"}
    for batch in batches:
        loss = stage.objective(model, batch, torch.Generator().manual_seed(0))["velocity"]
        assert bool(loss.isfinite())
    monkeypatch.setattr(records, "encode_motion", lambda *args: pytest.fail("encoded again"))
    again = records.bucketed(curated_folder, tmp_path, side=24, multiple=8)(stage, model, "cpu")(0)
    assert torch.equal(again.mean, batches[0].mean)
    with pytest.raises(FileNotFoundError, match="no records"):
        records.bucketed(tmp_path / "kept", tmp_path)
