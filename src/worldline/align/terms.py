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
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.kernels import Kernel, NormKernel
from worldline.align.rotations import dot
from worldline.align.sampling import Samples
from worldline.align.state import Columns, Geometry, State
from worldline.geometry.pose import hat


@dataclass(frozen=True, kw_only=True)
class PixelBlocks:
    """Normal equations of one term on some views, in the basis directions of a view.

    Attributes:
        part: which of the 10 directions are meant: turn 3, move 3, grow, zoom (all of a view's points in their camera)
            and the two disparity coefficients. `view_basis` says how parameters move along them.
        H: [V, P, P] sum over samples of J^T w J.
        g: [V, P] sum of J^T w r.
        E: [V, n, P] J^T w p, p the derivative by ln D.
        h: [V, n] p^T w p.
        b: [V, n] p^T w r.
    """

    part: slice
    H: Float[Tensor, "V P P"]
    g: Float[Tensor, "V P"]
    E: Float[Tensor, "V n P"]
    h: Float[Tensor, "V n"]
    b: Float[Tensor, "V n"]


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


def _along(axis: Tensor, q: Tensor, grow: Tensor, ray: Tensor, r: Tensor) -> Tensor:
    """Components along the axis of the 8 directions, of d/dlnD = -D a, and of the residual: [V, n, 10]."""
    scalars = [dot(axis, grow), dot(axis[..., :2], ray[..., :2]), -dot(axis, ray), r]
    return torch.cat([torch.linalg.cross(axis, q, dim=-1), axis, torch.stack(scalars, -1)], -1)


@lru_cache(maxsize=2)
def _gram_map(shrinking: bool) -> Float[Tensor, "49 100"]:
    """Takes moments of (1, q, D a) to those of the vectors (turn 3, move 3, grow, zoom, -D a, r), linear in them."""
    T = torch.zeros(3, 10, 7, dtype=torch.float64)
    T[:, :3, 1:4] = hat(torch.eye(3, dtype=torch.float64)).permute(1, 2, 0)  # [q]x
    for c in range(3):
        T[c, 3 + c, 0] = 1.0
        T[c, 6, (4 if shrinking else 1) + c] = 1.0
        T[c, 8, 4 + c] = -1.0
        T[c, 9, 1 + c], T[c, 9, 4 + c] = 1.0, -1.0
    T[0, 7, 4] = T[1, 7, 5] = 1.0
    return torch.einsum("cia,cjb->abij", T, T).reshape(49, 100)


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

    @property
    def name(self) -> str: ...  # noqa: D102

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor: ...  # noqa: D102

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]: ...  # noqa: D102

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
            r = side * r + (extra * dot(axis, r)[..., None]) * axis
        return (self.weight * self.kernel.cost(dot(r, r))).sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """Directions: d q = [q]x turn + move + q grow;  d(D a) = D a dlnD - D (a_x, a_y, 0) zoom.

        With the metric side^2 I + (front^2 - side^2) axis axis^T all sums are moments of (1, q, D a) and of the
        components along the axis; no Jacobian is written out.
        """
        q, r = geometry.q[views], geometry.residual[views]
        ray = (geometry.depth[..., None] * geometry.ray)[samples.frame[views]]
        units = self._units(samples, state, views)
        grow = q if units is None else ray  # the division by s_k takes r off q
        square, inner = dot(r, r), dot(ray, r)
        side2, kappa, u = torch.ones_like(square), None, None
        if units is not None:
            side, extra, axis = units
            side2 = (side * side)[..., 0]
            kappa = ((side + extra) ** 2)[..., 0] - side2
            front = dot(axis, ray)
            u = _along(axis, q, grow, ray, dot(axis, r))
            square = side2 * square + kappa * u[..., 9] ** 2
        w = self.weight[views] * self.kernel.weight(square)
        heavy = w * side2
        features = torch.cat([torch.ones_like(ray[..., :1]), q, ray], -1)
        moments = (features * heavy[..., None]).mT @ features
        gram = (moments.flatten(1) @ _gram_map(units is not None)).unflatten(1, (10, 10))
        across = torch.linalg.cross(q, ray, dim=-1)
        flat = dot(ray[..., :2], ray[..., :2])[..., None]
        E = torch.cat([across, -ray, -dot(grow, ray)[..., None], -flat], -1) * heavy[..., None]
        h, b = dot(ray, ray) * heavy, -inner * heavy
        if u is not None and kappa is not None:
            light = w * kappa
            gram = gram + (u * light[..., None]).mT @ u
            E = E - u[..., :8] * (light * front)[..., None]
            h, b = h + light * front**2, b - light * front * u[..., 9]
        return [PixelBlocks(part=slice(0, 8), H=gram[:, :8, :8], g=gram[:, :8, 9], E=E, h=h, b=b)]

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

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """Derivatives by (s, b) or (alpha, beta) and ln D; cameras are not touched."""
        r, p, one, two = self._residual(state, geometry, samples, views)
        J = torch.stack([one, two], -1)
        w = self.weight[views] * self.kernel.weight(r * r)
        heavy = J * w[..., None]
        g = (heavy.mT @ r[..., None])[..., 0]
        return [PixelBlocks(part=slice(8, 10), H=heavy.mT @ J, g=g, E=heavy * p[..., None], h=w * p * p, b=w * p * r)]

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """None."""
        return []
