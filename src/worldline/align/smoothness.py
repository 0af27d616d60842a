"""How smoothly a camera moves, by evidence: the prior that makes noisy poses steady and leaves shaky cameras shaky."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.align.camera_terms import AccelerationTerm
from worldline.align.energy import Energy
from worldline.align.noise import normal_scale
from worldline.align.schur import Normal, reduced_system
from worldline.align.state import Columns, State

_MOST_FRAMES = 100  # of a long video that are asked, in its middle
_ROUNDS = 8


def first_guess(state: State) -> AccelerationTerm:
    """Standard deviations of the accelerations as they are now, noise included."""
    turn, move = AccelerationTerm(turn=1.0, move=1.0).residuals(state)
    return _floored(normal_scale(turn.norm(dim=-1), 3), normal_scale(move.norm(dim=-1), 3), state)


def by_evidence(data: Energy, normal: Normal, state: State, old: AccelerationTerm) -> AccelerationTerm:
    """MacKay's fixed point for the standard deviations of the camera's accelerations a:

        sigma^2 = sum a^2 / (N - trace(posterior variance of a) / sigma^2).

    An acceleration that the data cannot tell from noise does not count as freedom of the camera. The data enter as one
    linearisation with depths and windows marginalised.

    Args:
        data: the energy without smoothness.
        normal: its linearisation at the state.
        state: where it was linearised.
        old: standard deviations to begin with.
    """
    cameras = _chosen(state)
    S, g = _camera_system(data, normal, cameras)
    parts = _rows(state, cameras)
    sigma = [old.turn, old.move]
    step = torch.zeros(len(g), dtype=torch.float64)
    for _ in range(_ROUNDS):
        weights = []
        A, rhs = S.clone(), g.clone()
        for (J, r), s in zip(parts, sigma, strict=True):
            a = (r + (J @ step).reshape(r.shape)) / s
            w = (1 / (1 + (a * a).sum(-1) / 9)).repeat_interleave(3) / s**2
            weights.append(w)
            A += (J * w[:, None]).T @ J
            rhs += (J * w[:, None]).T @ r.flatten()
        scale = torch.diagonal(A).clamp_min(1e-300).rsqrt()
        factor, failed = torch.linalg.cholesky_ex(A * scale[:, None] * scale + 1e-10 * torch.eye(len(A), dtype=A.dtype))
        if int(failed):
            break
        step = -scale * torch.cholesky_solve((scale * rhs)[:, None], factor)[:, 0]
        covariance = torch.cholesky_inverse(factor) * scale[:, None] * scale
        sigma = [_update(J, r, w, s, step, covariance) for (J, r), w, s in zip(parts, weights, sigma, strict=True)]
    return _floored(sigma[0], sigma[1], state)


def _update(J: Tensor, r: Tensor, w: Tensor, sigma: float, step: Tensor, covariance: Tensor) -> float:
    a = r.flatten() + J @ step
    share = w * sigma**2  # robust weight of each acceleration
    variance = ((J @ covariance) * J).sum(-1)
    free = share.sum() - (w * variance).clamp(0, 1).sum()
    square = (share * a * a).sum()
    return max(float((square / free.clamp_min(0.05 * float(share.sum()))).sqrt()), 0.2 * sigma)


def _floored(turn: float, move: float, state: State) -> AccelerationTerm:
    depth = float(state.log_depth.exp().median())
    return AccelerationTerm(turn=max(turn, 1e-6), move=max(move, 1e-6 * depth))


def _chosen(state: State) -> Tensor:
    frames = min(len(state.centre), _MOST_FRAMES)
    return torch.arange(frames) + (len(state.centre) - frames) // 2


def _camera_system(data: Energy, normal: Normal, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Information and gradient of the data over [cameras, 6], windows and focal marginalised, gauge held."""
    columns: Columns = data.columns
    inside = columns.camera[cameras].flatten()
    low, high = int(inside.min()), int(inside.max()) + 1
    edge = torch.arange(columns.size - columns.border, columns.size)
    others = torch.cat([torch.arange(low, high), edge]).unique()
    others = others[~torch.isin(others, inside)]
    wanted = torch.cat([inside, others])
    S, g = reduced_system(normal, data.layout, wanted)
    scale = torch.diagonal(S).clamp_min(1e-300).rsqrt()
    S, n = S * scale[:, None] * scale + 1e-9 * torch.eye(len(S), dtype=S.dtype), len(inside)
    cross = torch.linalg.solve(S[n:, n:], torch.cat([S[n:, :n], (scale * g)[n:, None]], 1))
    reduced = S[:n, :n] - S[:n, n:] @ cross[:, :n]
    gradient = (scale * g)[:n] - S[:n, n:] @ cross[:, n]
    fixed = data.layout.fixed[inside] if data.layout.fixed is not None else torch.zeros(n, dtype=torch.bool)
    reduced[fixed, fixed] += 1e12
    return reduced / scale[:n, None] / scale[:n], gradient / scale[:n]


def _rows(state: State, cameras: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Jacobian [3(F-2), 6F] and value [F-2, 3] of the accelerations of rotation and centre."""
    F = len(cameras)
    part = State(
        rotation=state.rotation[cameras], centre=state.centre[cameras], log_focal=state.log_focal[:1],
        windows=state.windows, log_depth=state.log_depth[:1],
    )  # fmt: skip
    local = Columns(
        camera=torch.arange(6 * F).reshape(F, 6), focal=torch.zeros(F, dtype=torch.long),
        window=torch.zeros(0, 7, dtype=torch.long), disparity=torch.zeros(0, 2, dtype=torch.long),
        trajectory=torch.zeros(0, 7, dtype=torch.long), size=6 * F, border=0, bandwidth=None,
    )  # fmt: skip
    out = []
    for rows in AccelerationTerm(turn=1.0, move=1.0).camera_rows(part, local):
        J = torch.zeros(len(rows.r) * 3, 6 * F, dtype=torch.float64)
        index = rows.columns[:, None, :].expand(-1, 3, -1).flatten(0, 1)
        J.scatter_(1, index, rows.J.flatten(0, 1))
        out.append((J, rows.r))
    return out
