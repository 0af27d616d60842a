"""The published MoRe4D from a hub on this machine: its exact layout with small networks, strict, sharded, offloaded."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import worldline as wl
from hub_server import Hub, serve
from more4d_tiny import TINY
from test_more4d_training import image_sources
from test_weights_hub import point_to
from worldline.io.tensors import WeightsError
from worldline.scene import Video
from worldline.systems.more4d import assembly, lora, placement, pretrained, published, transformer
from worldline.systems.more4d.config import TEXT_LENGTH
from worldline.systems.more4d.infer import SamplingConfig
from worldline.systems.more4d.networks import build

CPU = torch.device("cpu")
TEXT = {"vocab_size": 12, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
IMAGE = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 4, "num_hidden_layers": 2,
         "num_attention_heads": 2, "image_size": 224, "patch_size": 112, "hidden_act": "gelu"}  # fmt: skip
SIZES = replace(
    TINY,
    vae=replace(TINY.vae, z_dim=16),  # Wan's, whose constants are not in the files
    generator=replace(TINY.generator, image_dim=8, layers=2, in_channels=64, out_channels=16),
    inpainter=replace(TINY.inpainter, image_dim=8, in_channels=34, out_channels=16),
    text=None,
    focal=(1.04348, 1.0),
    reference="zeros",
    stills="clip",
)


def named(state: dict, name) -> dict:
    return {name(key): value.detach().clone().contiguous() for key, value in state.items()}


def write_published(own: Path, base: Path) -> None:
    """Small networks in the layout of the two published repositories."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    networks = build(SIZES)
    for block in networks.generator.blocks:
        torch.nn.init.normal_(block.spatial_guidance_self.gate)
    theirs = published.published_transformer_key
    state = named(networks.generator.state_dict(), theirs)
    keys = sorted(state)
    for number in range(3):  # in shards
        file = own / "4D-STraG" / f"diffusion_pytorch_model-{number + 1:05}-of-00003.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: state[key] for key in keys[number::3]}, file)
    base.mkdir(parents=True, exist_ok=True)
    save_file(named(networks.inpainter.state_dict(), theirs), base / "diffusion_pytorch_model.safetensors")

    lora.attach(networks.inpainter, 2, 1.0)
    additions = {key: torch.randn_like(value) * 0.1 for key, value in lora.state(networks.inpainter).items()}
    additions = {key: torch.ones_like(v) if key.endswith("alpha") else v for key, v in additions.items()}
    (own / "4D-ViSM").mkdir()
    save_file(additions, own / "4D-ViSM" / "lora_diffusion_pytorch_model.safetensors")

    vae = networks.vae
    parts = {"vae": vae.vae, "encoder_prompt": vae.trajectory_encoder, "decoder_prompt": vae.trajectory_decoder}
    original = {published.vae_key(key, 1): key for key in vae_names()}
    for name, part in parts.items():
        (own / "VAE" / name).mkdir(parents=True)
        table = dict(part.state_dict())
        if name == "vae":
            table = {"model." + original[key]: value for key, value in table.items()}
        torch.save(table, own / "VAE" / name / "pytorch_model.bin")

    text = UMT5EncoderModel(UMT5Config(**TEXT)).state_dict()
    names = {"token_embedding.weight", "norm.weight"}
    parts_of = ["norm1", "norm2", *(f"attn.{p}" for p in "qkvo"), "ffn.gate.0", "ffn.fc1", "ffn.fc2"]
    names |= {f"blocks.0.{part}.weight" for part in (*parts_of, "pos_embedding.embedding")}
    torch.save({n: text[published.text_key(n)].clone() for n in names}, base / "models_t5_umt5-xxl-enc-bf16.pth")
    image = CLIPVisionModel(CLIPVisionConfig(**IMAGE)).state_dict()
    image = {key.removeprefix("vision_model."): value for key, value in image.items()}
    clip = {"textual.head": torch.zeros(3)}
    for key in image_sources(2):
        ours = published.image_keys(key)
        value = torch.cat([image[name] for name in ours]) if len(ours) == 3 else image[ours[0]].clone()
        clip[key] = value[None, None] if key.endswith("cls_embedding") else value
    clip["visual.pos_embedding"] = clip["visual.pos_embedding"][None]
    torch.save(clip, base / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "ball": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="?")
    tokenizer.save_pretrained(base / "google" / "umt5-xxl")
    (own / "worldline.json").write_text(json.dumps({"networks": SIZES.to_dict(), "text": TEXT, "image": IMAGE}))


def vae_names() -> list[str]:
    """Wan's own names for the keys of the small autoencoder, found by trying the map on every place there may be."""
    places = [f"{side}.{part}.{i}.{rest}" for side, part in (("encoder", "downsamples"), ("decoder", "upsamples"))
              for i in range(20) for rest in
              (*(f"residual.{n}.{k}" for n in (0, 2, 3, 6) for k in ("gamma", "weight", "bias")),
               "shortcut.weight", "shortcut.bias", "resample.1.weight", "resample.1.bias", "time_conv.weight",
               "time_conv.bias")]  # fmt: skip
    places += [f"{side}.middle.{i}.{rest}" for side in ("encoder", "decoder") for i in range(3) for rest in
               (*(f"residual.{n}.{k}" for n in (0, 2, 3, 6) for k in ("gamma", "weight", "bias")), "norm.gamma",
                "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias")]  # fmt: skip
    ends = ("conv1.weight", "conv1.bias", "head.0.gamma", "head.2.weight", "head.2.bias")
    places += [f"{side}.{end}" for side in ("encoder", "decoder") for end in ends]
    return [*places, "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("published")
    own, base = root / "MoGe4D", root / "MoGe4D" / "base"
    write_published(own, base)
    return own, base


@pytest.fixture
def hub(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    own, base = folders
    with serve() as server:
        files = {str(p.relative_to(own)): p.read_bytes() for p in own.rglob("*") if p.is_file()}
        server.repos[assembly.REPO] = {name: data for name, data in files.items() if not name.startswith("base/")}
        server.add(assembly.BASE_REPO, base)
        point_to(server.url, monkeypatch)
        monkeypatch.setenv("WORLDLINE_CACHE", str(tmp_path / "worldline"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def picture() -> Video:
    frames = torch.rand(1, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    return Video(frames=frames, timestamps=torch.zeros(1, dtype=torch.float64))


def test_a_folder_of_published_files_runs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"system": "more4d", "weights": str(folders[0]), "device": "cpu"}
    np.save(tmp_path / "depth.npy", np.full((40, 60), 2.0, np.float32))
    tracks = wl.generate(picture(), "a ball", depth=tmp_path / "depth.npy", steps=2, **options)
    assert tuple(tracks.points.shape) == (5, 16, 24, 3) and tracks.points.isfinite().all()
    assert tracks.provenance.system == "more4d" and tracks.provenance.settings["offload"] == "none"
    video = wl.synthesize(tracks, "orbit", frames=5, steps=2, **options)
    assert tuple(video.frames.shape) == (5, 16, 24, 3)


def test_a_base_in_diffusers_layout_loads_to_the_same_networks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own, base = folders
    theirs = assembly.load(str(own), CPU, {}, dtype=torch.float32).model
    other = tmp_path / "MoGe4D"
    for part in ("4D-STraG", "4D-ViSM", "VAE"):
        shutil.copytree(own / part, other / part)
    shutil.copy(own / "worldline.json", other)
    plain = load_file(base / "diffusion_pytorch_model.safetensors")
    state = {published.transformer_key(key): value for key, value in plain.items()}
    assert "blocks.0.attn1.to_q.weight" in state and "condition_embedder.image_embedder.norm1.weight" in state
    folder, shards = other / "base" / "transformer", {}
    folder.mkdir(parents=True)
    for number, keys in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        name = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({key: state[key] for key in keys}, folder / name)
        shards |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": 0}, "weight_map": shards}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    theirs.text.encoder.save_pretrained(other / "base" / "text_encoder")
    theirs.image.encoder.save_pretrained(other / "base" / "image_encoder")
    theirs.text.tokenizer.save_pretrained(other / "base" / "tokenizer")
    ours = assembly.load(str(other), CPU, {}, dtype=torch.float32).model
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert torch.equal(ours.text(["a ball"]), theirs.text(["a ball"]))
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="00002-of-00002"):
        assembly.load(str(other), CPU, {}, dtype=torch.float32)


def test_weights_come_from_the_hub_after_the_licence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "OWN", replace(assembly.OWN, files=(*assembly.OWN.files, "worldline.json")))
    with pytest.raises(WeightsError, match="CC BY-NC"):
        assembly.find(None, accept_license=False)
    loaded = assembly.load(None, CPU, {}, dtype=torch.float32, accept_license=True)
    assert loaded.mode == "none" and len(loaded.sha256) == 64
    asked = len(hub.requests)
    assembly.find(None, accept_license=True)  # everything is here, and the licence is known
    assert len(hub.requests) == asked


def test_differences_are_told_in_words(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own, base = folders
    with pytest.raises(WeightsError, match="1 missing"):
        save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
        pretrained.load_transformer(tmp_path, SIZES.generator)
    with pytest.raises(WeightsError, match="has no 4D-ViSM"):
        (tmp_path / "4D-STraG").mkdir()
        save_file({"a": torch.zeros(1)}, tmp_path / "4D-STraG" / "diffusion_pytorch_model.safetensors")
        assembly.find(str(tmp_path), accept_license=True)
    wrong = replace(SIZES.inpainter, layers=2)
    with pytest.raises(WeightsError, match="do not fit.*missing"):
        pretrained.load_transformer(base, wrong)


def test_blocking_6_the_additions_reach_the_inpainter_and_the_guidance_the_generator(
    folders: tuple[Path, Path],
) -> None:
    loaded = assembly.load(str(folders[0]), CPU, {}, dtype=torch.float32).model
    plain = pretrained.load_transformer(folders[1], SIZES.inpainter)
    assert not torch.equal(loaded.inpainter.proj_out.weight, plain.proj_out.weight)
    assert loaded.generator.guided and loaded.generator.blocks[0].spatial_guidance_self.gate.abs().sum() > 0


def test_a_load_never_needs_twice_the_memory(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 shards into a bfloat16 model: at any time one source tensor is alive beside the model."""
    from worldline.io import tensors

    alive: dict[int, int] = {}
    peak, original = [0], tensors.stream

    def watched(*args, **options):
        for key, value in original(*args, **{**options, "dtype": None}):
            token = id(value)
            alive[token] = value.nbytes
            weakref.finalize(value, alive.pop, token, None)
            peak[0] = max(peak[0], sum(alive.values()))
            yield key, value.to(torch.bfloat16) if value.is_floating_point() else value
            del value

    monkeypatch.setattr(tensors, "stream", watched)
    model = pretrained.load_transformer(folders[0] / "4D-STraG", SIZES.generator, dtype=torch.bfloat16)
    sizes = [2 * v.nbytes for v in model.state_dict().values()]
    assert sum(sizes) > 5 * max(sizes) and peak[0] <= 2 * max(sizes)
    assert model.proj_out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["model", "sequential", "sharded"])
def test_offloaded_networks_answer_the_same(folders: tuple[Path, Path], mode: str) -> None:
    from worldline.systems.more4d import infer
    from worldline.systems.more4d.depth import GivenDepth

    free = {"cpu": 10**9} if mode == "sharded" else {}
    config, image = SamplingConfig(steps=2), torch.rand(16, 24, 3)
    prior = GivenDepth(depth=torch.full((16, 24), 2.0))
    points = []
    for chosen in ("none", mode):
        loaded = assembly.load(str(folders[0]), CPU, free, mode=chosen, dtype=torch.float32)  # type: ignore[arg-type]
        assert loaded.mode == chosen
        tracks = infer.generate(image, "a ball", loaded.model, prior, config)
        video = infer.synthesize(tracks, torch.eye(4).expand(5, 4, 4), loaded.model, config, prompt="a ball")
        points.append((tracks.points, video.frames))
    for one, other in zip(*points, strict=True):
        torch.testing.assert_close(one, other)
    if mode == "sequential":
        assert next(loaded.model.generator.parameters()).device.type == "meta"


def test_the_fastest_placement_that_fits() -> None:
    sizes = {"text": 11, "generator": 34, "inpainter": 33}
    assert placement.choose(sizes, {}) == "none"
    assert placement.choose(sizes, {"cuda:0": 141}) == "none"
    assert placement.choose(sizes, {"cuda:0": 80}) == "model"
    assert placement.choose(sizes, {"cuda:0": 24}) == "sequential"
    assert placement.choose(sizes, {"cuda:0": 40, "cuda:1": 40, "cuda:2": 40}) == "sharded"


def test_sharding_keeps_blocks_whole() -> None:
    config = replace(SIZES.generator, layers=6)
    network = transformer.build(config, meta=True)
    whole = placement.size_bytes(network)
    mapped = placement.device_map(network, {"cuda:0": whole, "cuda:1": whole})
    assert set(mapped.values()) == {"cuda:0", "cuda:1"}
    place = placement.places(mapped)
    for number in range(6):
        names = [name for name, _ in network.named_parameters() if name.startswith(f"blocks.{number}.")]
        assert len({place(name) for name in names}) == 1
    with pytest.raises(ValueError, match="does not fit"):
        placement.device_map(network, {"cuda:0": whole // 8})


def test_texts_are_as_long_as_diffusers_expects(folders: tuple[Path, Path]) -> None:
    loaded = assembly.load(str(folders[0]), CPU, {}, dtype=torch.float32).model
    rows = loaded.embed_text(["a ball", ""])
    assert rows.shape == (2, TEXT_LENGTH, 8) and bool(rows[0, :2].any()) and not bool(rows[0, 2:].any())
