"""Numbers to colours: depth, confidence, time, and the direction of motion."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Rgb8 = UInt8[Tensor, "*shape 3"]

# Anchors evenly spaced over [0, 1]; lightness rises steadily in "depth" and "confidence", hue turns in "time".
_ANCHORS = {
    "depth": ["#0b0724", "#331067", "#641a80", "#982d80", "#cd4071", "#f2605c", "#fd9668", "#feca8d", "#fcf9bd"],
    "confidence": ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"],
    "time": ["#3b6fe0", "#22b5d8", "#2fd07a", "#b4dd2c", "#fbb61a", "#ed5b28", "#c9203c"],
}
Palette = Literal["depth", "confidence", "time"]


def colormap(values: Float[Tensor, "*shape"], palette: Palette = "depth") -> Float[Tensor, "*shape 3"]:
    """RGB in [0, 1] of values in [0, 1]; values outside are clamped, NaN counts as 0."""
    anchors = values.new_tensor([[int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)] for text in _ANCHORS[palette]])
    place = values.nan_to_num(0.0).clamp(0, 1) * (len(anchors) - 1)
    low = place.floor().long().clamp(max=len(anchors) - 2)
    return torch.lerp(anchors[low], anchors[low + 1], (place - low)[..., None])


def depth_range(depth: Float[Tensor, "*shape"], valid: Bool[Tensor, "*shape"]) -> tuple[float, float]:
    """(near, far) between which `depth_colors` spreads its colours: robust ends of the inverse depth."""
    inverse = 1 / depth[valid & (depth > 0) & depth.isfinite()]
    if not inverse.numel():
        return 1.0, 2.0
    far, near = torch.quantile(subsample(inverse), inverse.new_tensor([0.02, 0.98])).tolist()
    return 1 / near, 1 / far if far < near else 2 / near


def depth_colors(
    depth: Float[Tensor, "*shape"], valid: Bool[Tensor, "*shape"], limits: tuple[float, float]
) -> Float[Tensor, "*shape 3"]:
    """RGB in [0, 1] by inverse depth, near light and far dark; grey where not valid."""
    near, far = 1 / limits[0], 1 / limits[1]
    rgb = colormap((1 / depth.clamp(min=1e-12) - far) / max(near - far, 1e-12), "depth")
    return torch.where((valid & (depth > 0))[..., None], rgb, rgb.new_tensor(0.25))


def motion_scale(flow: Float[Tensor, "*shape 3"], valid: Bool[Tensor, "*shape"], floor: float) -> float:
    """Length of scene flow to show at full strength: that of the fast pixels, but at least `floor`."""
    length = flow[valid].norm(dim=-1)
    length = length[length.isfinite()]
    return max(float(torch.quantile(subsample(length), 0.98)) if length.numel() else 0.0, floor)


def motion_colors(
    flow_cam: Float[Tensor, "*shape 3"], valid: Bool[Tensor, "*shape"], scale: float
) -> Float[Tensor, "*shape 3"]:
    """RGB in [0, 1] of scene flow in camera axes.

    Hue is the direction across the view (right red, down yellow-green, left cyan, up violet); the farther it moves,
    the stronger the colour (white does not move); moving away darkens. Grey where not valid.
    """
    x, y, z = (flow_cam.nan_to_num(0.0) / scale).unbind(-1)
    length = torch.stack([x, y, z], -1).norm(dim=-1)
    strength = length.clamp(max=1)
    hue = torch.atan2(y, x)
    across = torch.hypot(x, y) / length.clamp(min=1e-12)
    value = 1 - 0.45 * strength * (z / length.clamp(min=1e-12)).clamp(0, 1)
    phases = hue.new_tensor([0.0, 2 * math.pi / 3, -2 * math.pi / 3])
    pure = 0.5 + 0.5 * torch.cos(hue[..., None] - phases)
    rgb = value[..., None] * (1 - (strength * (0.25 + 0.75 * across))[..., None] * (1 - pure))
    return torch.where(valid[..., None], rgb.clamp(0, 1), rgb.new_tensor(0.25))


def to_uint8(rgb: Float[Tensor, "*shape 3"]) -> Rgb8:
    """RGB in [0, 1] -> uint8."""
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def subsample(values: Float[Tensor, " n"], limit: int = 100_000) -> Float[Tensor, " m"]:
    """At most `limit` of the values, evenly picked: enough for a quantile."""
    return values[:: max(1, len(values) // limit)]
