"""Dense optical flow for OpticalFlowTerm: OpenCV's DIS, which needs no weights, or the learned flow."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldline.flow import learned
from worldline.flow.dis import Flow
from worldline.flow.neighbours import flow_between
from worldline.scene import Video

_DOUBT = 1.0  # pixels of expected error beyond which a flow counts as unknown, plus 5 % of the flow
_TOLERANCE = 1.0  # pixels by which forward and backward flow may disagree, plus 5 % of the flow


def dis_flow(video: Video) -> Float[Tensor, "S H W 2"]:
    """Flow from each frame to the next, [T-1, H, W, 2] in pixels (x, y); NaN where forward and backward disagree.

    Raises:
        ValueError: frames smaller than 16 pixels, which DIS cannot handle.
    """
    import cv2

    height, width = video.size
    if min(height, width) < 16:
        raise ValueError(f"Optical flow needs frames of at least 16 x 16 pixels, got {height} x {width}.")
    grey = [cv2.cvtColor(f.numpy(), cv2.COLOR_RGB2GRAY) for f in (video.rgb() * 255).round().to(torch.uint8).cpu()]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    out = []
    for now, after in zip(grey, grey[1:], strict=False):
        empty = np.zeros((height, width, 2), np.float32)
        forward, backward = (torch.from_numpy(dis.calc(a, b, empty.copy())) for a, b in ((now, after), (after, now)))
        out.append(_consistent(forward, backward))
    return torch.stack(out) if out else torch.zeros(0, height, width, 2)


def learned_flow(video: Video, flow: Flow | None = None) -> Float[Tensor, "S H W 2"]:
    """The same by a flow that knows its error, by default the embedded one; NaN also where that error is large.

    Raises:
        FileNotFoundError: no learned flow is embedded.
        ValueError: frames smaller than 16 pixels.
    """
    found = flow_between(video.rgb(), flow or learned.load())
    out = []
    for t in range(len(video) - 1):
        ahead = _consistent(found.forward[t], found.backward[t + 1])
        sure = found.forward_error[t] < _DOUBT + 0.05 * found.forward[t].norm(dim=-1)
        out.append(torch.where(sure[..., None], ahead, torch.full_like(ahead, torch.nan)))
    return torch.stack(out) if out else torch.zeros(0, *video.size, 2)


def _consistent(forward: Tensor, backward: Tensor) -> Tensor:
    """Forward flow, NaN where following it forth and back does not return or leaves the image."""
    height, width = forward.shape[:2]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    tx, ty = (x + forward[..., 0]).round(), (y + forward[..., 1]).round()
    inside = (tx >= 0) & (tx < width) & (ty >= 0) & (ty < height)
    index = (ty.clamp(0, height - 1) * width + tx.clamp(0, width - 1)).long()
    gap = (forward + backward.flatten(0, 1)[index]).norm(dim=-1)
    good = inside & (gap < _TOLERANCE + 0.05 * forward.norm(dim=-1))
    return torch.where(good[..., None], forward, torch.full_like(forward, torch.nan))
