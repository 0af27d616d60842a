"""Scene flow and normalisations: static worlds stand still, compositions agree, what is applied can be inverted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.geometry import camera, normalize, pointmap, pose, sceneflow
from worldline.scene import Cameras, Provenance, Scene4D, Video

FEW = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
SIZE = (24, 36)


def moving_cameras(frames: int, speed: float = 0.02) -> torch.Tensor:
    """Cameras that sway gently and look along z."""
    t = torch.arange(frames, dtype=torch.float64)
    xi = torch.stack([speed * t, 0 * t, 0.5 * speed * t, 0 * t, 0.3 * speed * t, 0 * t], -1)
    return pose.se3_exp(xi)


def wall_clip(frames: int, velocity: torch.Tensor) -> dict[str, torch.Tensor]:
    """A slanted wall, textured by nothing, moving as a whole with a constant velocity, seen by moving cameras."""
    k = camera.intrinsics_from_focal(torch.tensor(30.0, dtype=torch.float64), SIZE).expand(frames, 3, 3)
    cam2world = moving_cameras(frames)
    normal = torch.tensor([0.2, 0.1, -1.0], dtype=torch.float64)
    points = []
    for t in range(frames):
        rays = pose.rotate(cam2world[t, :3, :3], camera.camera_rays(k[t], SIZE))
        centre = cam2world[t, :3, 3]
        offset = -4.0 + (t * velocity) @ normal - centre @ normal  # plane n.x = -4 + n.v t
        points.append(centre + rays * (offset / (rays @ normal))[..., None])
    flow = velocity.expand(frames, *SIZE, 3).clone()
    valid = torch.ones(frames, *SIZE, dtype=torch.bool)
    valid[-1] = False
    return {"k": k, "cam2world": cam2world, "points": torch.stack(points), "flow": flow, "valid": valid}


@FEW
@given(seed=seeds)
def test_static_scene_with_a_moving_camera_has_no_world_flow(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    world = torch.randn(*SIZE, 3, generator=g, dtype=torch.float64)
    a, b = pose.se3_exp(torch.randn(2, 6, generator=g, dtype=torch.float64))
    in_a, in_b = pose.transform(pose.inverse(a), world), pose.transform(pose.inverse(b), world)
    flow = sceneflow.camera_to_world_flow(in_a, in_b - in_a, a, b)
    assert float(flow.abs().max()) < 1e-12 and float((in_b - in_a).abs().max()) > 0.1


@FEW
@given(seed=seeds)
def test_camera_and_world_flow_are_inverse_and_batched(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    points, flow = torch.randn(2, 3, 4, 5, 3, generator=g, dtype=torch.float64)
    a, b = pose.se3_exp(torch.randn(2, 3, 6, generator=g, dtype=torch.float64))
    world = pose.transform(a, points)
    there = sceneflow.camera_to_world_flow(points, flow, a, b)
    torch.testing.assert_close(sceneflow.world_to_camera_flow(world, there, a, b), flow)
    # the deformed point is the same place in both descriptions
    torch.testing.assert_close(sceneflow.deformed(world, there), pose.transform(b, sceneflow.deformed(points, flow)))


def test_optical_flow_and_scene_flow_agree_on_a_moving_wall() -> None:
    velocity = torch.tensor([0.05, -0.03, 0.02], dtype=torch.float64)
    clip = wall_clip(2, velocity)
    optical = sceneflow.to_optical_flow(clip["points"][0], clip["flow"][0], clip["k"][1], clip["cam2world"][1])
    found, valid = sceneflow.from_optical_flow(clip["points"][0], clip["points"][1], optical)
    uv = camera.pixel_grid(SIZE, torch.float64) + optical
    inside = ((uv >= 0) & (uv <= torch.tensor([SIZE[1] - 1, SIZE[0] - 1]))).all(-1)
    assert inside.float().mean() > 0.9 and valid[inside].all()
    # bilinear reading of a slanted plane: error of second order in the pixel, far below the flow of 0.06
    assert float((found - velocity)[inside].norm(dim=-1).max()) < 1e-3
    still = sceneflow.to_optical_flow(clip["points"][0], 0 * clip["flow"][0], clip["k"][0], clip["cam2world"][0])
    assert float(still.abs().max()) < 1e-9


def test_scene_flow_from_optical_flow_never_mixes_foreground_and_background() -> None:
    depth = torch.where(torch.arange(SIZE[1]) < 15, 2.0, 6.0).expand(SIZE)
    points = pointmap.from_depth(depth, camera.intrinsics_from_focal(30.0, SIZE))
    flow_px = torch.rand(*SIZE, 2) - 0.5  # sub-pixel: a mixing reader would invent depths between 2 and 6
    flow, valid = sceneflow.from_optical_flow(points, points, flow_px)
    landed = (points + flow)[..., 2][valid]
    assert (((landed - 2).abs() < 1e-4) | ((landed - 6).abs() < 1e-4)).all()
    hidden = torch.zeros(SIZE, dtype=torch.bool)
    _, none = sceneflow.from_optical_flow(points, points, flow_px, valid_next=hidden)
    assert not none.any()
    flow_px[3, 3] = float("nan")
    flow, valid = sceneflow.from_optical_flow(points, points, flow_px)
    assert not valid[3, 3] and flow.isfinite().all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_composed_flow_of_a_constant_motion_is_stride_times_it(stride: int) -> None:
    velocity = torch.tensor([0.05, -0.03, 0.02], dtype=torch.float64)
    clip = wall_clip(6, velocity)
    total, valid = sceneflow.compose(clip["points"], clip["flow"], clip["valid"], clip["k"], clip["cam2world"], stride)
    assert not valid[-stride:].any() and valid[:-stride].float().mean() > 0.7
    torch.testing.assert_close(total[valid], (stride * velocity).expand(int(valid.sum()), 3))
    assert (total[~valid] == 0).all()


def test_composed_flow_stops_where_the_point_is_hidden() -> None:
    clip = wall_clip(3, torch.zeros(3, dtype=torch.float64))
    centre = clip["cam2world"][1, :3, 3]
    occluded = torch.zeros(SIZE, dtype=torch.bool)
    occluded[:, 10:20] = True
    clip["points"][1][occluded] = (centre + 0.5 * (clip["points"][1] - centre))[occluded]  # something halfway in front
    _, valid = sceneflow.compose(clip["points"], clip["flow"], clip["valid"], clip["k"], clip["cam2world"], 2)
    assert not valid[0][:, 12:18].any() and valid[0][:, 23:33].all()
    with pytest.raises(ValueError, match="stride"):
        sceneflow.compose(clip["points"], clip["flow"], clip["valid"], clip["k"], clip["cam2world"], 0)


def test_dynamic_mask_marks_what_moves() -> None:
    velocity = torch.tensor([0.1, 0.0, 0.0], dtype=torch.float64)
    clip = wall_clip(3, velocity)
    flow = clip["flow"].clone()
    flow[:, :, 18:] = 0
    scene = Scene4D(
        video=Video(frames=torch.rand(3, *SIZE, 3), timestamps=torch.arange(3.0)),
        points=clip["points"],
        valid=torch.ones(3, *SIZE, dtype=torch.bool),
        cameras=Cameras(intrinsics=clip["k"], cam2world=clip["cam2world"], size=SIZE),
        scene_flow=flow,
        flow_valid=clip["valid"],
        provenance=Provenance(system="truth"),
    )
    mask = sceneflow.dynamic_mask(scene, 0.005)
    assert mask[:2, :, :18].all() and not mask[:, :, 18:].any() and not mask[2].any()
    assert not sceneflow.dynamic_mask(scene, 1.0).any()


@FEW
@given(seed=seeds)
def test_normalisations_invert_points_and_vectors(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(3, *SIZE, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.3])
    points = points + torch.tensor([0.0, 0.0, 4.0])
    valid = torch.rand(3, *SIZE, generator=g) > 0.2
    vectors = torch.randn(3, *SIZE, 3, generator=g, dtype=torch.float64)
    for kind in (normalize.MeanDistance, normalize.MaxDistance, normalize.PercentileBox):
        chosen = kind.fit(points, valid)
        encoded = chosen.apply(points)
        kept = encoded.abs().amax(-1) < 2  # the percentile box clamps at 2
        assert kept.float().mean() > 0.5
        torch.testing.assert_close(chosen.invert(encoded)[kept], points[kept])
        torch.testing.assert_close(chosen.invert_vector(chosen.apply_vector(vectors)), vectors)
        moved = chosen.apply(points + 1e-3 * vectors)
        both = kept & (moved.abs().amax(-1) < 2)
        torch.testing.assert_close((moved - encoded)[both], chosen.apply_vector(1e-3 * vectors)[both])


def test_mean_distance_means_what_it_says_and_moves_cameras_along() -> None:
    g = torch.Generator().manual_seed(0)
    points = 5 + torch.randn(2, *SIZE, 3, generator=g, dtype=torch.float64)
    valid = torch.rand(2, *SIZE, generator=g) > 0.3
    chosen = normalize.MeanDistance.fit(points, valid)
    encoded = chosen.apply(points)[valid]
    torch.testing.assert_close(encoded.norm(dim=-1).mean(), torch.tensor(1.0, dtype=torch.float64))
    assert float(encoded.mean(0).abs().max()) < 1e-9
    cams = pose.se3_exp(torch.randn(2, 6, generator=g, dtype=torch.float64))
    torch.testing.assert_close(chosen.invert_pose(chosen.apply_pose(cams)), cams)
    local = pose.transform(pose.inverse(cams), points)
    local_encoded = pose.transform(pose.inverse(chosen.apply_pose(cams)), chosen.apply(points))
    torch.testing.assert_close(local_encoded * chosen.scale, local)


def test_percentile_box_marks_invalid_pixels_and_keeps_the_gauge_free_form() -> None:
    points = torch.randn(2, *SIZE, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 6.0])
    valid = torch.rand(2, *SIZE) > 0.2
    box = normalize.PercentileBox.fit(points, valid)
    encoded = box.apply(points, valid)
    assert (encoded[~valid] == 1.05).all() and float(encoded.abs().max()) <= 2
    unit = box.to_unit(encoded)
    kept = valid & (encoded.abs().amax(-1) < 2)
    torch.testing.assert_close(
        unit[kept] * box.scale, points[kept] - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) * box.low
    )
    with pytest.raises(ValueError, match="at least one"):
        normalize.PercentileBox.fit(points, torch.zeros_like(valid))


def test_depth_guided_motion_counts_frustum_widths() -> None:
    k = camera.intrinsics_from_focal(torch.tensor(27.0, dtype=torch.float64), SIZE)
    reference = pointmap.from_depth(2 + torch.rand(*SIZE, dtype=torch.float64), k)
    motion = normalize.DepthGuidedMotion.fit(reference)
    torch.testing.assert_close(motion.focal, torch.tensor([27 / SIZE[1], 27 / SIZE[0]], dtype=torch.float64))
    tracks = reference + 0.3 * torch.randn(4, *SIZE, 3, dtype=torch.float64)
    torch.testing.assert_close(motion.invert(motion.apply(tracks)), tracks)
    # a sideways step of one image width at constant depth is a displacement of 1
    step = torch.zeros_like(reference)
    step[..., 0] = reference[..., 2] * SIZE[1] / 27
    torch.testing.assert_close(motion.apply_vector(step)[..., 0], torch.ones(SIZE, dtype=torch.float64))
