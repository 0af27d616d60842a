"""Dense optical flow at several frame gaps, both ways, with a forward-backward check (spec 1.1).

`worldline.flow.dis.Flow` is the whole interface, so that a learned flow can replace DIS without touching anything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from worldline.flow.dis import Flow, doubled
from worldline.io.arena import Arena
from worldline.scene import Progress, no_progress
from worldline.systems.parallax.representation import RELEASE_EVERY, FlowPairs, encode_flow, forward_backward_weight


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How flow is computed.

    Attributes:
        gaps: frame gaps always tried.
        further_gaps: gaps added in turn while the camera moves too slowly to see parallax at the ones before.
        slow_px: add the next gap while the median flow at the largest one is below this.
        patch_stride: DIS patch stride; 3 is denser and twice as slow as 4.
        noise_px: forward-backward error of a good match.
        relative: the same, squared and relative to squared flow length.
        small_pixels: frames with fewer pixels are doubled before their flow is computed, which halves its noise.
    """

    gaps: tuple[int, ...] = (1, 2, 4, 8)
    further_gaps: tuple[int, ...] = (16, 32)
    slow_px: float = 6.0
    patch_stride: int = 4
    noise_px: float = 0.5
    relative: float = 0.0025
    small_pixels: int = 24_000


def workers() -> int:
    """Threads worth starting on this machine."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def choose_gaps(pictures: Sequence[np.ndarray], flow: Flow, config: FlowConfig) -> tuple[int, ...]:
    """Gaps worth computing for this clip: those that exist, and longer ones where the image moves slowly."""
    count = len(pictures)
    gaps = [gap for gap in config.gaps if gap < count]
    for further in config.further_gaps:
        if not gaps or further * 2 > count:
            break
        starts = np.unique(np.linspace(0, count - 1 - gaps[-1], 6).astype(int))
        motion = [np.median(np.linalg.norm(flow(pictures[t], pictures[t + gaps[-1]]), axis=-1)) for t in starts]
        if not 0.2 < float(np.median(motion)) < config.slow_px:
            break
        gaps.append(further)
    return tuple(gaps)


def compute_flows(
    pictures: Sequence[np.ndarray],
    flow: Flow,
    config: FlowConfig,
    progress: Progress = no_progress,
    arena: Arena | None = None,
) -> FlowPairs:
    """Flows of every frame to the frames 1, 2, 4 ... before and after it.

    Args:
        pictures: T frames [H, W, 3] or [H, W] uint8.
        flow: the flow method.
        config: gaps and weights.
        progress: called once per frame.
        arena: where the flows live; by default in memory.
    """
    count, size = len(pictures), pictures[0].shape[:2]
    gaps = choose_gaps(pictures, flow, config)
    flow = doubled(flow) if size[0] * size[1] < config.small_pixels else flow
    offsets = tuple(sign * gap for gap in gaps for sign in (1, -1))
    arena = Arena(sys.maxsize) if arena is None else arena
    store = FlowPairs(
        offsets=offsets,
        flow=arena.zeros((count, len(offsets), *size, 2), np.int16),
        weight=arena.zeros((count, len(offsets), *size), np.uint8),
    )

    def compute(t: int) -> None:
        for k, gap in enumerate(gaps):
            if t + gap < count:
                ahead, back = flow(pictures[t], pictures[t + gap]), flow(pictures[t + gap], pictures[t])
                for host, slot, one, other in ((t, 2 * k, ahead, back), (t + gap, 2 * k + 1, back, ahead)):
                    weight = forward_backward_weight(one, other, config.noise_px, config.relative)
                    store.flow[host, slot], store.weight[host, slot] = encode_flow(one, weight)

    with ThreadPoolExecutor(workers()) as pool:
        for done, _ in enumerate(pool.map(compute, range(count)), 1):
            progress("optical flow", done, count)
            if done % RELEASE_EVERY == 0:
                arena.release()
    return store
