"""One round of the default refinement as a problem: its parameters, its noise, its terms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.camera_terms import LoopTerm, RayTerm
from worldline.align.energy import Energy
from worldline.align.flow_data import FlowMatches, FlowTargets, fused_motion
from worldline.align.initialize import Start
from worldline.align.kernels import CauchyKernel
from worldline.align.loop_matches import Loops
from worldline.align.motion_terms import OpticalFlowTerm, SceneFlowTerm
from worldline.align.noise import (
    NORMAL_MEDIAN,
    RAYLEIGH_MEDIAN,
    ScaleTable,
    constant_scale,
    inflation,
    measure_scale,
    normal_scale,
)
from worldline.align.rays import RayViews
from worldline.align.rotations import dot
from worldline.align.sampling import Samples
from worldline.align.state import Columns, Geometry, State, make_columns
from worldline.align.terms import DisparityTerm, PointMapTerm, Term

_BLOCKS = (4, 6)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Frozen normalisations of one round.

    Attributes:
        lateral: standard deviation of points across the ray, in pixels, by confidence.
        along: along the ray, relative to the distance, by confidence.
        disparity: of the observed disparity of each window, by the disparity that is expected; or None.
        point_weight: samples that count / samples, points.
        disparity_weight: likewise, disparity.
        flow: of optical flow, pixels; or None.
        flow_weight: likewise, optical flow.
        meeting: of the gap between a moved point and the next surface, relative to the point's distance from its
            window's centre; or None.
    """

    lateral: ScaleTable
    along: ScaleTable
    disparity: tuple[ScaleTable, ...] | None
    point_weight: float
    disparity_weight: float
    flow: float | None = None
    flow_weight: float = 1.0
    meeting: float | None = None


class Refinement:
    """The problem that stays the same over the rounds."""

    def __init__(
        self, samples: Samples, xy: Float[Tensor, "T n 2"], start: Start, rays: RayViews | None, size: tuple[int, int],
        fixed_pose: Bool[Tensor, " C"], fixed_focal: bool, flow: FlowTargets | None = None,
        matches: FlowMatches | None = None, loops: Loops | None = None,
    ) -> None:  # fmt: skip
        self.flow, self.matches, self.loops = flow, matches, loops
        self.closing = False  # loops join once windows are seen to miss them: a good chain is better without
        self.samples, self.xy, self.rays, self.size = samples, xy, rays, size
        self.used = samples.weight > 0
        tied = None if loops is None else torch.cat([loops.window, loops.other]).unique()
        self.columns = make_columns(samples, len(start.rig.centre), own_focal=len(start.rig.log_focal) > 1, far=tied)
        self.fixed, self.fixed_focal = _fixed(self.columns, start, fixed_pose, fixed_focal), fixed_focal
        grid = (samples.uv / torch.tensor([size[1], size[0]]) * torch.tensor([_BLOCKS[1], _BLOCKS[0]])).long()
        self.block = (grid[..., 1].clamp(0, _BLOCKS[0] - 1) * _BLOCKS[1] + grid[..., 0].clamp(0, _BLOCKS[1] - 1))[
            samples.frame
        ]
        self.views = torch.zeros_like(samples.uv[..., 0]).index_add_(0, samples.frame, self.used.double())
        self.slot = samples.frame if len(start.rig.centre) > 1 else torch.zeros_like(samples.frame)

    def energy(self, terms: list[Term]) -> Energy:
        """These terms over this problem's samples and parameters."""
        return Energy(terms, self.samples, self.xy, self.columns, self.fixed)

    def measure(self, state: State) -> Noise:
        """Noise of points and disparity from their residuals at this state."""
        s, geometry = self.samples, self.energy([]).geometry(state)
        axis, length, across, front = split_along(geometry.residual, geometry.ray[s.frame])
        depth = geometry.depth[s.frame]
        f = state.log_focal.exp()[self.slot if len(state.log_focal) > 1 else torch.zeros_like(self.slot)][:, None]
        pixel = across * (f / depth)[..., None]
        relative = front / (depth * length)
        several = self.views[s.frame] > 1
        relative = relative * (self.views / (self.views - 1).clamp_min(1)).sqrt()[s.frame]
        lateral = measure_scale(pixel.norm(dim=-1), s.weight, self.used, RAYLEIGH_MEDIAN).at_least(2e-3)
        along = constant_scale(0.02)
        if bool((several & self.used).any()):
            along = measure_scale(relative.abs(), s.weight, self.used & several, NORMAL_MEDIAN).at_least(1e-5)
        both = torch.cat([pixel / lateral.at(s.weight)[..., None], (relative / along.at(s.weight))[..., None]], -1)
        parts = [
            inflation(
                both[..., i : i + 1], self.used if i < 2 else self.used & several, self.block, _BLOCKS[0] * _BLOCKS[1]
            )
            for i in range(3)
        ]
        sigma, share = self._measure_disparity(state, geometry.depth)
        flow, flow_share = self._measure_flow(state, geometry)
        return Noise(
            lateral=lateral, along=along, disparity=sigma, point_weight=3 / sum(parts), disparity_weight=share,
            flow=flow, flow_weight=flow_share, meeting=self._measure_meeting(state),
        )  # fmt: skip

    def _measure_flow(self, state: State, geometry: Geometry) -> tuple[float | None, float]:
        if self.flow is None or not bool((self.flow.weight[:-1] > 0).any()):
            return None, 1.0
        term = self._flow_term(state, 1.0, 1.0)
        r, used = term.project(state, geometry.ray, geometry.depth)[0], self.flow.weight[:-1] > 0
        sigma = max(normal_scale(r.norm(dim=-1)[used], 2), 0.02)
        first = torch.full((self.samples.num_frames,), -1).scatter_(
            0, self.samples.frame, torch.arange(len(self.samples.frame))
        )
        block = self.block[first[:-1].clamp_min(0)]
        return sigma, 1 / inflation(r / sigma, used, block, _BLOCKS[0] * _BLOCKS[1])

    def _flow_term(self, state: State, sigma: float, share: float) -> OpticalFlowTerm:
        assert self.flow is not None
        return OpticalFlowTerm(
            target=self.flow.target,
            weight=self.flow.weight * share,
            motion=fused_motion(self.samples, state),
            sigma=sigma,
        )

    def _measure_meeting(self, state: State) -> float | None:
        if self.matches is None:
            return None
        r = self._scene_flow_term(1.0, 1.0)._residual(state)[0].norm(dim=-1)
        return max(normal_scale(r, 3), 1e-5)

    def _scene_flow_term(self, sigma: float, share: float) -> SceneFlowTerm:
        m = self.matches
        assert m is not None
        size = (m.source - m.source.mean(0)).norm(dim=-1)
        tau = sigma * torch.full_like(size, float(size.median()))
        return SceneFlowTerm(window=m.window, other=m.other, source=m.source, target=m.target, tau=tau, weight=share)

    def expected_disparity(self, state: State, depth: Float[Tensor, "T n"]) -> Float[Tensor, "V n"]:
        """Alpha / D + beta of every view's window."""
        assert state.disparity is not None
        fit = state.disparity[self.samples.window]
        return fit[:, :1] / depth[self.samples.frame] + fit[:, 1:]

    def _measure_disparity(self, state: State, depth: Tensor) -> tuple[tuple[ScaleTable, ...] | None, float]:
        s = self.samples
        if s.disparity is None or state.disparity is None:
            return None, 1.0
        model = self.expected_disparity(state, depth)
        error = s.disparity - model
        used = self.used & (s.disparity != 0)
        tables, unit = [], torch.zeros_like(error)
        for k in range(s.num_windows):
            mine = s.window == k
            tables.append(measure_scale(error[mine].abs(), model[mine], used[mine], NORMAL_MEDIAN))
            unit[mine] = error[mine] / tables[-1].at(model[mine])
        return tuple(tables), 1 / inflation(unit[..., None], used, self.block, _BLOCKS[0] * _BLOCKS[1])

    def terms(self, state: State, noise: Noise, focal: list[Term]) -> list[Term]:
        """The energy of one round, without smoothness."""
        s, geometry = self.samples, self.energy([]).geometry(state)
        depth = geometry.depth[s.frame]
        length = geometry.ray.norm(dim=-1)[s.frame]
        f = state.log_focal.exp()[self.slot if len(state.log_focal) > 1 else torch.zeros_like(self.slot)][:, None]
        used = self.used.double()
        out: list[Term] = [
            PointMapTerm(
                weight=used * noise.point_weight,
                kernel=CauchyKernel(),
                lateral=f / (depth * noise.lateral.at(s.weight)),
                along=1 / (depth * length * noise.along.at(s.weight)),
                unit=state.windows.scale[s.window],
                axis=torch.nn.functional.normalize(geometry.ray, dim=-1),
            )
        ]
        if noise.disparity is not None and s.disparity is not None:
            mask = used * (s.disparity != 0) * noise.disparity_weight
            model, sigma = self.expected_disparity(state, geometry.depth), torch.ones_like(used)
            for k, table in enumerate(noise.disparity):
                sigma[s.window == k] = table.at(model[s.window == k])
            out.append(DisparityTerm(weight=mask, kernel=CauchyKernel(), sigma=sigma))
        if self.rays is not None and state.trajectory is not None:
            out.append(self._ray_term(state, self.rays))
        if noise.flow is not None:
            out.append(self._flow_term(state, noise.flow, noise.flow_weight))
        if noise.meeting is not None:
            out.append(self._scene_flow_term(noise.meeting, noise.point_weight))
        if self.loops is not None and self.closing:
            out.append(LoopTerm(loops=self.loops, sigma=2 * self.loops.floor / NORMAL_MEDIAN, weight=self.loops.weight))
        return out + focal

    def _ray_term(self, state: State, rays: RayViews) -> RayTerm:
        slot = rays.frame if len(state.centre) > 1 else torch.zeros_like(rays.frame)
        one = torch.ones(len(slot), dtype=torch.float64)
        term = RayTerm(
            pose=rays.pose,
            window=rays.window,
            slot=slot,
            weight=one,
            turn_unit=one,
            move_unit=one,
            kernel=CauchyKernel(),
        )
        turn, move, _ = term._residual(state)
        sigma = max(normal_scale(turn.norm(dim=-1), 3), 1e-5)
        unit = torch.ones_like(one)
        for k in rays.window.unique().tolist():
            mine = rays.window == k
            unit[mine] = 1 / max(normal_scale(move[mine].norm(dim=-1), 3), 1e-6 * float(state.log_depth.exp().median()))
        return replace(term, turn_unit=one / sigma, move_unit=unit)


def _fixed(columns: Columns, start: Start, fixed_pose: Tensor, fixed_focal: bool) -> Bool[Tensor, " D"]:
    """Known poses, a known focal, and the gauge: the first camera and one window's scale unless two poses are known."""
    fixed = torch.zeros(columns.size, dtype=torch.bool)
    fixed[columns.camera[fixed_pose].flatten()] = True
    if fixed_focal:
        fixed[columns.focal] = True
    if not bool(fixed_pose.any()):
        fixed[columns.camera[0]] = True
    centres = start.rig.centre[fixed_pose]
    if len(centres) < 2 or float((centres - centres.mean(0)).norm(dim=-1).max()) < 1e-9:
        keep = torch.nonzero(start.kept).flatten()
        fixed[columns.window[int(keep[len(keep) // 2]) if len(keep) else 0, 6]] = True
    return fixed


def split_along(residual: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit ray, its length, the residual across it in a frame (x, y), and along it."""
    length = ray.norm(dim=-1)
    axis = ray / length[..., None]
    front = dot(residual, axis)
    side = residual - front[..., None] * axis
    return axis, length, side[..., :2], front
