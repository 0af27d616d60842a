"""Dense optical flow at several frame gaps, both ways, with a forward-backward check (spec 1.1).

Any `worldline.flow.dis.Flow` will do. One that knows how far it is off (`SureFlow`) counts less where it says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from worldline.flow import learned
from worldline.flow.dis import SMALL_PIXELS, DisFlow, Flow, SureFlow, sized
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
        error_px: expected error at which a flow that knows its error counts half.
        small_pixels: frames with fewer pixels are doubled before a flow that knows no error is computed, which halves
            DIS's noise.
    """

    gaps: tuple[int, ...] = (1, 2, 4, 8)
    further_gaps: tuple[int, ...] = (16, 32)
    slow_px: float = 6.0
    patch_stride: int = 4
    noise_px: float = 0.5
    relative: float = 0.0025
    error_px: float = 1.0
    small_pixels: int = SMALL_PIXELS


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
    flow = flow if isinstance(flow, SureFlow) else sized(flow, config.small_pixels)
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
                found = both_ways(flow, pictures[t], pictures[t + gap], config)
                for host, slot, (one, weight) in ((t, 2 * k, found[0]), (t + gap, 2 * k + 1, found[1])):
                    store.flow[host, slot], store.weight[host, slot] = encode_flow(one, weight)

    with ThreadPoolExecutor(workers()) as pool:
        for done, _ in enumerate(pool.map(compute, range(count)), 1):
            progress("optical flow", done, count)
            if done % RELEASE_EVERY == 0:
                arena.release()
    return store


def flow_of(name: str, config: FlowConfig) -> Flow:
    """The flow of a name, "dis" or "learned".

    Raises:
        ValueError: there is no such flow.
    """
    if name not in ("dis", "learned"):
        raise ValueError(f"There is no flow '{name}'; choose dis or learned.")
    return DisFlow(config.patch_stride) if name == "dis" else learned.load()


Weighted = tuple[np.ndarray, np.ndarray]
"""Flow [H, W, 2] in pixels and how much it counts [H, W], 0 to 1."""


def both_ways(flow: Flow, one: np.ndarray, two: np.ndarray, config: FlowConfig) -> tuple[Weighted, Weighted]:
    """Flow from the first picture to the second and back, each with its weight.

    The weight is that of the forward-backward check; of a flow with expected error s also 1 / (1 + (s / error_px)^2).
    """
    if isinstance(flow, SureFlow):
        (ahead, doubt), (back, other) = flow.with_error(one, two), flow.with_error(two, one)
        belief = [1 / (1 + np.square(error / config.error_px)) for error in (doubt, other)]
    else:
        ahead, back = flow(one, two), flow(two, one)
        belief = [np.ones(()), np.ones(())]
    pairs = ((ahead, back, belief[0]), (back, ahead, belief[1]))
    ways = [(a, sure * forward_backward_weight(a, b, config.noise_px, config.relative)) for a, b, sure in pairs]
    return ways[0], ways[1]
