"""How the published pipeline cut and joined windows: kept only to compare numbers with it, never used by `infer`.

It blends LATENTS of windows that live in different world frames, and by default does not even do that (overlap 0), so a
clip longer than one window jumps at every boundary (spec 3.4, 6.1). `infer` aligns the windows' points instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def plan(num_frames: int, window: int, overlap: int) -> list[range]:
    """The published windows: they start every window - overlap frames, and the last one may be a single frame."""
    if num_frames <= window:
        return [range(num_frames)]
    return [range(start, min(start + window, num_frames)) for start in range(0, num_frames - overlap, window - overlap)]


def stitch(
    frames: Float[Tensor, "B T ..."], window: int, overlap: int, process: Callable[[Tensor, int], Tensor]
) -> Float[Tensor, "B T ..."]:
    """Run `process(frames of a window, its number)`; cross-fade overlapping results with weights 0 to 1 inclusive."""
    windows = plan(frames.shape[1], window, overlap)
    overlap = overlap if len(windows) > 1 else 0
    joined: Tensor | None = None
    for number, chosen in enumerate(windows):
        result = process(frames[:, chosen.start : chosen.stop], number)
        if joined is None:
            joined = result
            continue
        if overlap:
            newer = torch.linspace(0, 1, overlap, dtype=result.dtype, device=result.device)
            newer = newer.reshape(1, overlap, *[1] * (result.ndim - 2))
            blended = (1 - newer) * joined[:, -overlap:] + newer * result[:, :overlap]
            joined = torch.cat([joined[:, :-overlap], blended], dim=1)
        joined = torch.cat([joined, result[:, overlap:]], dim=1)
    assert joined is not None
    return joined
