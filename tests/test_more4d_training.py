"""MoRe4D's training: each stage changes exactly what it should, gradients arrive, and a killed run resumes."""

from __future__ import annotations

import importlib
import pkgutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import checkpoint_size
import worldline.systems.more4d as package
from checkpoint_size import MIB
from more4d_tiny import GENERATOR, TINY, fill, motion
from worldline.data.synthetic import RenderConfig, render_batch
from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.normalize import DepthGuidedMotion
from worldline.geometry.pointmap import from_depth, to_camera
from worldline.io.tensors import WeightsError
from worldline.systems.more4d import infer, lora, pretrained, recipes, train, transformer
from worldline.systems.more4d.config import mini_config
from worldline.systems.more4d.depth import GivenDepth
from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.objective import GeneratorObjective, VaeObjective, train_only
from worldline.systems.more4d.published import image_keys, published_transformer_key, text_key
from worldline.systems.more4d.samples import fill_samples, motion_samples
from worldline.systems.more4d.start import StartingWeights
from worldline.systems.more4d.vae import MotionVae, cosines
from worldline.training.loop import Batches
from worldline.training.loop import train as train_stage


def model(seed: int = 0) -> MoRe4D:
    torch.manual_seed(seed)
    return build(TINY)


def source(stage: recipes.Stage, networks: MoRe4D, device: str) -> Batches:
    make = motion if stage.samples.startswith("motion") else fill
    return lambda index: make(seed=index)


def short(stage: recipes.Stage, steps: int = 1, **changes: object) -> recipes.Stage:
    changed = {"steps": steps, "batch_size": 2, "warmup_steps": 0, "precision": "no", "ema_decay": None}
    changed |= {"accumulate": 1, "learning_rate": 1e-2, "weight_decay": 0.1, "checkpoint_every": 1, **changes}
    return replace(stage, train=replace(stage.train, **changed))


def values(networks: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in networks.named_parameters()}


STAGES = {f"mini-{s.train.name}": s for s in recipes.mini(networks=TINY).stages}
STAGES |= {f"paper-{s.train.name}": s for s in recipes.paper(networks=TINY).stages}


@pytest.mark.parametrize("name", list(STAGES))
def test_blocking_2_one_step_changes_exactly_what_it_should(name: str, tmp_path: Path) -> None:
    networks, stage = model(), short(STAGES[name])
    for block in networks.generator.blocks:  # away from the start, where the gate is zero
        nn.init.normal_(block.spatial_guidance_self.gate), nn.init.normal_(block.spatial_guidance_ffn.gate)
    nn.init.normal_(networks.vae.trajectory_encoder.conv_out.weight)
    chosen = set(stage.begin(networks))
    before = values(networks)
    outcome = train_stage(networks, stage.objective, source(stage, networks, "cpu"), stage.train, tmp_path)
    changed = {key for key, value in values(networks).items() if not torch.equal(value, before[key])}
    assert outcome.finished and changed == chosen
    starts = {key.split(".")[0] for key in chosen}
    kind = name.split("-")[1]
    assert starts == {"prior": {"generator"}, "vae": {"vae"}, "inpainter": {"inpainter"}}.get(
        kind, {"generator", "text"} if name.startswith("mini") else {"generator"}
    )
    assert (kind == "prior") == any("omnimae_extractor" in key for key in chosen)
    if name == "paper-inpainter":
        assert all(".addition.lora_" in key for key in chosen) and len(chosen) == 2 * len(lora_names())


def lora_names() -> dict[str, str]:
    return lora.layer_names(transformer.build(TINY.inpainter, meta=True))


def test_blocking_9_a_killed_run_resumes_with_all_input_channels(tmp_path: Path) -> None:
    recipe = recipes.mini(networks=TINY)
    stages = tuple(short(stage, 2) for stage in recipe.stages)
    recipe = replace(recipe, stages=stages)
    whole = train.run(recipe, tmp_path / "whole", source=source)
    assert whole.finished

    def kill(step: str, done: int, total: int) -> None:
        if step == "generator" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, tmp_path / "cut", source=source, progress=kill)
    resumed = train.run(recipe, tmp_path / "cut", source=source)
    assert resumed.finished and resumed.model.generator.patch_embedding.weight.shape[1] == 16
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert abs(float(whole.model.vae.std.mean()) - 1) > 1e-3  # constants of latents were measured


def test_blocking_10_gradients_reach_the_trajectory_encoder() -> None:
    networks = model()
    terms = VaeObjective()(networks, motion(), torch.Generator().manual_seed(0))
    terms["motion"].backward(retain_graph=True)
    gradient = networks.vae.trajectory_encoder.conv_out.weight.grad
    assert float(gradient.abs().max()) > 0
    before = gradient.clone()
    terms["kl"].backward()
    assert not torch.equal(networks.vae.trajectory_encoder.conv_out.weight.grad, before)


def test_the_encoder_is_a_sigmoid_at_first() -> None:
    x = motion().motion.movedim(-1, 1)
    vae = MotionVae(TINY.vae)
    assert torch.allclose(vae.pseudo_video(x), torch.tanh(x / 2), atol=1e-6)


def test_chunks_give_what_diffusers_gives_and_the_same_gradients() -> None:
    vae = MotionVae(TINY.vae)
    video = torch.randn(1, 3, 5, 8, 8).clamp(-1, 1).requires_grad_()
    small = replace(TINY.vae, time_halvings=(True, True))  # diffusers' own loop is made for four frames per latent
    vae = MotionVae(small)
    ours = vae.encode_video(video).mean
    theirs = vae.vae.encode(video).latent_dist.mean
    assert torch.allclose(ours, theirs, atol=1e-5)
    gradients = [torch.autograd.grad(latent.square().sum(), video)[0] for latent in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-4)
    decoded = vae.decode_video(ours.detach())
    assert torch.allclose(decoded, vae.vae.decode(ours.detach()).sample, atol=1e-5)
    with pytest.raises(ValueError, match="1 \\+ 4n frames"):
        vae.encode_video(torch.zeros(1, 3, 4, 8, 8))


def test_measured_constants_standardise() -> None:
    vae = MotionVae(TINY.vae)
    video = torch.randn(3, 3, 5, 16, 24).clamp(-1, 1)
    with torch.no_grad():
        vae.standardise(3 * vae.encode_video(video).mean / 3)
        latent = vae.encode_video(video).mean.transpose(0, 1).flatten(1)
    assert torch.allclose(latent.mean(1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latent.std(1), torch.ones(4), atol=1e-3)


def test_constants_of_motion_leave_videos_alone() -> None:
    vae = MotionVae(TINY.vae)
    samples = motion(3)
    moved, video = samples.motion.movedim(-1, 1), 2 * samples.motion.movedim(-1, 1).clamp(-0.5, 0.5)
    with torch.no_grad():
        seen, back = vae.encode_video(video).mean, vae.decode(vae.encode(moved).mean)
        vae.standardise(vae.encode(moved).mean, motion=True)
        latent = vae.encode(moved).mean
        assert torch.allclose(latent.transpose(0, 1).flatten(1).std(1), torch.ones(4), atol=1e-3)
        assert torch.equal(vae.encode_video(video).mean, seen)
        assert torch.allclose(vae.decode(latent), back, atol=1e-4)


def test_the_way_around_an_autoencoder_is_exact_for_what_cosines_can_say() -> None:
    basis = cosines(12, (2, 4, 4)).flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(12), atol=1e-6)
    vae = MotionVae(mini_config().vae)  # the networks around it say nothing at first
    across = torch.cos(torch.pi * (torch.arange(16) % 4 + 0.5) / 4)
    video = (0.4 * across * torch.tensor([1.0, -0.5, 0.2])[:, None, None, None]).expand(3, 5, 8, 16)[None]
    with torch.no_grad():
        latent = vae.encode_video(video).mean
        assert latent.shape == (1, 12, 3, 2, 4)
        assert torch.allclose(vae.decode_video(latent), video, atol=1e-5)
        noise = torch.rand(1, 3, 5, 8, 16)
        assert not torch.allclose(vae.decode_video(vae.encode_video(noise).mean), noise, atol=0.1)


def test_hidden_tracks_count_less_and_unknown_ones_nothing() -> None:
    objective, samples = VaeObjective(), motion()
    networks = model()
    weight = samples.weight.clone()
    weight[:, :, :8] = 0
    broken = samples.motion.clone()
    broken[:, :, :8] += 100 * torch.rand(broken[:, :, :8].shape)
    losses = []
    for moved in (samples.motion, broken):
        changed = replace(samples, motion=moved, weight=weight)
        losses.append(objective(networks, changed, torch.Generator().manual_seed(0))["motion"].item())
    assert losses[1] < 5  # an error of 100 there does not count itself, it only disturbs its neighbourhood
    assert losses[0] > 0


def test_motion_samples_undo_to_the_tracks() -> None:
    clips = render_batch(range(3, 5), frames=5, size=(16, 24), config=RenderConfig(tracks=True))
    samples = motion_samples(
        clips.rgb[:, 0], clips.tracks, clips.visible, clips.valid[:, 0], clips.intrinsics[:, 0],
        clips.cam2world[:, 0], clips.captions,
    )  # fmt: skip
    for b in range(2):
        intrinsics = clips.intrinsics[b, 0]
        focal = torch.stack([intrinsics[0, 0] / 24, intrinsics[1, 1] / 16])
        reference = from_depth(samples.depth[b], intrinsics)
        found = DepthGuidedMotion(reference=reference, focal=focal).invert(samples.motion[b])
        truth = to_camera(clips.tracks[b], clips.cam2world[b, 0].float().expand(5, 4, 4))
        known = samples.weight[b] > 0
        assert bool(known.any()) and torch.allclose(found[known], truth[known], atol=1e-3)
        assert not bool(samples.motion[b, 0].any())
    assert {round(value, 3) for value in samples.weight.unique().tolist()} <= {0.0, 0.2, 1.0}
    assert len(samples.captions) == 2 and samples.captions[0].endswith(".")


def test_fill_samples_keep_what_both_cameras_see() -> None:
    size = (24, 36)
    intrinsics = intrinsics_from_focal(torch.tensor(30.0), size)
    depth = torch.full((1, 4, *size), 4.0)
    depth[:, :, 8:16, 12:20] = 2.0
    rgb = (depth - 2)[..., None].expand(1, 4, *size, 3) / 4 + 0.1
    cameras = intrinsics.expand(1, 4, 3, 3)
    known = torch.ones(1, 4, *size, dtype=torch.bool)
    made = fill_samples(rgb, depth, known, cameras, ["a box"], torch.Generator().manual_seed(1))
    share = made.known[0].float().mean((1, 2)).tolist()
    assert share[0] > share[-1] and 0.3 < share[-1] < 0.98  # holes grow as the other camera leaves
    error = (made.rendered - rgb).abs().amax(-1)[made.known]
    assert float((error < 1e-3).float().mean()) > 0.9
    assert not bool(made.rendered[~made.known].any())


# ---- weights ------------------------------------------------------------------------------------------------------


def test_published_transformer_files_are_read_strictly(tmp_path: Path) -> None:
    whole = transformer.build(GENERATOR).eval()
    state = {published_transformer_key(key): value.contiguous() for key, value in whole.state_dict().items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = pretrained.load_transformer(tmp_path, GENERATOR)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert loaded.rope.freqs_cos.device.type == "cpu"
    state.pop("feature_adapter.0.weight")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match="feature_adapter.0.weight"):
        pretrained.load_transformer(tmp_path, GENERATOR)


def test_a_base_is_widened_and_only_additions_stay_random(tmp_path: Path) -> None:
    base = transformer.build(replace(GENERATOR, in_channels=12, prior=None)).eval()
    save_file({k: v.contiguous() for k, v in base.state_dict().items()}, tmp_path / "model.safetensors")
    grown = transformer.build(GENERATOR).eval()
    missing = pretrained.start_from_base(grown, tmp_path)
    assert missing and all("guidance" in key or key.startswith(pretrained.ADDED) for key in missing)
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([10.0]), torch.randn(1, 3, 8)
    look = grown.look(torch.rand(1, 3, 8, 8))
    with torch.no_grad():
        assert torch.allclose(base(x[:, :12], t, text, motion=None), grown(x, t, text, motion=look), atol=1e-5)
    with pytest.raises(WeightsError):
        pretrained.start_from_base(transformer.build(replace(GENERATOR, layers=2)), tmp_path)


def test_a_training_begins_with_bases_that_are_never_in_memory_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worldline.training import stages

    parts, theirs = build(TINY), published_transformer_key
    for name, drop in (("generator", "spatial_guidance omnimae feature_adapter".split()), ("inpainter", [])):
        state = getattr(parts, name).state_dict()
        kept = {theirs(k): v.contiguous() for k, v in state.items() if not any(word in k for word in drop)}
        if name == "generator":  # of fewer input channels
            kept["patch_embedding.weight"] = kept["patch_embedding.weight"][:, :12].contiguous()
        (tmp_path / name).mkdir()
        for number in range(2):
            shard = {key: kept[key] for key in sorted(kept)[number::2]}
            save_file(shard, tmp_path / name / f"diffusion_pytorch_model-{number}.safetensors")
    (tmp_path / "prior").mkdir()
    torch.save(parts.generator.omnimae_extractor.state_dict(), tmp_path / "prior" / "vit.pt")
    begun = StartingWeights(folder=tmp_path, networks=TINY)
    alive, peak, original = {}, [0], StartingWeights.__getitem__

    def watched(self: StartingWeights, name: str) -> torch.Tensor:
        value = original(self, name)
        alive[id(value)] = value.nbytes
        weakref.finalize(value, alive.pop, id(value), None)
        peak[0] = max(peak[0], sum(alive.values()))
        return value

    monkeypatch.setattr(StartingWeights, "__getitem__", watched)
    torch.manual_seed(5)
    model = build(TINY)
    stages.load_weights(model, begun)
    for name, value in parts.state_dict().items():
        if "spatial_guidance" in name or "feature_adapter" in name or name.startswith(("vae.", "text.")):
            continue
        same = model.state_dict()[name]
        if name == "generator.patch_embedding.weight":
            assert not same[:, 12:].any()
            same, value = same[:, :12], value[:, :12]
        assert torch.equal(same, value), name
    large = [value for name, value in parts.state_dict().items() if name.startswith(("generator.b", "inpainter."))]
    prior = sum(value.nbytes for value in parts.generator.omnimae_extractor.state_dict().values())
    assert peak[0] <= prior + 2 * max(value.nbytes for value in large) < sum(value.nbytes for value in large)
    with pytest.raises(WeightsError, match="has no generator"):
        StartingWeights(folder=tmp_path / "prior", networks=TINY)
    with pytest.raises(WeightsError, match="do not fit"):
        StartingWeights(folder=tmp_path, networks=replace(TINY, inpainter=replace(TINY.inpainter, layers=2)))


def test_blocking_8_a_vae_folder_is_never_loaded_silently_empty(tmp_path: Path) -> None:
    vae = MotionVae(replace(TINY.vae, z_dim=16))
    (tmp_path / "vae").mkdir()
    with pytest.raises(WeightsError, match="nothing would be loaded"):
        pretrained.load_vae(tmp_path, vae.config)
    for name, part in (("encoder_prompt", vae.trajectory_encoder), ("decoder_prompt", vae.trajectory_decoder)):
        (tmp_path / name).mkdir()
        torch.save(part.state_dict(), tmp_path / name / "pytorch_model.bin")
    torch.save({"model.nonsense": torch.zeros(1)}, tmp_path / "vae" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="do not fit"):
        pretrained.load_vae(tmp_path, vae.config)
    torch.save({"model." + k: v for k, v in vae.vae.state_dict().items()}, tmp_path / "vae" / "pytorch_model.bin")
    loaded = pretrained.load_vae(tmp_path, vae.config)
    for key, value in vae.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


def test_published_text_and_image_encoders_are_read(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    sizes = UMT5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
                       feed_forward_proj="gated-gelu")  # fmt: skip
    text = UMT5EncoderModel(sizes).eval()
    names = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for i in range(2):
        parts = ["norm1", "norm2", *(f"attn.{p}" for p in "qkvo"), "ffn.gate.0", "ffn.fc1", "ffn.fc2",
                 "pos_embedding.embedding"]  # fmt: skip
        names |= {f"blocks.{i}.{part}.weight": text_key(f"blocks.{i}.{part}.weight") for part in parts}
    state = text.state_dict()
    torch.save({theirs: state[ours].clone() for theirs, ours in names.items()}, tmp_path / "t5.pth")

    class Tokens(dict):
        input_ids = torch.tensor([[3, 4, 1, 0]])
        attention_mask = torch.tensor([[1, 1, 1, 0]])

        def to(self, device: object) -> Tokens:
            return self

    loaded = pretrained.load_text(tmp_path / "t5.pth", sizes, lambda texts, **options: Tokens())
    rows = loaded(["a ball"])
    expected = text(input_ids=Tokens.input_ids, attention_mask=Tokens.attention_mask).last_hidden_state
    assert torch.allclose(rows[0, :3], expected[0, :3], atol=1e-5) and not bool(rows[0, 3].any())

    small = CLIPVisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
                             image_size=224, patch_size=112, hidden_act="gelu")  # fmt: skip
    image = CLIPVisionModel(small).eval()
    table = {}
    for key, value in image.state_dict().items():
        table[key.removeprefix("vision_model.")] = value.clone()
    table = {key: value for key, value in table.items() if not key.endswith("position_ids")}
    theirs = {"log_scale": torch.zeros(()), "textual.head": torch.zeros(3), "visual.head": torch.zeros(8, 4)}
    for key in (*image_sources(3),):
        ours = image_keys(key)
        value = torch.cat([table[name] for name in ours]) if len(ours) == 3 else table[ours[0]]
        theirs[key] = value[None, None] if key.endswith("cls_embedding") else value
    theirs["visual.pos_embedding"] = theirs["visual.pos_embedding"][None]
    torch.save(theirs, tmp_path / "clip.pth")
    rows = pretrained.load_image(tmp_path / "clip.pth", small)(torch.rand(1, 3, 30, 40))
    assert rows.shape == (1, 5, 8)
    with pytest.raises(WeightsError, match="There is no"):
        pretrained.load_image(tmp_path / "none.pth", small)
    with pytest.raises(WeightsError, match="do not fit"):
        pretrained.load_text(tmp_path / "clip.pth", sizes, None)


def image_sources(layers: int) -> list[str]:
    parts = ("norm1", "norm2", "attn.to_qkv", "attn.proj", "mlp.0", "mlp.2")
    names = [f"transformer.{i}.{part}.{kind}" for i in range(layers) for part in parts for kind in ("weight", "bias")]
    names += [f"{part}.{kind}" for part in ("pre_norm", "post_norm") for kind in ("weight", "bias")]
    return ["visual." + name for name in (*names, "cls_embedding", "pos_embedding", "patch_embedding.weight")]


def test_own_checkpoints_come_back(tmp_path: Path) -> None:
    networks = model().eval()
    path = pretrained.export(networks, tmp_path / "mini.safetensors", {"recipe": "none"})
    loaded = pretrained.load_file(path)
    assert loaded.model.config == TINY and loaded.card["recipe"] == "none"
    half = networks.generator.proj_out.weight.detach().half().float()
    assert torch.equal(loaded.model.generator.proj_out.weight, half)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="get both again"):
        pretrained.load_file(path)


def test_blocking_1_every_module_imports() -> None:
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    assert {"infer", "train", "pretrained"} <= set(names)
    for name in names:
        importlib.import_module(f"{package.__name__}.{name}")


def test_blocking_4_and_14_no_addresses_or_paths_in_the_code() -> None:
    for file in Path(package.__file__).parent.glob("*.py"):
        text = file.read_text().replace('url=f"https://huggingface.co/{', "")  # where a licence is to be read
        assert "http" not in text and ".yaml" not in text and '"/' not in text and "xxx" not in text, file


def test_train_only_refuses_names_that_fit_nothing() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        train_only(model(), ("nonsense.",))


def test_a_deterministic_generator_is_trained_to_answer_as_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    networks, samples = model(), motion(count=1)
    networks.config = replace(TINY, deterministic=True)
    latent = networks.vae.encode(samples.motion.movedim(-1, 1)).mean.detach()
    asked = []

    def answer(told: torch.Tensor, t: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        asked.append((told[:, : latent.shape[1]].abs().max().item(), t.tolist()))
        return -latent.to(told)

    monkeypatch.setattr(networks.generator, "forward", answer)
    objective = GeneratorObjective(text_dropout=0.0, from_mean=True)
    assert float(objective(networks, samples, torch.Generator().manual_seed(0))["velocity"]) < 1e-10
    prior = GivenDepth(depth=samples.depth[0], intrinsics=intrinsics_from_focal(20.0, (16, 24)))
    sampling = infer.SamplingConfig(steps=1, guidance=2.0, seed=3)
    tracks = infer.generate(samples.image[0], "a ball rolls", networks, prior, sampling)
    assert set(map(str, asked)) == {"(0.0, [1000.0])"}  # no noise, the highest level, in training and inference
    again = infer.generate(samples.image[0], "a ball rolls", networks, prior, replace(sampling, seed=4))
    assert torch.equal(tracks.points, again.points)
    with pytest.raises(ValueError, match="in one step"):
        infer.generate(samples.image[0], "a ball rolls", networks, prior, replace(sampling, steps=2))


def test_mini_checkpoints_and_export_stay_within_their_budgets(tmp_path: Path) -> None:
    recipe = recipes.mini()
    networks = build(recipe.networks, meta=True)
    for stage in recipe.stages:
        names = set(stage.begin(networks))
        trained = {name: value for name, value in networks.named_parameters() if name in names}
        written = checkpoint_size.sizes(tmp_path / stage.train.name, trained)
        assert sum(written) < 60 * MIB and max(written) < 16 * MIB, stage.train.name
    assert sum(value.numel() for value in networks.parameters()) * 2 <= 24_000_000
