"""Motion-sensitive VAE: trajectory maps as pseudo videos in Wan's latent space (spec 1.1 to 1.3).

    encode   x -> y = trajectory encoder(x) in (0, 1) -> Wan encoder(2 y - 1) -> (mean - m) / s, log-variance
    decode   z -> Wan decoder(z s + m), clamped to [-1, 1] -> trajectory decoder -> x

Different from the published trainer, deliberately: encoding is not cut off from the gradient, so the trajectory encoder
learns. Long clips go chunk by chunk through Wan's causal cache, recomputed in the backward pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recompute

from worldline.systems.more4d.config import VaeConfig

MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip
LOGVAR = (-30.0, 20.0)
STEEPEST = 0.98
"""Values of a picture are clamped to this before the inverse of tanh."""

FRAMES_AT_ONCE = 8
"""Frames that a trajectory adaptor, 128 channels at full resolution, sees at a time."""


class ResBlock(nn.Module):
    """x + conv(SiLU(GN(conv(SiLU(GN(x))))))."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, dim, eps=1e-6), nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, dim, eps=1e-6), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        silu = nn.functional.silu
        return x + self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))


class Bypass(nn.Module):
    """Linear maps between the pixels of a latent cell and its latent; at first orthonormal cosines, slowest first.

    Attributes:
        cell: (frames, rows, columns) of a cell; the first frame, which fills a latent frame alone, counts as repeated.
        forth, back: [Z, 3, *cell] weights of both directions.
    """

    def __init__(self, z_dim: int, cell: tuple[int, int, int]) -> None:
        super().__init__()
        self.cell = cell
        self.forth = nn.Parameter(cosines(z_dim, cell))
        self.back = nn.Parameter(self.forth.detach().clone())

    def encode(self, video: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B Z t h w"]:
        """Latents."""
        before = video[:, :, :1].expand(-1, -1, self.cell[0] - 1, -1, -1)
        return functional.conv3d(torch.cat([before, video], 2), self.forth, stride=self.cell)

    def decode(self, latents: Float[Tensor, "B Z t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Video; the inverse of `encode` as far as Z numbers a cell go."""
        return functional.conv_transpose3d(latents, self.back, stride=self.cell)[:, :, self.cell[0] - 1 :]


def cosines(count: int, cell: tuple[int, int, int]) -> Float[Tensor, "count 3 t h w"]:
    """Orthonormal cosines over the pixels of a cell, one set per colour, sorted by the sum of their frequencies."""
    tables = []
    for n in cell:
        wave = torch.cos(math.pi * torch.arange(n)[:, None] * (torch.arange(n) + 0.5) / n)
        tables.append(wave / wave.norm(dim=1, keepdim=True))
    orders = sorted(itertools.product(*map(range, cell)), key=lambda order: (sum(order), order))
    waves = [
        torch.einsum("c,t,h,w->cthw", color, *(table[k] for table, k in zip(tables, order, strict=True)))
        for order in orders
        for color in torch.eye(3)
    ]
    return torch.stack(waves[:count])


class _Level(nn.Module):
    def __init__(self, dim: int, groups: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResBlock(dim, groups) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class TrajectoryEncoder(nn.Module):
    """Each frame of a trajectory map as a picture in (0, 1); at first exactly its sigmoid."""

    def __init__(self, dim: int = 128, groups: int = 32, save_memory: bool = True) -> None:
        super().__init__()
        self.save_memory = save_memory
        self.conv_in = nn.Conv2d(3, dim, 3, padding=1)
        self.down = nn.ModuleList([_Level(dim, groups, 1)])
        self.norm_out, self.conv_out = nn.GroupNorm(groups, dim, eps=1e-6), nn.Conv2d(dim, 3, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 3 T H W"]:
        """Pictures in (0, 1)."""
        return _by_frames(self._frames, x, self.save_memory)

    def _frames(self, x: Tensor) -> Tensor:
        hidden = self.down[0](self.conv_in(x))
        return torch.sigmoid(x + self.conv_out(nn.functional.silu(self.norm_out(hidden))))


class TrajectoryDecoder(nn.Module):
    """Pictures in [-1, 1] as frames of a trajectory map; a residual one is at first the inverse of the encoder."""

    def __init__(self, dim: int = 128, groups: int = 32, save_memory: bool = True, residual: bool = False) -> None:
        super().__init__()
        self.save_memory, self.residual = save_memory, residual
        self.conv_in = nn.Conv2d(3, dim, 3, padding=1)
        self.up = nn.ModuleList([_Level(dim, groups, 2)])
        self.norm_out, self.conv_out = nn.GroupNorm(groups, dim, eps=1e-6), nn.Conv2d(dim, 3, 3, padding=1)
        if residual:
            nn.init.zeros_(self.conv_out.weight)
            assert self.conv_out.bias is not None
            nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 3 T H W"]:
        """Normalised displacements."""
        return _by_frames(self._frames, x, self.save_memory)

    def _frames(self, x: Tensor) -> Tensor:
        hidden = self.up[0](self.conv_in(x))
        out = self.conv_out(nn.functional.silu(self.norm_out(hidden)))
        return out + 2 * x.float().clamp(-STEEPEST, STEEPEST).atanh() if self.residual else out


def _by_frames(network: Callable[[Tensor], Tensor], x: Tensor, save_memory: bool) -> Tensor:
    """Apply a network of pictures to all frames, a few at a time if memory is to be saved."""
    frames = x.transpose(1, 2).flatten(0, 1)
    if not save_memory:
        return network(frames).unflatten(0, (len(x), -1)).transpose(1, 2)
    parts = []
    for part in frames.split(FRAMES_AT_ONCE):
        parts.append(recompute(network, part, use_reentrant=False) if torch.is_grad_enabled() else network(part))
    return torch.cat(parts).unflatten(0, (len(x), -1)).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """A Gaussian over latents: standardised mean, and Wan's own log-variance.

    Attributes:
        mean: [B, Z, t, h, w].
        logvar: [B, Z, t, h, w], of the latent before it is standardised.
    """

    mean: Float[Tensor, "B Z t h w"]
    logvar: Float[Tensor, "B Z t h w"]

    def sample(self, noise: Float[Tensor, "B Z t h w"]) -> Float[Tensor, "B Z t h w"]:
        """Mean + exp(logvar / 2) noise, as the published code draws it."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, " B"]:
        """Divergence from the unit Gaussian, summed over each sample."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class MotionVae(nn.Module):
    """Wan's video autoencoder between a trajectory encoder and a trajectory decoder.

    Attributes:
        config: sizes.
        vae: diffusers' autoencoder; encodes pictures, depth and pseudo videos alike.
        trajectory_encoder, trajectory_decoder: the adaptors.
        mean, std: [Z] constants that standardise latents.
        motion_mean, motion_std: [Z] constants that standardise latents of motion once more; Wan's size has none.
    """

    mean: Tensor
    std: Tensor
    motion_mean: Tensor
    motion_std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        z = config.z_dim
        constants = (MEAN, STD) if z == len(MEAN) else ((0.0,) * z, (1.0,) * z)
        self.vae: Any = AutoencoderKLWan(
            base_dim=config.base_dim,
            z_dim=z,
            dim_mult=list(config.widths),
            num_res_blocks=config.blocks,
            temperal_downsample=list(config.time_halvings),
            latents_mean=list(constants[0]),
            latents_std=list(constants[1]),
            scale_factor_temporal=config.frames_per_latent,
            scale_factor_spatial=config.factor,
            is_residual=config.shortcuts,
            in_channels=3 * config.patch**2,
            out_channels=3 * config.patch**2,
        )
        self.bypass = None
        if config.bypass:
            self.bypass = Bypass(z, (config.frames_per_latent, config.factor, config.factor))
            parts = dict(cast(nn.Module, self.vae).named_modules())
            for last in (parts["quant_conv"], parts["decoder.conv_out"]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        self.trajectory_encoder = TrajectoryEncoder(config.adaptor_dim, config.adaptor_groups, config.save_memory)
        self.trajectory_decoder = TrajectoryDecoder(
            config.adaptor_dim, config.adaptor_groups, config.save_memory, config.residual
        )
        names = ("mean", "std", "motion_mean", "motion_std")
        for name, values in zip(names, (*constants, (0.0,) * z, (1.0,) * z), strict=True):
            self.register_buffer(name, torch.tensor(values), persistent=z != len(MEAN))

    @torch.no_grad()
    def standardise(self, latents: Float[Tensor, "N Z t h w"], *, motion: bool = False) -> None:
        """Set the constants so that these latents, standardised with the present ones, get mean 0 and deviation 1.

        For autoencoders of another size than Wan's, whose constants are given. Those of motion leave videos alone.

        Raises:
            ValueError: the autoencoder has Wan's constants.
        """
        if self.config.z_dim == len(MEAN):
            raise ValueError("Wan's autoencoder comes with its constants; they are not measured.")
        flat = latents.transpose(0, 1).flatten(1)
        mean, std = (self.motion_mean, self.motion_std) if motion else (self.mean, self.std)
        mean.add_(std * flat.mean(1).to(mean))
        std.mul_(flat.std(1).to(std).clamp(min=1e-4))

    def pseudo_video(self, motion: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 3 T H W"]:
        """Normalised displacements as a video in (-1, 1)."""
        like = self.trajectory_encoder.conv_in.weight
        return 2 * self.trajectory_encoder(self.config.gain * motion.to(like)) - 1

    def encode(self, motion: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """Latents of normalised displacements; gradients reach the trajectory encoder."""
        return self.of_motion(self.encode_video(self.pseudo_video(motion)))

    def of_motion(self, posterior: Posterior) -> Posterior:
        """Latents of a pseudo video, standardised as latents of motion."""
        mean, std = (value[:, None, None, None].to(posterior.mean) for value in (self.motion_mean, self.motion_std))
        return Posterior(mean=(posterior.mean - mean) / std, logvar=posterior.logvar)

    def decode(self, latents: Float[Tensor, "B Z t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Normalised displacements of standardised latents."""
        mean, std = (value[:, None, None, None].to(latents) for value in (self.motion_mean, self.motion_std))
        return self.from_pseudo_video(self.decode_video(latents * std + mean))

    def from_pseudo_video(self, video: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 3 T H W"]:
        """Normalised displacements of a decoded video in [-1, 1]."""
        return self.trajectory_decoder(video) / self.config.gain

    def encode_video(self, video: Float[Tensor, "B 3 T H W"]) -> Posterior:
        """Latents of a video in [-1, 1].

        Raises:
            ValueError: the number of frames is not 1 + a multiple of the frames per latent, or sides do not divide.
        """
        step, factor = self.config.frames_per_latent, self.config.factor
        video = video.to(self.vae.quant_conv.weight)
        if (video.shape[2] - 1) % step or video.shape[3] % factor or video.shape[4] % factor:
            raise ValueError(
                f"The autoencoder needs 1 + {step}n frames and sides that are multiples of {factor}, "
                f"got {list(video.shape[2:])}."
            )
        around = 0.0 if self.bypass is None else self.bypass.encode(video)
        video = patchify(video, self.config.patch)
        chunks = [video[:, :, :1], *(video[:, :, start : start + step] for start in range(1, video.shape[2], step))]
        moments = self.vae.quant_conv(torch.cat(_stream(self.vae.encoder, chunks, self.config.save_memory), 2))
        mean, logvar = moments.chunk(2, dim=1)
        mean = mean + around
        shift, scale = (value[:, None, None, None].to(mean) for value in (self.mean, self.std))
        return Posterior(mean=(mean - shift) / scale, logvar=logvar.clamp(*LOGVAR))

    def decode_video(self, latents: Float[Tensor, "B Z t h w"], *, clamp: bool = True) -> Float[Tensor, "B 3 T H W"]:
        """Video of standardised latents, in [-1, 1] unless `clamp` is off."""
        latents = latents.to(self.vae.quant_conv.weight)
        shift, scale = (value[:, None, None, None].to(latents) for value in (self.mean, self.std))
        raw = self.vae.post_quant_conv(latents * scale + shift)
        video = torch.cat(
            _stream(self.vae.decoder, list(raw.split(1, dim=2)), self.config.save_memory, first_chunk=True), 2
        )
        video = unpatchify(video, self.config.patch)
        if self.bypass is not None:
            video = video + self.bypass.decode(latents * scale + shift)
        return video.clamp(-1, 1) if clamp else video


def _stream(network: nn.Module, chunks: list[Tensor], save_memory: bool, first_chunk: bool = False) -> list[Tensor]:
    """Run a causal network chunk by chunk; to save memory, each is recomputed in the backward pass from its cache.

    Gradients flow through the cache from chunk to chunk. The cache is a list of what each convolution remembers;
    `first_chunk` says whether the network wants to be told which chunk is the first.
    """

    def run(chunk: Tensor, cache: list[Any], options: dict[str, bool]) -> tuple[Tensor, list[Any]]:
        following = list(cache)  # the network writes into it
        return network(chunk, feat_cache=following, feat_idx=[0], **options), following

    cache: list[Any] = [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())
    out = []
    for index, chunk in enumerate(chunks):
        options = {"first_chunk": index == 0} if first_chunk else {}
        if torch.is_grad_enabled() and save_memory:
            result, cache = recompute(run, chunk, cache, options, use_reentrant=False)
        else:
            result, cache = run(chunk, cache, options)
        out.append(result)
    return out
