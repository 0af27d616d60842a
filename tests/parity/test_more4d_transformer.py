"""MoRe4D's transformers, guidance and LoRA against numbers of the original classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from more4d_numbers import Numbers
from torch import Tensor

from worldline.systems.more4d import lora
from worldline.systems.more4d.config import PriorConfig, TransformerConfig
from worldline.systems.more4d.guidance import FeatureAdapter, SpatialGuidance, on_tokens
from worldline.systems.more4d.omnimae import OmniMae, sinusoids
from worldline.systems.more4d.published import published_transformer_key, transformer_key
from worldline.systems.more4d.transformer import WanTransformer4D, build, widened

PRIOR = PriorConfig(depth=2, decoder_depth=0)
STRAG = TransformerConfig(heads=4, head_dim=32, layers=2, ffn_dim=256, text_dim=64, prior=PRIOR)
INP = replace(STRAG, in_channels=36, reference_tokens=False, prior=None)


@pytest.fixture(scope="module")
def numbers(golden_dir: Path) -> Numbers:
    return Numbers(golden_dir / "more4d")


def texts(numbers: Numbers, name: str) -> Tensor:
    out = torch.zeros(2, 512, 64)
    out[0, :37], out[1, :5] = numbers.input(f"{name}.text0", 37, 64), numbers.input(f"{name}.text1", 5, 64)
    return out


def trace(model: WanTransformer4D) -> list[Tensor]:
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    return seen


@pytest.fixture(scope="module")
def strag(numbers: Numbers) -> WanTransformer4D:
    model = numbers.fill(build(STRAG), published_transformer_key)
    ours = {published_transformer_key(key) for key in model.state_dict()}
    theirs = {*(k for k, _ in numbers.manifest["strag_keys_without_omnimae"])}
    theirs |= {k for k, _ in numbers.manifest["strag_omnimae_keys_depth2"]}
    assert ours == theirs
    return model


@torch.no_grad()
def run(numbers: Numbers, model: WanTransformer4D, *, reference: bool, motion: bool, channels: int = 64) -> Tensor:
    x, y = numbers.input("strag.x", 2, 16, 3, 8, 12), numbers.input("strag.y", 2, 48, 3, 8, 12)
    first = torch.sigmoid(numbers.input("strag.first_frame", 2, 3, 64, 96))
    return model(
        torch.cat([x, y], 1)[:, :channels],
        torch.tensor([437.0, 958.25]),
        texts(numbers, "strag"),
        numbers.input("strag.clip", 2, 257, 1280),
        reference=numbers.input("strag.full_ref", 2, 16, 8, 12) if reference else None,
        motion=model.look(first) if motion else None,
    )


def test_inputs_are_drawn_as_stored(numbers: Numbers) -> None:
    stored = numbers.load("strag_transformer")
    for name in ("x", "y", "text0", "full_ref"):
        assert torch.equal(numbers.input(f"strag.{name}", *stored[f"in.{name}"].shape), stored[f"in.{name}"])
    sample = numbers.manifest["rule_check_first4"]["patch_embedding.weight"]
    found = numbers.weight("patch_embedding.weight", (128, 64, 1, 2, 2)).flatten()[:4]
    assert torch.allclose(found, torch.tensor(sample), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reference", "motion", "alignment"),
    [
        ("out.plain", False, False, "prepended"),
        ("out.ref", True, False, "prepended"),
        ("out.mpm", False, True, "prepended"),
        ("out.mpm_ref_published", True, True, "published"),
        ("out.mpm_ref_prepended", True, True, "prepended"),
    ],
)
def test_strag_transformer(
    numbers: Numbers, strag: WanTransformer4D, name: str, reference: bool, motion: bool, alignment: str
) -> None:
    stored = numbers.load("strag_transformer")
    strag.register_to_config(alignment=alignment)
    blocks = trace(strag)
    numbers.check(stored[name], run(numbers, strag, reference=reference, motion=motion))
    for index, found in enumerate(blocks):
        expected = stored.get(f"{name.removeprefix('out.')}.block{index}")
        if expected is not None:
            numbers.check(expected, found)


def test_strag_adapter_grid(numbers: Numbers, strag: WanTransformer4D) -> None:
    first = torch.sigmoid(numbers.input("strag.first_frame", 2, 3, 64, 96))
    with torch.no_grad():
        grid = strag.feature_adapter.on_grid(strag.look(first), (4, 6))
    numbers.check(numbers.load("strag_transformer")["mpm.adapter_grid"], grid)


def test_strag_widened_patch_embedding(numbers: Numbers) -> None:
    expected = numbers.load("strag_transformer")["out.expand48"]
    narrow = numbers.fill(build(replace(STRAG, in_channels=48, prior=None)), published_transformer_key)
    numbers.check(expected, run(numbers, narrow, reference=True, motion=False, channels=48))
    wide = build(replace(STRAG, prior=None)).eval()
    state = narrow.state_dict()
    state["patch_embedding.weight"] = widened(state["patch_embedding.weight"], 64)
    wide.load_state_dict(state)
    numbers.check(expected, run(numbers, wide, reference=True, motion=False))


@pytest.fixture(scope="module")
def inp(numbers: Numbers) -> WanTransformer4D:
    return numbers.fill(build(INP), published_transformer_key)


@torch.no_grad()
def run_inp(numbers: Numbers, model: WanTransformer4D, clip: bool = True) -> Tensor:
    x, y = numbers.input("inp.x", 2, 16, 3, 8, 12), numbers.input("inp.y", 2, 20, 3, 8, 12)
    image = numbers.input("inp.clip", 2, 257, 1280) if clip else None
    return model(torch.cat([x, y], 1), torch.tensor([1000.0, 24.41]), texts(numbers, "inp"), image, motion=None)


def test_inp_transformer(numbers: Numbers, inp: WanTransformer4D) -> None:
    stored = numbers.load("inp_transformer")
    blocks = trace(inp)
    numbers.check(stored["out"], run_inp(numbers, inp))
    numbers.check(stored["block0"], blocks[0])
    numbers.check(stored["block1"], blocks[1])
    numbers.check(stored["out.clip_zero"], run_inp(numbers, inp, clip=False))


def test_inp_key_mapping(numbers: Numbers, inp: WanTransformer4D) -> None:
    mapping = numbers.json("inp_key_mapping")
    assert {key: transformer_key(key) for key in mapping["map"]} == mapping["map"]
    assert {v: published_transformer_key(v) for v in mapping["map"].values()} == {
        v: k for k, v in mapping["map"].items()
    }
    assert {transformer_key(key): tuple(shape) for key, shape in mapping["shapes"].items()} == {
        key: tuple(value.shape) for key, value in inp.state_dict().items()
    }
    stock = WanTransformer3DModel(**numbers.manifest["inp_diffusers_config"]).eval()
    stock.load_state_dict(inp.state_dict(), strict=True)
    x, y = numbers.input("inp.x", 2, 16, 3, 8, 12), numbers.input("inp.y", 2, 20, 3, 8, 12)
    with torch.no_grad():
        answer = stock(
            torch.cat([x, y], 1),
            torch.tensor([1000.0, 24.41]),
            texts(numbers, "inp"),
            numbers.input("inp.clip", 2, 257, 1280),
        ).sample
    assert torch.allclose(answer, run_inp(numbers, inp), atol=1e-5)
    numbers.check(numbers.load("inp_transformer")["out.diffusers"], answer)


def test_guidance_modules(numbers: Numbers) -> None:
    stored = numbers.load("guidance_modules")
    guide = SpatialGuidance(24, 16)
    numbers.fill(guide, lambda key: f"blocks.0.spatial_guidance_self.{key}")
    x, features = numbers.input("sg.x", 2, 96, 16), numbers.input("sg.features", 2, 72, 24)
    x72, token = numbers.input("sg.x72", 2, 72, 16), numbers.input("sg.cls", 2, 1, 24)
    with torch.no_grad():
        numbers.check(stored["sg.out.equal_length"], guide(x72, features))
        numbers.check(stored["sg.out.padded_at_end_published"], guide(x, features, "published"))
        numbers.check(stored["sg.out.padded_at_front"], guide(x, features))
        numbers.check(stored["sg.out.cls_mode_equal_length"], guide(x72, token.expand(-1, 72, -1)))
        adapter = numbers.fill(FeatureAdapter(24), lambda key: f"feature_adapter.{key}")
        tokens = numbers.input("adapter.tokens", 2, 196, 24)
        numbers.check(stored["adapter.out.conv14"], adapter.on_grid(tokens, (14, 14)))
        grid = adapter.on_grid(tokens, (4, 6))
        numbers.check(stored["adapter.out.grid4x6"], grid)
        numbers.check(stored["adapter.out.grid23x32"], adapter.on_grid(tokens[:1], (23, 32)))
        numbers.check(stored["adapter.out.tokens_T3"], on_tokens(grid, 3))
        numbers.check(stored["adapter.out.tokens_T3"], adapter(tokens, (3, 4, 6)))


def test_omnimae_trunk(numbers: Numbers) -> None:
    stored = numbers.load("omnimae_trunk")
    rows = sinusoids(1568, 768)[[0, 1, 13, 14, 195, 196, 1567]]
    numbers.check(stored["pos_table_rows"], rows)
    image = torch.sigmoid(numbers.input("omnimae.image", 1, 3, 64, 96))
    name = lambda key: f"omnimae_extractor.{key}"  # noqa: E731
    for depth, kept, array in (
        (2, ("pos_embed",), "d2.features_sinusoid_pos"),
        (2, (), "d2.features_rule_pos"),
        (12, ("pos_embed",), "d12.features_sinusoid_pos"),
    ):
        model = OmniMae(PriorConfig(depth=depth, decoder_depth=0))
        assert (name("trunk.pos_embed") in numbers.manifest["omnimae_kept_buffers"]) is True
        numbers.fill(model, name, kept or ("nothing is kept",))
        with torch.no_grad():
            features = model(image)
        numbers.check(stored[array], features[..., ::8])
        token = array.replace("features", "token0")
        if token in stored:
            numbers.check(stored[token], features[:, 0])
    numbers.check(stored["d2.first_frame_224"], model.clip(image)[:, :, 0, ::16, ::16])


def test_lora_merge(numbers: Numbers) -> None:
    stored, about = numbers.load("lora_merge"), numbers.manifest["lora"]
    model = numbers.fill(build(INP), published_transformer_key)
    tensors = {}
    for layer, stem in about["layers"].items():
        shape = model.get_submodule(transformer_key(f"{layer}.weight").removesuffix(".weight")).weight.shape
        down, up = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
        tensors[down] = numbers.weight(down, (about["rank"], shape[1]))
        tensors[up] = numbers.weight(up, (shape[0], about["rank"]))
        tensors[f"{stem}.alpha"] = torch.tensor(about["alpha"])
    for example in about["more_examples"]:
        alpha = None if example["alpha"] is None else float(example["alpha"])
        scale = lora.factor(example["rank"], alpha) * example["multiplier"]
        assert scale == pytest.approx(example["scale"])
    weights = {
        layer: model.get_submodule(transformer_key(f"{layer}.weight").removesuffix(".weight")).weight
        for layer in about["layers"]
    }
    before = {layer: weight.clone() for layer, weight in weights.items()}
    lora.merge(model, tensors, about["multiplier"])
    for layer, weight in weights.items():
        numbers.check(stored[f"base.{layer}"], before[layer][:32, :32], 1e-6)
        numbers.check(stored[f"merged.{layer}"], weight[:32, :32], 1e-6)
    numbers.check(stored["out.merged"], run_inp(numbers, model))
    lora.unmerge(model, tensors, about["multiplier"])
    for layer, weight in weights.items():
        assert torch.allclose(weight, before[layer], atol=1e-6)
    lora.attach(model, about["rank"], about["alpha"], about["multiplier"])
    lora.load(model, lora.state(model) | tensors)
    numbers.check(stored["out.unmerged"], run_inp(numbers, model))
