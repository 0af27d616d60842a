"""Published Geo4D containers: what fits is converted, what does not is refused in one sentence and never run."""

from __future__ import annotations

import csv
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldline.io.tensors import WeightsError, compare
from worldline.systems.geo4d import convert as conversion
from worldline.systems.geo4d import pretrained, published
from worldline.systems.geo4d.config import (
    ClipConfig,
    Geo4DConfig,
    ResamplerConfig,
    TowerConfig,
    UNetConfig,
    VaeConfig,
)
from worldline.systems.geo4d.context import (
    PROMPT_TOKENS,
    TextTower,
    VisionTower,
    constant_context,
    grey_picture,
    prompt_tokens,
)
from worldline.systems.geo4d.resampler import Resampler

VAE = VaeConfig(channels=(32, 64), blocks=1)
CONFIG = Geo4DConfig(
    unet=UNetConfig(model_channels=32, channel_mult=(1, 2), attention_levels=(0,), head_channels=8, context_dim=48),
    vae=VAE,
    point_vae=replace(VAE, uncertainty=True),
)
CLIP = ClipConfig(
    text=TowerConfig(width=48, heads=4, layers=3),
    vision=TowerConfig(width=64, heads=4, layers=2),
    vocabulary=49408,
    image_size=28,
    embedding=24,
)
RESAMPLER = ResamplerConfig(dim=32, depth=1, heads=2, head_channels=16, embedding_dim=64, output_dim=48)


def random_state(table):
    generator = torch.Generator().manual_seed(3)
    state = {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in table.items()}
    return {k: v + 1 if k.endswith("weight") and v.ndim == 1 else v for k, v in state.items()}


@pytest.fixture(scope="module")
def states():
    model, vae = conversion.expected_tables(CONFIG, CLIP, RESAMPLER)
    return random_state(model), random_state(vae)


@pytest.fixture(scope="module")
def vae_file(states, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.ckpt"
    torch.save({"state_dict": {**states[1], "loss.discriminator.weight": torch.ones(3)}, "epoch": 4}, path)
    return path


def convert(model_file, vae_file, out):
    return conversion.convert(model_file, vae_file, out, config=CONFIG, clip=CLIP, resampler=RESAMPLER)


def lightning(state, path):
    """As Lightning writes it, with hyper-parameters in a class of its own that this machine does not have."""
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    names = ["pytorch_lightning", "pytorch_lightning.utilities", module.__name__]
    sys.modules.update(dict.fromkeys(names[:2], types.ModuleType("m")) | {module.__name__: module})
    parameters = module.AttributeDict(lr=1e-5)
    parameters.note = "kept outside the tensors"
    try:
        torch.save({"state_dict": state, "hyper_parameters": parameters, "epoch": 7}, path)
    finally:
        for name in names:
            sys.modules.pop(name)


def deepspeed(state, path):
    torch.save({"module": {published.DEEPSPEED_PREFIX + key: value for key, value in state.items()}}, path)


@pytest.mark.parametrize("container", [lightning, deepspeed])
def test_both_containers_give_the_same_model(container, states, vae_file, tmp_path):
    state = states[0]
    old = {
        k.replace("fps_embedding", "framestride_embed") if container is deepspeed else k: v for k, v in state.items()
    }
    container(old, tmp_path / "model.ckpt")
    folder = convert(tmp_path / "model.ckpt", vae_file, tmp_path / "geo4d")
    loaded = pretrained.load_folder(str(folder), dtype=torch.float32).model
    assert loaded.config == CONFIG
    key = "input_blocks.1.0.temporal_conv.conv2.3.weight"
    rounded = state[published.UNET_PREFIX + key.replace("temporal", "temopral")].bfloat16().float()
    assert torch.equal(loaded.unet.state_dict()[key], rounded)
    name = "first_stage_model.decoder.up.1.block.0.conv1.weight"  # the published decoder counts from the other end
    assert torch.equal(loaded.vae.decoder.up_blocks[0].resnets[0].conv1.weight, state[name])
    uncertain = states[1]["model.decoder_adaptor.conv_out.weight"]
    assert torch.equal(loaded.point_vae.uncertainty.conv_out.weight, uncertain)
    assert loaded.context.shape == (77 + 256, 48) and bool(torch.isfinite(loaded.context).all())
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "context", "point_vae", "unet", "vae"]


def test_shards_are_limited_and_indexed(states, vae_file, tmp_path, monkeypatch):
    deepspeed(states[0], tmp_path / "model.ckpt")
    monkeypatch.setattr(conversion, "SHARD_BYTES", 200_000)
    folder = convert(tmp_path / "model.ckpt", vae_file, tmp_path / "geo4d")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 2 and all(path.stat().st_size < 300_000 for path in shards)
    assert pretrained.load_folder(str(folder)).model.unet.out[2].weight.dtype == torch.bfloat16
    shards[1].unlink()
    with pytest.raises(WeightsError, match="lists .* which is not there"):
        pretrained.load_folder(str(folder))


def refused(tmp_path, model_file, vae_file, match):
    with pytest.raises(WeightsError, match=match) as caught:
        convert(model_file, vae_file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.partial*"))


def test_a_truncated_checkpoint_is_refused(states, vae_file, tmp_path):
    path = tmp_path / "model.ckpt"
    deepspeed(states[0], path)
    path.write_bytes(path.read_bytes()[:-5000])
    refused(tmp_path, path, vae_file, "cut off")


def test_a_checkpoint_with_other_keys_is_refused(states, vae_file, tmp_path):
    path = tmp_path / "model.ckpt"
    state = dict(states[0])
    state["model.diffusion_model.extra"] = state.pop("model.diffusion_model.out.2.bias")
    deepspeed(state, path)
    refused(tmp_path, path, vae_file, "1 missing .*out.2.bias.*1 unexpected")
    torch.save({"weights": state}, path)
    refused(tmp_path, path, vae_file, "neither")
    torch.save({"state_dict": {"step": 3}}, path)
    refused(tmp_path, path, vae_file, "named tensors")
    refused(tmp_path, tmp_path / "nothing.ckpt", vae_file, "no file")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["state", "beside"])
def test_a_malicious_checkpoint_is_refused_and_not_run(states, vae_file, tmp_path, where):
    path, trace = tmp_path / "model.ckpt", tmp_path / "executed"
    evil = Evil(trace)
    torch.save({"state_dict": {"a": evil}} if where == "state" else {"state_dict": states[0], "x": evil}, path)
    refused(tmp_path, path, vae_file, "posix.system.*nothing was run")
    assert not trace.exists()


def test_a_framework_shell_cannot_be_a_way_in(states, tmp_path, monkeypatch):
    """What is named after a framework is read as an empty shell, even when there is something of that name to run."""
    path, trace = tmp_path / "model.ckpt", tmp_path / "executed"
    module = types.ModuleType("pytorch_lightning.callbacks")

    def run(where):
        Path(where).touch()

    run.__module__, run.__qualname__, module.run = module.__name__, "run", run
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    armed = type("Armed", (), {"__reduce__": lambda self: (run, (str(trace),))})()
    torch.save({"state_dict": states[0], "callbacks": armed}, path)
    assert conversion.read_model(path).keys() == states[0].keys()
    assert not trace.exists()
    torch.load(path, weights_only=False)  # it was armed
    assert trace.exists()


def test_another_noise_schedule_is_refused(states, vae_file, tmp_path):
    path = tmp_path / "model.ckpt"
    deepspeed({**states[0], "alphas_cumprod": torch.linspace(1, 0, 1000)}, path)
    refused(tmp_path, path, vae_file, "noise schedule")


def test_nothing_is_overwritten_and_a_folder_is_needed(states, vae_file, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        convert(tmp_path / "model.ckpt", vae_file, tmp_path / "out")
    for source in (None, str(tmp_path)):
        with pytest.raises(WeightsError, match="worldline models convert geo4d"):
            pretrained.load_folder(source)


@pytest.mark.shared
def test_key_tables_are_the_published_ones(golden_dir):
    rows = Path(golden_dir).parent / "specs" / "geo4d_keys.tsv"
    if not rows.is_file():
        pytest.skip(f"{rows} is missing")
    published_tables = {"model.ckpt": {}, "vae.ckpt": {}}
    for row in csv.DictReader(rows.open(), delimiter="\t"):
        shape = () if row["shape"] == "scalar" else tuple(int(side) for side in row["shape"].split("x"))
        published_tables[row["file"]][row["key"]] = shape
    model, vae = conversion.expected_tables(Geo4DConfig(), ClipConfig())
    assert not compare(model, published_tables["model.ckpt"], conversion.SCHEDULE_BUFFERS)
    assert not compare(vae, published_tables["vae.ckpt"])
    assert (len(published_tables["model.ckpt"]), len(vae)) == (2554, 282)


def clip_state(ours, theirs, prefix):
    """OpenCLIP's names to those of transformers' CLIP, for the transformer blocks."""
    state = {}
    for index in range(len(ours.transformer.resblocks)):
        block, there = ours.transformer.resblocks[index], f"{prefix}encoder.layers.{index}."
        for name, part in zip("qkv", range(3), strict=True):
            width = block.attn.in_proj_bias.shape[0] // 3
            rows = slice(part * width, (part + 1) * width)
            state[f"{there}self_attn.{name}_proj.weight"] = block.attn.in_proj_weight[rows]
            state[f"{there}self_attn.{name}_proj.bias"] = block.attn.in_proj_bias[rows]
        pairs = {"self_attn.out_proj": block.attn.out_proj, "layer_norm1": block.ln_1, "layer_norm2": block.ln_2}
        pairs |= {"mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
        for name, layer in pairs.items():
            state |= {f"{there}{name}.{kind}": getattr(layer, kind) for kind in ("weight", "bias")}
    return state


def random_module(kind, config):
    module = kind(config)
    module.load_state_dict(random_state({k: tuple(v.shape) for k, v in module.state_dict().items()}))
    return module.eval()


@torch.no_grad()
def test_text_tower_is_clip_read_before_its_last_block():
    from transformers import CLIPTextConfig, CLIPTextModel

    ours = random_module(TextTower, CLIP)
    settings = CLIPTextConfig(
        vocab_size=49408, hidden_size=48, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="gelu",
    )  # fmt: skip
    theirs = CLIPTextModel(settings).eval()
    prefix = "text_model." if any(key.startswith("text_model.") for key in theirs.state_dict()) else ""
    state = clip_state(ours, theirs, prefix) | {
        f"{prefix}embeddings.token_embedding.weight": ours.token_embedding.weight,
        f"{prefix}embeddings.position_embedding.weight": ours.positional_embedding,
        f"{prefix}final_layer_norm.weight": ours.ln_final.weight,
        f"{prefix}final_layer_norm.bias": ours.ln_final.bias,
    }
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    hidden = theirs(input_ids=prompt_tokens(), output_hidden_states=True).hidden_states[-2]
    expected = torch.nn.functional.layer_norm(hidden, (48,), ours.ln_final.weight, ours.ln_final.bias)
    torch.testing.assert_close(ours(prompt_tokens()), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_vision_tower_is_clip_before_its_last_norm():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    ours = random_module(VisionTower, CLIP)
    settings = CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14,
        hidden_act="gelu",
    )  # fmt: skip
    theirs = CLIPVisionModel(settings).eval()
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in theirs.state_dict()) else ""
    state = clip_state(ours, theirs, prefix) | {
        f"{prefix}embeddings.class_embedding": ours.class_embedding,
        f"{prefix}embeddings.patch_embedding.weight": ours.conv1.weight,
        f"{prefix}embeddings.position_embedding.weight": ours.positional_embedding,
        f"{prefix}pre_layrnorm.weight": ours.ln_pre.weight,
        f"{prefix}pre_layrnorm.bias": ours.ln_pre.bias,
    }
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    picture = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(ours(picture), theirs(picture).last_hidden_state, atol=1e-5, rtol=1e-4)


def test_the_context_is_text_then_image():
    text, vision = random_module(TextTower, CLIP), random_module(VisionTower, CLIP)
    resampler = Resampler(RESAMPLER)
    context = constant_context(text, vision, resampler, CLIP.image_size)
    with torch.no_grad():
        assert torch.equal(context[:77], text(prompt_tokens())[0])
        assert torch.equal(context[77:], resampler(vision(grey_picture(28)))[0])
    assert len(PROMPT_TOKENS) == 19 and int(prompt_tokens()[0, 18]) == 49407
