"""A small recurrent correlation network: matches features of two pictures, starting from a hint such as DIS.

    f1, f2        features at 1/8 resolution
    C(p, q)     = <f1(p), f2(q)> / sqrt(D)                     every pixel against every pixel, pooled to a pyramid
    w_(k+1)(p)  = w_k(p) + GRU(C around p + w_k(p), w_k, hint, context)
    w(p)        = (1 - g(p)) up(w_K)(p) + g(p) hint(p) + r(p)  gate g and residual r at full resolution
    b(p)        = exp(s(p))                                    expected error, in pixels

The recurrence is RAFT's (Teed and Deng, ECCV 2020, sections 3.1-3.3). The hint is ours: DIS is precise to a tenth of a
pixel where it is right at all, so the network learns where to leave it alone, and mends the rest.

Legend: B pairs, H x W pixels, h x w = H/8 x W/8 cells, D features, L pyramid levels, r lookup radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CELL = 8
LEAST_SIZE = 32
HINT_TRUST = 2.0  # logit of the gate before training: the hint is kept


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the network; the defaults are what ships.

    Attributes:
        widths: channels at 1/2, 1/4 and 1/8 resolution.
        features: D.
        hidden: channels of the recurrent state.
        context: channels of the image context that the recurrence always sees.
        levels: of the correlation pyramid.
        radius: of the lookup, in cells of each level.
        iterations: of the recurrence.
        refine: channels of the full-resolution stage.
    """

    widths: tuple[int, int, int] = (32, 64, 96)
    features: int = 96
    hidden: int = 80
    context: int = 48
    levels: int = 3
    radius: int = 3
    iterations: int = 6
    refine: int = 24


class Matched(NamedTuple):
    """What the network says about pairs.

    Attributes:
        flow: [B, 2, H, W] pixels (x, y).
        log_error: [B, 1, H, W] natural logarithm of the expected |error| in pixels.
        coarse: the estimate after each iteration, [B, 2, h, w] in pixels of the full picture.
    """

    flow: Tensor
    log_error: Tensor
    coarse: list[Tensor]


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv2d(inner, outer, 3, stride, 1)
        self.two = nn.Conv2d(outer, outer, 3, 1, 1)
        self.norm_one, self.norm_two = (nn.InstanceNorm2d(outer, affine=True) for _ in range(2))
        self.skip = nn.Conv2d(inner, outer, 1, stride) if stride > 1 or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm_one(self.one(x)))
        return torch.relu(self.skip(x) + torch.relu(self.norm_two(self.two(y))))


class _Encoder(nn.Module):
    """[N, 3, H, W] in [-1, 1] -> [N, widths[-1], h, w]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        a, b, c = config.widths
        self.stem = nn.Conv2d(3, a, 7, 2, 3)
        self.norm = nn.InstanceNorm2d(a, affine=True)
        self.blocks = nn.Sequential(_Block(a, a), _Block(a, b, 2), _Block(b, b), _Block(b, c, 2), _Block(c, c))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(torch.relu(self.norm(self.stem(x))))


class _Recurrence(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        hidden, seen = config.hidden, config.levels * (2 * config.radius + 1) ** 2
        motion = 96
        self.correlation = nn.Conv2d(seen, 96, 1)
        self.flow = nn.Conv2d(4, 32, 7, padding=3)
        self.motion = nn.Conv2d(128, motion - 4, 3, padding=1)
        inputs = hidden + motion + config.context
        self.gates = nn.Conv2d(inputs, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(hidden, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 2, 3, padding=1))

    def forward(self, state: Tensor, context: Tensor, seen: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
        """State and flow update in cells; flows [B, 4, h, w] are the present estimate and the hint minus it."""
        motion = torch.cat([torch.relu(self.correlation(seen)), torch.relu(self.flow(flows))], 1)
        inputs = torch.cat([context, torch.relu(self.motion(motion)), flows], 1)
        update, reset = torch.sigmoid(self.gates(torch.cat([state, inputs], 1))).chunk(2, 1)
        candidate = torch.tanh(self.candidate(torch.cat([reset * state, inputs], 1)))
        state = (1 - update) * state + update * candidate
        return state, self.head(state)


class FlowNetwork(nn.Module):
    """Pictures in, flow and its expected error out; see the module's formulas."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        self.encoder = _Encoder(config)
        self.features = nn.Conv2d(config.widths[-1], config.features, 1)
        self.context = nn.Conv2d(config.widths[-1], config.hidden + config.context, 1)
        self.recurrence = _Recurrence(config)
        self.upsampling = nn.Sequential(
            nn.Conv2d(config.hidden, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 9 * CELL**2, 1)
        )
        self.detail = nn.Conv2d(config.hidden, 4 * CELL**2, 1)
        last = nn.Conv2d(config.refine, 4, 3, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(12, config.refine, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.refine, config.refine, 3, padding=1),
            nn.ReLU(),
            last,
        )
        assert last.bias is not None
        with torch.no_grad():  # begins as the hint itself
            last.weight.zero_()
            last.bias.copy_(torch.tensor([HINT_TRUST, 0.0, 0.0, 0.0]))

    def forward(
        self,
        source: Float[Tensor, "B 3 H W"],
        target: Float[Tensor, "B 3 H W"],
        hint: Float[Tensor, "B 2 H W"] | None = None,
    ) -> Matched:
        """Flow from source to target.

        Args:
            source: pictures in [0, 1]; H and W multiples of 8, at least 32.
            target: where the source's pixels are looked for.
            hint: an estimate in pixels, for instance DIS; None where there is none.

        Raises:
            ValueError: sizes that the network cannot take.
        """
        height, width = source.shape[-2:]
        if height % CELL or width % CELL or min(height, width) < LEAST_SIZE:
            raise ValueError(f"Flow needs sizes that are multiples of {CELL}, at least {LEAST_SIZE}: {height}x{width}.")
        one, two = self._encode(source), self._encode(target)
        return self.match(source, target, one, two, hint)

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
        """Features of pictures in [0, 1], to be reused in every pair that a picture is in."""
        return self._encode(pictures)

    def _encode(self, pictures: Tensor) -> Tensor:
        return self.encoder(2 * pictures - 1)

    def match(self, source: Tensor, target: Tensor, one: Tensor, two: Tensor, hint: Tensor | None = None) -> Matched:
        """`forward` with the pictures' encodings already made."""
        pyramid = _pyramid(self.features(one).float(), self.features(two).float(), self.config.levels)
        state, context = self.context(one).split([self.config.hidden, self.config.context], 1)
        state, context = torch.tanh(state), torch.relu(context)
        small = torch.zeros_like(one[:, :2]).float() if hint is None else F.avg_pool2d(hint.float(), CELL) / CELL
        flow, coarse = small, []
        for _ in range(self.config.iterations):
            flow = flow.detach()  # as RAFT: each step learns to mend what it is given
            seen = _lookup(pyramid, flow, self.config.radius)
            state, step = self.recurrence(state, context, seen, torch.cat([flow, small - flow], 1))
            flow = flow + step.float()
            coarse.append(CELL * flow)
        whole = _upsample(CELL * flow, self.upsampling(state).float())
        return self._refined(source, target, whole, whole if hint is None else hint.float(), state, coarse)

    def _refined(
        self, source: Tensor, target: Tensor, whole: Tensor, hint: Tensor, state: Tensor, coarse: list[Tensor]
    ) -> Matched:
        errors = [(source - warp(target, flow)).abs().mean(1, keepdim=True) for flow in (whole, hint)]
        apart = ((hint - whole) / 4).clamp(-4, 4)
        detail = F.pixel_shuffle(self.detail(state), CELL)
        out = self.refine(torch.cat([source, *errors, apart, apart.norm(dim=1, keepdim=True), detail], 1)).float()
        gate = torch.sigmoid(out[:, :1])
        return Matched(flow=whole + gate * (hint - whole) + out[:, 1:3], log_error=out[:, 3:], coarse=coarse)


def _pyramid(one: Tensor, two: Tensor, levels: int) -> list[Tensor]:
    """Correlation [B h w, 1, h / 2^l, w / 2^l] of each cell of the first picture with all cells of the second."""
    batch, depth, height, width = one.shape
    volume = torch.einsum("bdp,bdq->bpq", one.flatten(2), two.flatten(2)) / math.sqrt(depth)
    out = [volume.reshape(batch * height * width, 1, height, width)]
    for _ in range(levels - 1):
        out.append(F.avg_pool2d(out[-1], 2, ceil_mode=True, count_include_pad=False))
    return out


def _grid(height: int, width: int, like: Tensor) -> Tensor:
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=torch.float32),
        torch.arange(width, device=like.device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([x, y])  # [2, H, W]


def _lookup(pyramid: list[Tensor], flow: Tensor, radius: int) -> Tensor:
    """Correlations [B, L (2r+1)^2, h, w] around where each cell goes; flow [B, 2, h, w] in cells."""
    batch, _, height, width = flow.shape
    centre = (_grid(height, width, flow) + flow).permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    steps = torch.arange(-radius, radius + 1, device=flow.device, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)[None]
    out = []
    for level, volume in enumerate(pyramid):
        rows, columns = volume.shape[-2:]
        place = (centre + 0.5) / 2**level - 0.5 + offsets  # a pooled cell's centre lies between its four
        scale = torch.tensor([columns, rows], device=flow.device, dtype=torch.float32)
        sampled = F.grid_sample(volume, (2 * place + 1) / scale - 1, align_corners=False)
        out.append(sampled.reshape(batch, height, width, -1))
    return torch.cat(out, -1).permute(0, 3, 1, 2)


def _upsample(flow: Tensor, weights: Tensor) -> Tensor:
    """Each fine pixel as a convex combination of the nine cells around (RAFT section 3.3)."""
    batch, _, height, width = flow.shape
    shares = weights.reshape(batch, 1, 9, CELL, CELL, height, width).softmax(2)
    around = F.unfold(F.pad(flow, (1, 1, 1, 1), mode="replicate"), 3).reshape(batch, 2, 9, 1, 1, height, width)
    fine = (shares * around).sum(2)  # [B, 2, 8, 8, h, w]
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, CELL * height, CELL * width)


def warp(target: Float[Tensor, "B C H W"], flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B C H W"]:
    """The target picture seen from the source: target(p + flow(p)), bilinear, border repeated."""
    height, width = target.shape[-2:]
    place = (_grid(height, width, flow) + flow).permute(0, 2, 3, 1)
    scale = torch.tensor([width, height], device=flow.device, dtype=torch.float32)
    return F.grid_sample(
        target, ((2 * place + 1) / scale - 1).to(target.dtype), padding_mode="border", align_corners=False
    )
