"""MoRe4D's networks: built from any size, mapped one to one to the published keys, guided and widened as promised."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worldline.systems.more4d import lora, published
from worldline.systems.more4d.config import (
    MoRe4DConfig,
    PriorConfig,
    TransformerConfig,
    VaeConfig,
    mini_config,
    paper_config,
    wan_1_3b_config,
)
from worldline.systems.more4d.encoders import WordEncoder
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.networks import build as build_all
from worldline.systems.more4d.omnimae import OmniMae
from worldline.systems.more4d.transformer import WanTransformer4D, build, restore_tables, widened
from worldline.systems.more4d.vae import MotionVae

PRIOR = PriorConfig(dim=24, depth=1, heads=2, image_size=16, patch=4, frames=2, decoder_dim=12, decoder_depth=1,
                    decoder_heads=2)  # fmt: skip
TINY = TransformerConfig(heads=2, head_dim=12, layers=2, ffn_dim=32, in_channels=16, out_channels=4, text_dim=8,
                         image_dim=None, prior=PRIOR)  # fmt: skip


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def table(name: str) -> list[list[str]]:
    path = Path(__file__).resolve().parents[2] / "shared" / "specs" / f"more4d_{name}_keys.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return [line.split("\t") for line in path.read_text().splitlines() if "\t" in line]


def run(model: WanTransformer4D, *, reference: bool = True, motion: bool = True, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    x, text, ref = draw(2, model.config.in_channels, 3, 4, 6), draw(2, 5, 8), draw(2, 4, 4, 6)
    look = model.look(torch.rand(2, 3, 20, 30, generator=g)) if motion else None
    t = torch.tensor([500.0, 20.0])
    return model(x, t, text, reference=ref if reference else None, motion=look)


# ---- sizes and key maps -------------------------------------------------------------------------------------------


def test_14b_maps_one_to_one_to_the_published_keys() -> None:
    config = paper_config()
    for variant, sizes in (
        ("strag4d", config.generator),
        ("control", replace(config.generator, in_channels=48, prior=None)),
        ("inp", config.inpainter),
    ):
        model = build(sizes, meta=True)
        rows = {row[1]: tuple(json.loads(row[2])) for row in table("transformer") if row[0] == variant}
        mapped = {published.transformer_key(key): shape for key, shape in rows.items()}
        assert len(mapped) == len(rows)
        assert mapped == shapes(model)
        assert {published.published_transformer_key(key) for key in mapped} == set(rows)
        if variant == "inp":
            assert {row[1]: row[3] for row in table("transformer") if row[0] == variant} == {
                key: published.transformer_key(key) for key in rows
            }
            assert len(lora.layer_names(model)) == 488


def test_vae_maps_one_to_one() -> None:
    with torch.device("meta"):
        vae = MotionVae(VaeConfig())
        mae = OmniMae(PriorConfig())
    ours = shapes(vae)
    found: dict[str, tuple[int, ...]] = {}
    mae_keys = {}
    for key, shape, name in (row for row in table("vae") if row[1].startswith("[")):
        if key.startswith("omnimae:"):
            mae_keys[key.removeprefix("omnimae:")] = tuple(json.loads(shape))
        elif key.startswith("traj_"):
            kind, plain = key.split(":")
            found[published.trajectory_key(plain, encoder=kind == "traj_enc")] = tuple(json.loads(shape))
        else:
            assert published.vae_key(key) == name
            found["vae." + name] = tuple(json.loads(shape))
    assert found == ours
    assert mae_keys == shapes(mae)


def test_text_and_image_encoders_map_one_to_one() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    text = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        relative_attention_num_buckets=32, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
        image_size=224, hidden_act="gelu",
    )  # fmt: skip
    with torch.device("meta"):
        encoder, vision = UMT5EncoderModel(text), CLIPVisionModel(clip)
    rows = [row for row in table("encoder") if row[0] in ("umt5", "clip")]
    mapped = {published.text_key(row[1]): tuple(json.loads(row[2])) for row in rows if row[0] == "umt5"}
    assert {row[3] for row in rows if row[0] == "umt5"} == set(mapped)
    expected = shapes(encoder)
    expected.pop("encoder.embed_tokens.weight", None)  # tied to `shared`
    assert mapped == expected
    seen: dict[str, tuple[int, ...]] = {}
    for _, key, shape, *_ in (row for row in rows if row[0] == "clip"):
        value = torch.empty(json.loads(shape), device="meta")
        seen |= {name: tuple(part.shape) for name, part in published.image_tensors(key, value).items()}
    theirs = {key.removeprefix("vision_model."): shape for key, shape in shapes(vision).items()}
    theirs.pop("embeddings.position_ids", None)
    assert seen == theirs


def test_every_size_is_built_from_one_class() -> None:
    counts = {}
    for name, config in (("mini", mini_config()), ("1.3b", wan_1_3b_config()), ("14b", paper_config())):
        model = build_all(config, meta=True)
        counts[name] = sum(p.numel() for p in model.generator.parameters())
        assert MoRe4DConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert counts["mini"] < 6e6
    assert 1.4e9 < counts["1.3b"] < 2.0e9
    assert abs(counts["14b"] - 17.131e9) < 0.01e9  # spec 6.1


def test_mini_fits_into_24_mb() -> None:
    model = build_all(mini_config(), meta=True)
    assert 2 * sum(p.numel() for p in model.parameters()) < 24e6  # fp16


def test_configuration_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="choose 49"):
        MoRe4DConfig(frames=50)
    with pytest.raises(ValueError, match="multiples of 16"):
        MoRe4DConfig(size=(360, 500))
    with pytest.raises(ValueError, match="input channels"):
        replace(mini_config(), vae=VaeConfig(z_dim=6, time_halvings=(False, True), widths=(1, 2, 2)), size=(48, 64))
    with pytest.raises(ValueError, match="no setting 'dream'"):
        MoRe4DConfig.from_dict(mini_config().to_dict() | {"dream": 1})


def test_weights_into_a_model_from_the_meta_device() -> None:
    whole = build(TINY).eval()
    empty = build(TINY, meta=True)
    empty.load_state_dict(whole.state_dict(), strict=True, assign=True)
    restore_tables(empty).eval()
    assert torch.equal(run(whole), run(empty))


# ---- guidance, reference, widening --------------------------------------------------------------------------------


def test_guidance_is_the_identity_at_first_and_still_learns() -> None:
    """Blocking list 5, 19: zero gate, guide that is not zero."""
    model = build(TINY)
    with torch.no_grad():
        assert torch.equal(run(model), run(model, motion=False))
    run(model).square().mean().backward()
    block = model.blocks[0].spatial_guidance_self
    assert float(block.spatial_guide[1].weight.detach().abs().max()) > 0
    assert float(block.gate.grad.abs().max()) > 0
    assert all(p.grad is None for p in model.omnimae_extractor.parameters())


def test_reference_tokens_stay_as_they_are_when_prepended() -> None:
    """Spec 9, 18: the published alignment guides the reference and leaves out the last latent frame."""
    model = build(TINY).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.spatial_guidance_self.gate.fill_(1.0)
    seen: list[Tensor] = []
    for block in model.blocks[:1]:
        block.attn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        run(model, motion=False), run(model)
        model.register_to_config(alignment="published")
        run(model)
    plain, ours, theirs = seen
    tokens = 2 * 3  # of the reference, and of each of three latent frames
    changed = lambda a: [float((a - plain)[:, i : i + tokens].abs().max()) > 0 for i in range(0, 4 * tokens, tokens)]  # noqa: E731
    assert changed(ours) == [False, True, True, True]
    assert changed(theirs) == [True, True, True, False]


def test_widening_the_patch_embedding_changes_no_answer() -> None:
    narrow = build(replace(TINY, in_channels=12)).eval()
    wide = build(TINY).eval()
    state = narrow.state_dict()
    state["patch_embedding.weight"] = widened(state["patch_embedding.weight"], 16)
    wide.load_state_dict(state, strict=True)
    g = torch.Generator().manual_seed(3)
    x, text = torch.randn(1, 16, 2, 4, 4, generator=g), torch.randn(1, 3, 8, generator=g)
    t = torch.tensor([100.0])
    with torch.no_grad():
        assert torch.allclose(narrow(x[:, :12], t, text, motion=None), wide(x, t, text, motion=None), atol=1e-6)
    with pytest.raises(ValueError, match="cannot be widened"):
        widened(state["patch_embedding.weight"], 3)


def test_recomputing_blocks_changes_neither_answer_nor_gradient() -> None:
    model = build(TINY)
    found = []
    for recompute in (False, True):
        model.gradient_checkpointing = recompute
        model.zero_grad()
        out = run(model)
        out.square().mean().backward()
        found.append((out.detach(), model.blocks[0].attn1.to_q.weight.grad.clone()))
    assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1], atol=1e-7)


def test_words_make_a_difference_and_only_up_to_the_end() -> None:
    encoder = WordEncoder(mini_config().text).eval()
    with torch.no_grad():
        rows = encoder(["A red ball rolls to the left.", "a blue ball", ""])
    assert rows.shape == (3, 32, 64) and bool((rows[1, 4:] == 0).all()) and bool((rows[2, 1:] == 0).all())
    with torch.no_grad():
        again = encoder(["a blue ball"])
    assert torch.allclose(rows[1:2], again, atol=1e-5)
    assert not torch.allclose(rows[0, 1], rows[1, 2])


# ---- LoRA ---------------------------------------------------------------------------------------------------------


def test_lora_in_the_published_layout() -> None:
    model = build(replace(TINY, prior=None, reference_tokens=False)).eval()
    before = run(model, reference=False, motion=False).detach()
    names = lora.attach(model, rank=2, alpha=1.0, weight=0.5)
    assert "lora_unet__blocks_0_self_attn_q" in names and "lora_unet__head_head" in names
    assert torch.equal(run(model, reference=False, motion=False).detach(), before)  # `up` is zero
    tensors = {
        key: value if key.endswith("alpha") else torch.randn(value.shape, generator=torch.Generator().manual_seed(i))
        for i, (key, value) in enumerate(lora.state(model).items())
    }
    assert {key.rsplit(".", 1)[1] for key in tensors} == {"weight", "alpha"}
    lora.load(model, tensors)
    beside = run(model, reference=False, motion=False).detach()
    lora.detach(model)
    assert torch.equal(run(model, reference=False, motion=False).detach(), before)
    lora.merge(model, tensors, 0.5)
    merged = run(model, reference=False, motion=False).detach()
    assert torch.allclose(merged, beside, atol=1e-4) and not torch.allclose(merged, before, atol=1e-2)
    lora.unmerge(model, tensors, 0.5)
    assert torch.allclose(run(model, reference=False, motion=False).detach(), before, atol=1e-4)
    with pytest.raises(ValueError, match="no layer 'lora_unet__blocks_9"):
        lora.merge(model, {"lora_unet__blocks_9_ffn_0.lora_up.weight": torch.ones(2, 2)})


def digest(module: nn.Module) -> str:
    values = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(values).hexdigest()


def test_blocking_5_the_prior_survives_construction_and_training_mode() -> None:
    trained = OmniMae(PRIOR)
    nn.init.normal_(trained.trunk.blocks[0].attn.qkv.weight)
    model = build(TINY)
    model.load_prior(trained.state_dict())
    assert digest(model.omnimae_extractor) == digest(trained)
    model.train()
    assert not model.omnimae_extractor.training
    assert not any(p.requires_grad for p in model.omnimae_extractor.parameters())
    with pytest.raises(RuntimeError):
        model.load_prior({})


def test_blocking_6_guidance_is_never_left_out_by_accident() -> None:
    model = build(TINY)
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([1.0]), torch.randn(1, 3, 8)
    with pytest.raises(TypeError, match="motion"):
        model(x, t, text)
    plain = build(replace(TINY, prior=None, reference_tokens=False))
    with pytest.raises(ValueError, match="no Motion Perception Module"):
        plain(x, t, text, motion=torch.zeros(1, 16, 24))
    with pytest.raises(ValueError, match="no reference tokens"):
        plain(x, t, text, motion=None, reference=torch.zeros(1, 4, 4, 4))


def test_blocking_7_the_prior_refuses_pictures_that_are_not_in_0_1() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        build(TINY).look(torch.full((1, 3, 8, 8), -0.5))


def test_all_networks_together_know_texts() -> None:
    model = MoRe4D(replace(mini_config(), text=None)).eval()
    assert model.embed_text(["", ""]).shape == (2, 1, 64)
    with pytest.raises(ValueError, match="no text encoder"):
        model.embed_text(["a ball"])
