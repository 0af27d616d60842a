"""Data check: physics that holds passes, every kind of mistake is found and named; the real excerpts pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from small_scenes import ball_scene
from worldline.data import adapters
from worldline.data.build import build
from worldline.data.check import CheckConfig, ClipCheck, check_clip, check_scene, physics
from worldline.data.check.compare import Count, Label, compare, count
from worldline.data.check.picture import draw
from worldline.data.clips import Clip, PointTracks
from worldline.data.conversion import jobs
from worldline.data.store import ClipStore
from worldline.geometry import camera, pointmap, pose
from worldline.scene import Scene4D

SIZE = (60, 90)


@pytest.fixture(scope="module")
def ball() -> Scene4D:
    scene = ball_scene(10, SIZE)
    assert scene.cameras is not None
    turned = scene.cameras.cam2world.double()
    return replace(
        scene, cameras=replace(scene.cameras, cam2world=turned, intrinsics=scene.cameras.intrinsics.double())
    )


def scores_of(check: ClipCheck) -> dict[str, float | None]:
    return {outcome.name: outcome.score for outcome in check.outcomes}


def moved(scene: Scene4D, poses: torch.Tensor) -> Scene4D:
    """The scene as an adapter with these poses would give it: camera-frame points and flow carried by wrong cameras."""
    assert scene.cameras is not None and scene.scene_flow is not None
    old = scene.cameras.cam2world
    local = pointmap.to_camera(scene.points.double(), old)
    ahead = scene.points.double() + scene.scene_flow.double()
    later = list(range(1, len(scene))) + [len(scene) - 1]
    points = pose.transform(poses, local)
    flow = pose.transform(poses[later], pointmap.to_camera(ahead, old[later])) - points
    return replace(
        scene,
        points=points.float(),
        scene_flow=flow.float() * (scene.flow_valid[..., None] if scene.flow_valid is not None else 1),
        cameras=replace(scene.cameras, cam2world=poses),
    )


def test_a_true_scene_passes_every_test(ball: Scene4D) -> None:
    found = check_scene(ball, CheckConfig(least_tested=100))
    assert found.verdict == "passes" and found.score is not None and found.score > 0.98
    scores = scores_of(found)
    assert set(scores) == {"cameras", "projection", "depth", "motion", "at rest"}
    assert all(score is not None and score > 0.98 for score in scores.values()), scores


def test_frames_are_spread_over_the_whole_clip() -> None:
    assert physics._spread(3, 16) == [0, 1, 2] and physics._spread(101, 3) == [0, 50, 100]
    assert physics._spread(0, 4) == [] and physics._spread(1, 4) == [0] and len(physics._spread(40, 16)) == 16


def test_labels_are_what_another_camera_sees() -> None:
    """A wall at 4 m: points at 4 m agree, behind it they are hidden, before it they are looked through."""
    scene = ball_scene(1, (20, 30))
    assert scene.cameras is not None
    k = scene.cameras.intrinsics[0]
    depth = torch.full((1, 20, 30), 4.0)
    eye = torch.eye(4, dtype=torch.float64)[None]
    wall = replace(scene, points=pointmap.from_depth(depth, k[None]), valid=depth > 0, scene_flow=None, flow_valid=None,
                   cameras=replace(scene.cameras, cam2world=eye))  # fmt: skip
    for z, label in ((4.1, Label.AGREES), (4.5, Label.HIDDEN), (3.5, Label.THROUGH)):
        points = pointmap.from_depth(torch.full((1, 20, 30), z), k[None])[0]
        chosen = torch.ones(20, 30, dtype=torch.bool)
        chosen[:, :5] = False
        labels = compare(points, chosen, wall)
        assert (labels[:, 5:] == label).all() and (labels[:, :5] == Label.UNTESTED).all()
    outside = compare(torch.tensor([[90.0, 0, 4], [0, 0, -4]]), torch.ones(2, dtype=torch.bool), wall)
    assert (outside == Label.UNTESTED).all()
    total = count(torch.tensor([1, 1, 1, 2, 3], dtype=torch.uint8)) + Count(agrees=1)
    assert (total.tested, total.agreement, total.consistency) == (6, 4 / 6, 4 / 5)


def quarter_turn(scene: Scene4D) -> torch.Tensor:
    """Poses with the camera looking to the side: axes of another convention, applied on the wrong side."""
    assert scene.cameras is not None
    swap = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return scene.cameras.cam2world @ swap


def test_mistakes_of_converters_are_found(ball: Scene4D) -> None:
    config = CheckConfig(least_tested=100)
    assert ball.cameras is not None and ball.scene_flow is not None and ball.flow_valid is not None
    cameras, poses = ball.cameras, ball.cameras.cam2world
    resting = ball.scene_flow.norm(dim=-1) == 0  # without flow all points count as resting: leave the ball out
    ball = replace(ball, valid=ball.valid & resting)
    still = replace(ball, scene_flow=None, flow_valid=None)
    wide = replace(still.select([0, 4, 9]))
    assert scores_of(check_scene(replace(wide), config))["depth"] is not None

    def wide_with(new: torch.Tensor) -> ClipCheck:
        return check_scene(replace(moved(ball, new), scene_flow=None, flow_valid=None).select([0, 4, 9]), config)

    right = check_scene(wide, config).score
    assert right is not None and right > 0.9
    # world-to-camera poses taken for camera-to-world, and axes of another convention
    for new in (pose.inverse(poses), quarter_turn(ball)):
        score = wide_with(new).score
        assert score is not None and score < right - 0.1
    # ray length taken for depth: points off their pixels' rays are seen at once, consistent ones by other frames
    rays = camera.camera_rays(cameras.intrinsics, ball.size)
    depth = pointmap.scene_depth(ball).double()
    longer = pose.transform(poses, rays * (depth * rays.norm(dim=-1))[..., None])
    score = check_scene(replace(still, points=longer.float()).select([0, 4, 9]), config).score
    assert score is not None and score < right
    # points of one frame in another frame's place
    swapped = ball.points.clone()
    swapped[3] = ball.points[8]
    assert scores_of(check_scene(replace(ball, points=swapped), config))["projection"] == pytest.approx(0, abs=0.3)


def test_flow_in_the_wrong_frame_is_found(ball: Scene4D) -> None:
    scene = ball_scene(3, (120, 180))
    config = CheckConfig(least_tested=100, images=True)
    assert scene.cameras is not None and scene.scene_flow is not None and scene.flow_valid is not None
    poses = scene.cameras.cam2world.double()
    right = scores_of(check_scene(scene, config))["images"]
    assert right is not None and right > 0.85
    # flow that contains the camera's motion (x' - x between camera frames) taken for world flow
    ahead = scene.points[:-1].double() + scene.scene_flow[:-1].double()
    relative = pointmap.to_camera(ahead, poses[1:]) - pointmap.to_camera(scene.points[:-1].double(), poses[:-1])
    flow = scene.scene_flow.clone()
    flow[:-1] = relative.float()
    found = scores_of(check_scene(replace(scene, scene_flow=flow), config))
    assert found["images"] is not None and found["images"] < 0.5
    # flow of the wrong size and sign, seen by depth alone
    assert ball.scene_flow is not None
    found = scores_of(check_scene(replace(ball, scene_flow=-8 * ball.scene_flow), CheckConfig(least_tested=100)))
    assert found["motion"] is not None and found["motion"] < 0.9


def test_cameras_that_cannot_be_are_named(ball: Scene4D) -> None:
    assert ball.cameras is not None
    poses, k = ball.cameras.cam2world.clone(), ball.cameras.intrinsics.clone()
    poses[2, :3, :3] *= 1.01
    poses[3, 0, 3] = torch.nan
    k[5, 0, 2] = 400
    k[6, 1, 1] *= -1
    times = ball.video.timestamps.clone()
    times[4] = times[3]
    bad = replace(
        ball,
        video=replace(ball.video, timestamps=times),
        cameras=replace(ball.cameras, cam2world=poses, intrinsics=k),
    )
    (outcome,) = (o for o in check_scene(bad).outcomes if o.name == "cameras")
    assert outcome.score == 0
    for words in ("not finite", "not a rotation", "outside of the image", "focal length is not positive", "timestamps"):
        assert words in outcome.note


def test_tracks_must_lie_on_what_is_seen(ball: Scene4D) -> None:
    rows, columns = torch.meshgrid(torch.arange(32, 58, 3), torch.arange(5, 85, 5), indexing="ij")
    points = ball.points[0][rows, columns].reshape(1, -1, 3).expand(len(ball), -1, 3)
    seen = torch.zeros(points.shape[:2], dtype=torch.bool)
    seen[0] = ball.valid[0][rows, columns].reshape(-1)
    good = PointTracks(points=points, known=seen, visible=seen)
    config = CheckConfig(least_tested=20)
    assert scores_of(check_clip(Clip(scene=ball, tracks=good), config))["tracks"] == 1.0
    bad = PointTracks(points=points * 0.7, known=seen, visible=seen)
    assert (scores_of(check_clip(Clip(scene=ball, tracks=bad), config))["tracks"] or 0) < 0.2


def test_a_sensor_may_say_that_it_is_bad(ball: Scene4D) -> None:
    torch.manual_seed(1)
    depth = pointmap.scene_depth(ball).double() * (1 + 0.05 * torch.randn(len(ball), 1, 1).double())
    assert ball.cameras is not None
    points = pose.transform(ball.cameras.cam2world, pointmap.from_depth(depth, ball.cameras.intrinsics)).float()
    noisy = replace(ball, points=points, scene_flow=None, flow_valid=None)
    near = CheckConfig(gap=1)  # the ball, whose motion is not told here, has hardly moved
    strict = check_scene(noisy, near)
    facts = replace(noisy.provenance, settings={"depth_tolerance": 0.3})
    forgiving = check_scene(replace(noisy, provenance=facts), near)
    assert strict.verdict == "fails" and forgiving.verdict == "passes"
    assert any("within 30 %" in outcome.note for outcome in forgiving.outcomes)


def test_a_clip_with_nothing_to_test_has_no_score(ball: Scene4D) -> None:
    blind = check_scene(replace(ball, cameras=None))
    assert blind.score is None and blind.verdict == "untested" and "no cameras" in blind.outcomes[0].note
    single = check_scene(ball.select([0]))
    assert scores_of(single)["depth"] is None and single.verdict == "passes", "its cameras and projection were tested"


def test_the_picture_shows_the_worst_pair(ball: Scene4D) -> None:
    wrong = replace(ball, scene_flow=None, flow_valid=None, points=ball.points.clone())
    wrong.points[4] *= 0.8
    found = check_scene(wrong, CheckConfig(least_tested=100))
    assert found.worst is not None and found.worst.worst is not None and 4 in found.worst.worst
    frames: physics.Frames = lambda a, b: wrong.select(slice(a, b))  # noqa: E731
    picture = draw(found, frames)
    assert picture.shape[1] == 3 * 480 and picture.shape[2] == 3
    red = (picture[..., 0] > 1.5 * picture[..., 1]) & (picture[..., 0] > 100)
    blue = picture[..., 2] > 1.5 * picture[..., 1]
    assert (red | blue)[:, 960:].mean() > 0.1, "a frame whose points are a fifth too near contradicts the next"


EXPECTED = {
    # score of the worst pair, agreement over all pairs; data-formats.md section 1 (TartanAir: 99.9 %)
    "tartanair": ("tartanair", [("depth", 0.99, 0.999)]),
    "hololens": ("hololens", [("depth", 0.98, 0.99)]),
    "slambook": ("slambook2", [("depth", 0.95, 0.95), ("depth", 0.85, 0.9)]),
    "deepdeform": ("deepdeform", [("motion", 0.99, 0.99)]),
    "flyingthings": ("flyingthings", [("projection", 1.0, 1.0)] * 2),
    "kitti_odometry": ("kitti_odometry", [("images", 0.95, 0.98)]),
}


@pytest.mark.shared
@pytest.mark.parametrize("dataset", sorted(EXPECTED))
def test_real_excerpts_pass(dataset: str, shared_data: Path, tmp_path: Path) -> None:
    folder, figures = EXPECTED[dataset]
    found_jobs = [job for job in jobs(dataset, shared_data / folder, longest=16) if "/0000" not in job.name
                  or "/000000-" in job.name]  # fmt: skip
    assert len(found_jobs) == len(figures), "one clip of each sequence"
    assert not build(tmp_path / "store", found_jobs, {"dataset": dataset}).skipped
    store = ClipStore(tmp_path / "store")
    firsts = store.entries
    for entry, (name, worst, mean) in zip(firsts, figures, strict=True):
        found = check_clip(store[entry.name], CheckConfig(pairs=4))
        (outcome,) = (o for o in found.outcomes if o.name == name)
        assert found.verdict == "passes", found
        assert outcome.score is not None and outcome.mean is not None
        assert outcome.score >= worst and outcome.mean >= mean, (entry.name, outcome)
    assert dataset in adapters.ADAPTERS
