"""What parallax observes of a video: dense flow pairs, and a sparse grid of matches taken from them.

Every frame ("host") looks at the frames `offset` before and after it ("targets"), one slot per offset. Dense flows are
kept in 16-bit fixed point (1/128 px, finer than DIS's noise) with an 8-bit forward-backward weight, in an `Arena`, so
that a thousand frames need no more memory than fifty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from numba import njit

from worldline.align.flow_adjust import Matches
from worldline.io.arena import Arena

FLOW_UNIT = 128.0  # fixed-point steps per pixel
FLOW_LIMIT = 32767.0 / FLOW_UNIT  # px; flows beyond are invalid
RELEASE_EVERY = 16  # frames between two calls of `Arena.release`


@dataclass(frozen=True, kw_only=True)
class FlowPairs:
    """Dense flows of a clip.

    Attributes:
        offsets: target minus host frame of each slot, e.g. (1, -1, 2, -2, ...); length K.
        flow: [T, K, H, W, 2] int16, pixels times `FLOW_UNIT`.
        weight: [T, K, H, W] uint8, forward-backward weight times 255; 0 where the target does not exist.
    """

    offsets: tuple[int, ...]
    flow: np.ndarray
    weight: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        return self.flow.shape[2], self.flow.shape[3]

    def slot(self, offset: int) -> int:
        """Index of the slot that looks `offset` frames ahead; ValueError if there is none."""
        return self.offsets.index(offset)

    def read(self, host: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
        """Flow [H, W, 2] in pixels and weight [H, W] in [0, 1], float32, from `host` to `host + offset`."""
        k = self.slot(offset)
        return self.flow[host, k].astype(np.float32) / FLOW_UNIT, self.weight[host, k].astype(np.float32) / 255

    def targets(self) -> np.ndarray:
        """[T, K] frame each slot looks at, -1 where that is outside of the clip."""
        count = len(self.flow)
        target = np.arange(count)[:, None] + np.asarray(self.offsets, np.int64)[None]
        return np.where((target >= 0) & (target < count), target, -1).astype(np.int32)


def encode_flow(flow: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixed point of one flow [H, W, 2] and its weight [H, W]; weight 0 where the flow does not fit."""
    fits = np.abs(flow).max(-1) < FLOW_LIMIT
    scaled = np.rint(np.where(fits[..., None], flow, 0) * FLOW_UNIT).astype(np.int16)
    return scaled, np.rint(np.where(fits, weight, 0) * 255).astype(np.uint8)


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def forward_backward_weight(forward, backward, noise, relative):
    """Trust [H, W] in `forward` (both [H, W, 2] float32): exp(-e2 / 2 s2) with e = f(u) + b(u + f(u)).

    s2 = noise^2 + relative |f|^2 (px^2); zero where e2 > 8 s2 or the target is outside of the frame (spec 1.1).
    """
    height, width = forward.shape[0], forward.shape[1]
    weight = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            fx, fy = forward[y, x, 0], forward[y, x, 1]
            tx, ty = x + fx, y + fy
            if not (tx >= 0 and ty >= 0 and tx <= width - 1 and ty <= height - 1):
                continue
            x0, y0 = min(int(tx), width - 2), min(int(ty), height - 2)
            ax, ay = tx - x0, ty - y0
            ex = fx + (1 - ay) * ((1 - ax) * backward[y0, x0, 0] + ax * backward[y0, x0 + 1, 0])
            ey = fy + (1 - ay) * ((1 - ax) * backward[y0, x0, 1] + ax * backward[y0, x0 + 1, 1])
            ex += ay * ((1 - ax) * backward[y0 + 1, x0, 0] + ax * backward[y0 + 1, x0 + 1, 0])
            ey += ay * ((1 - ax) * backward[y0 + 1, x0, 1] + ax * backward[y0 + 1, x0 + 1, 1])
            error, scale = ex * ex + ey * ey, noise * noise + relative * (fx * fx + fy * fy)
            if error < 8 * scale:
                weight[y, x] = np.exp(-error / (2 * scale))
    return weight


def texture(gray: np.ndarray) -> np.ndarray:
    """Mean squared grey-level gradient in 9x9 px, [H, W] float32: how much flow has to hold on to."""
    import cv2

    image = gray.astype(np.float32)
    gx, gy = cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=0.125)
    return cv2.blur(gx * gx + gy * gy, (9, 9))


def lookup(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Bilinear values [H, W] of `image` where `flow` [H, W, 2] leads to; edge values outside."""
    import cv2

    height, width = image.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def grid_pixels(size: tuple[int, int], count: int) -> np.ndarray:
    """About `count` integer pixels [N, 2] (x, y) on a regular grid, half a step away from the border."""
    height, width = size
    step = max(1.0, float(np.sqrt(height * width / count)))
    rows, cols = max(1, round(height / step)), max(1, round(width / step))
    ys = ((np.arange(rows) + 0.5) * height / rows - 0.5).round()
    xs = ((np.arange(cols) + 0.5) * width / cols - 0.5).round()
    return np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)


def take_matches(pairs: FlowPairs, count: int, arena: Arena, moving: np.ndarray | None = None) -> Matches:
    """The matches of a regular grid of about `count` points per frame (spec 1.2): what cameras are solved from.

    Those that start on something known to move, `moving` [T, H, W] bool, get no weight.
    """
    frames, slots = len(pairs.flow), len(pairs.offsets)
    points = grid_pixels(pairs.size, count)
    x, y = points[:, 0].astype(int), points[:, 1].astype(int)
    goal = arena.zeros((frames, slots, len(points), 2), np.float32)
    weight = arena.zeros((frames, slots, len(points)), np.float32)
    for t in range(frames):
        goal[t] = points + pairs.flow[t][:, y, x].astype(np.float32) / FLOW_UNIT
        still = 1 if moving is None else ~moving[t, y, x]
        weight[t] = pairs.weight[t][:, y, x].astype(np.float32) / 255 * still
        if t % RELEASE_EVERY == 0:
            arena.release()
    pixels = arena.zeros((frames, len(points), 2), np.float32)
    pixels[:] = points
    return Matches(pixels=pixels, target=pairs.targets(), goal=goal, weight=weight)
