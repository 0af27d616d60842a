"""The sum of terms as a problem for schur.minimise: depths eliminated per pixel, cameras and windows in one system."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.fuse import depth_sweep
from worldline.align.motion_terms import FrameBlocks, OpticalFlowTerm
from worldline.align.sampling import Samples
from worldline.align.schur import CameraBlock, Layout, Normal, PointBlock
from worldline.align.state import Columns, Geometry, State, make_geometry, retract
from worldline.align.terms import Term, view_basis

_CHUNK = 40_000  # samples whose Jacobians are in memory at a time


class Energy:
    """A list of terms over one set of samples. Views must be sorted by frame."""

    def __init__(
        self,
        terms: Sequence[Term],
        samples: Samples,
        xy: Float[Tensor, "T n 2"],
        columns: Columns,
        fixed: Bool[Tensor, " D"],
    ) -> None:
        self.terms, self.samples, self.xy, self.columns = list(terms), samples, xy, columns
        self.layout = Layout(size=columns.size, border=columns.border, bandwidth=columns.bandwidth, fixed=fixed)
        slot = samples.frame if len(columns.camera) > 1 else torch.zeros_like(samples.frame)
        k = samples.window
        self.view_columns = torch.cat(
            [columns.camera[slot], columns.focal[slot][:, None], columns.window[k], columns.disparity[k]], 1
        )
        counts = torch.bincount(samples.frame, minlength=samples.num_frames)
        self.rank = torch.arange(len(k)) - (counts.cumsum(0) - counts)[samples.frame]  # of a view within its frame
        self.most = int(counts.max())
        self.frame_columns = torch.full((samples.num_frames, 7 + 9 * self.most), -1)
        self.frame_columns[samples.frame, :7] = self.view_columns[:, :7]
        place = 7 + 9 * self.rank[:, None] + torch.arange(9)
        self.frame_columns[samples.frame[:, None], place] = self.view_columns[:, 7:]
        self.flow = next((term for term in self.terms if isinstance(term, OpticalFlowTerm)), None)
        self.parts = self._chunks(counts)
        self._last: tuple[State, Geometry] | None = None

    def _chunks(self, counts: Tensor) -> list[tuple[slice, slice]]:
        """(views, frames) ranges of about _CHUNK samples each."""
        size = max(1, self.samples.weight.shape[1])
        per_part = max(1, _CHUNK // (size * max(self.most, 1)))
        ends = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).tolist()
        T = self.samples.num_frames
        parts = [(a, min(a + per_part, T)) for a in range(0, T, per_part)]
        return [(slice(ends[a], ends[b]), slice(a, b)) for a, b in parts if ends[b] > ends[a]]

    def geometry(self, state: State) -> Geometry:
        """Intermediate values of a state (the last ones are kept: a step is first judged, then linearised)."""
        if self._last is None or self._last[0] is not state:
            self._last = (state, make_geometry(state, self.samples, self.xy))
        return self._last[1]

    def costs(self, state: State) -> dict[str, float]:
        """Cost of each term."""
        geometry = self.geometry(state)
        return {term.name: float(term.cost(state, geometry, self.samples)) for term in self.terms}

    def cost(self, state: State) -> float:
        """Sum of the costs."""
        geometry = self.geometry(state)
        return float(torch.stack([term.cost(state, geometry, self.samples) for term in self.terms]).sum())

    def linearize(self, state: State) -> Normal:
        """Normal equations of all terms."""
        geometry = self.geometry(state)
        cameras: list[CameraBlock] = []
        points: list[PointBlock] = []
        flow = None if self.flow is None else self.flow.frame_blocks(state, geometry, self.columns)
        if flow is not None:
            cameras.append(CameraBlock(columns=flow.columns, H=flow.H, g=flow.g))
        for views, frames in self.parts:
            camera, point = self._pixels(state, geometry, views, frames)
            cameras.append(camera)
            points.append(point if flow is None else _with_flow(point, flow, frames))
        for term in self.terms:
            cameras += self.camera_blocks(term, state)
        return Normal(cost=self.cost(state), cameras=cameras, points=points)

    def camera_blocks(self, term: Term, state: State) -> list[CameraBlock]:
        """Normal equations of a term that touches no pixel."""
        blocks = []
        for rows in term.camera_rows(state, self.columns):
            weighted = rows.J * rows.w[:, None, None]
            g = (weighted.mT @ rows.r[..., None])[..., 0]
            blocks.append(CameraBlock(columns=rows.columns, H=weighted.mT @ rows.J, g=g))
        return blocks

    def extended(self, normal: Normal, term: Term, state: State) -> tuple[Energy, Normal]:
        """The energy with one more term that touches no pixel, and its linearisation from that of the others."""
        energy = copy.copy(self)
        energy.terms = [*self.terms, term]
        cost = normal.cost + float(term.cost(state, self.geometry(state), self.samples))
        return energy, replace(normal, cost=cost, cameras=normal.cameras + self.camera_blocks(term, state))

    def _pixels(self, state: State, geometry: Geometry, views: slice, frames: slice) -> tuple[CameraBlock, PointBlock]:
        """Pixel terms of some frames: blocks of their cameras and windows, and of their depths."""
        frame = self.samples.frame[views] - frames.start
        V, n, F = len(frame), self.samples.weight.shape[1], frames.stop - frames.start
        kind = torch.float64
        H, g = torch.zeros(V, 10, 10, dtype=kind), torch.zeros(V, 10, 1, dtype=kind)
        E = torch.zeros(V, n, 10, dtype=kind)
        h, b = torch.zeros(F, n, dtype=kind), torch.zeros(F, n, dtype=kind)
        for term in self.terms:
            for block in term.pixel_blocks(state, geometry, self.samples, views):
                H[:, block.part, block.part] += block.H
                g[:, block.part, 0] += block.g
                E[..., block.part] += block.E
                h.index_add_(0, frame, block.h)
                b.index_add_(0, frame, block.b)
        basis = view_basis(state, self.samples, geometry, views)
        together = torch.zeros(F, self.most, n, 10, dtype=kind)
        together[frame, self.rank[views]] = E
        wide = torch.zeros(F, self.most, 10, 7 + 9 * self.most, dtype=kind)
        wide[frame, self.rank[views], :, :7] = basis[..., :7]
        for slot in range(self.most):
            mine = self.rank[views] == slot
            wide[frame[mine], slot, :, 7 + 9 * slot : 16 + 9 * slot] = basis[mine, :, 7:]
        camera = CameraBlock(columns=self.view_columns[views], H=basis.mT @ H @ basis, g=(basis.mT @ g)[..., 0])
        point = PointBlock(
            columns=self.frame_columns[frames],
            E=together.transpose(1, 2).flatten(2),
            h=h,
            b=b,
            basis=wide.flatten(1, 2),
        )
        return camera, point

    def retract(self, state: State, dx: Tensor, dd: list[Tensor]) -> State:
        """Move everything."""
        step = torch.zeros_like(state.log_depth)
        for (_, frames), value in zip(self.parts, dd, strict=True):
            step[frames] = value
        return retract(state, self.columns, dx, step)


def _with_flow(point: PointBlock, flow: FrameBlocks, frames: slice) -> PointBlock:
    """Points that also couple with the next frame's camera."""
    assert point.basis is not None
    F, rows, cols = point.basis.shape
    basis = torch.zeros(F, rows + 14, cols + 14, dtype=torch.float64)
    basis[:, :rows, :cols] = point.basis
    basis[:, rows:, cols:] = torch.eye(14, dtype=torch.float64)
    return PointBlock(
        columns=torch.cat([point.columns, flow.columns[frames]], 1), E=torch.cat([point.E, flow.E[frames]], 2),
        h=point.h + flow.h[frames], b=point.b + flow.b[frames], basis=basis,
    )  # fmt: skip


def with_depth(state: State, depth: Float[Tensor, "T n"]) -> State:
    """The state with other sample depths (positive)."""
    return replace(state, log_depth=depth.clamp_min(1e-12).log())


def sample_depths(state: State, samples: Samples, xy: Float[Tensor, "T n 2"]) -> Float[Tensor, "T n"]:
    """Robust depth of every sample at these cameras and windows; the typical one where nothing is seen."""
    n = xy.shape[1]
    geometry = make_geometry(replace(state, log_depth=torch.zeros(len(xy), n, dtype=torch.float64)), samples, xy)
    counts = torch.bincount(samples.frame, minlength=len(xy))
    rank = torch.arange(len(samples.frame)) - (counts.cumsum(0) - counts)[samples.frame]
    q = torch.zeros(int(counts.max()), len(xy), n, 3, dtype=torch.float64)
    w = torch.zeros(int(counts.max()), len(xy), n, dtype=torch.float64)
    q[rank, samples.frame], w[rank, samples.frame] = geometry.q, samples.weight
    depth = depth_sweep(q, w, geometry.ray, 6)
    seen = depth > 0
    typical = depth[seen].median() if bool(seen.any()) else torch.tensor(1.0).double()
    return torch.where(seen, depth.clamp_min(1e-2 * float(typical)), typical)
