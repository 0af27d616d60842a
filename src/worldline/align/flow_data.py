"""Data of the motion terms: where samples go in the next frame, and which surfaces moved points must meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.initialize import Start
from worldline.align.observation import Observation
from worldline.align.pixels import measured_pixels
from worldline.align.sampling import Samples
from worldline.align.state import State
from worldline.geometry.pose import Similarity

_PER_PAIR = 96  # scene flow matches kept per pair of windows


@dataclass(frozen=True, kw_only=True)
class FlowTargets:
    """Optical flow at the samples.

    Attributes:
        target: [T, n, 2] pixels from the principal point of the next frame.
        weight: [T, n] 1 where the flow is known.
    """

    target: Float[Tensor, "T n 2"]
    weight: Float[Tensor, "T n"]


@dataclass(frozen=True, kw_only=True)
class FlowMatches:
    """Points moved by scene flow and the surface they should meet, in two windows.

    Attributes:
        window: [B] k.
        other: [B] l.
        source: [B, 3] P + V in window k.
        target: [B, 3] in window l.
    """

    window: Int[Tensor, " B"]
    other: Int[Tensor, " B"]
    source: Float[Tensor, "B 3"]
    target: Float[Tensor, "B 3"]


def flow_targets(
    samples: Samples, flow: Float[Tensor, "S H W 2"], size: tuple[int, int], priors: Priors
) -> FlowTargets:
    """Read a dense flow [T-1, H, W, 2] (NaN = unknown) at the samples.

    Raises:
        ValueError: the flow is not one field per pair of consecutive frames.
    """
    T = samples.num_frames
    if tuple(flow.shape) != (T - 1, *size, 2):
        raise ValueError(f"Optical flow is {list(flow.shape)}, but the video needs {[T - 1, *size, 2]}.")
    index = (samples.uv[..., 1] * size[1] + samples.uv[..., 0]).long()
    value = flow.flatten(1, 2).gather(1, index[:-1, :, None].expand(-1, -1, 2).to(flow.device)).cpu().double()
    value = (
        torch.cat([value, torch.full_like(value[:1], torch.nan)]) if T > 1 else torch.full_like(samples.uv, torch.nan)
    )
    known = torch.isfinite(value).all(-1)
    if priors.moving_mask is not None:
        known &= ~priors.moving_mask.flatten(1).gather(1, index)
    goal = samples.uv + torch.where(known[..., None], value, torch.zeros_like(value))
    shifted, _ = measured_pixels(goal.roll(1, 0), size, priors)  # in the intrinsics of the frame they arrive in
    return FlowTargets(target=shifted.roll(-1, 0), weight=known.double())


def fused_motion(samples: Samples, state: State) -> Float[Tensor, "T n 3"]:
    """World scene flow of the samples, averaged over windows; 0 where none is known."""
    T, n = samples.weight.shape[0], samples.uv.shape[1]
    total = torch.zeros(samples.num_frames, n, dtype=torch.float64)
    value = torch.zeros(samples.num_frames, n, 3, dtype=torch.float64)
    if samples.scene_flow is None or samples.flow_weight is None or T == 0:
        return value
    k = samples.window
    turn = state.windows.scale[k][:, None, None] * state.windows.rotation[k]
    total.index_add_(0, samples.frame, samples.flow_weight)
    value.index_add_(0, samples.frame, (samples.scene_flow @ turn.mT) * samples.flow_weight[..., None])
    return value / total.clamp_min(1e-12)[..., None]


def match_scene_flow(
    observations: Sequence[Observation], samples: Samples, start: Start, size: tuple[int, int], principal: Tensor
) -> FlowMatches | None:
    """Moved points of every window looked up in the other windows that see the next frame; None without any."""
    if samples.scene_flow is None or len(start.rig.centre) != samples.num_frames:
        return None
    seen = {
        k: set(samples.frame[samples.window == k].tolist()) for k in range(samples.num_windows) if bool(start.kept[k])
    }
    found: list[tuple[Tensor, ...]] = []
    for l in seen:
        near = [k for k in seen if k != l and any(n + 1 in seen[l] for n in seen[k])]
        other = observations[l].to("cpu") if near else None
        for k in near:
            match = _match(samples, start, k, l, other, size, principal) if other is not None else None
            if match is not None:
                found.append(match)
    if not found:
        return None
    window, across, source, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    return FlowMatches(window=window, other=across, source=source, target=target)


def _match(
    samples: Samples, start: Start, k: int, l: int, other: Observation, size: tuple[int, int], principal: Tensor
) -> tuple[Tensor, ...] | None:
    """Matches of one pair of windows, thinned to _PER_PAIR."""
    assert samples.scene_flow is not None and samples.flow_weight is not None
    s = start.windows
    one = Similarity(scale=s.scale[k], rotation=s.rotation[k], translation=s.translation[k])
    two = Similarity(scale=s.scale[l], rotation=s.rotation[l], translation=s.translation[l])
    rows = [
        (v, n) for v, n in enumerate(samples.frame.tolist()) if int(samples.window[v]) == k and n + 1 in other.frames
    ]
    if not rows:
        return None
    view, frame = (torch.tensor(c) for c in zip(*rows, strict=True))
    after = frame + 1
    moved = samples.points[view] + samples.scene_flow[view]
    local = (one.apply(moved) - start.rig.centre[after][:, None]) @ start.rig.rotation[after]
    focal = start.rig.log_focal.exp()
    focal = focal[after][:, None] if len(focal) > 1 else focal
    uv = local[..., :2] / local[..., 2:].clamp_min(1e-9) * focal[..., None] + principal[after][:, None]
    x, y = uv.round().unbind(-1)
    inside = (local[..., 2] > 0) & (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0]) & (samples.flow_weight[view] > 0)
    index = torch.where(inside, y * size[1] + x, torch.zeros_like(x)).long()
    place = torch.tensor([other.frames.index(n) for n in after.tolist()])
    target = other.points[place].flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 3)).double()
    weight = other.confidence[place].flatten(1).gather(1, index)
    gap = (two.apply(target) - one.apply(moved)).norm(dim=-1)
    good = torch.nonzero((inside & (weight > 0) & (gap < 0.2 * local[..., 2])).flatten()).flatten()
    if len(good) < 8:
        return None
    good = good[:: max(1, len(good) // _PER_PAIR)]
    ids = torch.full_like(good, k), torch.full_like(good, l)
    return *ids, moved.flatten(0, 1)[good], target.flatten(0, 1)[good]
