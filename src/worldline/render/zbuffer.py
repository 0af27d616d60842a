"""The inner loop of point splatting on a CPU, compiled by numba."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
@no_type_check  # numba compiles the bare function, not one wrapped in shape checks
def nearest_points(x, y, z, offsets, factors, height, width):
    """Index [height, width] of the winning point, -1 where none falls; the lower index wins ties."""
    # x, y: pixel of each point; z: depth; offsets [K, 2] (dx, dy) of the footprint; factors [K] on the depth there.
    index = np.full((height, width), -1, np.int64)
    depth = np.full((height, width), np.inf, np.float32)
    for n in range(x.shape[0]):
        for k in range(offsets.shape[0]):
            column = x[n] + offsets[k, 0]
            row = y[n] + offsets[k, 1]
            if 0 <= column < width and 0 <= row < height:
                pushed = z[n] * factors[k]
                if pushed < depth[row, column]:
                    depth[row, column] = pushed
                    index[row, column] = n
    return index
