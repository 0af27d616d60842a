"""Flow between the neighbouring frames of a clip: directions, ends, errors, many pairs at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.align.optical_flow import learned_flow
from worldline.flow.dis import DisFlow, SureFlow, sized
from worldline.flow.learned import LearnedFlow
from worldline.flow.neighbours import UNSEEN_ERROR, flow_between, not_returning
from worldline.flow.network import FlowNetwork, NetworkConfig
from worldline.scene import Video

TINY = NetworkConfig(widths=(8, 12, 16), features=16, hidden=16, context=8, levels=2, radius=2, iterations=2, refine=8)


def panned(count: int = 3, step: int = 2) -> np.ndarray:
    """Frames [T, 48, 64, 3] of a blurred random picture; the camera moves right, so the picture moves left."""
    import cv2

    wide = cv2.GaussianBlur(np.random.default_rng(3).random((48, 64 + count * step, 3)), (0, 0), 1.5)
    wide = (255 * (wide - wide.min()) / np.ptp(wide)).astype(np.uint8)
    return np.stack([wide[:, t * step : t * step + 64] for t in range(count)])


def test_forward_is_to_the_next_frame_and_backward_to_the_one_before() -> None:
    found = flow_between(panned(), sized(DisFlow()))
    middle = (slice(None), slice(8, -8), slice(8, -8))
    assert (found.forward[:2][middle] - torch.tensor([-2.0, 0.0])).norm(dim=-1).mean() < 0.2
    assert (found.backward[1:][middle] - torch.tensor([2.0, 0.0])).norm(dim=-1).mean() < 0.2
    assert found.has_forward.tolist() == [True, True, False] and found.has_backward.tolist() == [False, True, True]
    for last in (found.forward[-1], found.backward[0], found.forward_error[-1], found.backward_error[0]):
        assert (last == 0).all()
    assert (found.forward_error[:2] >= UNSEEN_ERROR).all() and found.forward_error[:2][middle].mean() < 0.5


def test_what_does_not_return_is_in_doubt_by_that_much() -> None:
    forward, backward = np.zeros((20, 30, 2), np.float32), np.zeros((20, 30, 2), np.float32)
    forward[..., 0], backward[..., 0] = 3, -1
    assert np.allclose(not_returning(forward, backward)[:, :20], np.hypot(2, UNSEEN_ERROR))


def test_many_pairs_at_once_are_what_each_is_alone() -> None:
    torch.manual_seed(0)
    flow = LearnedFlow(FlowNetwork(TINY))
    assert isinstance(flow, SureFlow) and not isinstance(DisFlow(), SureFlow)
    frames = panned()[:, :45]  # 45 is no multiple of the network's cell
    clip = flow_between(torch.from_numpy(frames).float() / 255, flow)
    for t in (0, 1):
        ahead, doubt = flow.with_error(frames[t], frames[t + 1])
        np.testing.assert_allclose(clip.forward[t], ahead, atol=1e-4)
        np.testing.assert_allclose(clip.forward_error[t], doubt, rtol=1e-4)
        np.testing.assert_allclose(clip.backward[t + 1], flow(frames[t + 1], frames[t]), atol=1e-4)


def test_one_frame_has_no_neighbour_and_tiny_frames_are_refused() -> None:
    alone = flow_between(panned(1), sized(DisFlow()))
    assert alone.forward.shape == (1, 48, 64, 2) and not alone.has_forward.any() and not alone.has_backward.any()
    with pytest.raises(ValueError, match="16 x 16"):
        flow_between(np.zeros((2, 8, 64, 3), np.uint8))


class _Shift:
    """Everything moves left by two pixels a frame; the lower half is said to be off by three."""

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return self.with_error(source, target)[0]

    def with_error(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flow, error = np.zeros((48, 64, 2), np.float32), np.zeros((48, 64), np.float32)
        flow[..., 0] = -2 if source.mean() < target.mean() else 2  # frames grow brighter
        error[24:] = 3
        return flow, error


def test_alignment_leaves_out_what_the_flow_doubts_or_loses() -> None:
    frames = torch.stack([torch.full((48, 64, 3), 0.2 + 0.1 * t) for t in range(3)])
    flow = learned_flow(Video(frames=frames, timestamps=torch.arange(3).double()), _Shift())
    assert flow.shape == (2, 48, 64, 2)
    assert (flow[:, :24, 2:] == torch.tensor([-2.0, 0.0])).all()
    assert flow[:, 24:].isnan().all() and flow[:, :, :2].isnan().all()  # in doubt; out of the picture
