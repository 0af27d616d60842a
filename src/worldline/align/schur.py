"""Levenberg-Marquardt for problems with one scalar per point: sum of robust squared residuals r(camera, point).

Unknowns: a vector x of D "camera" parameters (poses, focal, window similarities ...) and, for every point i, one scalar
d_i (its depth, inverse depth ...) that is seen together with few camera parameters. Each step solves

    [ H    E  ] [dx]     [g]
    [ E^T  h  ] [dd] = - [b]        H, h damped by (1 + lambda) on their diagonals,

by eliminating the points (h is diagonal):  (H - E h^-1 E^T) dx = -g + E h^-1 b,   dd = -(b + E^T dx) / h.

How to use it: write a class with the three methods of `Problem` and call `minimise(problem, state)`.

    class MyProblem:
        layout = Layout(size=6 * T + 1, border=1)           # cameras first, the global focal last
        def linearize(self, state) -> Normal: ...           # residuals, Jacobians, IRLS weights -> normal blocks
        def cost(self, state) -> float: ...                 # the same robust cost, without Jacobians
        def retract(self, state, dx, dd) -> state: ...      # dx [D] float64; dd: [B, N] per PointBlock, same order

With residuals r, camera Jacobian J (over the block's own L columns), point Jacobian p and robust weights w (for a
robust function rho(|r|): w = rho'(|r|) / |r|), the blocks are  H = J^T w J, g = J^T w r  (`CameraBlock`) and, per
point, E = J^T w p, h = p^T w p, b = p^T w r  (`PointBlock`). Points whose J touches the same columns go into one
block; blocks of equal sizes are batched along B. cost must be the robust sum that these weights belong to (sum rho,
with rho = w r^2 / 2 for plain least squares), so that "accept if the cost falls" is honest.

Dense Cholesky when `Layout.bandwidth` is None; otherwise parameters i, j < D - border may couple only if
|i - j| < bandwidth, and the last `border` parameters couple with everything (banded Cholesky with a dense border: time
and memory linear in D). Columns of -1 are ignored, so blocks may be padded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CameraBlock:
    """Normal equations over some camera parameters.

    Attributes:
        columns: [B, L] int64, which parameter each column is (-1: ignored).
        H: [B, L, L] J^T w J.
        g: [B, L] J^T w r.
    """

    columns: Tensor
    H: Tensor
    g: Tensor


@dataclass(frozen=True, kw_only=True)
class PointBlock:
    """Coupling of B x N points with the L camera parameters of their group.

    Attributes:
        columns: [B, L] int64, which parameter each column is (-1: ignored).
        E: [B, N, L] J^T w p of every point.
        h: [B, N] p^T w p; points with h = 0 stay where they are.
        b: [B, N] p^T w r.
        basis: [B, M, L] or None: E is then given as [B, N, M] with M < L or sparser, and E basis is meant.
    """

    columns: Tensor
    E: Tensor
    h: Tensor
    b: Tensor
    basis: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Normal:
    """One linearisation: the robust cost and its normal equations in blocks."""

    cost: float
    cameras: list[CameraBlock]
    points: list[PointBlock] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Shape of the camera system.

    Attributes:
        size: D, number of camera parameters.
        border: how many of them, at the end, couple with everything (focal, ...).
        bandwidth: None for dense; else |i - j| < bandwidth for all coupled i, j in front of the border.
        fixed: [D] bool, parameters that must not move (gauge, known values), or None.
    """

    size: int
    border: int = 0
    bandwidth: int | None = None
    fixed: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Schedule of Levenberg-Marquardt.

    Attributes:
        iterations: most linearisations.
        damping: initial lambda.
        min_damping: lambda never falls below this.
        tolerance: stop when an accepted step lowers the cost by less than this fraction.
        retries: most rejected steps in a row before giving up.
    """

    iterations: int = 20
    damping: float = 1e-4
    min_damping: float = 1e-9
    tolerance: float = 1e-6
    retries: int = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """Where the minimiser ended: the state, its cost, the cost after every accepted step (first = start)."""

    state: Any
    cost: float
    history: tuple[float, ...]


@runtime_checkable
class Problem(Protocol):
    """What `minimise` needs to know; see the module's docstring."""

    @property
    def layout(self) -> Layout: ...  # noqa: D102

    def linearize(self, state: Any) -> Normal: ...  # noqa: D102

    def cost(self, state: Any) -> float: ...  # noqa: D102

    def retract(self, state: Any, dx: Tensor, dd: list[Tensor]) -> Any: ...  # noqa: D102


def minimise(problem: Problem, state: Any, config: LMConfig = LMConfig(), first: Normal | None = None) -> Result:
    """Lower the cost by damped Gauss-Newton steps, accepting only steps that lower it.

    Args:
        problem: see `Problem`.
        state: where to start.
        config: schedule.
        first: the linearisation at `state` where it is known already.
    """
    damping = config.damping
    history: list[float] = []
    for number in range(config.iterations):
        normal = first if number == 0 and first is not None else problem.linearize(state)
        if not history:
            history.append(normal.cost)
        cost = normal.cost
        accepted = False
        for _ in range(config.retries):
            step = solve_step(normal, problem.layout, damping)
            if step is not None:
                candidate = problem.retract(state, *step)
                cost = problem.cost(candidate)
                accepted = bool(np.isfinite(cost)) and cost < normal.cost
            if accepted:
                break
            damping = max(damping * 8, 1e-8)
        if not accepted:
            break
        state, damping = candidate, max(damping / 5, config.min_damping)
        history.append(cost)
        if normal.cost - cost <= config.tolerance * abs(normal.cost):
            break
    if not history:
        history.append(problem.cost(state))
    return Result(state=state, cost=history[-1], history=tuple(history))


def solve_step(normal: Normal, layout: Layout, damping: float) -> tuple[Tensor, list[Tensor]] | None:
    """One damped step (dx [D] float64, one [B, N] per point block), or None where the system is not positive."""
    blocks, inverses = _reduced_blocks(normal, damping)
    dx = _solve_reduced(blocks, layout)
    if dx is None:
        return None
    return dx, [_back_substitute(block, inverse, dx) for block, inverse in zip(normal.points, inverses, strict=True)]


def _damped(H: Tensor, damping: float) -> Tensor:
    return H + damping * torch.diag_embed(torch.diagonal(H, dim1=-2, dim2=-1))


def _back_substitute(block: PointBlock, inverse: Tensor, dx: Tensor) -> Tensor:
    local = dx.to(block.E)[block.columns.clamp_min(0).to(block.E.device)] * (block.columns >= 0).to(block.E)
    local = local.unsqueeze(-1) if block.basis is None else block.basis @ local.unsqueeze(-1)
    return -inverse * (block.b + torch.matmul(block.E, local).squeeze(-1))


def reduced_system(normal: Normal, layout: Layout, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The undamped Schur complement and gradient over some parameters: [n, n] and [n], float64.

    The inverse of the matrix is the covariance of these parameters with the points marginalised, given the parameters
    left out; fixed parameters have a unit diagonal and no gradient.
    """
    place = torch.full((layout.size,), -1, dtype=torch.long)
    place[wanted] = torch.arange(len(wanted))
    if layout.fixed is not None:
        place[layout.fixed.cpu()] = -1
    total = torch.zeros(len(wanted) + 1, len(wanted) + 1, dtype=torch.float64)
    gradient = torch.zeros(len(wanted) + 1, dtype=torch.float64)
    for columns, H, g in _reduced_blocks(normal, 0.0)[0]:
        local = place[columns.cpu()] * (columns.cpu() >= 0) + len(wanted) * (columns.cpu() < 0)
        local = torch.where(local < 0, len(wanted), local)
        index = local[:, :, None] * len(total) + local[:, None, :]
        total.view(-1).index_add_(0, index.flatten(), H.double().cpu().flatten())
        gradient.index_add_(0, local.flatten(), g.double().cpu().flatten())
    total = total[:-1, :-1]
    empty = torch.diagonal(total) <= 0
    total[empty, empty] = 1.0
    return total, gradient[:-1]


def _reduced_blocks(normal: Normal, damping: float) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[Tensor]]:
    """Blocks (columns, H, g) of the camera system with the points eliminated, and 1 / h of every point block."""
    blocks = [(block.columns, _damped(block.H, damping), block.g) for block in normal.cameras]
    inverses = []
    for block in normal.points:
        tiny = 1e-300 if block.h.dtype == torch.float64 else 1e-37
        inverse = torch.where(block.h > 0, 1 / (block.h.clamp_min(tiny) * (1 + damping)), torch.zeros_like(block.h))
        inverses.append(inverse)
        scaled = block.E * inverse.unsqueeze(-1)
        H = -torch.matmul(scaled.mT, block.E)
        g = -torch.matmul(scaled.mT, block.b.unsqueeze(-1))
        if block.basis is not None:
            H, g = block.basis.mT @ H @ block.basis, block.basis.mT @ g
        blocks.append((block.columns, H, g.squeeze(-1)))
    return blocks, inverses


def _solve_reduced(blocks: list[tuple[Tensor, Tensor, Tensor]], layout: Layout) -> Tensor | None:
    """Solve the assembled system for dx; fixed and never-mentioned parameters get a zero step."""
    fixed = np.zeros(layout.size, bool) if layout.fixed is None else layout.fixed.cpu().numpy().astype(bool)
    inner = layout.size - layout.border
    width = inner if layout.bandwidth is None else min(layout.bandwidth, max(inner, 1))
    band = np.zeros((max(width, 1), max(inner, 1)))
    border = np.zeros((layout.size, layout.border))
    dense = np.zeros((layout.size, layout.size)) if layout.bandwidth is None else None
    gradient = np.zeros(layout.size)
    for columns_t, H_t, g_t in blocks:
        columns, H, g = (value.detach().cpu().numpy() for value in (columns_t, H_t.double(), g_t.double()))
        usable = (columns >= 0) & ~fixed[np.maximum(columns, 0)]
        np.add.at(gradient, columns[usable], g[usable])
        pair = usable[:, :, None] & usable[:, None, :]
        rows, cols = np.broadcast_arrays(columns[:, :, None], columns[:, None, :])
        rows, cols, values = rows[pair], cols[pair], H[pair]
        if dense is not None:
            dense += np.bincount(rows * layout.size + cols, values, layout.size**2).reshape(dense.shape)
        else:
            _scatter_banded(band, border, rows, cols, values, inner)
    if dense is not None:
        return _solve_dense(dense, gradient)
    return _solve_banded(band, border, gradient, layout)


def _scatter_banded(
    band: np.ndarray, border: np.ndarray, rows: np.ndarray, cols: np.ndarray, values: np.ndarray, inner: int
) -> None:
    edge = cols >= inner
    np.add.at(border, (rows[edge], cols[edge] - inner), values[edge])
    lower = (rows >= cols) & (rows < inner)
    if lower.any() and int((rows - cols)[lower].max()) >= len(band):
        raise ValueError("Parameters couple beyond Layout.bandwidth: order them along time or widen the band.")
    np.add.at(band, ((rows - cols)[lower], cols[lower]), values[lower])


def _solve_dense(H: np.ndarray, g: np.ndarray) -> Tensor | None:
    from scipy.linalg import cho_factor, cho_solve

    diagonal = np.diagonal(H).copy()
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.maximum(diagonal, 1e-300)), 0.0)
    scaled = H * scale[:, None] * scale[None, :]
    np.fill_diagonal(scaled, np.where(scale > 0, 1 + 1e-12, 1.0))
    try:
        step = -scale * cho_solve(cho_factor(scaled, lower=True, overwrite_a=True), scale * g)
    except np.linalg.LinAlgError:
        return None
    return torch.from_numpy(step) if np.isfinite(step).all() else None


def _solve_banded(band: np.ndarray, border: np.ndarray, g: np.ndarray, layout: Layout) -> Tensor | None:
    from worldline.align.banded import solve_banded

    inner, edge = layout.size - layout.border, layout.border
    diagonal = np.concatenate([band[0][:inner], np.diagonal(border[inner:])])
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.maximum(diagonal, 1e-300)), 0.0)
    for offset in range(min(len(band), inner)):
        band[offset, : inner - offset] *= scale[offset:inner] * scale[: inner - offset]
    band[0] = np.where(scale[:inner] > 0, 1 + 1e-12, 1.0) if inner else 1.0
    border = border * scale[:, None] * scale[None, inner:]
    rhs = np.concatenate([border[:inner], -(scale * g)[:inner, None]], axis=1)
    solved = solve_banded(band, rhs) if inner else rhs
    if solved is None:
        return None
    step = np.empty(layout.size)
    corner = border[inner:] - border[:inner].T @ solved[:, :edge]
    corner[np.diag_indices(edge)] += np.where(scale[inner:] > 0, 1e-12, 1.0)
    right = -(scale * g)[inner:] - border[:inner].T @ solved[:, edge]
    step[inner:] = np.linalg.lstsq(corner, right, rcond=None)[0] if edge else right
    step[:inner] = solved[:, edge] - solved[:, :edge] @ step[inner:]
    step *= scale
    return torch.from_numpy(step) if np.isfinite(step).all() else None
