"""Geo4D's networks against numbers of the original classes; the weight rule is that of the folder's README."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from worldline.systems.geo4d import published
from worldline.systems.geo4d.config import ResamplerConfig, UNetConfig, VaeConfig
from worldline.systems.geo4d.resampler import Resampler
from worldline.systems.geo4d.unet import Geo4DUNet
from worldline.systems.geo4d.vae import Geo4DVae


@dataclass
class Golden:
    folder: Path
    salt: str = field(init=False)

    def __post_init__(self) -> None:
        self.salt = json.loads((self.folder / "manifest.json").read_text())["salt"]

    def array(self, file: str, name: str) -> Tensor:
        return load_file(self.folder / f"{file}.safetensors")[name].float()

    def input(self, name: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32((self.salt + name).encode())))

    def weight(self, key: str, shape: tuple[int, ...]) -> Tensor:
        value = self.input(key, *shape)
        if key.endswith("latents"):
            return 0.05 * value
        if len(shape) >= 2:
            return value / math.sqrt(math.prod(shape[1:]))
        return 1 + 0.1 * value if key.endswith("weight") else 0.1 * value

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str) -> nn.Module:
        """Weights by the published key of every parameter, brought to ours by the maps that load real checkpoints."""
        ours = module.state_dict()
        state = {}
        for key, shape in self.published(module).items():
            name = published.vae_key(key, levels(module)) if isinstance(module, Geo4DVae) else published.unet_key(key)
            if name is not None:
                value = self.weight(prefix + key, shape)
                state[name] = published.vae_value(name, value) if isinstance(module, Geo4DVae) else value
        assert state.keys() == ours.keys()
        module.load_state_dict(state, strict=True)
        return module.eval()

    def published(self, module: nn.Module) -> dict[str, tuple[int, ...]]:
        """Published key -> shape: the full model's names, with this module's shapes."""
        ours = module.state_dict()
        if not isinstance(module, Geo4DVae):
            back = {key: key.replace("temporal_conv", "temopral_conv") for key in ours}
            return {back[key]: tuple(value.shape) for key, value in ours.items()}
        shapes = {}
        for key in VAE_KEYS:
            name = published.vae_key(key, levels(module))
            if name in ours:
                shape = tuple(ours[name].shape)
                convolution = ".attn_1." in key and len(shape) == 2
                shapes[key] = (*shape, 1, 1) if convolution else shape
        return shapes


def levels(module: nn.Module) -> int:
    return len(module.config.channels)


def _vae_keys() -> list[str]:
    keys = []
    for i in range(4):
        keys += [f"encoder.down.{i}.block.{j}." for j in range(2)] + [f"decoder.up.{i}.block.{j}." for j in range(3)]
    keys += [f"{half}.mid.block_{j}." for half in ("encoder", "decoder") for j in (1, 2)]
    keys += [f"decoder_adaptor.up.0.block.{j}." for j in range(2)]
    names = [key + part for key in keys for part in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")]
    names += [f"encoder.down.{i}.downsample.conv" for i in range(3)] + [
        f"decoder.up.{i}.upsample.conv" for i in (1, 2, 3)
    ]
    names += [f"{h}.mid.attn_1.{p}" for h in ("encoder", "decoder") for p in ("norm", "q", "k", "v", "proj_out")]
    names += [f"{h}.{p}" for h in ("encoder", "decoder") for p in ("conv_in", "norm_out", "conv_out")]
    names += ["quant_conv", "post_quant_conv", "decoder_adaptor.norm_out", "decoder_adaptor.conv_out"]
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


VAE_KEYS = _vae_keys()


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir / "geo4d")


def close(value: Tensor, expected: Tensor, tolerance: float) -> None:
    assert value.shape == expected.shape
    assert (value - expected).abs().max() < tolerance


@torch.no_grad()
def test_geo4d_unet_reduced(golden: Golden) -> None:
    config = UNetConfig(model_channels=32, head_channels=8, context_dim=48)
    unet = golden.fill(Geo4DUNet(config), published.UNET_PREFIX)
    x, context = golden.input("unet32_x", 1, 20, 16, 8, 8), golden.input("unet32_ctx", 1, 333, 48)
    output = unet(x, torch.tensor([599]), context, torch.tensor([24]))
    close(output, golden.array("networks_reduced", "unet32_y"), 5e-5)
    cached = unet(x, torch.tensor([599]), unet.context_cache(context, 16), torch.tensor([24]))
    close(cached, output, 1e-6)
    x, context = golden.input("unet32_xb", 2, 20, 16, 8, 16), golden.input("unet32_ctxb", 2, 333, 48)
    output = unet(x, torch.tensor([199, 999]), context, torch.tensor([10, 3]))
    close(output[1], golden.array("networks_reduced", "unet32_y_b2_item1"), 5e-5)


@torch.no_grad()
def test_geo4d_unet_wider(golden: Golden) -> None:
    unet = golden.fill(
        Geo4DUNet(UNetConfig(model_channels=64, head_channels=16, context_dim=64)), published.UNET_PREFIX
    )
    x, context = golden.input("unet64_x", 1, 20, 16, 8, 8), golden.input("unet64_ctx", 1, 333, 64)
    output = unet(x, torch.tensor([599]), context, torch.tensor([24]))
    close(output, golden.array("networks_reduced", "unet64_y"), 5e-5)


@torch.no_grad()
def test_geo4d_vae_reduced(golden: Golden) -> None:
    config = VaeConfig(channels=(32, 64, 128, 128), uncertainty=True)
    vae = golden.fill(Geo4DVae(config), published.POINT_VAE_PREFIX)
    moments = vae.quant_conv(vae.encoder(golden.input("vae32_in", 2, 3, 32, 48)))
    close(moments, golden.array("networks_reduced", "vae32_moments"), 5e-5)
    latents = golden.input("vae32_z", 2, 4, 4, 6)
    close(
        torch.cat(vae.decode_with_uncertainty(latents), dim=1), golden.array("networks_reduced", "vae32_dec_conf"), 5e-5
    )
    assert torch.equal(vae.decode(latents), vae.decode_with_uncertainty(latents)[0])


@torch.no_grad()
def test_geo4d_resampler_reduced(golden: Golden) -> None:
    config = ResamplerConfig(dim=64, depth=2, heads=4, head_channels=16, embedding_dim=80, output_dim=64)
    resampler = golden.fill(Resampler(config), published.RESAMPLER_PREFIX)
    close(resampler(golden.input("res64_in", 1, 257, 80)), golden.array("networks_reduced", "resampler64_3d"), 5e-5)
    frames = golden.input("res64_in4", 1, 16, 33, 80)
    close(resampler(frames), golden.array("networks_reduced", "resampler64_4d"), 5e-5)


@pytest.mark.slow
@torch.no_grad()
def test_geo4d_full_vae_and_resampler(golden: Golden) -> None:
    vae = golden.fill(Geo4DVae(VaeConfig(uncertainty=True)), published.POINT_VAE_PREFIX)
    moments = vae.quant_conv(vae.encoder(golden.input("vae_in", 1, 3, 64, 96)))
    close(moments, golden.array("networks_full", "vae_moments"), 5e-5)
    decoded = torch.cat(vae.decode_with_uncertainty(golden.input("vae_z", 1, 4, 8, 12)), dim=1)
    close(decoded, golden.array("networks_full", "vae_dec_conf"), 5e-5)
    resampler = golden.fill(Resampler(), published.RESAMPLER_PREFIX)
    tokens = resampler(golden.input("res_in", 1, 257, 1280))
    close(tokens[:, :16], golden.array("networks_full", "resampler_3d"), 5e-5)
    tokens = resampler(golden.input("res_in4", 1, 16, 257, 1280))
    close(tokens[:, :32], golden.array("networks_full", "resampler_4d_first2frames"), 5e-5)


@pytest.mark.slow
@torch.no_grad()
def test_geo4d_full_unet(golden: Golden) -> None:
    with torch.device("meta"):
        unet = Geo4DUNet()
    unet = golden.fill(unet.to_empty(device="cpu"), published.UNET_PREFIX)
    x, context = golden.input("unet_x", 1, 20, 16, 8, 8), golden.input("unet_ctx", 1, 333, 1024)
    output = unet(x, torch.tensor([599]), context, torch.tensor([24]))
    close(output, golden.array("networks_full", "unet_y"), 2e-4)
