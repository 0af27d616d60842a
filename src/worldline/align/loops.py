"""Loop closure: windows far apart in time that look at the same surfaces, found by their geometry alone.

Each window keeps one coarse key frame. (1) Inverse depth is fitted by planes a x + b y + c = 1/z over patches of it,
which averages noise and gives surfaces: (a, b, c) . P - 1 is how much too far P is, relatively. (2) Pairs of key frames
that, by the cameras so far, look at the same place are (3) registered by a similarity, point to plane, from coarse to
fine. (4) What fits as well as noise allows becomes `Loops`, and all windows move together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.initialize import Start
from worldline.align.loop_matches import Loops
from worldline.align.pixels import distort, measured_pixels
from worldline.align.rotations import cayley
from worldline.align.sampling import Keyframes, Samples
from worldline.align.synchronize import close, masked_quantile
from worldline.geometry.pose import Similarity, from_rt, so3_log

_PATCH = 5  # cells of a key frame's grid, each side
_MOST_LOOPS = 8  # their windows couple with everything, which costs time and memory
_CANDIDATES = 48
_LEAST_OVERLAP = 0.35
_LEAST_MATCHES = 24
_LEAST_FIT = 0.75  # of the overlap, after registration
_MOST_NOISE = 0.06  # relative range noise above which one surface cannot be told from another
_DRIFT = (0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.15)  # believed beforehand: turn, shift relative to depth, log scale
_SHARE = 0.2  # of matches that are independent: their patches overlap
_ROUNDS = 2
_FAR = 3  # windows in between, in lengths of a window


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Planes fitted to key frames, in their cameras.

    Attributes:
        points: [G, h, w, 3] on the planes, else as observed; camera coordinates, world unit; z = 0 where unknown.
        plane: [G, h, w, 3] (a, b, c).
        good: [G, h, w] where a plane fits.
        noise: typical relative error of a single pixel against its plane.
    """

    points: Float[Tensor, "G h w 3"]
    plane: Float[Tensor, "G h w 3"]
    good: Bool[Tensor, "G h w"]
    noise: float


@dataclass(frozen=True, kw_only=True)
class _View:
    """How cameras of key frames map points to cells."""

    pose: Float[Tensor, "G 4 4"]
    focal: Float[Tensor, "G 2"]
    principal: Float[Tensor, "G 2"]
    priors: Priors
    keys: Keyframes

    def cells(self, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Flat cell of camera points [B, M, 3] in key frames `which` [B], and whether there is one."""
        z = points[..., 2]
        xy = distort(points[..., :2] / z.clamp_min(1e-9)[..., None], self.priors.distortion)
        uv = xy * self.focal[which][:, None] + self.principal[which][:, None]
        rows, cols = self.keys.points.shape[1:3]
        col = ((uv[..., 0] - self.keys.first[0]) / self.keys.step).round()
        row = ((uv[..., 1] - self.keys.first[1]) / self.keys.step).round()
        inside = (z > 0) & (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
        return torch.where(inside, row * cols + col, torch.zeros_like(row)).long(), inside


def close_loops(
    samples: Samples, start: Start, size: tuple[int, int], priors: Priors
) -> tuple[Start, Loops | None, dict[str, Any]]:
    """The start with far windows tied together; unchanged where no window sees again what a far one saw.

    Args:
        samples: with key frames.
        start: windows and cameras to begin with.
        size: (H, W).
        priors: intrinsics, distortion.

    Returns:
        the start, what ties it, and notes for the report (`loops`: frames, overlap, and the drift that was found).
    """
    keys = samples.keys
    if keys is None or len(start.rig.centre) != samples.num_frames or not bool(start.kept.any()):
        return start, None, {}
    far = _far_pairs(samples, start)
    if len(far) == 0:
        return start, None, {}
    moved, loops = start, None
    notes: dict[str, Any] = {"loops": []}
    for _ in range(_ROUNDS):  # with most of the drift gone, more is recognised, and more exactly
        # 1. surfaces
        view = _views(keys, moved, size, priors)
        surfaces = fit_surfaces(keys, view, moved, size, priors)
        if surfaces.noise > _MOST_NOISE:
            return start, None, {"loops": [], "loops_skipped": f"windows are {100 * surfaces.noise:.0f} % noisy"}
        # 2. who might see the same, 3. who does
        pairs, fit, overlap, cells, hit = _recognised(far, surfaces, view)
        if len(pairs) == 0:
            break
        # 4. everything moves together
        found = _matches(pairs, fit, cells, hit, surfaces, view, moved)
        joined = _apply(samples, moved, found if loops is None else replace(found, weight=loops.weight))
        if joined is None:
            return start, None, {"loops": [], "loops_skipped": "they contradict neighbouring windows"}
        moved, loops = joined
        drift = fit.compose(_relative(pairs, _views(keys, start, size, priors)).inverse())
        notes = {
            "loops": [
                _describe(keys.frame[pair].tolist(), float(share), float(drift.scale[i]), drift.rotation[i])
                for i, (pair, share) in enumerate(zip(pairs, overlap, strict=True))
            ]
        }
    return moved, loops, notes


def _describe(frames: Sequence[int], overlap: float, scale: float, rotation: Tensor) -> dict[str, Any]:
    cosine = ((torch.diagonal(rotation).sum() - 1) / 2).clamp(-1, 1)
    return {
        "frames": list(frames), "overlap": round(overlap, 3), "drift_scale": round(scale, 4),
        "drift_deg": round(float(torch.rad2deg(torch.arccos(cosine))), 3),
    }  # fmt: skip


def _far_pairs(samples: Samples, start: Start) -> Int[Tensor, "B 2"]:
    """Pairs of kept windows with a few windows' length of frames between them."""
    G, frame = samples.num_windows, samples.frame
    first = torch.full((G,), 10**9).scatter_reduce_(0, samples.window, frame, "amin")
    last = torch.full((G,), -1).scatter_reduce_(0, samples.window, frame, "amax")
    count = torch.bincount(samples.window, minlength=G)
    usable = start.kept & (last - first < 3 * count.clamp_min(8))  # a window of far frames closes a loop itself
    gap = first[None] - last[:, None]
    far = gap > _FAR * count.clamp_min(4)[:, None]
    return torch.nonzero(far & usable[:, None] & usable[None])


def _views(keys: Keyframes, start: Start, size: tuple[int, int], priors: Priors) -> _View:
    T, frame = len(start.rig.centre), keys.frame
    focal = start.rig.log_focal.exp().expand(T)
    focal = torch.stack([focal, focal], -1)
    if priors.intrinsics is not None:
        K = priors.intrinsics.double().expand(T, 3, 3)
        focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)
    _, principal = measured_pixels(torch.zeros(T, 1, 2, dtype=torch.float64), size, priors)
    pose = from_rt(start.rig.rotation, start.rig.centre)
    return _View(pose=pose[frame], focal=focal[frame], principal=principal[frame], priors=priors, keys=keys)


def fit_surfaces(keys: Keyframes, view: _View, start: Start, size: tuple[int, int], priors: Priors) -> Surfaces:
    """Weighted least squares of 1/z over patches of cells, from box sums of moments."""
    G, rows, cols = keys.weight.shape
    local = start.windows.apply(keys.points) - view.pose[:, None, None, :3, 3]
    local = local @ view.pose[:, None, :3, :3]
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(cols).double(), indexing="ij")
    uv = torch.stack([x, y], -1) * keys.step + torch.tensor(keys.first).double()
    T = len(start.rig.centre)
    ideal, _ = measured_pixels(uv.flatten(0, 1).expand(T, -1, 2), size, priors)
    focal = start.rig.log_focal.exp().expand(T)
    xy = (ideal / focal[:, None, None])[keys.frame].unflatten(1, (rows, cols))
    ray = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    z = local[..., 2]
    usable = (keys.weight > 0) & (z > 0)
    inverse = torch.where(usable, 1 / z.clamp_min(1e-9), torch.zeros_like(z))
    parts = [_planes(*part) for part in zip(*(v.split(16) for v in (ray, inverse, usable)), strict=True)]
    plane, fitted, relative, count = (torch.cat(values) for values in zip(*parts, strict=True))
    enough = usable & (count > 0.6 * _PATCH**2) & (fitted > 0)
    noise = float(masked_quantile(relative.flatten(), enough.flatten(), 0.3))
    good = enough & (relative < max(2 * noise, 0.01)) & (relative < 2 * _MOST_NOISE)
    depth = torch.where(good, 1 / fitted.clamp_min(1e-12), torch.where(usable, z, torch.zeros_like(z)))
    return Surfaces(points=depth[..., None] * ray, plane=plane, good=good, noise=noise)


def _planes(ray: Tensor, inverse: Tensor, usable: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plane around every cell, its inverse depth there, the relative error of the cells around, how many they are."""
    w = usable.double()

    def box(values: Tensor) -> Tensor:
        total = torch.nn.functional.avg_pool2d(values.permute(0, 3, 1, 2), _PATCH, 1, _PATCH // 2)
        return total.permute(0, 2, 3, 1) * _PATCH**2

    outer = (ray[..., :, None] * ray[..., None, :]).flatten(-2)
    A = box(outer * w[..., None]).unflatten(-1, (3, 3))
    b = box(ray * (w * inverse)[..., None])
    square, count = box((w * inverse**2)[..., None])[..., 0], box(w[..., None])[..., 0]
    A = A + 1e-9 * count[..., None, None].clamp_min(1) * torch.eye(3, dtype=torch.float64)
    plane = torch.linalg.solve(A, b[..., None])[..., 0]
    error = (square - (plane * b).sum(-1)).clamp_min(0) / count.clamp_min(1)
    fitted = (plane * ray).sum(-1)
    return plane, fitted, error.sqrt() / fitted.clamp_min(1e-12), count


def _relative(pairs: Tensor, view: _View) -> Similarity:
    """Camera of the first key frame to the second's, by the poses so far."""
    one, two = view.pose[pairs[:, 0]], view.pose[pairs[:, 1]]
    back = two[:, :3, :3].mT
    return Similarity(
        scale=torch.ones(len(pairs), dtype=torch.float64), rotation=back @ one[:, :3, :3],
        translation=(back @ (one[:, :3, 3] - two[:, :3, 3])[..., None])[..., 0],
    )  # fmt: skip


def _source(surfaces: Surfaces, step: int) -> tuple[Tensor, Tensor]:
    """A thinned grid of every key frame's points, flat, and which are good."""
    return surfaces.points[:, ::step, ::step].flatten(1, 2), surfaces.good[:, ::step, ::step].flatten(1)


def _candidates(pairs: Tensor, surfaces: Surfaces, view: _View) -> Tensor:
    """The pairs that probably see the same, far ones first among equals."""
    points, _ = _source(surfaces, 4)
    depth, known = surfaces.points[..., 2].flatten(1), points[..., 2] > 0
    scores = []
    for part in pairs.split(1000):
        moved = _relative(part, view).apply(points[part[:, 0]])
        cell, inside = view.cells(part[:, 1], moved)
        ratio = moved[..., 2] / depth[part[:, 1]].gather(1, cell).clamp_min(1e-12)
        near = inside & known[part[:, 0]] & (ratio > 0.7) & (ratio < 1.4)
        scores.append(near.sum(1) / known[part[:, 0]].sum(1).clamp_min(8))
    overlap = torch.cat(scores)
    likely = overlap > 0.8 * _LEAST_OVERLAP
    pairs, overlap = pairs[likely], overlap[likely]
    return pairs[_spread(pairs, overlap, view.keys.frame, _CANDIDATES)]


def _spread(pairs: Tensor, overlap: Tensor, frame: Tensor, most: int) -> Int[Tensor, " n"]:
    """At most `most` pairs, the best by overlap and distance in time, not all at one place."""
    if len(pairs) == 0:
        return torch.zeros(0, dtype=torch.long)
    gap = (frame[pairs[:, 1]] - frame[pairs[:, 0]]).double()
    left = overlap * gap.sqrt()
    radius = float(frame.max() - frame.min()) / (2 * most**0.5)
    at = frame[pairs].double()
    chosen: list[int] = []
    while len(chosen) < most and float(left.max()) > 0:
        best = int(left.argmax())
        chosen.append(best)
        left = torch.where((at - at[best]).abs().sum(1) < radius, torch.zeros_like(left), left)
    return torch.tensor(chosen)


def _recognised(far: Tensor, surfaces: Surfaces, view: _View) -> tuple[Tensor, Similarity, Tensor, Tensor, Tensor]:
    """Pairs that see the same, how their cameras lie, overlap, and the matches (cell and whether it fits)."""
    pairs = _candidates(far, surfaces, view)
    fit, overlap, share, cells, hit = _register(pairs, surfaces, view)
    right = (overlap > _LEAST_OVERLAP) & (share > _LEAST_FIT) & (fit.scale.log().abs() < 0.7)
    index = torch.nonzero(right).flatten()
    index = index[_spread(pairs[index], overlap[index], view.keys.frame, _MOST_LOOPS)]
    picked = Similarity(scale=fit.scale[index], rotation=fit.rotation[index], translation=fit.translation[index])
    return pairs[index], picked, overlap[index], cells[index], hit[index]


def _register(
    pairs: Tensor, surfaces: Surfaces, view: _View
) -> tuple[Similarity, Tensor, Tensor, Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Point-to-plane similarities of candidate pairs, coarse to fine.

    Returns:
        first camera to second; overlap; share of it that fits; cell of each source point; whether it fits.
    """
    points, good = _source(surfaces, 2)
    source, usable = points[pairs[:, 0]], good[pairs[:, 0]]
    plane, seen = surfaces.plane.flatten(1, 2), surfaces.good.flatten(1)
    far = surfaces.points[..., 2].flatten(1)[pairs[:, 1]]
    start = fit = _relative(pairs, view)
    typical = masked_quantile(source[..., 2], usable, 0.5).clamp_min(1e-9)
    unit = torch.ones(len(pairs), 7, dtype=torch.float64)
    unit[:, 3:6] = typical[:, None]
    fine = max(2 * surfaces.noise, 0.02)
    belief = torch.tensor(_DRIFT, dtype=torch.float64) ** -2
    for tau in [0.1] * 4 + [0.05] * 4 + [0.5 * fine] * 6:
        moved = fit.apply(source)
        cell, inside = view.cells(pairs[:, 1], moved)
        there = inside & (source[..., 2] > 0) & (far.gather(1, cell) > 0)
        hit = there & usable & seen[pairs[:, 1]].gather(1, cell)
        n = plane[pairs[:, 1]].gather(1, cell[..., None].expand(-1, -1, 3))
        r = (n * moved).sum(-1) - 1
        w = _SHARE / tau**2 * (hit & (r.abs() < 4 * tau)) / (1 + (r / tau) ** 2)
        J = torch.cat([torch.linalg.cross(moved, n, dim=-1), n, (n * moved).sum(-1, keepdim=True)], -1) * unit[:, None]
        H = (J * w[..., None]).mT @ J
        shift = (fit.translation - start.translation) / unit[:, 3:6]
        away = torch.cat([so3_log(fit.rotation @ start.rotation.mT), shift, fit.scale.log()[:, None]], -1)
        g = ((J * w[..., None]).mT @ r[..., None])[..., 0] + belief * away
        step = -torch.linalg.solve(H + torch.diag(belief), g[..., None])[..., 0] * unit
        turn, grow = cayley(step[:, :3]), step[:, 6].clamp(-0.2, 0.2).exp()
        fit = Similarity(
            scale=grow * fit.scale, rotation=turn @ fit.rotation,
            translation=grow[:, None] * (turn @ fit.translation[..., None])[..., 0] + step[:, 3:6],
        )  # fmt: skip
    overlap = there.sum(1) / (source[..., 2] > 0).sum(1).clamp_min(1)
    fits = hit & (r.abs() < fine)
    share = fits.sum(1) / hit.sum(1).clamp_min(_LEAST_MATCHES)
    return fit, overlap, share, cell, fits


def _matches(
    pairs: Tensor, fit: Similarity, cells: Tensor, hit: Tensor, surfaces: Surfaces, view: _View, start: Start
) -> Loops:
    """Registered points and patches in their windows' own coordinates."""
    points, _ = _source(surfaces, 2)
    row, column = torch.nonzero(hit, as_tuple=True)
    k, l = pairs[row, 0], pairs[row, 1]
    n = surfaces.plane.flatten(1, 2)[l, cells[row, column]]
    s = start.windows
    registered = Similarity(scale=fit.scale[row], rotation=fit.rotation[row], translation=fit.translation[row])
    left = (n * registered.apply(points[k, column])).sum(-1) - 1
    pose = view.pose[k]
    world = (pose[:, :3, :3] @ points[k, column][..., None])[..., 0] + pose[:, :3, 3]
    inverse = Similarity(scale=s.scale[k], rotation=s.rotation[k], translation=s.translation[k]).inverse()
    R, c = view.pose[l, :3, :3], view.pose[l, :3, 3]
    across = (R @ n[..., None])[..., 0]
    return Loops(
        window=k, other=l, source=inverse.apply(world),
        normal=s.scale[l][:, None] * (s.rotation[l].mT @ across[..., None])[..., 0],
        offset=1 - (across * (s.translation[l] - c)).sum(-1), floor=max(float(left.abs().median()), 1e-4),
    )  # fmt: skip


def _apply(samples: Samples, start: Start, loops: Loops) -> tuple[Start, Loops] | None:
    """All windows at once with the loops; None where neighbouring windows would have to part for them."""
    pairs, kept = start.pairs, start.kept
    use = kept[pairs.first] & kept[pairs.second] & start.trusted
    anchor = torch.zeros_like(kept)
    anchor[torch.nonzero(kept)[0, 0]] = True
    windows, loops = close(start.windows, pairs, use, anchor, loops)

    def gap(s: Similarity) -> float:
        one, two = (
            Similarity(scale=s.scale[i], rotation=s.rotation[i], translation=s.translation[i]).apply(p)
            for i, p in ((pairs.first[use], pairs.source[use]), (pairs.second[use], pairs.target[use]))
        )
        error = (one - two).norm(dim=-1) / (s.scale[pairs.first[use]] * s.scale[pairs.second[use]]).sqrt()[:, None]
        return float(masked_quantile(error.flatten(), (pairs.weight[use] > 0).flatten(), 0.5))

    if gap(windows) > 1.5 * gap(start.windows) + 1e-12:
        return None
    # every camera goes with the window in whose middle it is
    T = samples.num_frames
    middle = torch.zeros(samples.num_windows).index_add_(0, samples.window, samples.frame.float())
    middle = middle / torch.bincount(samples.window, minlength=samples.num_windows).clamp_min(1)
    distance = (samples.frame - middle[samples.window]).abs() + 1e9 * ~kept[samples.window]
    nearest = torch.full((T,), torch.inf).scatter_reduce_(0, samples.frame, distance, "amin")
    best = distance <= nearest[samples.frame]
    home = torch.full((T,), int(torch.nonzero(kept)[0, 0]))
    home[samples.frame[best]] = samples.window[best]
    old, new = (
        Similarity(scale=s.scale[home], rotation=s.rotation[home], translation=s.translation[home])
        for s in (start.windows, windows)
    )
    pose = new.compose(old.inverse()).apply_pose(from_rt(start.rig.rotation, start.rig.centre))
    rig = replace(start.rig, rotation=pose[:, :3, :3], centre=pose[:, :3, 3])
    return replace(start, windows=windows, rig=rig), loops
