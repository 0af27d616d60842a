"""Solve banded positive definite systems on one core.

LAPACK's banded Cholesky wakes all BLAS threads for panels of a hundred numbers and then waits for them: with a second
process on the machine that is a hundred times slower than this loop.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit


def solve_banded(columns: np.ndarray, rhs: np.ndarray) -> np.ndarray | None:
    """Solution [N, M] of A x = rhs, or None where A is not positive definite.

    Args:
        columns: [N, W] float64, columns[j, d] = A[j + d, j], the lower half of A; replaced by its Cholesky factor.
        rhs: [N, M] float64.
    """
    if not _factorise(columns):
        return None
    solution = np.ascontiguousarray(rhs, dtype=np.float64).copy()
    _substitute(columns, solution)
    return solution


@njit(cache=True, nogil=True)
@no_type_check
def add_blocks(columns, border, gradient, index, H, g, fixed):
    """Add blocks H [B, L, L], g [B, L] over the parameters index [B, L]; False where two lie farther apart than W.

    columns [N, W] as in `solve_banded`; border [D, D - N] holds the last parameters' columns, gradient [D] all of g.
    Parameters below 0 or fixed [D] are left out.
    """
    inner, width = columns.shape
    for m in range(len(index)):
        for a in range(index.shape[1]):
            row = index[m, a]
            if row < 0 or fixed[row]:
                continue
            gradient[row] += g[m, a]
            for c in range(index.shape[1]):
                column = index[m, c]
                if column < 0 or fixed[column]:
                    continue
                if column >= inner:
                    border[row, column - inner] += H[m, a, c]
                elif inner > row >= column:
                    if row - column >= width:
                        return False
                    columns[column, row - column] += H[m, a, c]
    return True


@njit(cache=True, nogil=True)
@no_type_check
def scale_columns(columns, scale):
    """A -> diag(scale) A diag(scale), with a unit diagonal, in place."""
    inner, width = columns.shape
    for j in range(inner):
        for d in range(1, min(width, inner - j)):
            columns[j, d] *= scale[j] * scale[j + d]
        columns[j, 0] = 1 + 1e-12 if scale[j] > 0 else 1.0


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _factorise(columns):
    """A = L L^T in place, column by column (right-looking); columns[j, d] = L[j + d, j]."""
    size, width = columns.shape
    for j in range(size):
        pivot = columns[j, 0]
        if not pivot > 0:
            return False
        reach = min(width, size - j)
        scale = 1 / np.sqrt(pivot)
        for d in range(reach):
            columns[j, d] *= scale
        for k in range(1, reach):
            value = columns[j, k]
            if value != 0:
                for d in range(reach - k):
                    columns[j + k, d] -= value * columns[j, k + d]
    return True


@njit(cache=True, nogil=True, fastmath=True)
@no_type_check
def _substitute(columns, x):
    size, width = columns.shape
    many = x.shape[1]
    for j in range(size):
        for m in range(many):
            x[j, m] /= columns[j, 0]
        for d in range(1, min(width, size - j)):
            value = columns[j, d]
            if value != 0:
                for m in range(many):
                    x[j + d, m] -= value * x[j, m]
    for j in range(size - 1, -1, -1):
        for d in range(1, min(width, size - j)):
            value = columns[j, d]
            if value != 0:
                for m in range(many):
                    x[j, m] -= value * x[j + d, m]
        for m in range(many):
            x[j, m] /= columns[j, 0]
