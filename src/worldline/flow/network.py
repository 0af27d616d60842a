"""A small recurrent correlation network: mends a hint such as DIS where pictures and the way back speak against it.

    e(p)        = f(p) + b(p + f(p))                           does f return by the hint b of the way back?
    c(p)        = exp(-|e|^2 / 2 s^2),  s^2 = .5^2 + (.05 |f|)^2      trust in the hint
                  also where f explains the picture better than what would be filled in there
    w_0         = f at 1/8 resolution, filled from where it is trusted (push-pull: from ever coarser weighted means)
    C(p, q)     = <f1(p), f2(q)> / sqrt(D) + a <g1(p), g2(q)>  every cell against every cell, pooled to a pyramid;
                                                               f learned features, g histograms of gradients
    w_(k+1)(p)  = w_k(p) + GRU(C around p + w_k(p), w_k less its surroundings, hint, trust, context)
    w(p)        = sum_i g_i(p) h_i(p) + r(p)                   h: hint, up(w_K), hint filled at full resolution;
                                                               shares g and residual r at full resolution
    b(p)        = exp(s(p))                                    expected error, in pixels

The recurrence is RAFT's (Teed and Deng, ECCV 2020, sections 3.1-3.3). The rest is ours: DIS is precise to a tenth of a
pixel where it is right at all, so the network learns where to leave it alone, and mends the rest. It never sees how
long a flow is, only how flows differ: so it cannot learn that long ones are rare, which they are in training only.

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
TRUST_PX, TRUST_SHARE = 0.5, 0.05  # by how much a hint may fail to return, in pixels and relative to its length
LARGEST_LOG_ERROR = 5.0
EXPLAINED, SHARP = 0.02, 0.01  # by how much, in grey levels of 1, a hint must explain better than what fills it in
EVIDENCE = 20.0
FILL = 0.05  # weight of what coarser levels say, beside a cell's own trust
HISTOGRAM = 32 + 72  # channels of the gradient histograms of a cell


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
    iterations: int = 4
    refine: int = 24


class Matched(NamedTuple):
    """What the network says about pairs.

    Attributes:
        flow: [B, 2, H, W] pixels (x, y).
        log_error: [B, 1, H, W] natural logarithm of the expected |error| in pixels.
        whole: [B, 2, H, W] what the recurrence alone says, before the hint's detail comes back.
        coarse: the estimate after each iteration, [B, 2, h, w] in pixels of the full picture.
    """

    flow: Tensor
    log_error: Tensor
    whole: Tensor
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
        motion, given = 96, 6
        self.correlation = nn.Conv2d(seen, 96, 1)
        self.flow = nn.Conv2d(given, 32, 3, padding=1)
        self.motion = nn.Conv2d(128, motion - given, 3, padding=1)
        inputs = hidden + motion + config.context
        self.gates = nn.Conv2d(inputs, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(hidden, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 2, 3, padding=1))

    def forward(self, state: Tensor, context: Tensor, seen: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """State and flow update in cells; given [B, 6, h, w] is all that it knows of the present estimate."""
        motion = torch.cat([torch.relu(self.correlation(seen)), torch.relu(self.flow(given))], 1)
        inputs = torch.cat([context, torch.relu(self.motion(motion)), given.to(motion)], 1)
        update, reset = torch.sigmoid(self.gates(torch.cat([state, inputs], 1))).chunk(2, 1)
        candidate = torch.tanh(self.candidate(torch.cat([reset * state, inputs], 1)))
        state = (1 - update) * state + update * candidate
        return state, self.head(state)


class _Hint(NamedTuple):
    """What is known of the hint, all at [B, ., H, W].

    Attributes:
        flow: the hint.
        trust: c of the module's formulas.
        missed: pixels by which it does not return.
        filled: the hint where it is trusted, and what is around it elsewhere.
    """

    flow: Tensor
    trust: Tensor
    missed: Tensor
    filled: Tensor


class FlowNetwork(nn.Module):
    """Pictures and hints in, flow and its expected error out; see the module's formulas."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        self.encoder = _Encoder(config)
        self.features = nn.Conv2d(config.widths[-1], config.features, 1)
        self.context = nn.Conv2d(config.widths[-1], config.hidden + config.context, 1)
        self.histogram_weight = nn.Parameter(torch.tensor(4.0))
        self.recurrence = _Recurrence(config)
        self.upsampling = nn.Sequential(
            nn.Conv2d(config.hidden, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 9 * CELL**2, 1)
        )
        self.likeness = nn.Parameter(torch.tensor([20.0, 1.0]))  # of colour and of place, between a pixel and a cell
        self.evidence = nn.Parameter(torch.tensor(EVIDENCE))  # of a difference between pictures, as a logit
        self.detail = nn.Conv2d(config.hidden, 4 * CELL**2, 1)
        last = nn.Conv2d(config.refine, 6, 3, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(16, config.refine, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.refine, config.refine, 3, padding=2, dilation=2),
            nn.ReLU(),
            last,
        )
        assert last.bias is not None
        with torch.no_grad():  # begins as the hint where it is trusted
            last.weight.zero_()
            last.bias.copy_(torch.tensor([-2.0, 0.0, -1.0, 0.0, 0.0, 0.0]))

    def forward(
        self,
        source: Float[Tensor, "B 3 H W"],
        target: Float[Tensor, "B 3 H W"],
        hint: Float[Tensor, "B 2 H W"],
        back: Float[Tensor, "B 2 H W"],
    ) -> Matched:
        """Flow from source to target.

        Args:
            source: pictures in [0, 1]; H and W multiples of 8, at least 32.
            target: where the source's pixels are looked for.
            hint: an estimate in pixels, for instance DIS.
            back: the same from target to source.

        Raises:
            ValueError: sizes that the network cannot take.
        """
        height, width = source.shape[-2:]
        if height % CELL or width % CELL or min(height, width) < LEAST_SIZE:
            raise ValueError(f"Flow needs sizes that are multiples of {CELL}, at least {LEAST_SIZE}: {height}x{width}.")
        one, two = self.encode(source), self.encode(target)
        return self.match(source, target, one, two, hint, back)

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
        """Everything about pictures in [0, 1] that can be reused in every pair that a picture is in."""
        encoded = self.encoder(2 * pictures - 1)
        return torch.cat([self.features(encoded), self.context(encoded), histograms(pictures).to(encoded)], 1)

    def match(self, source: Tensor, target: Tensor, one: Tensor, two: Tensor, hint: Tensor, back: Tensor) -> Matched:
        """`forward` with the pictures' encodings already made."""
        sizes = [self.config.features, self.config.hidden, self.config.context, HISTOGRAM]
        first, state, context, shape = one.split(sizes, 1)
        second, other = two[:, : sizes[0]], two[:, -HISTOGRAM:]
        pyramid = _pyramid(self._correlated(first, second, shape, other), self.config.levels)
        state, context = torch.tanh(state), torch.relu(context)
        given = explained(source, target, hint.float(), back.float())
        flow, coarse = self._begin(given), []
        start, doubt = flow, _doubt(given)
        for _ in range(self.config.iterations):
            flow = flow.detach()  # as RAFT: each step learns to mend what it is given
            seen = _lookup(pyramid, flow, self.config.radius)
            state, step = self.recurrence(state, context, seen, torch.cat([start - flow, _unlike(flow), doubt], 1))
            flow = flow + step.float()
            coarse.append(CELL * flow)
        whole = _upsample(CELL * flow, self.upsampling(state).float() + self._alike(source))
        return self._refined(source, target, whole, given, state, coarse)

    def _correlated(self, first: Tensor, second: Tensor, shape: Tensor, other: Tensor) -> Tensor:
        """Correlation [B, h w, h, w] of each cell of the first picture with all cells of the second."""
        learned = torch.einsum("bdp,bdq->bpq", first.float().flatten(2), second.float().flatten(2))
        fixed = torch.einsum("bdp,bdq->bpq", shape.float().flatten(2), other.float().flatten(2))
        volume = learned / math.sqrt(first.shape[1]) + self.histogram_weight * fixed
        return volume.unflatten(2, first.shape[-2:])

    def _begin(self, given: _Hint) -> Tensor:
        """The hint in cells, filled in from where it is trusted."""
        weight = F.avg_pool2d(given.trust, CELL)
        mean = F.avg_pool2d(given.trust * given.flow, CELL) / weight.clamp(min=1e-6)
        return filled(torch.where(weight > 1e-6, mean, F.avg_pool2d(given.flow, CELL)), weight) / CELL

    def _alike(self, source: Tensor) -> Tensor:
        """How alike each pixel and the nine cells around it are in colour and place: logits [B, 9 * 64, h, w]."""
        batch, _, height, width = source.shape
        rows, columns = height // CELL, width // CELL
        around = F.unfold(F.pad(F.avg_pool2d(source.float(), CELL), (1, 1, 1, 1), mode="replicate"), 3)
        cells = around.reshape(batch, 3, 9, 1, rows, columns)
        pixels = F.pixel_unshuffle(source.float(), CELL).reshape(batch, 3, 1, CELL**2, rows, columns)
        inside = (_grid(CELL, CELL, source) + 0.5) / CELL - 0.5  # place in the cell, in cells
        apart = (inside.reshape(2, 1, -1) - (_grid(3, 3, source) - 1).reshape(2, 9, 1)).square().sum(0)
        colour, place = self.likeness
        return (-colour * (cells - pixels).square().sum(1) - place * apart[None, ..., None, None]).flatten(1, 2)

    def _refined(
        self, source: Tensor, target: Tensor, whole: Tensor, given: _Hint, state: Tensor, coarse: list[Tensor]
    ) -> Matched:
        choices = [given.flow, whole, given.filled]
        errors = [_unexplained(source, target, flow) for flow in choices]
        around = torch.cat([_blurred(error).float() for error in errors], 1)
        apart = [choices[0] - whole, choices[2] - whole]
        far = [gap.norm(dim=1, keepdim=True).log1p() for gap in (*apart, given.missed)]
        detail = F.pixel_shuffle(self.detail(state), CELL)
        facts = [source, *errors, given.trust, (apart[0] / 4).clamp(-4, 4), *far, detail]
        out = self.refine(torch.cat(facts, 1)).float()
        lean = torch.cat([4 * given.trust, torch.zeros_like(given.trust), torch.zeros_like(given.trust)], 1)
        shares = (out[:, :3] + lean - self.evidence * around).softmax(1)
        flow = (shares[:, :, None] * torch.stack(choices, 1)).sum(1) + out[:, 3:5]
        log_error = LARGEST_LOG_ERROR * torch.tanh(out[:, 5:] / LARGEST_LOG_ERROR)
        return Matched(flow=flow, log_error=log_error, whole=whole, coarse=coarse)


def explained(source: Tensor, target: Tensor, hint: Tensor, back: Tensor) -> _Hint:
    """Trust in a hint: it returns, or it explains the picture better than what would be filled in for it.

    The second is for things that move far: there the way back is often lost although the hint is right.
    """
    trust, missed = trusted(hint, back)
    errors = [_blurred(_unexplained(source, target, flow)) for flow in (hint, filled(hint, trust))]
    trust = torch.maximum(trust, torch.sigmoid((errors[1] - errors[0] - EXPLAINED) / SHARP))
    return _Hint(hint, trust, missed, filled(hint, trust))


def trusted(flow: Float[Tensor, "B 2 H W"], back: Float[Tensor, "B 2 H W"]) -> tuple[Tensor, Tensor]:
    """Trust [B, 1, H, W] from how far a flow is from returning, and that distance; none where it leaves the picture."""
    height, width = flow.shape[-2:]
    missed = (flow + warp(back, flow)).norm(dim=1, keepdim=True)
    place = _grid(height, width, flow) + flow
    inside = (place >= 0).all(1, keepdim=True) & (place[:, :1] <= width - 1) & (place[:, 1:] <= height - 1)
    scale = TRUST_PX**2 + TRUST_SHARE**2 * flow.square().sum(1, keepdim=True)
    return torch.exp(-missed.square() / (2 * scale)) * inside, missed


def _unexplained(source: Tensor, target: Tensor, flow: Tensor) -> Tensor:
    return (source.float() - warp(target.float(), flow)).abs().mean(1, keepdim=True)


def _blurred(values: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(values, (4, 4, 4, 4), mode="replicate"), 9, 1)


def filled(values: Float[Tensor, "B C H W"], weight: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
    """Values where their weight is near one; elsewhere, weighted means over ever larger surroundings."""
    if min(values.shape[-2:]) < 2:
        mean = (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        return (weight * values + FILL * mean) / (weight + FILL)
    share = F.avg_pool2d(weight, 2, ceil_mode=True)
    mean = F.avg_pool2d(weight * values, 2, ceil_mode=True) / share.clamp(min=1e-6)
    size = (values.shape[-2], values.shape[-1])
    coarser = F.interpolate(filled(mean, share), size, mode="bilinear", align_corners=False)
    return (weight * values + FILL * coarser) / (weight + FILL)


def histograms(pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N G h w"]:
    """Histograms of gradients of each cell, of its quarters and its surroundings: what can be matched unlearned.

    Eight directions; quarters of the cell (32 channels) and the 3 x 3 cells around (72), each of unit length divided
    by sqrt(2), or less where there is hardly any texture.
    """
    luma = F.pad(pictures.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across, down = luma[..., 1:-1, 2:] - luma[..., 1:-1, :-2], luma[..., 2:, 1:-1] - luma[..., :-2, 1:-1]
    angles = torch.arange(8, device=luma.device) * (math.pi / 4)
    bins = torch.relu(across * angles.cos()[:, None, None] + down * angles.sin()[:, None, None])
    quarters = F.avg_pool2d(bins, CELL // 2)
    cells = F.avg_pool2d(quarters, 2)
    around = F.unfold(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3).reshape(len(cells), 72, *cells.shape[-2:])
    parts = [F.pixel_unshuffle(quarters, 2), around]
    return torch.cat([part / (part.norm(dim=1, keepdim=True) + 0.02) for part in parts], 1) / math.sqrt(2)


def _doubt(given: _Hint) -> Tensor:
    """Trust in each cell, and how far its pixels are from returning."""
    return torch.cat([F.avg_pool2d(given.trust, CELL), F.avg_pool2d(given.missed.log1p(), CELL)], 1)


def _unlike(flow: Tensor) -> Tensor:
    """Flow less its mean over 5 x 5 cells."""
    return flow - F.avg_pool2d(F.pad(flow, (2, 2, 2, 2), mode="replicate"), 5, 1)


def _pyramid(volume: Tensor, levels: int) -> list[Tensor]:
    """Correlation [B h w, 1, h / 2^l, w / 2^l] of each cell with all cells, pooled."""
    out = [volume.flatten(0, 1)[:, None]]
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
