"""The part of the energy that touches no pixel: ray cameras, smoothness, focal, gauge, loops (see terms.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.kernels import CauchyKernel, Kernel, NormKernel
from worldline.align.loop_matches import Loops
from worldline.align.rotations import chord, chord_jacobian
from worldline.align.sampling import Samples
from worldline.align.state import Columns, Geometry, State
from worldline.align.terms import CameraRows, PixelBlocks
from worldline.geometry.pose import hat, so3_log


@dataclass(frozen=True, kw_only=True)
class RayTerm:
    """Eq. 6-8:  L_t = sum_{k,n} || Rhat^T R_n - I ||_F + || c_n - chat ||,  (Rhat, chat) = A_k [R^r | kappa_k c^r].

    (R^r, c^r) are the cameras read off the ray maps of window k; A_k, kappa_k (state.trajectory) are estimated.
    Unbiased version: both parts in units of their own noise, Cauchy.

    Attributes:
        pose: [B, 4, 4] ray cameras, in their window's frame.
        window: [B] their windows.
        slot: [B] their cameras.
        weight: [B] of the rotation part and of the centre part.
        turn_unit: [B] 1 / standard deviation of the rotation (1/rad); sqrt(2) for the published norm.
        move_unit: [B] 1 / standard deviation of the centre.
        kernel: robust kernel.
    """

    pose: Float[Tensor, "B 4 4"]
    window: Int[Tensor, " B"]
    slot: Int[Tensor, " B"]
    weight: Float[Tensor, " B"]
    turn_unit: Float[Tensor, " B"]
    move_unit: Float[Tensor, " B"]
    kernel: Kernel = field(default_factory=NormKernel)
    name: str = "rays"

    def _residual(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        a = state.trajectory
        assert a is not None
        turn = a.rotation[self.window]
        arm = a.scale[self.window][:, None] * (turn @ self.pose[:, :3, 3:])[..., 0]
        rotation = chord((turn @ self.pose[:, :3, :3]).mT @ state.rotation[self.slot])
        move = state.centre[self.slot] - arm - a.translation[self.window]
        return rotation * self.turn_unit[:, None], move * self.move_unit[:, None], arm

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over all ray cameras."""
        turn, move, _ = self._residual(state)
        return (self.weight * (self.kernel.cost((turn * turn).sum(-1)) + self.kernel.cost((move * move).sum(-1)))).sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """Rotation by (w_n, phi_k), centre by (d_n, phi_k, tau_k, lambda_k)."""
        turn, move, arm = self._residual(state)
        B = len(arm)
        camera, own = columns.camera[self.slot], columns.trajectory[self.window]
        eye = torch.eye(3, dtype=arm.dtype).expand(B, 3, 3)
        bend = chord_jacobian(turn / self.turn_unit[:, None])
        J_turn = torch.cat([bend, -bend @ state.rotation[self.slot].mT], -1) * self.turn_unit[:, None, None]
        J_move = torch.cat([eye, hat(arm), -eye, -arm[..., None]], -1) * self.move_unit[:, None, None]
        return [
            CameraRows(columns=torch.cat([camera[:, :3], own[:, :3]], 1), J=J_turn, r=turn,
                       w=self.weight * self.kernel.weight((turn * turn).sum(-1))),
            CameraRows(columns=torch.cat([camera[:, 3:], own], 1), J=J_move, r=move,
                       w=self.weight * self.kernel.weight((move * move).sum(-1))),
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SmoothnessTerm:
    """Eq. 9:  L_s = sum_n || R_n^T R_{n+1} - I ||_F + || c_{n+1} - c_n ||.

    Attributes:
        weight: of the term.
        turn_unit: sqrt(2) for the published norm of a rotation.
        kernel: robust kernel.
    """

    weight: float
    turn_unit: float = 2**0.5
    kernel: Kernel = field(default_factory=NormKernel)
    name: str = "smoothness"

    def _residual(self, state: State) -> tuple[Tensor, Tensor]:
        turn = chord(state.rotation[:-1].mT @ state.rotation[1:]) * self.turn_unit
        return turn, state.centre[1:] - state.centre[:-1]

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over consecutive frames."""
        turn, move = self._residual(state)
        return self.weight * (self.kernel.cost((turn * turn).sum(-1)) + self.kernel.cost((move * move).sum(-1))).sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """Rotation: w_{n+1} - E^T w_n; centre: d_{n+1} - d_n."""
        turn, move = self._residual(state)
        relative = state.rotation[:-1].mT @ state.rotation[1:]
        eye = torch.eye(3, dtype=move.dtype).expand(len(move), 3, 3)
        bend = chord_jacobian(turn / self.turn_unit)
        a, b = columns.camera[:-1], columns.camera[1:]
        return [
            CameraRows(
                columns=torch.cat([a[:, :3], b[:, :3]], 1),
                J=torch.cat([-bend @ relative.mT, bend], -1) * self.turn_unit,
                r=turn,
                w=self.weight * self.kernel.weight((turn * turn).sum(-1)),
            ),
            CameraRows(
                columns=torch.cat([a[:, 3:], b[:, 3:]], 1),
                J=torch.cat([-eye, eye], -1),
                r=move,
                w=self.weight * self.kernel.weight((move * move).sum(-1)),
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class ScaleGaugeTerm:
    """Holds the geometric mean of the window scales at 0.5, as the published objective does (it depends on the unit).

    Attributes:
        strength: weight of the squared deviation of the mean log scale.
    """

    strength: float = 1e4
    target: float = 0.5
    name: str = "gauge"

    def _residual(self, state: State) -> Tensor:
        return (state.windows.scale.log().mean() - torch.tensor(self.target).double().log())[None, None]

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Half of the weighted square."""
        return 0.5 * self.strength * self._residual(state).square().sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """One row over all log scales."""
        G = len(state.windows.scale)
        J = torch.full((1, 1, G), 1.0 / G, dtype=torch.float64)
        w = torch.full((1,), self.strength, dtype=torch.float64)
        return [CameraRows(columns=columns.window[:, 6][None], J=J, r=self._residual(state), w=w)]


@dataclass(frozen=True, kw_only=True)
class AccelerationTerm:
    """Smoothness without a pull to rest:

        L_a = sum_n rho(|w_n - w_{n-1}| / sigma_w) + rho(|c_{n+1} - 2 c_n + c_{n-1}| / sigma_c).

    w_n = log(R_n^T R_{n+1}). Replaces eq. 9 in the default objective; the two sigmas are estimated from the video
    itself (see refine.py), so a shaky camera is left shaky. A zoom is smooth likewise.

    Attributes:
        turn: sigma_w, radians.
        move: sigma_c, world units.
        zoom: sigma of the second difference of log focal, when every frame has its own.
        kernel: robust kernel.
    """

    turn: float
    move: float
    zoom: float = 0.01
    kernel: Kernel = field(default_factory=lambda: CauchyKernel(width=3.0))
    name: str = "smoothness"

    def residuals(self, state: State) -> tuple[Tensor, Tensor]:
        """Accelerations of rotation (radians) and centre, [T-2, 3] each."""
        w = so3_log(state.rotation[:-1].mT @ state.rotation[1:])
        v = state.centre[1:] - state.centre[:-1]
        return w[1:] - w[:-1], v[1:] - v[:-1]

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over inner frames."""
        turn, move = self.residuals(state)
        total = self.kernel.cost((turn / self.turn).square().sum(-1)) + self.kernel.cost(
            (move / self.move).square().sum(-1)
        )
        if len(state.log_focal) > 1:
            total = total + self.kernel.cost((state.log_focal.diff(n=2) / self.zoom).square())
        return total.sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """Each row touches three consecutive cameras."""
        turn, move = (value / sigma for value, sigma in zip(self.residuals(state), (self.turn, self.move), strict=True))
        relative = state.rotation[:-1].mT @ state.rotation[1:]
        bend = torch.eye(3, dtype=move.dtype) + 0.5 * hat(so3_log(relative))
        late, early = bend[1:], bend[:-1]
        J = torch.cat([early @ relative[:-1].mT, -late @ relative[1:].mT - early, late], -1) / self.turn
        eye = torch.eye(3, dtype=move.dtype).expand(len(move), 3, 3)
        K = torch.cat([eye, -2 * eye, eye], -1) / self.move
        near = [columns.camera[:-2], columns.camera[1:-1], columns.camera[2:]]
        rows = [
            CameraRows(columns=torch.cat([c[:, :3] for c in near], 1), J=J, r=turn,
                       w=self.kernel.weight((turn * turn).sum(-1))),
            CameraRows(columns=torch.cat([c[:, 3:] for c in near], 1), J=K, r=move,
                       w=self.kernel.weight((move * move).sum(-1))),
        ]  # fmt: skip
        if len(state.log_focal) > 1:
            r = state.log_focal.diff(n=2)[:, None] / self.zoom
            J = torch.tensor([[[1.0, -2.0, 1.0]]], dtype=torch.float64).expand(len(r), 1, 3) / self.zoom
            focal = torch.stack([columns.focal[:-2], columns.focal[1:-1], columns.focal[2:]], 1)
            rows.append(CameraRows(columns=focal, J=J, r=r, w=self.kernel.weight((r * r)[:, 0])))
        return rows


@dataclass(frozen=True, kw_only=True)
class FocalTerm:
    """What is believed about the focal beforehand, or read off ray maps:  1/2 ((ln f - mu) / sigma)^2.

    Attributes:
        mean: [B] mu.
        sigma: [B].
        slot: [B] camera whose focal is meant.
    """

    mean: Float[Tensor, " B"]
    sigma: Float[Tensor, " B"]
    slot: Int[Tensor, " B"]
    name: str = "focal"

    def _residual(self, state: State) -> Tensor:
        log_focal = state.log_focal if len(state.log_focal) == 1 else state.log_focal[self.slot]
        return (log_focal - self.mean) / self.sigma

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over beliefs."""
        return 0.5 * self._residual(state).square().sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """One row per belief."""
        r = self._residual(state)[:, None]
        J = (1 / self.sigma)[:, None, None]
        return [CameraRows(columns=columns.focal[self.slot][:, None], J=J, r=r, w=torch.ones_like(self.sigma))]


@dataclass(frozen=True, kw_only=True)
class LoopTerm:
    """A surface seen again must lie where it was (point to plane, relative to the distance):

        L_o = sum rho( | m_l . S_l^-1 S_k P_k - o_l | / sigma ),

    m_l, o_l a patch's plane in window l, scaled so that the residual is a relative error of range. Not in the paper.

    Attributes:
        loops: the matches.
        sigma: standard deviation of the residual, frozen.
        weight: of one match.
        kernel: robust kernel; wide, since matches were verified and a chain that drifts must not shake them off.
    """

    loops: Loops
    sigma: float
    weight: float
    kernel: Kernel = field(default_factory=lambda: CauchyKernel(width=30.0))
    name: str = "loops"

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over matches."""
        r = self.loops.residual(state.windows)[0] / self.sigma
        return self.weight * self.kernel.cost(r * r).sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None: points are data, depths are not touched."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """Both windows' similarities."""
        r, own, far, across = self.loops.residual(state.windows)
        J = self.loops.jacobian(own, far, across)[:, None] / self.sigma
        r = r[:, None] / self.sigma
        both = torch.cat([columns.window[self.loops.window], columns.window[self.loops.other]], 1)
        return [CameraRows(columns=both, J=J, r=r, w=self.weight * self.kernel.weight(r[:, 0] ** 2))]
