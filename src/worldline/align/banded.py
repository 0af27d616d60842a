"""Solve banded positive definite systems on one core.

LAPACK's banded Cholesky wakes all BLAS threads for panels of a hundred numbers and then waits for them: with a second
process on the machine that is a hundred times slower than this loop.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit


def solve_banded(band: np.ndarray, rhs: np.ndarray) -> np.ndarray | None:
    """Solution [N, M] of A x = rhs, or None where A is not positive definite.

    Args:
        band: [W, N] float64, band[d, j] = A[j + d, j], the lower half of A.
        rhs: [N, M] float64.
    """
    columns = np.ascontiguousarray(band.T)
    if not _factorise(columns):
        return None
    solution = np.ascontiguousarray(rhs, dtype=np.float64).copy()
    _substitute(columns, solution)
    return solution


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
