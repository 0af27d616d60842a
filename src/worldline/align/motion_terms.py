"""The part of the energy that ties a frame to the next one: optical flow and scene flow. Notation as in terms.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldline.align.kernels import CauchyKernel, Kernel
from worldline.align.rotations import dot
from worldline.align.sampling import Samples
from worldline.align.state import Columns, Geometry, State
from worldline.align.terms import CameraRows, PixelBlocks
from worldline.geometry.pose import Similarity, hat


@dataclass(frozen=True, kw_only=True)
class FrameBlocks:
    """Normal equations of a term between frames and their successors.

    Attributes:
        columns: [F, 14] camera and focal of the frame, camera and focal of the next one (-1: none).
        H: [F, 14, 14]; g: [F, 14]; E: [F, n, 14]; h: [F, n]; b: [F, n], as in schur.
    """

    columns: Int[Tensor, "F 14"]
    H: Float[Tensor, "F 14 14"]
    g: Float[Tensor, "F 14"]
    E: Float[Tensor, "F n 14"]
    h: Float[Tensor, "F n"]
    b: Float[Tensor, "F n"]


@dataclass(frozen=True, kw_only=True)
class OpticalFlowTerm:
    """Cameras, depth and scene flow must reproduce the optical flow F between consecutive frames:

        L_f = sum_{n,u} w_n(u) rho( | pi_{n+1}(c_n + R_n D_n(u) a(u) + V_n(u)) - (u + F_n(u)) | / sigma ),

    pi the projection into the next camera, V the scene flow (0 where there is none: moving pixels are outliers).
    Bundle adjustment over the same cameras and depths as the other terms; no such term in the paper's code, where its
    weight is 0.

    Attributes:
        target: [T, n, 2] where the samples go, pixels from the principal point of the next frame.
        weight: [T, n]; 0 where there is no flow, and at the last frame.
        motion: [T, n, 3] scene flow of the samples in world units, frozen.
        sigma: noise of the flow in pixels, frozen.
        kernel: robust kernel.
    """

    target: Float[Tensor, "T n 2"]
    weight: Float[Tensor, "T n"]
    motion: Float[Tensor, "T n 3"]
    sigma: float
    kernel: Kernel = field(default_factory=CauchyKernel)
    name: str = "optical flow"

    def project(self, state: State, ray: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
        """Residual in pixels, point in the next camera, its z, D a and focal, for all frames but the last."""
        T = len(depth) - 1
        now = torch.arange(T) if len(state.centre) > 1 else torch.zeros(T, dtype=torch.long)
        after = now + 1 if len(state.centre) > 1 else now
        local = depth[:-1, :, None] * ray[:-1]
        world = local @ state.rotation[now].mT + state.centre[now][:, None] + self.motion[:-1]
        q = (world - state.centre[after][:, None]) @ state.rotation[after]
        focal = state.log_focal.exp()[after if len(state.log_focal) > 1 else torch.zeros_like(after)][:, None]
        z = q[..., 2].clamp_min(1e-3 * float(depth.median()))
        r = focal[..., None] * q[..., :2] / z[..., None] - self.target[:-1]
        return r, q, z, local, focal

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over all samples."""
        r = self.project(state, geometry.ray, geometry.depth)[0] / self.sigma
        return (self.weight[:-1] * self.kernel.cost(dot(r, r))).sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None: not a matter of one view."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """None."""
        return []

    def frame_blocks(self, state: State, geometry: Geometry, columns: Columns) -> FrameBlocks:
        """D q' = A (-[Da]x w + D (-a_x, -a_y, 0) dlnf + D a dlnD) + R'^T d + [q']x w' - R'^T d',  A = R'^T R."""
        r, q, z, local, focal = self.project(state, geometry.ray, geometry.depth)
        T, n = z.shape
        now = torch.arange(T) if len(state.centre) > 1 else torch.zeros(T, dtype=torch.long)
        after = now + 1 if len(state.centre) > 1 else now
        back = state.rotation[after].mT
        A = back @ state.rotation[now]
        zoom = -local * torch.tensor([1.0, 1.0, 0.0], dtype=local.dtype)
        turned = (local @ A.mT)[..., None]
        J = torch.cat([-(A[:, None] @ hat(local)), back[:, None].expand(-1, n, -1, -1), (zoom @ A.mT)[..., None],
                       hat(q), -back[:, None].expand(-1, n, -1, -1), torch.zeros_like(turned), turned], -1)  # fmt: skip
        scale = (focal / z / self.sigma)[..., None]
        slope = q[..., :2] / z[..., None]
        J = (J[..., :2, :] - slope[..., None] * J[..., 2:, :]) * scale[..., None]
        J[..., 13] = focal[..., None] * slope / self.sigma
        r = r / self.sigma
        w = self.weight[:-1] * self.kernel.weight(dot(r, r))
        p, J = J[..., 14], J[..., :14]
        flat = J.flatten(1, 2)
        heavy = flat * w.repeat_interleave(2, 1)[..., None]
        wp = w[..., None] * p
        pad = lambda v: torch.cat([v, torch.zeros_like(v[:1])])  # noqa: E731
        own = torch.cat(
            [columns.camera[now], columns.focal[now][:, None], columns.camera[after], columns.focal[after][:, None]], 1
        )
        return FrameBlocks(
            columns=torch.cat([own, torch.full_like(own[:1], -1)]),
            H=pad(heavy.mT @ flat), g=pad((heavy.mT @ r.flatten(1)[..., None])[..., 0]),
            E=pad((wp[..., None, :] @ J).squeeze(-2)), h=pad(dot(wp, p)), b=pad(dot(wp, r)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SceneFlowTerm:
    """A point moved by its scene flow must meet the next frame's surface, also as another window sees it:

        L_v = sum rho( | S_k (P_kn(u) + V_kn(u)) - S_l P_l,n+1(u') | / (sqrt(s_k s_l) tau) ),

    u' where the moved point projects to. Ties windows that share no frame but are neighbours in time.

    Attributes:
        window: [B] k.
        other: [B] l.
        source: [B, 3] P + V in window k.
        target: [B, 3] P' in window l.
        tau: [B] standard deviation of the gap in units of sqrt(s_k s_l), frozen.
        weight: of one match.
        kernel: robust kernel.
    """

    window: Int[Tensor, " B"]
    other: Int[Tensor, " B"]
    source: Float[Tensor, "B 3"]
    target: Float[Tensor, "B 3"]
    tau: Float[Tensor, " B"]
    weight: float
    kernel: Kernel = field(default_factory=CauchyKernel)
    name: str = "scene flow"

    def _residual(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = state.windows
        pick = lambda k: Similarity(scale=s.scale[k], rotation=s.rotation[k], translation=s.translation[k])  # noqa: E731
        one, two = pick(self.window), pick(self.other)
        arms = [one.apply_vector(self.source), two.apply_vector(self.target)]
        unit = (one.scale * two.scale).sqrt() * self.tau
        gap = (arms[0] + one.translation - arms[1] - two.translation) / unit[:, None]
        return gap, arms[0], arms[1], unit

    def cost(self, state: State, geometry: Geometry, samples: Samples) -> Tensor:
        """Sum over matches."""
        r = self._residual(state)[0]
        return self.weight * self.kernel.cost(dot(r, r)).sum()

    def pixel_blocks(self, state: State, geometry: Geometry, samples: Samples, views: slice) -> list[PixelBlocks]:
        """None: points are data, depths are not touched."""
        return []

    def camera_rows(self, state: State, columns: Columns) -> list[CameraRows]:
        """Both windows' similarities; the unit sqrt(s_k s_l) is differentiated."""
        r, one, two, unit = self._residual(state)
        eye = torch.eye(3, dtype=r.dtype).expand(len(r), 3, 3)
        half = 0.5 * r[..., None]
        J = torch.cat([-hat(one), eye, one[..., None], hat(two), -eye, -two[..., None]], -1) / unit[:, None, None]
        J[..., 6:7] -= half
        J[..., 13:14] -= half
        both = torch.cat([columns.window[self.window], columns.window[self.other]], 1)
        return [CameraRows(columns=both, J=J, r=r, w=self.weight * self.kernel.weight(dot(r, r)))]
