"""Flow of every frame of a clip to the ones before and after it: what a network may see beside the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.flow import learned
from worldline.flow.dis import DisFlow, Flow, SureFlow, sized

UNSEEN_ERROR = 0.25  # px by which DIS is off where it returns to where it came from


@dataclass(frozen=True, kw_only=True)
class NeighbourFlow:
    """Flow between neighbouring frames, in pixels (x, y) of the frames given.

    Attributes:
        forward: [T, H, W, 2] where frame t's pixels are in frame t + 1, less where they are; zero at the last frame.
        backward: [T, H, W, 2] the same in frame t - 1; zero at the first frame.
        forward_error: [T, H, W] expected length of the error of `forward`; zero at the last frame.
        backward_error: [T, H, W] the same of `backward`; zero at the first frame.
        has_forward: [T] false at the last frame.
        has_backward: [T] false at the first frame.
    """

    forward: Float[Tensor, "T H W 2"]
    backward: Float[Tensor, "T H W 2"]
    forward_error: Float[Tensor, "T H W"]
    backward_error: Float[Tensor, "T H W"]
    has_forward: Bool[Tensor, " T"]
    has_backward: Bool[Tensor, " T"]


def flow_between(frames: Tensor | np.ndarray, flow: Flow | None = None) -> NeighbourFlow:
    """Flow and expected error between all neighbouring frames of a clip.

    Args:
        frames: [T, H, W, 3], uint8 or float in [0, 1]; any number, at least 16 x 16 pixels.
        flow: the method; None: the embedded learned flow if there is one, else DIS. Of a method that does not know its
            error, the distance by which forward and backward flow do not return stands for it.

    Returns:
        float32 tensors on the CPU.

    Raises:
        ValueError: not frames of at least 16 x 16 pixels.
    """
    pictures = _pictures(frames)
    count, (height, width) = len(pictures), pictures[0].shape[:2]
    flow = best() if flow is None else flow
    ways = [pair for t in range(count - 1) for pair in ((t, t + 1), (t + 1, t))]
    flows, errors = torch.zeros(2, count, height, width, 2), torch.zeros(2, count, height, width)
    for (source, target), (found, error) in zip(ways, _each(pictures, ways, flow), strict=True):
        way = int(target < source)
        flows[way, source], errors[way, source] = torch.from_numpy(found), torch.from_numpy(error)
    index = torch.arange(count)
    return NeighbourFlow(
        forward=flows[0],
        backward=flows[1],
        forward_error=errors[0],
        backward_error=errors[1],
        has_forward=index < count - 1,
        has_backward=index > 0,
    )


def best() -> Flow:
    """The embedded learned flow if this package has one, else DIS."""
    return learned.load() if learned.EMBEDDED.exists() else sized(DisFlow())


def _pictures(frames: Tensor | np.ndarray) -> list[np.ndarray]:
    values = torch.as_tensor(frames).detach().cpu()
    if values.ndim != 4 or values.shape[-1] != 3 or min(values.shape[1:3]) < 16 or len(values) == 0:
        raise ValueError(f"Flow needs frames [T, H, W, 3] of at least 16 x 16 pixels, got {tuple(values.shape)}.")
    if values.is_floating_point():
        values = (values.clamp(0, 1) * 255).round().byte()
    return list(values.contiguous().numpy())


def _each(
    pictures: Sequence[np.ndarray], ways: Sequence[tuple[int, int]], flow: Flow
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Flow and error of each of `ways`, which holds every pair in both directions, one after the other."""
    if isinstance(flow, learned.LearnedFlow):
        yield from flow.many(pictures, ways)
        return
    for one, two in ways[::2]:
        if isinstance(flow, SureFlow):
            yield flow.with_error(pictures[one], pictures[two])
            yield flow.with_error(pictures[two], pictures[one])
        else:
            ahead, back = flow(pictures[one], pictures[two]), flow(pictures[two], pictures[one])
            yield ahead, not_returning(ahead, back)
            yield back, not_returning(back, ahead)


def not_returning(forward: Float[np.ndarray, "H W 2"], backward: Float[np.ndarray, "H W 2"]) -> np.ndarray:
    """Distance [H, W] in pixels by which going forward and then backward misses the start; at least `UNSEEN_ERROR`."""
    import cv2

    height, width = forward.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = x + forward[..., 0], y + forward[..., 1]
    returned = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.hypot(np.linalg.norm(forward + returned, axis=-1), UNSEEN_ERROR).astype(np.float32)
