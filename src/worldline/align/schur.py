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

from collections.abc import Iterator
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

    def parts(self) -> Iterator[Normal]:
        """Itself: all of it is in memory."""
        yield self

    def back_substitute(self, dx: Tensor, damping: float) -> list[Tensor]:
        """The points' step that belongs to the cameras' step dx [D], [B, N] per block of points."""
        return [_back_substitute(block, _inverse(block, damping), dx) for block in self.points]


@runtime_checkable
class Linear(Protocol):
    """One linearisation: a `Normal`, or one whose parts are made each time they are asked for and then forgotten."""

    @property
    def cost(self) -> float: ...  # noqa: D102

    def parts(self) -> Iterator[Normal]: ...  # noqa: D102

    def back_substitute(self, dx: Tensor, damping: float) -> list[Tensor]: ...  # noqa: D102


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

    def linearize(self, state: Any) -> Linear: ...  # noqa: D102

    def cost(self, state: Any) -> float: ...  # noqa: D102

    def retract(self, state: Any, dx: Tensor, dd: list[Tensor]) -> Any: ...  # noqa: D102


def minimise(problem: Problem, state: Any, config: LMConfig = LMConfig(), first: Linear | None = None) -> Result:
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


def solve_step(normal: Linear, layout: Layout, damping: float) -> tuple[Tensor, list[Tensor]] | None:
    """One damped step (dx [D] float64, one [B, N] per point block), or None where the system is not positive."""
    system = CameraSystem(layout)
    for part in normal.parts():
        for block in reduced_blocks(part, damping):
            system.add(*block)
    dx = system.solve()
    return None if dx is None else (dx, normal.back_substitute(dx, damping))


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
    for columns, H, g in reduced_blocks(normal, 0.0):
        local = place[columns.cpu()] * (columns.cpu() >= 0) + len(wanted) * (columns.cpu() < 0)
        local = torch.where(local < 0, len(wanted), local)
        index = local[:, :, None] * len(total) + local[:, None, :]
        total.view(-1).index_add_(0, index.flatten(), H.double().cpu().flatten())
        gradient.index_add_(0, local.flatten(), g.double().cpu().flatten())
    total = total[:-1, :-1]
    empty = torch.diagonal(total) <= 0
    total[empty, empty] = 1.0
    return total, gradient[:-1]


def _inverse(block: PointBlock, damping: float) -> Tensor:
    """1 / h, damped; 0 where h is."""
    tiny = 1e-300 if block.h.dtype == torch.float64 else 1e-37
    return torch.where(block.h > 0, 1 / (block.h.clamp_min(tiny) * (1 + damping)), torch.zeros_like(block.h))


def reduced_blocks(normal: Normal, damping: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Blocks (columns, H, g) of the camera system with the points eliminated."""
    blocks = [(block.columns, _damped(block.H, damping), block.g) for block in normal.cameras]
    for block in normal.points:
        scaled = block.E * _inverse(block, damping).unsqueeze(-1)
        H = -torch.matmul(scaled.mT, block.E)
        g = -torch.matmul(scaled.mT, block.b.unsqueeze(-1))
        if block.basis is not None:
            H, g = block.basis.mT @ H @ block.basis, block.basis.mT @ g
        blocks.append((block.columns, H, g.squeeze(-1)))
    return blocks


class CameraSystem:
    """The camera system H dx = -g while blocks are added to it; fixed and never-mentioned parameters do not move."""

    def __init__(self, layout: Layout) -> None:
        """An empty system."""
        self._layout = layout
        inner = layout.size - layout.border
        self._dense = layout.bandwidth is None
        shape = (0, 0) if layout.bandwidth is None else (inner, max(1, min(layout.bandwidth, max(inner, 1))))
        self._columns, self._gradient = np.zeros(shape), np.zeros(layout.size)
        self._border = np.zeros((layout.size, layout.size - shape[0]))
        self._fixed = np.zeros(layout.size, bool) if layout.fixed is None else layout.fixed.cpu().numpy().astype(bool)

    def add(self, columns: Tensor, H: Tensor, g: Tensor) -> None:
        """Add blocks over some parameters, shapes as in `CameraBlock`.

        Raises:
            ValueError: parameters couple that lie farther apart than the band is wide.
        """
        from worldline.align.banded import add_blocks

        index, square, vector = (
            np.ascontiguousarray(v.detach().cpu().numpy()) for v in (columns, H.double(), g.double())
        )
        if not add_blocks(self._columns, self._border, self._gradient, index, square, vector, self._fixed):
            raise ValueError("Parameters couple beyond Layout.bandwidth: order them along time or widen the band.")

    def solve(self) -> Tensor | None:
        """The step dx [D], or None where the system is not positive; what was added is used up."""
        if self._dense:
            return _solve_dense(self._border, self._gradient)
        return _solve_banded(self._columns, self._border, self._gradient)


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


def _solve_banded(columns: np.ndarray, border: np.ndarray, g: np.ndarray) -> Tensor | None:
    from worldline.align.banded import scale_columns, solve_banded

    (inner, _), edge = columns.shape, border.shape[1]
    diagonal = np.concatenate([columns[:, 0], np.diagonal(border[inner:])])
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.maximum(diagonal, 1e-300)), 0.0)
    scale_columns(columns, scale)
    border = border * scale[:, None] * scale[None, inner:]
    rhs = np.concatenate([border[:inner], -(scale * g)[:inner, None]], axis=1)
    solved = solve_banded(columns, rhs) if inner else rhs
    if solved is None:
        return None
    step = np.empty(len(g))
    corner = border[inner:] - border[:inner].T @ solved[:, :edge]
    corner[np.diag_indices(edge)] += np.where(scale[inner:] > 0, 1e-12, 1.0)
    right = -(scale * g)[inner:] - border[:inner].T @ solved[:, edge]
    step[inner:] = np.linalg.lstsq(corner, right, rcond=None)[0] if edge else right
    step[:inner] = solved[:, edge] - solved[:, :edge] @ step[inner:]
    step *= scale
    return torch.from_numpy(step) if np.isfinite(step).all() else None
