"""The energy over pixels, one class per modality; every term is absent where it has no data. (Cameras: camera_terms.py)

Notation (specs/geo4d.md 6.3): window k, frame n, pixel u; S_k = s_k (R_k . + t_k / s_k) window -> world; camera
(R_n, c_n); ray a = (u - pp, f) / f; Y = S_k P_k(u); q = R_n^T (Y - c_n); D depth along z. Perturbations: R_n Exp(w),
c_n + d; windows Exp(phi) R_k, t_k + tau, s_k e^lambda; ln f, ln D additive.

Each term has the published form (eq. number below), and takes scales with which it becomes its unbiased version: a
residual in units of its own noise, whose normalisation is FROZEN during a minimisation. An unfrozen one (such as an
absolute error in 1/D) can be lowered by moving everything away, which is what biases the published focal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.kernels import Kernel, NormKernel
from worldline.align.sampling import Samples
from worldline.align.state import Columns, Geometry, State
from worldline.geometry.pose import hat


@dataclass(frozen=True, kw_only=True)
class PixelRows:
    """Residuals of one term on some views, with Jacobians.

    Attributes:
        part: which of the 10 basis directions of a view J covers: turn 3, move 3, grow, zoom (all of the points in their
            camera) and the two disparity coefficients. `view_basis` says how parameters move along them.
        J: [V, n, m, L].
        p: [V, n, m] derivative by ln D.
        r: [V, n, m].
        w: [V, n] IRLS weight.
    """

    part: slice
    J: Float[Tensor, "V n m L"]
    p: Float[Tensor, "V n m"]
    r: Float[Tensor, "V n m"]
    w: Float[Tensor, "V n"]


@dataclass(frozen=True, kw_only=True)
class CameraRows:
    """Residuals that touch no pixel.

    Attributes:
        columns: [B, L] parameters.
        J: [B, m, L].
        r: [B, m].
        w: [B] IRLS weight.
    """

    columns: Int[Tensor, "B L"]
    J: Float[Tensor, "B m L"]
    r: Float[Tensor, "B m"]
    w: Float[Tensor, " B"]


def view_basis(state: State, samples: Samples, geometry: Geometry, views: slice) -> Float[Tensor, "V 10 16"]:
    """How the 16 parameters of a view (camera 6, focal, window 7, disparity 2) move its points along the directions.

    Camera: turn = w, move = -R^T d. Window: turn = -R^T phi, move = -[b]x R^T phi + R^T tau + b lambda with
    b = R^T (c - t), grow = lambda.
    """
    slot, k = geometry.slot[views], samples.window[views]
    back = state.rotation[slot].mT
    b = (back @ (state.centre[slot] - state.windows.translation[k])[..., None])[..., 0]
    basis = torch.zeros(len(k), 10, 16, dtype=torch.float64)
    basis[:, [0, 1, 2], [0, 1, 2]] = 1.0
    basis[:, 3:6, 3:6] = -back
    basis[:, 7, 6] = 1.0
    basis[:, :3, 7:10] = -back
    basis[:, 3:6, 7:10] = -hat(b) @ back
    basis[:, 3:6, 10:13] = back
    basis[:, 3:6, 13] = b
    basis[:, 6, 13] = 1.0
    basis[:, [8, 9], [14, 15]] = 1.0
    return basis


@runtime_checkable
class Term(Protocol):
    """One part of the energy."""

    name: str

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor: ...  # noqa: D102

    def pixel_rows(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelRows]: ...  # noqa: D102

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class PointMapTerm:
    """Eq. 4:  L_p = sum_{k,n,u} w_kn(u) || D_n(u) a(u) - q_kn(u) ||, the window's point against the fused depth.

    Unbiased version (`lateral`, `along` given): the 3-vector is split at the ray into a part across it, in units of
    pixels' noise, and a part along it, in units of relative range noise, and divided by s_k/s_k^0 so that noise does
    not shrink windows; Cauchy instead of the norm.

    Attributes:
        weight: [V, n] confidence times the weight of the term.
        kernel: robust kernel.
        lateral: [V, n] 1 / (standard deviation across the ray), world units, frozen; or None.
        along: [V, n] 1 / (standard deviation along the ray), world units, frozen; or None.
        axis: [T, n, 3] unit rays at which the split was frozen.
        unit: [V] s_k^0 of each view's window.
    """

    weight: Float[Tensor, "V n"]
    kernel: Kernel = field(default_factory=NormKernel)
    lateral: Float[Tensor, "V n"] | None = None
    along: Float[Tensor, "V n"] | None = None
    axis: Float[Tensor, "T n 3"] | None = None
    unit: Float[Tensor, " V"] | None = None
    name: str = "points"

    def _units(self, samples: Samples, state: State, views: slice) -> tuple[Tensor, Tensor, Tensor] | None:
        """Factors across and along the ray, and the ray's axis."""
        if self.lateral is None or self.along is None or self.axis is None or self.unit is None:
            return None
        shrink = (self.unit[views] / state.windows.scale[samples.window[views]])[:, None, None]
        side = self.lateral[views][..., None] * shrink
        return side, self.along[views][..., None] * shrink - side, self.axis[samples.frame[views]]

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over all samples."""
        r, units = geometry.residual, self._units(samples, state, slice(None))
        if units is not None:
            side, extra, axis = units
            r = side * r + (extra * (axis * r).sum(-1, keepdim=True)) * axis
        return (self.weight * self.kernel.cost((r * r).sum(-1))).sum()

    def pixel_rows(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelRows]:
        """Directions: d q = [q]x turn + move + q grow;  d(D a) = D a dlnD - D (a_x, a_y, 0) zoom."""
        n = samples.frame[views]
        q, r = geometry.q[views], geometry.residual[views]
        ray = (geometry.depth[..., None] * geometry.ray)[n]
        x, y, z = q.unbind(-1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        rows = [
            torch.stack([zero, -z, y, one, zero, zero, x, ray[..., 0], -ray[..., 0], r[..., 0]], -1),
            torch.stack([z, zero, -x, zero, one, zero, y, ray[..., 1], -ray[..., 1], r[..., 1]], -1),
            torch.stack([-y, x, zero, zero, zero, one, z, zero, -ray[..., 2], r[..., 2]], -1),
        ]
        J = torch.stack(rows, -2)  # the 8 directions, d r / d lnD, r
        units = self._units(samples, state, views)
        if units is not None:
            side, extra, axis = units
            J = side[..., None] * J + (extra * axis)[..., None] * (axis[..., None, :] @ J)
            J[..., 6] -= J[..., 9]
        r = J[..., 9]
        w = self.weight[views] * self.kernel.weight((r * r).sum(-1))
        return [PixelRows(part=slice(0, 8), J=J[..., :8], p=J[..., 8], r=r, w=w)]

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """None."""
        return []


@dataclass(frozen=True, kw_only=True)
class DisparityTerm:
    """Eq. 5:  L_d = sum_{k,n,u} m_kn(u) | 1/(D_n(u) + 1e-6) - (s_k d_kn(u) + b_k) |.

    Unbiased version (`sigma` given): the error is that of the observation, d - (alpha_k / D + beta_k), in units of its
    own noise at that disparity, so that being far away makes no error cheaper. state.disparity holds (s, b) in the
    first case, (alpha, beta) in the second.

    Attributes:
        weight: [V, n] mask times the weight of the term.
        kernel: robust kernel.
        sigma: [V, n] standard deviation of the observed disparity, frozen; or None.
    """

    weight: Float[Tensor, "V n"]
    kernel: Kernel = field(default_factory=NormKernel)
    sigma: Float[Tensor, "V n"] | None = None
    name: str = "disparity"

    def _residual(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> tuple[Tensor, ...]:
        k, n = samples.window[views], samples.frame[views]
        assert state.disparity is not None and samples.disparity is not None
        first, second = state.disparity[k, 0][:, None], state.disparity[k, 1][:, None]
        d, depth = samples.disparity[views], geometry.depth[n]
        if self.sigma is None:
            inverse = 1 / (depth + 1e-6)
            return inverse - (first * d + second), -depth * inverse**2, -d, -torch.ones_like(d)
        unit = 1 / self.sigma[views]
        return (d - first / depth - second) * unit, first / depth * unit, -unit / depth, -unit

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over all samples."""
        r = self._residual(state, geometry, samples, slice(None))[0]
        return (self.weight * self.kernel.cost(r * r)).sum()

    def pixel_rows(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelRows]:
        """Derivatives by (s, b) or (alpha, beta) and ln D; cameras are not touched."""
        r, p, one, two = self._residual(state, geometry, samples, views)
        J = torch.stack([one, two], -1)[..., None, :]
        w = self.weight[views] * self.kernel.weight(r * r)
        return [PixelRows(part=slice(8, 10), J=J, p=p[..., None], r=r[..., None], w=w)]

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """None."""
        return []
