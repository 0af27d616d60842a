"""Schur-complement Levenberg-Marquardt against dense least squares."""

from __future__ import annotations

import pytest
import torch

from worldline.align.schur import CameraBlock, Layout, LMConfig, Normal, PointBlock, minimise, solve_step

T, N = 6, 5  # groups of points; group t touches parameters 2t..2t+3 (clipped) and the border


def _random_normal(border: int, seed: int = 0) -> tuple[Normal, torch.Tensor, torch.Tensor, int]:
    """Blocks and the same system assembled densely: (normal, A, rhs, D)."""
    generator = torch.Generator().manual_seed(seed)
    D = 2 * T + border
    A, rhs = torch.zeros(D + T * N, D + T * N, dtype=torch.float64), torch.zeros(D + T * N, dtype=torch.float64)
    columns, Hs, gs, Es, hs, bs = [], [], [], [], [], []
    for t in range(T):
        local = [c for c in (2 * t, 2 * t + 1, 2 * t + 2, 2 * t + 3) if c < 2 * T] + list(range(2 * T, D))
        local += [-1] * (4 + border - len(local))
        used = [i for i, c in enumerate(local) if c >= 0]
        J = torch.randn(N, 8, len(local), generator=generator, dtype=torch.float64)
        p = torch.randn(N, 8, generator=generator, dtype=torch.float64)
        r = torch.randn(N, 8, generator=generator, dtype=torch.float64)
        H, g = torch.einsum("nra,nrb->ab", J, J), torch.einsum("nra,nr->a", J, r)
        E, h, b = torch.einsum("nra,nr->na", J, p), (p * p).sum(1), (p * r).sum(1)
        cols = torch.tensor([local[i] for i in used])
        points = D + t * N + torch.arange(N)
        A[cols[:, None], cols[None]] += H[used][:, used]
        A[cols[:, None], points[None]] += E[:, used].T
        A[points[:, None], cols[None]] += E[:, used]
        A[points, points] += h
        rhs[cols] += g[used]
        rhs[points] += b
        for out, value in zip((columns, Hs, gs, Es, hs, bs), (torch.tensor(local), H, g, E, h, b), strict=True):
            out.append(value)
    columns_t = torch.stack(columns)
    cameras = [CameraBlock(columns=columns_t, H=torch.stack(Hs), g=torch.stack(gs))]
    blocks = [PointBlock(columns=columns_t, E=torch.stack(Es), h=torch.stack(hs), b=torch.stack(bs))]
    return Normal(cost=1.0, cameras=cameras, points=blocks), A, rhs, D


@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize("bandwidth", [None, 4])
def test_step_equals_dense_solve(border: int, bandwidth: int | None) -> None:
    normal, A, rhs, D = _random_normal(border)
    damping = 0.1
    expected = torch.linalg.solve(A + damping * torch.diag(torch.diagonal(A)), -rhs)
    step = solve_step(normal, Layout(size=D, border=border, bandwidth=bandwidth), damping)
    assert step is not None
    torch.testing.assert_close(torch.cat([step[0], step[1][0].flatten()]), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bandwidth", [None, 4])
def test_fixed_parameters_stay(bandwidth: int | None) -> None:
    normal, A, rhs, D = _random_normal(1)
    fixed = torch.zeros(D, dtype=torch.bool)
    fixed[[0, 3]] = True
    keep = torch.ones(len(A), dtype=torch.bool)
    keep[[0, 3]] = False
    expected = torch.linalg.solve(A[keep][:, keep], -rhs[keep])
    step = solve_step(normal, Layout(size=D, border=1, bandwidth=bandwidth, fixed=fixed), 0.0)
    assert step is not None
    full = torch.cat([step[0], step[1][0].flatten()])
    assert full[[0, 3]].abs().max() == 0
    torch.testing.assert_close(full[keep], expected, rtol=1e-7, atol=1e-9)


def test_coupling_beyond_the_band_is_refused() -> None:
    normal, _, _, D = _random_normal(0)
    with pytest.raises(ValueError, match="bandwidth"):
        solve_step(normal, Layout(size=D, bandwidth=2), 0.0)


class _Curves:
    """y = d_i exp(x0 t) + x1 with per-curve amplitude d_i: a variable-projection classic."""

    layout = Layout(size=2, border=2, bandwidth=1)

    def __init__(self) -> None:
        self.t = torch.linspace(0, 1, 20, dtype=torch.float64)
        self.amplitude = torch.linspace(1, 2, 7, dtype=torch.float64)
        self.y = self.amplitude[:, None] * torch.exp(-1.5 * self.t) + 0.3

    def residual(self, state):
        x, d = state
        return d[:, None] * torch.exp(x[0] * self.t) + x[1] - self.y

    def cost(self, state) -> float:
        return 0.5 * float((self.residual(state) ** 2).sum())

    def linearize(self, state) -> Normal:
        x, d = state
        r, grow = self.residual(state), torch.exp(x[0] * self.t)
        J = torch.stack([d[:, None] * self.t * grow, torch.ones_like(r)], -1)
        columns = torch.tensor([[0, 1]])
        camera = CameraBlock(
            columns=columns, H=torch.einsum("nta,ntb->ab", J, J)[None], g=torch.einsum("nta,nt->a", J, r)[None]
        )
        E, h = torch.einsum("nta,t->na", J, grow)[None], (grow**2).sum().expand(1, len(d))
        return Normal(
            cost=self.cost(state), cameras=[camera], points=[PointBlock(columns=columns, E=E, h=h, b=(r @ grow)[None])]
        )

    def retract(self, state, dx, dd):
        return state[0] + dx, state[1] + dd[0][0]


def test_minimise_finds_the_truth_and_never_climbs() -> None:
    problem = _Curves()
    start = (torch.tensor([-0.7, 0.0], dtype=torch.float64), torch.ones(7, dtype=torch.float64))
    result = minimise(problem, start, LMConfig(iterations=50, tolerance=1e-15))
    assert list(result.history) == sorted(result.history, reverse=True)
    torch.testing.assert_close(result.state[0], torch.tensor([-1.5, 0.3], dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.state[1], problem.amplitude, atol=1e-5, rtol=0)
