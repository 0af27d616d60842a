"""Temporal fusion: what the neighbouring frames know of a pixel's depth (spec 5.2).

The inverse depth r_j that frame j has at u + f_ij, seen from frame i, is r = r_j / (R_ji x_j + r_j t_ji)_z. Frame j had
other views than frame i has, so their robust weighted mean has a wider baseline and less noise than either.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from worldline.align.flow_adjust import R_MIN, FlowState, relative_pose
from worldline.systems.parallax.representation import FLOW_UNIT, FlowPairs


def fuse(
    r: np.ndarray, c: np.ndarray, pairs: FlowPairs, state: FlowState, t: int, spread: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse depth and confidence [H, W] float32 of frame `t`, its own and its neighbours' taken together.

    Args:
        r: [T, H, W] float32 inverse depth of every frame on its own.
        c: [T, H, W] float32 its confidence.
        pairs: flows that say where a pixel is in the other frames.
        state: cameras.
        t: which frame.
        spread: relative difference at which two inverse depths disagree.
    """
    targets = pairs.targets()[t]
    slots = np.flatnonzero(targets >= 0)
    R, shift = np.empty((len(slots), 3, 3), np.float32), np.empty((len(slots), 3), np.float32)
    for n, k in enumerate(slots):
        R[n], shift[n] = relative_pose(state.w2c[targets[k]], state.w2c[t])
    intrinsics = state.intrinsics.astype(np.float32)
    return _fuse(r, c, pairs.flow[t], pairs.weight[t], slots, targets, R, shift, intrinsics, t, np.float32(spread))


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _fuse(r, c, flow, weight, slots, targets, R, shift, intrinsics, t, spread):
    height, width = r.shape[1], r.shape[2]
    fused, trust = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    values, weights = np.empty(len(slots) + 1, np.float32), np.empty(len(slots) + 1, np.float32)
    for y in range(height):
        for x in range(width):
            values[0], weights[0] = r[t, y, x], c[t, y, x]
            used = 1
            for n in range(len(slots)):
                k = slots[n]
                w = weight[k, y, x] / np.float32(255)
                if w < 0.1:
                    continue
                j = targets[k]
                u, v = x + flow[k, y, x, 0] / FLOW_UNIT, y + flow[k, y, x, 1] / FLOW_UNIT
                a, b = min(max(int(u + 0.5), 0), width - 1), min(max(int(v + 0.5), 0), height - 1)
                cj, rj = c[j, b, a], r[j, b, a]
                if cj < 0.02:
                    continue
                px, py = (u - intrinsics[j, 2]) / intrinsics[j, 0], (v - intrinsics[j, 3]) / intrinsics[j, 1]
                z = R[n, 2, 0] * px + R[n, 2, 1] * py + R[n, 2, 2] + rj * shift[n, 2]
                if z < 0.02:
                    continue
                values[used], weights[used] = max(rj / z, R_MIN), w * cj
                used += 1
            total = np.float32(1e-9)
            mean = np.float32(0)
            for n in range(used):
                total += weights[n]
                mean += weights[n] * values[n]
            mean /= total
            agree = total
            for _ in range(4):
                s, agree = np.float32(0), np.float32(1e-9)
                for n in range(used):
                    e = (values[n] - mean) / (spread * (abs(mean) + np.float32(0.05)))
                    q = weights[n] / ((1 + e * e) * (1 + e * e))
                    s += q * values[n]
                    agree += q
                mean = s / agree
            if total < 1e-6:
                fused[y, x], trust[y, x] = r[t, y, x], c[t, y, x]
            else:
                fused[y, x] = mean
                strength = agree / total  # do they agree with each other?
                trust[y, x] = min(np.float32(1), max(c[t, y, x], agree * np.float32(0.5))) * strength
    return fused, trust
