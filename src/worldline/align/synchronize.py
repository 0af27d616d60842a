"""Joint similarities of overlapping windows: robust pairwise fits, a spanning tree, then all windows at once.

Windows k and l that share frames predict the same pixels twice, p_k and p_l. With Y = s_k R_k p + t_k the joint energy
is

    E = sum over pairs, pixels  rho( |Y_k - Y_l| / (sqrt(s_k s_l) tau_kl) ),

a robust (Cauchy) version of specs/geo4d.md 6.3 (1). The division by sqrt(s_k s_l) makes the scale between two windows
symmetric: plain least squares shrinks the regressed window by its noise, and a chain of them shrinks without end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.align.loop_matches import Loops
from worldline.align.rotations import cayley
from worldline.align.sampling import Samples
from worldline.align.schur import CameraBlock, Layout, LMConfig, Normal, minimise
from worldline.geometry.pose import Similarity, hat

_SAMPLES_PER_PAIR = 256
_HYPOTHESES = 64
_QUANTILE = 0.3  # of residuals: two windows with 30 % outliers each leave half of the pairs clean, so no median


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Corresponding samples of every two windows that share frames.

    Attributes:
        first: [P] window k.
        second: [P] window l > k.
        source: [P, M, 3] points in window k.
        target: [P, M, 3] the same pixels in window l.
        weight: [P, M] product of confidences, scaled to mean 1; 0 = padding.
        residual: [P] 0.3-quantile of the relative residual of the pairwise fit (unit: spread of the target points).
        fit: [P] robust similarity window k -> window l of each pair alone.
        inliers: [P] fraction of correspondences that agree with the pairwise fit within 10 % of the spread.
    """

    first: Int[Tensor, " P"]
    second: Int[Tensor, " P"]
    source: Float[Tensor, "P M 3"]
    target: Float[Tensor, "P M 3"]
    weight: Float[Tensor, "P M"]
    residual: Float[Tensor, " P"]
    inliers: Float[Tensor, " P"]
    fit: Similarity


def umeyama_batch(
    source: Float[Tensor, "*b n 3"], target: Float[Tensor, "*b n 3"], weight: Float[Tensor, "*b n"]
) -> Similarity:
    """Weighted similarities source -> target with the symmetric scale sqrt(var target / var source) (Horn 1987)."""
    total = weight.sum(-1, keepdim=True).clamp_min(1e-12)
    w = (weight / total)[..., None]
    ms, mt = (w * source).sum(-2), (w * target).sum(-2)
    a, b = source - ms[..., None, :], target - mt[..., None, :]
    u, _, vt = torch.linalg.svd((w * b).mT @ a)
    sign = torch.ones_like(ms)
    sign[..., 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[..., None, :]) @ vt
    va, vb = (w * a * a).sum((-2, -1)), (w * b * b).sum((-2, -1))
    scale = (vb.clamp_min(1e-24) / va.clamp_min(1e-24)).sqrt()
    return Similarity(
        scale=scale, rotation=rotation, translation=mt - scale[..., None] * (rotation @ ms[..., None])[..., 0]
    )


def find_pairs(samples: Samples) -> tuple[Pairs, Similarity]:
    """All pairs of windows with common frames, and the robust similarity window k -> window l of each."""
    views = [torch.nonzero(samples.window == k).flatten() for k in range(samples.num_windows)]
    by_frame: dict[int, list[tuple[int, int]]] = {}
    for k, own in enumerate(views):
        for view in own.tolist():
            by_frame.setdefault(int(samples.frame[view]), []).append((k, view))
    common: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for entries in by_frame.values():
        for i, (k, a) in enumerate(entries):
            for l, b in entries[i + 1 :]:
                common.setdefault((k, l), []).append((a, b))
    keys = sorted(common)
    rows = [_correspond(samples, common[key]) for key in keys]
    empty = torch.zeros(0, _SAMPLES_PER_PAIR, 3, dtype=torch.float64)
    source, target = (torch.stack([r[i] for r in rows]) if rows else empty for i in (0, 1))
    weight = torch.stack([r[2] for r in rows]) if rows else empty[..., 0]
    fit, residual, inliers = robust_similarity_batch(source, target, weight)
    index = torch.tensor(keys, dtype=torch.long).reshape(-1, 2)
    pairs = Pairs(
        first=index[:, 0], second=index[:, 1], source=source, target=target, weight=weight, residual=residual,
        inliers=inliers, fit=fit,
    )  # fmt: skip
    return pairs, fit


def _correspond(samples: Samples, views: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """M correspondences of the common frames of two windows, padded with weight 0."""
    a, b = (torch.tensor(column) for column in zip(*views, strict=True))
    weight = (samples.weight[a] * samples.weight[b]).sqrt().flatten()
    index = torch.nonzero(weight > 0).flatten()
    if len(index) > _SAMPLES_PER_PAIR:
        index = index[torch.linspace(0, len(index) - 1, _SAMPLES_PER_PAIR).long()]
    out = [torch.zeros(_SAMPLES_PER_PAIR, 3, dtype=torch.float64) for _ in range(2)]
    w = torch.zeros(_SAMPLES_PER_PAIR, dtype=torch.float64)
    out[0][: len(index)] = samples.points[a].flatten(0, 1)[index]
    out[1][: len(index)] = samples.points[b].flatten(0, 1)[index]
    w[: len(index)] = weight[index] / weight[index].mean().clamp_min(1e-12)
    return out[0], out[1], w


def robust_similarity_batch(
    source: Float[Tensor, "P M 3"], target: Float[Tensor, "P M 3"], weight: Float[Tensor, "P M"], rounds: int = 8
) -> tuple[Similarity, Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Similarities that survive about 60 % gross outliers: least 0.3-quantile of random fits, then Cauchy IRLS.

    Returns:
        the similarities, the 0.3-quantile residual relative to the target's spread, the fraction of inliers (residual
        under 10 % of the spread). Pairs with fewer than 4 points get residual 1 and no inliers.
    """
    usable = weight > 0
    spread = _masked_median((target - _masked_mean(target, usable)[:, None]).norm(dim=-1), usable).clamp_min(1e-9)
    fit = _least_median(source, target, usable)
    error = (fit.apply(source) - target).norm(dim=-1)
    for _ in range(rounds if len(source) else 0):
        tau = (2.0 * masked_quantile(error, usable)).clamp_min(1e-6 * spread)[:, None]
        fit = umeyama_batch(source, target, weight / (1 + (error / tau) ** 2))
        error = (fit.apply(source) - target).norm(dim=-1)
    enough = usable.sum(-1) >= 4
    residual = torch.where(enough, masked_quantile(error, usable) / spread, torch.ones_like(spread))
    good = (error < 0.1 * spread[:, None]) & usable
    inliers = torch.where(enough, good.sum(-1) / usable.sum(-1).clamp_min(1), torch.zeros_like(spread))
    return fit, residual, inliers.double()


def _least_median(source: Tensor, target: Tensor, usable: Tensor) -> Similarity:
    """The 3-point similarity with the smallest 0.3-quantile residual among random ones and the plain fit."""
    pairs, count = usable.shape
    generator = torch.Generator().manual_seed(0)
    chance = usable.double() + 1e-12
    draw = torch.multinomial(chance, 3 * _HYPOTHESES, replacement=True, generator=generator) if pairs else None
    if draw is None:
        return umeyama_batch(source, target, usable.double())
    pick = draw.reshape(pairs, _HYPOTHESES * 3, 1).expand(-1, -1, 3)
    few = [value.gather(1, pick).reshape(pairs, _HYPOTHESES, 3, 3) for value in (source, target)]
    trial = umeyama_batch(few[0], few[1], torch.ones_like(few[0][..., 0]))
    whole = umeyama_batch(source, target, usable.double())
    scale = torch.cat([trial.scale, whole.scale[:, None]], 1)
    rotation = torch.cat([trial.rotation, whole.rotation[:, None]], 1)
    translation = torch.cat([trial.translation, whole.translation[:, None]], 1)
    best = torch.empty(pairs, dtype=torch.long)
    for part in torch.arange(pairs).split(16):  # all residuals of all hypotheses at once would be large
        some = Similarity(scale=scale[part], rotation=rotation[part], translation=translation[part])
        error = (some.apply(source[part, None].expand(-1, _HYPOTHESES + 1, -1, -1)) - target[part, None]).norm(dim=-1)
        best[part] = masked_quantile(error, usable[part, None].expand_as(error)).argmin(1)
    row = torch.arange(pairs)
    return Similarity(scale=scale[row, best], rotation=rotation[row, best], translation=translation[row, best])


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True).clamp_min(1)


def _masked_median(values: Tensor, mask: Tensor) -> Tensor:
    return masked_quantile(values, mask, 0.5)


def masked_quantile(values: Tensor, mask: Tensor, fraction: float = _QUANTILE) -> Tensor:
    """Quantile over the last dim where mask; 0 where nothing is."""
    ordered = torch.where(mask, values, torch.full_like(values, torch.inf)).sort(-1).values
    middle = ((mask.sum(-1) - 1).clamp_min(0) * fraction).long()[..., None]
    return torch.where(mask.any(-1), ordered.gather(-1, middle)[..., 0], torch.zeros_like(values[..., 0]))


def spanning_tree(
    num_windows: int, pairs: Pairs, fit: Similarity, quality: Float[Tensor, " P"]
) -> tuple[Similarity, Int[Tensor, " G"]]:
    """Similarities window -> world along the best pairs (quality > 0), and the component each window belongs to."""
    import networkx  # a dependency of torch

    graph = networkx.Graph()
    graph.add_nodes_from(range(num_windows))
    for i, (k, l, q) in enumerate(zip(pairs.first.tolist(), pairs.second.tolist(), quality.tolist(), strict=True)):
        if q > 0:
            graph.add_edge(k, l, weight=q, pair=i)
    scale = torch.ones(num_windows, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64).repeat(num_windows, 1, 1)
    translation = torch.zeros(num_windows, 3, dtype=torch.float64)
    component = torch.zeros(num_windows, dtype=torch.long)
    tree = networkx.maximum_spanning_tree(graph)
    for label, nodes in enumerate(networkx.connected_components(tree)):
        component[sorted(nodes)] = label
        for known, new in networkx.bfs_edges(tree, min(nodes)):
            i = tree.edges[known, new]["pair"]
            one = Similarity(scale=fit.scale[i], rotation=fit.rotation[i], translation=fit.translation[i])
            step = one if new < known else one.inverse()  # new -> known
            base = Similarity(scale=scale[known], rotation=rotation[known], translation=translation[known])
            placed = base.compose(step)
            scale[new], rotation[new], translation[new] = placed.scale, placed.rotation, placed.translation
    return Similarity(scale=scale, rotation=rotation, translation=translation), component


class _Synchronisation:
    """The joint energy of the module's docstring; parameters (phi, tau, lambda) of every window."""

    def __init__(
        self, pairs: Pairs, use: Bool[Tensor, " P"], tau: Float[Tensor, " P"], fixed: Bool[Tensor, " G"],
        loops: Loops | None = None, loop_tau: float = 1.0,
    ) -> None:  # fmt: skip
        self.loops, self.loop_tau = loops, loop_tau
        self.first, self.second = pairs.first[use], pairs.second[use]
        self.source, self.target, self.weight = pairs.source[use], pairs.target[use], pairs.weight[use]
        self.tau = tau[use][:, None]
        reach = int((self.second - self.first).max()) + 1 if len(self.first) else 1
        banded = loops is None and len(fixed) > 40 and reach < len(fixed) // 3
        self.layout = Layout(
            size=7 * len(fixed), bandwidth=7 * reach if banded else None, fixed=fixed.repeat_interleave(7)
        )

    def _residual(self, state: Similarity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        moved = [
            Similarity(scale=state.scale[i], rotation=state.rotation[i], translation=state.translation[i]).apply(p)
            for i, p in ((self.first, self.source), (self.second, self.target))
        ]
        unit = (state.scale[self.first] * state.scale[self.second]).sqrt()[:, None, None]
        return (moved[0] - moved[1]) / unit, moved[0], moved[1], unit

    def cost(self, state: Similarity) -> float:
        error = (self._residual(state)[0] / self.tau[..., None]).square().sum(-1)
        return 0.5 * float((self.weight * torch.log1p(error)).sum()) + self._loop_cost(state)

    def _loop_cost(self, state: Similarity) -> float:
        if self.loops is None:
            return 0.0
        error = (self.loops.residual(state)[0] / self.loop_tau) ** 2
        return 0.5 * self.loops.weight * float(torch.log1p(error).sum())

    def _loop_block(self, state: Similarity) -> list[CameraBlock]:
        if self.loops is None:
            return []
        r, own, far, across = self.loops.residual(state)
        J = self.loops.jacobian(own, far, across)
        w = self.loops.weight / (1 + (r / self.loop_tau) ** 2) / self.loop_tau**2
        step = torch.arange(7)
        columns = torch.cat([7 * self.loops.window[:, None] + step, 7 * self.loops.other[:, None] + step], 1)
        return [CameraBlock(columns=columns, H=(J * w[:, None])[..., None] * J[:, None], g=J * (w * r)[:, None])]

    def linearize(self, state: Similarity) -> Normal:
        r, yk, yl, unit = self._residual(state)
        error = (r / self.tau[..., None]).square().sum(-1)
        w = self.weight / (1 + error) / self.tau**2
        jacobian = torch.cat([_window_jacobian(yk, state.translation[self.first], r, unit),
                              -_window_jacobian(yl, state.translation[self.second], -r, unit)], -1)  # fmt: skip
        weighted = (jacobian * w[..., None, None]).flatten(1, 2)
        H = weighted.mT @ jacobian.flatten(1, 2)
        g = (weighted.mT @ r.flatten(1)[..., None])[..., 0]
        step = torch.arange(7)
        columns = torch.cat([7 * self.first[:, None] + step, 7 * self.second[:, None] + step], 1)
        cost = 0.5 * float((self.weight * torch.log1p(error)).sum()) + self._loop_cost(state)
        return Normal(cost=cost, cameras=[CameraBlock(columns=columns, H=H, g=g), *self._loop_block(state)])

    def retract(self, state: Similarity, dx: Tensor, dd: list[Tensor]) -> Similarity:
        return perturb(state, dx.reshape(-1, 7))


def _window_jacobian(y: Tensor, translation: Tensor, r: Tensor, unit: Tensor) -> Tensor:
    """Derivative of r / sqrt(s_k s_l) by (phi, tau, lambda) of Y = Exp(phi) s e^lambda R p + t + tau."""
    relative = y - translation[:, None]
    eye = torch.eye(3, dtype=y.dtype).expand(*y.shape, 3)
    return torch.cat([-hat(relative), eye, relative[..., None]], -1) / unit[..., None] - torch.cat(
        [torch.zeros_like(y)[..., None].expand(*y.shape, 6), 0.5 * r[..., None]], -1
    )


def perturb(state: Similarity, step: Float[Tensor, "G 7"]) -> Similarity:
    """Window similarities moved by (phi, tau, lambda): rotation on the left, translation added, log scale added."""
    return Similarity(
        scale=state.scale * step[:, 6].clamp(-1, 1).exp(),
        rotation=cayley(step[:, :3]) @ state.rotation,
        translation=state.translation + step[:, 3:6],
    )


def synchronise(start: Similarity, pairs: Pairs, use: Bool[Tensor, " P"], fixed: Bool[Tensor, " G"]) -> Similarity:
    """Minimise the joint energy over all windows; `fixed` ones (one per component) hold the gauge."""
    if not bool(use.any()):
        return start
    problem = _Synchronisation(pairs, use, _scales(start, pairs, use, fixed), fixed)
    return minimise(problem, start, LMConfig(iterations=8, tolerance=1e-3)).state


def close(
    start: Similarity, pairs: Pairs, use: Bool[Tensor, " P"], fixed: Bool[Tensor, " G"], loops: Loops
) -> tuple[Similarity, Loops]:
    """All windows joined with loops as well, which get heavier until they close; and the loops with that weight."""
    tau = _scales(start, pairs, use, fixed)
    windows = start
    for attempt in range(6):
        missed = float(loops.residual(windows)[0].abs().quantile(0.5))
        problem = _Synchronisation(pairs, use, tau, fixed, loops, max(2 * missed, 4 * loops.floor))
        windows = minimise(problem, windows, LMConfig(iterations=8, tolerance=1e-3)).state
        heavier = loops.weighted(windows)
        if heavier is loops and attempt > 0:
            break
        loops = heavier
    return windows, loops


def _scales(start: Similarity, pairs: Pairs, use: Bool[Tensor, " P"], fixed: Bool[Tensor, " G"]) -> Float[Tensor, " P"]:
    """Robust width of every pair's residuals."""
    usable = pairs.weight > 0
    problem = _Synchronisation(pairs, use, torch.ones_like(pairs.residual), fixed)
    error = torch.zeros_like(pairs.weight)
    if bool(use.any()):
        error[use] = problem._residual(start)[0].norm(dim=-1)
    size = (pairs.target - _masked_mean(pairs.target, usable)[:, None]).norm(dim=-1)
    return (2.0 * masked_quantile(error, usable)).clamp_min(1e-6 * _masked_median(size, usable) + 1e-12)
