"""Point splatting: nearest wins, coverage is true, both paths agree, and the source view comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.pointmap import from_depth, to_world
from worldline.geometry.pose import se3_exp
from worldline.render.paths import NAMES, camera_path, look_at
from worldline.render.splat import splat

SIZE = (36, 48)
K = intrinsics_from_focal(torch.tensor(40.0), SIZE)


def pose(seed: int, scale: float = 0.3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return se3_exp(torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def cloud(seed: int, count: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=g) * 2 + torch.tensor([0, 0, 4.0]), torch.rand(count, 3, generator=g)


@given(seed=st.integers(0, 1000), radius=st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_both_paths_give_the_same_picture(seed: int, radius: int) -> None:
    points, colors = cloud(seed)
    points[::7] = points[3::7][: len(points[::7])].clone() if seed % 2 else points[::7]  # exact ties
    a, b = (splat(points, colors, pose(seed), K, SIZE, radius, backend=name) for name in ("numba", "torch"))
    for name in ("image", "depth", "coverage", "index"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_against_brute_force(seed: int) -> None:
    points, colors = cloud(seed, 300)
    cam2world = pose(seed)
    seen = splat(points, colors, cam2world, K, SIZE, 0)
    cam = (points - cam2world[:3, 3]) @ cam2world[:3, :3]
    depth, winner = torch.zeros(SIZE), torch.full(SIZE, -1)
    for n, (x, y, z) in enumerate(cam.tolist()):
        if z > 1e-6:
            column = int(torch.floor(torch.tensor(40.0 * x / z + (SIZE[1] - 1) / 2 + 0.5)))
            row = int(torch.floor(torch.tensor(40.0 * y / z + (SIZE[0] - 1) / 2 + 0.5)))
            if 0 <= column < SIZE[1] and 0 <= row < SIZE[0] and (winner[row, column] < 0 or z < depth[row, column]):
                depth[row, column], winner[row, column] = z, n
    assert (seen.index != winner).sum() <= 2  # rounding of a projection that falls on a pixel's border
    same = seen.index == winner
    assert torch.allclose(seen.depth[same], depth[same], atol=1e-4)
    assert torch.equal(seen.coverage, seen.index >= 0)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_the_source_view_comes_back(radius: int) -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.rand(*SIZE, 3, generator=g)
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    depth = 4 + 0.01 * y + 0.3 * torch.sin(x / 9)
    depth[10:20, 10:20] = 2.0  # a box in front
    cam2world = pose(1)
    points = to_world(from_depth(depth, K), cam2world).reshape(-1, 3)
    seen = splat(points, image.reshape(-1, 3), cam2world, K, SIZE, radius)
    assert seen.coverage.all()
    border = torch.zeros(SIZE, dtype=torch.bool)  # around the box its footprint hides what is behind
    border[10 - radius : 20 + radius, 10 - radius : 20 + radius] = True
    border[10:20, 10:20] = False
    assert torch.equal(seen.image[~border], image[~border])
    assert torch.allclose(seen.depth[~border], depth[~border], atol=1e-4)


def test_coverage_is_not_blackness() -> None:
    points = torch.tensor([[0.0, 0.0, 2.0]])
    seen = splat(points, torch.zeros(1, 3), torch.eye(4), K, (37, 49), 0)
    assert seen.coverage.sum() == 1 and seen.image.abs().sum() == 0


def test_footprint_is_a_disc_at_the_right_pixel() -> None:
    k = intrinsics_from_focal(torch.tensor(40.0), (37, 49))
    seen = splat(torch.tensor([[0.1, -0.05, 2.0]]), torch.ones(1, 1), torch.eye(4), k, (37, 49), 2)
    rows, columns = seen.coverage.nonzero().T
    assert float(rows.float().mean()) == 18 - 1 and float(columns.float().mean()) == 24 + 2
    assert int(seen.coverage.sum()) == 21  # 5x5 without its corners


def test_behind_infinite_and_outside_points_are_left_out() -> None:
    points = torch.tensor([[0, 0, -1.0], [0, 0, 0], [float("nan"), 0, 1], [0, 0, float("inf")], [1e30, 0, 1e-5],
                           [50, 0, 1]])  # fmt: skip
    for backend in ("numba", "torch"):
        assert not splat(points, torch.ones(6, 3), torch.eye(4), K, SIZE, 1, backend=backend).coverage.any()
    nothing = splat(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8), torch.eye(4), K, SIZE)
    assert not nothing.coverage.any() and nothing.image.dtype == torch.uint8


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="as many colours"):
        splat(torch.zeros(2, 3), torch.zeros(3, 3), torch.eye(4), K, SIZE)
    with pytest.raises(ValueError, match="must not be negative"):
        splat(torch.zeros(2, 3), torch.zeros(2, 3), torch.eye(4), K, SIZE, -1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_picture() -> None:
    points, colors = cloud(0, 20000)
    a = splat(points, colors, pose(0), K, SIZE, 1)
    b = splat(points.cuda(), colors.cuda(), pose(0).cuda(), K.cuda(), SIZE, 1)
    assert (a.index != b.index.cpu()).float().mean() < 1e-3  # projections round differently


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", NAMES)
def test_paths_start_at_the_view_and_are_rigid(name: str) -> None:
    start = pose(5, 1.0, torch.float64)
    path = camera_path(name, start, 3.0, 9)
    assert torch.allclose(path[0], start)
    rotation = path[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(9, 3, 3), atol=1e-9)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(9, dtype=torch.float64))
    moved = (path - start).abs().amax()
    assert (moved == 0) == (name == "static")
    assert torch.allclose(camera_path(name, start, 3.0, 1)[0], start)


@pytest.mark.parametrize("name", ["orbit", "spiral"])
def test_what_is_ahead_stays_in_the_middle(name: str) -> None:
    start = pose(6, 1.0, torch.float64)
    pivot = start[:3, 3] + 3.0 * start[:3, 2]
    for cam2world in camera_path(name, start, 3.0, 11):
        seen = (pivot - cam2world[:3, 3]) @ cam2world[:3, :3]
        assert torch.allclose(seen[:2], torch.zeros(2, dtype=torch.float64), atol=1e-9)
    if name == "orbit":
        full = camera_path(name, start, 3.0, 9, 360.0)
        assert torch.allclose(full[-1], start, atol=1e-9) and (full[4, :3, 3] - start[:3, 3]).norm() > 5.9


def test_directions() -> None:
    ends = {name: camera_path(name, torch.eye(4), 2.0, 3, 0.5)[-1, :3, 3].tolist() for name in NAMES}
    assert ends["dolly_in"] == [0, 0, 1] and ends["dolly_out"] == [0, 0, -1]
    assert ends["left"] == [-1, 0, 0] and ends["right"] == [1, 0, 0]
    assert ends["up"] == [0, -1, 0] and ends["down"] == [0, 1, 0]
    assert camera_path("pan_right", torch.eye(4), 2.0, 2)[-1, 0, 2] > 0.3  # looks to +x
    assert camera_path("pan_left", torch.eye(4), 2.0, 2)[-1, 0, 2] < -0.3
    assert camera_path("orbit", torch.eye(4), 2.0, 2)[-1, 0, 3] > 0.5  # goes to the right


def test_bad_paths() -> None:
    with pytest.raises(ValueError, match="no camera path 'fly'"):
        camera_path("fly", torch.eye(4), 1.0, 5)
    with pytest.raises(ValueError, match="above 0"):
        camera_path("orbit", torch.eye(4), 0.0, 5)
    with pytest.raises(ValueError, match="cannot look"):
        look_at(torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))
