"""Published weights from a hub on this machine: download, resume, cache, offline, and every kind of bad file."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import Hub, serve
from worldline.cli import main
from worldline.io import ledger, weights
from worldline.io.tensors import WeightsError
from worldline.systems.motioncrafter import infer, pretrained
from worldline.systems.motioncrafter.config import (
    AutoencoderConfig,
    ImageEncoderConfig,
    MotionCrafterConfig,
    UNetConfig,
)
from worldline.systems.motioncrafter.networks import build

VAE = AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
TINY = MotionCrafterConfig(
    vae=VAE,
    rgb_vae=VAE,
    unet=UNetConfig(
        block_out_channels=(32, 32),
        num_attention_heads=(1, 1),
        layers_per_block=1,
        cross_attention_dim=32,
        addition_time_embed_dim=32,
    ),
    image_encoder=ImageEncoderConfig(
        image_size=32,
        patch_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        projection_dim=32,
    ),
)
UNET = "unet_determ/diffusion_pytorch_model.safetensors"
GEOMETRY = "geometry_motion_vae/diffusion_pytorch_model.safetensors"


def write_model(folder: Path, module: torch.nn.Module, values: dict, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    state = {key: value.detach().contiguous() for key, value in module.state_dict().items()}
    save_file(state, folder / f"{stem}.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A tiny model in the exact layout of both repositories, with what SVD's files hold besides."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    ours, svd, model = folder / "ours", folder / "svd", build(TINY)
    saved = {**vars(TINY.vae), "scaling_factor": 0.18215, "_class_name": "UnifyAutoencoderKL"}
    write_model(ours / "geometry_motion_vae", model.vae, saved, "diffusion_pytorch_model")
    for name, kind in (("unet_determ", model), ("unet_diff", build(replace(TINY, paradigm="denoising")))):
        # the published config still says SVD's 8 channels: only tensors tell the truth
        values = {**vars(TINY.unet), "in_channels": 8, "out_channels": 4}
        write_model(ours / name, kind.unet, values, "diffusion_pytorch_model")
    rgb = torch.nn.Module()
    rgb.encoder, rgb.quant_conv = model.rgb_vae.encoder, model.rgb_vae.quant_conv
    rgb.decoder = torch.nn.Linear(2, 2)
    write_model(svd / "vae", rgb.half(), vars(TINY.rgb_vae), "diffusion_pytorch_model.fp16")
    (svd / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"full precision, not wanted")
    write_model(svd / "image_encoder", model.image_encoder, vars(TINY.image_encoder), "model.fp16")
    return folder


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The tiny repositories on 127.0.0.1, and empty caches."""
    from huggingface_hub import constants

    monkeypatch.setenv("WORLDLINE_CACHE", str(tmp_path / "worldline"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "PAUSE_SECONDS", 0.0)
    with serve() as server:
        point_to(server.url, monkeypatch)
        server.add(pretrained.REPO, published / "ours")
        server.add(pretrained.SVD_REPO, published / "svd")
        yield server


def point_to(url: str, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def get(**options) -> pretrained.Loaded:
    return pretrained.load(accept_license=True, dtype=torch.float32, **options)


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def edit(hub: Hub, name: str, change, tmp_path, repo: str = pretrained.REPO) -> None:
    """Change the tensors of a served file."""
    path = tmp_path / "edited.safetensors"
    path.write_bytes(hub.repos[repo][name])
    state = load_file(path)
    change(state)
    save_file(state, path)
    hub.repos[repo][name] = path.read_bytes()


# --- the good way


def test_download_verify_cache_load_run(hub, published, monkeypatch):
    loaded = get()
    expected = load_file(published / "ours" / UNET)
    assert torch.equal(loaded.model.unet.conv_in.weight, expected["conv_in.weight"])
    assert loaded.model.config == TINY and not hasattr(loaded.model.vae, "encoder")
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())
    seen = infer.observe(loaded.model, torch.rand(2, 20, 24, 3))
    assert seen.points.shape == (2, 20, 24, 3) and seen.points.isfinite().all()
    # only what is needed was asked for: no encoder of the other U-Net, no full-precision twin
    assert hub.sent(UNET) and not hub.sent("unet_diff/diffusion_pytorch_model.safetensors")
    assert not hub.sent("vae/diffusion_pytorch_model.safetensors")[1:]

    # again, with nothing on the other end and no licence flag: the cache is enough
    point_to("http://127.0.0.1:9", monkeypatch)
    hub.requests.clear()
    again = pretrained.load(dtype=torch.float32)
    assert again.sha256 == loaded.sha256 and len(again.sha256) == 64
    assert torch.equal(
        infer.observe(again.model, torch.zeros(2, 16, 16, 3)).points.isnan(), torch.zeros(2, 16, 16, 3) > 0
    )
    assert hub.requests == []


def test_denoising_unet_is_another_file(hub):
    model = get(paradigm="denoising").model
    assert model.config.paradigm == "denoising" and model.unet.conv_in.weight.shape[1] == 12
    assert infer.observe(model, torch.rand(2, 16, 16, 3), infer.InferConfig(steps=1)).points.isfinite().all()


def test_local_folders_need_no_network(hub, published, tmp_path):
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(published / "ours", folder)
    shutil.copytree(published / "svd", folder, dirs_exist_ok=True)
    loaded = pretrained.load(source=folder, dtype=torch.float32, encoders=True)
    assert hub.requests == [] and loaded.model.vae.encoder is not None
    assert torch.equal(
        loaded.model.vae.decode(torch.zeros(1, 4, 4, 4)), get().model.vae.decode(torch.zeros(1, 4, 4, 4))
    )


def test_licence_is_shown_once_and_remembered(hub, caplog):
    with pytest.raises(WeightsError) as error:
        pretrained.load()
    text = sentence(error)
    assert "academic purposes" in text and "European Union" in text and "--accept-license" in text
    assert hub.requests == [], "nothing may be fetched before the licence is accepted"
    get()
    assert "academic purposes" in caplog.text
    caplog.clear()
    pretrained.load()
    assert "academic purposes" not in caplog.text
    changed = replace(pretrained.LICENCE, text="other terms")
    assert ledger.accepted(pretrained.LICENCE) and not ledger.accepted(changed)


def test_legacy_attention_names_are_understood(hub, tmp_path):
    def old(state):
        for key in list(state):
            new = key.replace(".to_q.", ".query.").replace(".to_k.", ".key.").replace(".to_v.", ".value.")
            state[new.replace(".to_out.0.", ".proj_attn.")] = state.pop(key)

    plain = get().model.state_dict()
    hub.repos["me/old"] = dict(hub.repos[pretrained.REPO])
    edit(hub, GEOMETRY, old, tmp_path, "me/old")
    renamed = get(source="me/old").model.state_dict()
    assert all(torch.equal(plain[key], renamed[key]) for key in plain)


# --- interrupted


def test_broken_connection_goes_on_where_it_broke(hub):
    size = len(hub.repos[pretrained.REPO][UNET])
    hub.break_after[UNET] = size // 3 + 1
    get()
    first, second, third = hub.sent(UNET)
    assert first is None and second == f"bytes={size // 3 + 1}-" and third == f"bytes={2 * (size // 3 + 1)}-"


def test_killed_download_resumes(hub, monkeypatch):
    """huggingface_hub 2 forgets what a killed process had; we do not."""
    size = len(hub.repos[pretrained.REPO][UNET])

    class Kill(BaseException):
        pass

    def stop(step, done, total):
        if UNET in step and done > size // 2:
            raise Kill

    with pytest.raises(Kill):
        get(progress=stop)
    hub.requests.clear()
    get()
    (resumed,) = hub.sent(UNET)
    assert resumed is not None and int(resumed.removeprefix("bytes=").rstrip("-")) > size // 2


def test_hub_that_dies_midway_keeps_what_came(hub):
    hub.budget[UNET] = 5000
    with pytest.raises(WeightsError) as error:
        get()
    assert "cannot be reached" in sentence(error) and "kept" in sentence(error)
    assert len(hub.sent(UNET)) == weights.ATTEMPTS
    hub.budget.clear()
    hub.requests.clear()
    get()
    assert hub.sent(UNET) == ["bytes=5000-"]


# --- wrong


def test_no_network_says_so(hub, monkeypatch):
    """diffusers would say that config.json is missing, after 23 seconds."""
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(WeightsError) as error:
        get()
    assert "cannot be reached" in sentence(error) and "--weights FOLDER" in sentence(error)


def test_offline_switch_says_so(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as error:
        get()
    assert "HF_HUB_OFFLINE" in sentence(error)


def test_unknown_repository(hub):
    with pytest.raises(WeightsError, match="The hub has no nobody/nothing"):
        get(source="nobody/nothing")
    with pytest.raises(WeightsError, match="There is no folder"):
        get(source="/no/such/folder")


def test_download_with_wrong_content_is_refused(hub):
    hub.corrupt.add(UNET)
    with pytest.raises(WeightsError) as error:
        get()
    assert "sha256" in sentence(error) and "deleted" in sentence(error)
    hub.corrupt.clear()
    get()


def test_pinned_hash_that_differs_is_refused(hub):
    ours, _ = pretrained.weights()
    pinned = replace(ours, sha256={UNET: "0" * 64})
    with pytest.raises(WeightsError) as error:
        weights.resolve(pinned, accept_license=True)
    assert "000000000000" in sentence(error) and UNET.split("/")[1] in sentence(error)


def test_damage_in_the_cache_is_noticed_and_mended(hub):
    get()
    path = weights.find(pretrained.weights()[0]) / UNET
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="deleted"):
        get()
    get()


@pytest.mark.parametrize("name", [UNET, "unet_determ/config.json"])
def test_missing_file(hub, name):
    del hub.repos[pretrained.REPO][name]
    with pytest.raises(WeightsError) as error:
        get()
    assert "TencentARC/MotionCrafter/unet_determ" in sentence(error)


def test_missing_shard(hub):
    files = hub.repos[pretrained.REPO]
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    files[f"unet_determ/{shard}"] = files.pop(UNET)
    index = {"weight_map": {"conv_in.weight": shard, "conv_out.bias": shard.replace("00001-of", "00002-of")}}
    files["unet_determ/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(WeightsError) as error:
        get()
    assert "00002-of-00002" in sentence(error)


def test_shards_load_like_one_file(hub, tmp_path):
    expected = get().model.unet.state_dict()
    files = dict(hub.repos[pretrained.REPO])
    (tmp_path / "whole.safetensors").write_bytes(files.pop(UNET))
    state, mapping = load_file(tmp_path / "whole.safetensors"), {}
    for number, keys in enumerate((list(state)[::2], list(state)[1::2]), start=1):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in keys}, tmp_path / name)
        files[f"unet_determ/{name}"] = (tmp_path / name).read_bytes()
        mapping.update(dict.fromkeys(keys, name))
    index = json.dumps({"weight_map": mapping}).encode()
    files["unet_determ/diffusion_pytorch_model.safetensors.index.json"] = index
    hub.repos["me/sharded"] = files
    found = get(source="me/sharded").model.unet.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_extra_missing_and_reshaped_keys_are_named(hub, tmp_path):
    def spoil(state):
        state["down_blocks.9.surprise.weight"] = torch.zeros(2)
        del state["conv_norm_out.bias"]
        state["conv_out.bias"] = torch.zeros(7)

    edit(hub, UNET, spoil, tmp_path)
    with pytest.raises(WeightsError) as error:
        get()
    text = sentence(error)
    assert "1 missing (conv_norm_out.bias)" in text and "1 unexpected (down_blocks.9.surprise.weight)" in text
    assert "conv_out.bias is [7], not [8]" in text


def test_extra_key_in_an_encoder_that_is_not_loaded_is_still_refused(hub, tmp_path):
    edit(hub, GEOMETRY, lambda state: state.update({"encoder_2.extra": torch.zeros(1)}), tmp_path)
    with pytest.raises(WeightsError, match="encoder_2.extra"):
        get()


def test_other_unet_under_this_name(hub):
    files = hub.repos[pretrained.REPO]
    files[UNET] = files["unet_diff/diffusion_pytorch_model.safetensors"]
    with pytest.raises(WeightsError, match="reads 12 channels"):
        get()


def test_pickle_in_place_of_safetensors(hub):
    files = hub.repos[pretrained.REPO]
    del files[UNET]
    files["unet_determ/diffusion_pytorch_model.bin"] = pickle.dumps({"conv_in.weight": [1.0]})
    with pytest.raises(WeightsError) as error:
        get()
    assert "diffusion_pytorch_model.bin" in sentence(error) and "could run code" in sentence(error)
    assert not hub.sent(".bin")


def test_pickle_under_a_safetensors_name(hub, tmp_path):
    target = tmp_path / "pickle"
    torch.save({"conv_in.weight": torch.zeros(1)}, target)
    hub.repos[pretrained.REPO][UNET] = target.read_bytes()
    with pytest.raises(WeightsError, match="pickle named .safetensors"):
        get()


def test_cut_off_file(published, tmp_path, hub):
    import shutil

    shutil.copytree(published / "ours", tmp_path / "cut")
    path = tmp_path / "cut" / UNET
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut off or damaged"):
        get(source=tmp_path / "cut")


# --- verify


def test_verify_reads_only_headers_from_the_hub(hub):
    described = pretrained.describe_all(remote=True)
    found = pretrained.differences(described, pretrained.read_config(described, "deterministic"))
    assert set(found) == {"geometry_motion_vae", "unet_determ", "vae", "image_encoder"}
    assert not any(found.values())
    assert all(where is not None for where in hub.sent(".safetensors"))


def test_verify_with_index_and_config_only(published, hub, tmp_path):
    import shutil

    get()
    folder = tmp_path / "index"
    shutil.copytree(published / "ours", folder)
    for name in (UNET, GEOMETRY):
        keys = load_file(folder / name)
        (folder / name).unlink()
        index = {"weight_map": dict.fromkeys(keys, "x.safetensors")}
        (folder / f"{name}.index.json").write_text(json.dumps(index))
    described = pretrained.describe_all(source=folder)
    config = pretrained.read_config(described, "deterministic")
    assert not any(pretrained.differences(described, config).values())
    index["weight_map"]["stray"] = "x.safetensors"
    (folder / f"{GEOMETRY}.index.json").write_text(json.dumps(index))
    found = pretrained.differences(pretrained.describe_all(source=folder), config)
    assert found["geometry_motion_vae"].unexpected == ("stray",) and not found["unet_determ"]


def test_command_line_lists_downloads_verifies_and_says_where(hub, capsys):
    assert main(["models", "download", "motioncrafter", "--json"]) == 2
    assert "--accept-license" in capsys.readouterr().err
    assert main(["models", "path", "motioncrafter"]) == 2
    assert "models download motioncrafter" in capsys.readouterr().err
    assert main(["models", "verify", "motioncrafter", "--remote", "--json"]) == 0
    assert all(row["fits"] for row in json.loads(capsys.readouterr().out))
    assert main(["models", "download", "motioncrafter", "--accept-license", "--json"]) == 0
    ours, svd = json.loads(capsys.readouterr().out)
    assert set(ours["sha256"]) == {UNET, GEOMETRY}
    assert main(["models", "path", "motioncrafter"]) == 0
    assert capsys.readouterr().out.splitlines() == [ours["folder"], svd["folder"]]
    assert main(["models", "list", "--json"]) == 0
    here = {(row["paradigm"], row["repo"]): row["here"] for row in json.loads(capsys.readouterr().out)}
    assert here["deterministic", pretrained.REPO] and not here["denoising", pretrained.REPO]
    assert main(["models", "verify", "motioncrafter"]) == 0
    assert "unet_determ: " in capsys.readouterr().out
    assert main(["models", "download", "nothing"]) == 2
    assert "motioncrafter" in capsys.readouterr().err


def test_reconstruct_downloads_runs_and_needs_no_network_the_second_time(hub, tmp_path, monkeypatch, capfd):
    """The whole path in a fresh process: HF_ENDPOINT, licence, cache, a stored scene; then again with the hub gone."""
    from huggingface_hub import constants

    from worldline.io.store import load as load_scene
    from worldline.io.video import write_video
    from worldline.scene import Video

    frames = (torch.rand(4, 32, 48, 3) * 255).to(torch.uint8)
    write_video(tmp_path / "clip.mp4", Video(frames=frames, timestamps=torch.arange(4, dtype=torch.float64) / 10))
    words = ["reconstruct", str(tmp_path / "clip.mp4"), "--system", "motioncrafter", "--device", "cpu"]
    words += ["--weights", pretrained.REPO, "-o"]
    paths = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(
        [sys.executable, "-m", "worldline", *words, str(tmp_path / "one"), "--accept-license"],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    assert "academic purposes" in first.stderr

    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    assert main([*words, str(tmp_path / "two")]) == 0, capfd.readouterr().err
    one, two = load_scene(tmp_path / "one"), load_scene(tmp_path / "two")
    assert one.provenance.weights_sha256 is not None
    assert one.provenance.weights_sha256 == two.provenance.weights_sha256
    assert one.points.shape == (4, 32, 48, 3)
    assert two.points.shape == (4, 32, 48, 3) and two.points[two.valid].isfinite().all()
