"""Which frames of a sequence make a training clip, and what its scene flow then is."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import sceneflow


def frame_choice(available: int, length: int, stride: int = 1, start: int = 0) -> list[int]:
    """Indices of a clip of `length` frames: start, start + stride, ...; a short sequence is run back and forth.

    The stride is lowered until the clip fits; when even consecutive frames are too few, time is reversed at the ends
    (0 1 2 1 0 1 ...), and `clip_flow` will have no flow where it runs backwards.

    Raises:
        ValueError: there are no frames, or the numbers are not positive.
    """
    if available < 1 or length < 1 or stride < 1:
        raise ValueError(f"Cannot choose {length} frames with stride {stride} from {available}.")
    stride = min(stride, max((available - 1) // max(length - 1, 1), 1))
    span = (length - 1) * stride + 1
    if span <= available:
        start = min(max(start, 0), available - span)
        return list(range(start, start + span, stride))
    if available == 1:
        return [0] * length
    period = 2 * (available - 1)
    return [available - 1 - abs(available - 1 - i % period) for i in range(length)]


def clip_flow(
    points: Float[Tensor, "T H W 3"],
    scene_flow: Float[Tensor, "T H W 3"],
    flow_valid: Bool[Tensor, "T H W"],
    intrinsics: Float[Tensor, "T 3 3"],
    cam2world: Float[Tensor, "T 4 4"],
    chosen: list[int],
) -> tuple[Float[Tensor, "L H W 3"], Bool[Tensor, "L H W"]]:
    """Scene flow from each chosen frame to the next chosen one, and where it is known; 0 where it is not.

    Steps of several frames are composed by following the points; there is no flow backwards in time, to the same
    frame, or from the last frame.
    """
    steps = [later - earlier for earlier, later in zip(chosen, chosen[1:], strict=False)] + [0]
    composed = {
        step: sceneflow.compose(points, scene_flow, flow_valid, intrinsics, cam2world, step)
        for step in {step for step in steps if step > 0}
    }
    nothing = torch.zeros_like(scene_flow[0]), torch.zeros_like(flow_valid[0])
    parts = [
        (composed[step][0][frame], composed[step][1][frame]) if step > 0 else nothing
        for frame, step in zip(chosen, steps, strict=True)
    ]
    flow, valid = (torch.stack(pieces) for pieces in zip(*parts, strict=True))
    return torch.where(valid[..., None], flow, torch.zeros_like(flow)), valid
