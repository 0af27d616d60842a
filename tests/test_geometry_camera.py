"""Cameras, point maps, disparity and ray maps: what one function does another undoes, or projects to the same place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.geometry import camera, disparity, pointmap, pose, raymap
from worldline.scene import Cameras, Provenance, Scene4D, Video

FEW = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
SIZE = (20, 32)


def random_intrinsics(g: torch.Generator, *batch: int, skew: float = 0.0) -> torch.Tensor:
    k = torch.zeros(*batch, 3, 3, dtype=torch.float64)
    noise = torch.rand(*batch, 4, generator=g, dtype=torch.float64)
    k[..., 0, 0], k[..., 1, 1] = 20 + 20 * noise[..., 0], 20 + 20 * noise[..., 1]
    k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = 12 + 6 * noise[..., 2], 8 + 4 * noise[..., 3], 1
    k[..., 0, 1] = skew
    return k


def random_pose(g: torch.Generator, *batch: int) -> torch.Tensor:
    return pose.se3_exp(0.7 * torch.randn(*batch, 6, generator=g, dtype=torch.float64))


@FEW
@given(seed=seeds)
def test_unproject_undoes_project_also_with_skew_and_negative_fy(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k = random_intrinsics(g, 4, skew=1.5)
    k[2, 1, 1] *= -1
    points = torch.randn(4, 5, 6, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 0, 5])
    torch.testing.assert_close(camera.unproject(camera.project(points, k), points[..., 2], k), points)


def test_pixel_grid_is_column_then_row_and_rays_hit_their_pixels() -> None:
    grid = camera.pixel_grid(SIZE)
    assert grid.shape == (*SIZE, 2) and grid[3, 7].tolist() == [7, 3]
    k = random_intrinsics(torch.Generator().manual_seed(0), 2)
    rays = camera.camera_rays(k, SIZE)
    assert torch.equal(rays[..., 2], torch.ones_like(rays[..., 2]))
    torch.testing.assert_close(camera.project(rays, k), grid.double().expand(2, *SIZE, 2))


@FEW
@given(seed=seeds)
def test_crop_and_resize_of_intrinsics_agree_with_projection(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k = random_intrinsics(g, skew=0.7)
    points = torch.randn(9, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 0, 5])
    uv = camera.project(points, k)
    torch.testing.assert_close(camera.project(points, camera.crop(k, 3, 5)), uv - torch.tensor([5.0, 3.0]))
    scaled = camera.project(points, camera.resize(k, SIZE, (30, 16)))
    # image edges at -1/2 and size - 1/2 stay image edges
    torch.testing.assert_close((scaled + 0.5) / torch.tensor([16.0, 30.0]), (uv + 0.5) / torch.tensor([32.0, 20.0]))
    torch.testing.assert_close(camera.resize(camera.resize(k, SIZE, (30, 16)), (30, 16), SIZE), k)


def test_resized_intrinsics_match_an_area_resized_coordinate_image() -> None:
    """Averaging 2x2 pixels of the image of u coordinates gives the u at which the new pixel looks."""
    k = random_intrinsics(torch.Generator().manual_seed(1))
    rays = camera.camera_rays(k, SIZE)
    averaged = torch.nn.functional.avg_pool2d(rays.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    torch.testing.assert_close(camera.camera_rays(camera.resize(k, SIZE, (10, 16)), (10, 16)), averaged)


def test_ideal_camera_has_a_centred_principal_point_and_its_field_of_view() -> None:
    k = camera.intrinsics_from_focal(16.0, SIZE)
    assert k[0, 2] == 15.5 and k[1, 2] == 9.5
    x, y = camera.field_of_view_deg(k, SIZE)
    assert abs(float(x) - 90) < 1e-4
    assert abs(float(y) - 2 * torch.rad2deg(torch.atan(torch.tensor(10 / 16)))) < 1e-4
    assert camera.intrinsics_from_focal(torch.tensor([3.0, 4.0]), SIZE).shape == (2, 3, 3)


@FEW
@given(seed=seeds)
def test_focal_from_pointmap_survives_forty_percent_wild_points(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k = camera.intrinsics_from_focal(torch.tensor(38.0), SIZE)
    points = pointmap.from_depth(1 + 4 * torch.rand(*SIZE, generator=g), k)
    wild = torch.rand(*SIZE, generator=g) < 0.4
    points[wild] = torch.randn(int(wild.sum()), 3, generator=g) * torch.tensor([50.0, 50.0, 1.0])
    focal = camera.focal_from_pointmap(points, torch.ones(SIZE, dtype=torch.bool))
    assert abs(float(focal) / 38 - 1) < 0.01
    with pytest.raises(ValueError, match="at least 8"):
        camera.focal_from_pointmap(points, torch.zeros(SIZE, dtype=torch.bool))


@FEW
@given(seed=seeds, shift=st.floats(-3.0, 3.0))
def test_focal_and_shift_are_recovered_together(seed: int, shift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    k = camera.intrinsics_from_focal(torch.tensor(27.0, dtype=torch.float64), SIZE)
    points = pointmap.from_depth(2 + 3 * torch.rand(*SIZE, generator=g, dtype=torch.float64), k)
    points[..., 2] -= shift
    focal, t = camera.focal_shift_from_pointmap(points, torch.ones(SIZE, dtype=torch.bool))
    assert abs(float(focal) - 27) < 1e-4 and abs(float(t) - shift) < 1e-4


@FEW
@given(seed=seeds)
def test_depth_to_world_points_and_back(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k, p = random_intrinsics(g, 3), random_pose(g, 3)
    depth = 1 + torch.rand(3, *SIZE, generator=g, dtype=torch.float64)
    world = pointmap.to_world(pointmap.from_depth(depth, k), p)
    torch.testing.assert_close(pointmap.depth_of(world, p), depth)
    local = pointmap.to_camera(world, p)
    torch.testing.assert_close(local[..., 2], depth)
    torch.testing.assert_close(camera.project(local, k), camera.pixel_grid(SIZE, torch.float64).expand(3, *SIZE, 2))


def test_scene_depth_is_zero_where_invalid_and_needs_cameras() -> None:
    k = camera.intrinsics_from_focal(20.0, SIZE).expand(2, 3, 3)
    p = random_pose(torch.Generator().manual_seed(0), 2).float()
    depth = 1 + torch.rand(2, *SIZE)
    valid = torch.rand(2, *SIZE) > 0.3
    video = Video(frames=torch.rand(2, *SIZE, 3), timestamps=torch.arange(2.0))
    scene = Scene4D(
        video=video,
        points=pointmap.to_world(pointmap.from_depth(depth, k), p),
        valid=valid,
        cameras=Cameras(intrinsics=k, cam2world=p, size=SIZE),
        provenance=Provenance(system="truth"),
    )
    torch.testing.assert_close(pointmap.scene_depth(scene), depth * valid, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cameras"):
        pointmap.scene_depth(Scene4D(video=video, points=scene.points, valid=valid, provenance=scene.provenance))


def test_disparity_round_trip_and_its_infinities() -> None:
    depth = torch.tensor([0.5, 2.0, float("inf"), 0.0, -1.0, float("nan")])
    d = disparity.from_depth(depth)
    assert d.tolist() == [2.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert disparity.to_depth(d).tolist()[:3] == [0.5, 2.0, float("inf")]
    assert disparity.to_depth(d, far=10.0).tolist()[2:] == [10.0] * 4
    x = torch.rand(6).double().requires_grad_()
    assert torch.autograd.gradcheck(disparity.from_depth, x)


def two_planes(step: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A near slanted surface on the left, a far one on the right, and the pixel mask of the near one."""
    columns = torch.arange(SIZE[1]).expand(SIZE)
    near = columns < 13
    depth = torch.where(near, 2.0 + 0.01 * columns, 2.0 + step + 0.02 * columns)
    return depth, near


def test_depth_edges_are_found_at_the_step_only() -> None:
    depth, _ = two_planes()
    edges = pointmap.depth_edges(depth)
    assert edges[:, 12:14].all() and not edges[:, :12].any() and not edges[:, 14:].any()
    depth[5, 5] = 0.0  # a hole is no edge
    assert not pointmap.depth_edges(depth)[:, :12].any()
    assert pointmap.depth_edges(depth.expand(2, 3, *SIZE)).shape == (2, 3, *SIZE)


@FEW
@given(seed=seeds)
def test_normals_of_a_plane_face_the_camera(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k, p = random_intrinsics(g), random_pose(g)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.2, -1.0], dtype=torch.float64), dim=0)
    rays = camera.camera_rays(k, SIZE)
    depth = -2.0 / (rays @ normal)  # plane n.x = -2
    world = pointmap.to_world(rays * depth[..., None], p)
    torch.testing.assert_close(pointmap.normals(world), (p[:3, :3] @ normal).expand(*SIZE, 3))


@pytest.mark.parametrize("size", [(10, 16), (7, 11), (40, 64), (33, 45), (20, 32)])
def test_resizing_points_never_mixes_surfaces_nor_takes_invalid_ones(size: tuple[int, int]) -> None:
    depth, _ = two_planes()
    k = camera.intrinsics_from_focal(30.0, SIZE)
    points = pointmap.from_depth(depth, k)
    valid = torch.rand(SIZE) > 0.2
    out, found = pointmap.resize(points, valid, size)
    originals = points[valid]
    distance = torch.cdist(out[found].double(), originals.double()).amin(-1)
    assert out.shape == (*size, 3) and float(distance.max()) == 0 and found.float().mean() > 0.6
    assert (out[~found] == 0).all()
    # and it lies inside the output pixel, or inside the input pixel where that is larger
    uv = camera.project(out[found], camera.resize(k, SIZE, size)) - camera.pixel_grid(size)[found]
    reach = torch.tensor([max(size[1] / SIZE[1], 1.0), max(size[0] / SIZE[0], 1.0)]) / 2
    assert (uv.abs() <= reach + 1e-3).all()
    if size == SIZE:
        assert torch.equal(out, points * valid[..., None]) and torch.equal(found, valid)


def test_sampling_is_linear_on_a_surface_and_one_sided_at_an_edge() -> None:
    depth, near = two_planes()
    k = camera.intrinsics_from_focal(30.0, SIZE)
    points, everywhere = pointmap.from_depth(depth, k), torch.ones(SIZE, dtype=torch.bool)
    uv = camera.pixel_grid(SIZE) + torch.rand(*SIZE, 2) * 0.98 - 0.49
    out, found = pointmap.sample(points, everywhere, uv)
    assert found.all()
    z = out[..., 2]
    assert ((z < 2.5) | (z > 5.0)).all(), "a point between the two surfaces"
    inside = uv[..., 0] < 11.9
    shifted = uv.clamp(min=0)
    torch.testing.assert_close(z[inside], (2.0 + 0.01 * shifted[..., 0])[inside], atol=1e-4, rtol=0)
    outside, found = pointmap.sample(points, everywhere, uv + 100)
    assert not found.any() and (outside == 0).all()
    _, found = pointmap.sample(points, near, uv)
    assert not found[:, 15:].any()


@FEW
@given(seed=seeds)
def test_ray_map_to_cameras_round_trip_with_zoom(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    k, p = random_intrinsics(g, 5, skew=0.4), random_pose(g, 5)
    direction, moment = raymap.from_cameras(k, p, SIZE)
    torch.testing.assert_close((direction * moment).sum(-1).abs().max(), torch.tensor(0.0).double(), atol=1e-12, rtol=0)
    k_back, p_back = raymap.to_cameras(direction * (1 + torch.rand(5, *SIZE, 1, generator=g)), moment)
    torch.testing.assert_close(k_back, k, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(p_back, p, atol=1e-9, rtol=1e-9)


def test_ray_cameras_take_weights_and_subsampled_pixels() -> None:
    g = torch.Generator().manual_seed(4)
    k, p = random_intrinsics(g, 3), random_pose(g, 3)
    direction, moment = raymap.from_cameras(k, p, SIZE)
    weight = (torch.rand(3, *SIZE, generator=g) > 0.3).double()
    direction[weight == 0] = torch.randn(int((weight == 0).sum()), 3, generator=g, dtype=torch.float64)
    pixels = camera.pixel_grid(SIZE, torch.float64)[::2, ::2]
    k_back, p_back = raymap.to_cameras(
        direction[:, ::2, ::2], moment[:, ::2, ::2], weight[:, ::2, ::2], pixels=pixels, size=SIZE
    )
    torch.testing.assert_close(k_back, k, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(p_back, p, atol=1e-9, rtol=1e-9)


def test_centred_ray_cameras_beat_the_general_ones_under_noise() -> None:
    g = torch.Generator().manual_seed(5)
    focal = torch.tensor([25.0, 30.0, 36.0, 45.0], dtype=torch.float64)
    k, p = camera.intrinsics_from_focal(focal, SIZE), random_pose(g, 4)
    direction, moment = raymap.from_cameras(k, p, SIZE)
    exact_k, exact_p = raymap.to_cameras(direction, moment, model="centred")
    torch.testing.assert_close(exact_k, k, atol=1e-3, rtol=0)
    torch.testing.assert_close(exact_p, p, atol=1e-9, rtol=0)
    noisy = direction + 0.02 * torch.randn(direction.shape, generator=g, dtype=torch.float64)
    angle = {}
    for model in ("general", "centred"):
        _, found = raymap.to_cameras(noisy, moment, model=model)
        angle[model] = pose.rotation_angle_deg(found[:, :3, :3], p[:, :3, :3]).mean()
    assert angle["centred"] < 0.1 and angle["centred"] < angle["general"]


def test_published_procrustes_is_right_for_a_fixed_camera_and_biased_by_zoom() -> None:
    p = pose.relative_to_first(random_pose(torch.Generator().manual_seed(6), 4))
    errors = []
    for focal in ([30.0, 30.0, 30.0, 30.0], [30.0, 33.0, 38.0, 45.0]):
        k = camera.intrinsics_from_focal(torch.tensor(focal, dtype=torch.float64), SIZE)
        k[:, 0, 2] += 0.5  # centre of the published square crop is off the principal point
        found = raymap.to_cameras_procrustes(*raymap.from_cameras(k, p, SIZE))
        errors.append(float(pose.rotation_angle_deg(found[:, :3, :3], p[:, :3, :3]).max()))
        torch.testing.assert_close(found[:, :3, 3], p[:, :3, 3])
    assert errors[0] < 1e-6 and errors[1] > 0.05
