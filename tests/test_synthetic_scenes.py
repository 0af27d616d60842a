"""Scenes by seed and category: the same bits every time, sane places, and each category keeps its promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from worldline.data.synthetic import (
    CATEGORY_NAMES,
    RenderConfig,
    SensorConfig,
    SyntheticBatch,
    render_batch,
    render_clip,
    sample_scene,
)
from worldline.data.synthetic.bodies import Body
from worldline.data.synthetic.lens import compress, image_velocity, motion_blur
from worldline.data.synthetic.motion import inverse
from worldline.data.synthetic.sensor import expose
from worldline.geometry import sceneflow

SIZE = (32, 48)
FRAMES = 4
SEEDS = tuple(range(700, 704))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _batch(category: str) -> SyntheticBatch:
    return render_batch(SEEDS, frames=FRAMES, size=SIZE, category=category, config=RenderConfig(tracks=True))


@cache
def _moving(category: str) -> tuple[Body, ...]:
    specs = [sample_scene(seed, frames=FRAMES, category=category) for seed in range(24)]
    return tuple(body for spec in specs for body in spec.bodies if body.motion != "static")


def _same(a: SyntheticBatch, b: SyntheticBatch) -> bool:
    names = (
        "rgb",
        "points",
        "depth",
        "scene_flow",
        "object_id",
        "normals",
        "cam2world",
        "intrinsics",
        "tracks",
        "visible",
    )
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    return all(torch.equal(x, y) for x, y in pairs if x is not None)


def test_a_seed_gives_the_same_bits_whatever_else_is_in_the_batch() -> None:
    config = RenderConfig(tracks=True, sensor=SensorConfig())
    together = render_batch([3, 17, 29], frames=3, size=SIZE, config=config)
    alone = render_batch([17], frames=3, size=SIZE, config=config)
    again = render_batch([17], frames=3, size=SIZE, config=config)
    assert _same(alone, again)
    assert torch.equal(together.rgb[1], alone.rgb[0]) and torch.equal(together.points[1], alone.points[0])
    assert torch.equal(together.scene_flow[1], alone.scene_flow[0])
    assert alone.tracks is not None and together.tracks is not None
    assert torch.equal(together.tracks[1], alone.tracks[0])
    assert not torch.equal(together.rgb[0], together.rgb[1])
    assert together.captions[1] == alone.captions[0] and together.seeds == (3, 17, 29)


def test_sensor_errors_change_only_the_colours() -> None:
    perfect = render_batch([8], frames=2, size=SIZE)
    real = render_batch([8], frames=2, size=SIZE, config=RenderConfig(sensor=SensorConfig()))
    assert torch.equal(perfect.points, real.points) and not torch.equal(perfect.rgb, real.rgb)
    assert float(real.rgb.min()) >= 0 and float(real.rgb.max()) <= 1


@pytest.mark.parametrize("category", CATEGORY_NAMES)
def test_every_category_renders_sane_places(category: str) -> None:
    batch = _batch(category)
    assert set(batch.categories) == {category} and all(caption.endswith(".") for caption in batch.captions)
    assert bool(torch.isfinite(batch.rgb).all()) and bool(torch.isfinite(batch.points).all())
    assert torch.equal(batch.valid | batch.sky, torch.ones_like(batch.sky))
    assert float(batch.valid.float().mean()) > 0.5
    for b in range(len(batch)):
        depth = batch.depth[b][batch.valid[b]]
        assert 0.3 < float(depth.min()) and float(depth.max()) < 100
        assert float(depth.quantile(0.98)) > 1.5
        brightness = batch.rgb[b].mean()
        assert 0.12 < float(brightness) < 0.95
        assert float(batch.rgb[b].std()) > 0.02
    assert not bool(batch.flow_valid[:, -1].any()) and bool(batch.flow_valid[:, :-1].eq(batch.valid[:, :-1]).all())


def test_cameras_stay_outside_everything_and_above_the_ground() -> None:
    for seed in range(40):
        spec = sample_scene(seed, frames=8, category=CATEGORY_NAMES[seed % len(CATEGORY_NAMES)])
        eyes = spec.cam2world[:, :3, 3]
        assert (eyes[:, 1] < spec.stage.ground(eyes[:, 0], eyes[:, 2]) - 0.2).all()
        if spec.stage.kind == "room":
            assert (np.abs(eyes - spec.stage.centre) < spec.stage.half - 0.1).all()
        for body in spec.bodies:
            for part in body.parts:
                local = (inverse(part.pose) @ np.append(eyes, np.ones((len(eyes), 1)), 1)[..., None])[:, :3, 0]
                assert (np.abs(local).max(-1) > 1).all(), f"seed {seed}: a camera is inside the {body.noun}"


def test_random_training_scenes_vary() -> None:
    specs = [sample_scene(seed, frames=2) for seed in range(80)]
    assert {spec.stage.kind for spec in specs} == {"room", "ground", "terrain"}
    assert len({spec.category for spec in specs}) >= 7
    assert len({spec.caption.rsplit(",", 1)[1] for spec in specs}) == 6  # every kind of camera path
    assert len({spec.caption for spec in specs}) > 70


def test_nothing_moves_when_only_the_camera_does() -> None:
    batch = _batch("camera_only")
    assert float(batch.scene_flow.abs().max()) == 0 and not bool(batch.dynamic.any())
    poses = (batch.cam2world[:, -1] - batch.cam2world[:, 0]).flatten(1).norm(dim=1)
    zoom = (batch.intrinsics[:, -1, 0, 0] / batch.intrinsics[:, 0, 0, 0]).log().abs()
    assert bool((poses + zoom > 1e-3).all())


def test_the_camera_stands_still_when_only_objects_move() -> None:
    batch = _batch("object_only")
    torch.testing.assert_close(batch.cam2world, torch.eye(4).expand_as(batch.cam2world), atol=1e-6, rtol=0)
    assert torch.equal(batch.intrinsics, batch.intrinsics[:, :1].expand_as(batch.intrinsics))
    assert float(batch.dynamic.float().mean()) > 0.02
    moving = batch.scene_flow.norm(dim=-1) > 1e-4
    assert bool((~moving | batch.dynamic).all())  # nothing moves that is not labelled


def test_both_move_in_both() -> None:
    batch = _batch("both")
    travelled = (batch.cam2world[:, 1:, :3, 3] - batch.cam2world[:, :-1, :3, 3]).norm(dim=-1).mean(1)
    assert bool((travelled > 1e-3).all()) and float(batch.dynamic.float().mean()) > 0.02


def _stretch(body: Body) -> float:
    """Largest deviation of any part's motion between frames from a rigid one."""
    worst = 0.0
    for part in body.parts:
        if len(part.pose) > 1:
            step = (part.pose[1:] @ inverse(part.pose[:-1]))[:, :3, :3]
            worst = max(worst, float(np.abs(step @ step.transpose(0, 2, 1) - np.eye(3)).max()))
    return worst


def _spread(body: Body) -> float:
    """Largest difference between the motions of a body's parts over the clip."""
    steps = [part.pose[-1] @ inverse(part.pose[0]) for part in body.parts]
    return max(float(np.abs(step - steps[0]).max()) for step in steps)


def test_rigid_articulated_and_deforming_bodies_move_as_they_should() -> None:
    rigid, articulated, deforming = (_moving(name) for name in ("rigid", "articulated", "deforming"))
    assert min(len(rigid), len(articulated), len(deforming)) > 15
    assert max(_stretch(body) for body in (*rigid, *articulated)) < 1e-9
    assert min(_stretch(body) for body in deforming) > 1e-4
    assert all(len(body.parts) >= 5 and _spread(body) > 1e-3 for body in articulated)
    assert all(_spread(body) < 1e-9 for body in rigid if "car" not in body.noun)  # a car's wheels turn


def _mean_speed(category: str) -> float:
    bodies = _moving(category)
    steps = [
        np.linalg.norm(np.diff(p.pose[:, :3, 3], axis=0), axis=-1).mean()
        for b in bodies
        for p in b.parts
        if len(p.pose) > 1
    ]
    return float(np.mean(steps))


def test_fast_is_fast() -> None:
    assert _mean_speed("fast") > 2.5 * _mean_speed("both")
    flow = {name: _batch(name).scene_flow[_batch(name).dynamic].norm(dim=-1).mean() for name in ("fast", "both")}
    assert float(flow["fast"]) > 1.5 * float(flow["both"])


def _hidden_share(batch: SyntheticBatch) -> float:
    """Share of reference pixels that are hidden in the image of a later frame."""
    assert batch.tracks is not None and batch.visible is not None
    to_camera = torch.linalg.inv(batch.cam2world.double())[:, :, None, None]
    p = (to_camera[..., :3, :3] @ batch.tracks.double()[..., None])[..., 0] + to_camera[..., :3, 3]
    k = batch.intrinsics.double()[:, :, None, None]
    uv = p[..., :2] / p[..., 2:].clamp_min(1e-6) * k[..., 0, 0, None] + k[..., :2, 2]
    limit = torch.tensor([SIZE[1] - 1, SIZE[0] - 1])
    inside = (p[..., 2] > 0) & (uv >= 0).all(-1) & (uv <= limit).all(-1) & batch.valid[:, :1]
    return float((inside & ~batch.visible).sum() / inside.sum())


def test_occlusion_hides_more_than_other_categories() -> None:
    assert _hidden_share(_batch("occlusion")) > 1.5 * _hidden_share(_batch("both"))
    assert _hidden_share(_batch("occlusion")) > 0.04


def _texture(batch: SyntheticBatch) -> float:
    """Mean second difference of the brightness along rows, inside objects."""
    grey, inside = batch.rgb.mean(-1), batch.object_id
    bend = (grey[..., 2:] - 2 * grey[..., 1:-1] + grey[..., :-2]).abs()
    same = (inside[..., 2:] == inside[..., 1:-1]) & (inside[..., 1:-1] == inside[..., :-2]) & (inside[..., 1:-1] >= 0)
    return float(bend[same].median())


def test_low_texture_is_low() -> None:
    plain = RenderConfig(shadows=False)
    low, ordinary = (
        _texture(render_batch(SEEDS, frames=1, size=SIZE, category=name, config=plain))
        for name in ("low_texture", "both")
    )
    assert low < 0.4 * ordinary


def test_long_clips_are_long_and_stay_in_their_place() -> None:
    spec = sample_scene(4, category="long")
    assert spec.frames == 64
    for seed in range(6):
        spec = sample_scene(seed, frames=100, category="long")
        for body in spec.bodies:
            for part in body.parts:
                assert np.linalg.norm(part.pose[:, [0, 2], 3] - part.pose[:1, [0, 2], 3], axis=-1).max() < 25
        if spec.stage.kind == "room":
            for body in spec.bodies:
                if body.motion != "static":
                    centre = body.parts[0].pose[:, :3, 3]
                    assert (np.abs(centre - spec.stage.centre) < spec.stage.half + 0.2).all()


def test_bad_requests_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="Unknown synthetic category 'cars'"):
        render_clip(0, frames=2, size=SIZE, category="cars")
    with pytest.raises(ValueError, match="at least one frame"):
        render_clip(0, frames=0, size=SIZE)
    with pytest.raises(ValueError, match="positive image size"):
        render_clip(0, frames=2, size=(0, 8))
    with pytest.raises(ValueError, match="seeds"):
        render_batch([], frames=2, size=SIZE)
    with pytest.raises(ValueError, match="Reference frame 5"):
        render_clip(0, frames=2, size=SIZE, config=RenderConfig(reference=5))
    with pytest.raises(ValueError, match="negative"):
        sample_scene(-1, frames=2)


def test_one_frame_and_one_pixel_render() -> None:
    scene = render_clip(5, frames=1, size=(1, 1))
    assert scene.points.shape == (1, 1, 1, 3)


def test_the_command_writes_a_video_and_its_truth(tmp_path) -> None:
    from worldline.cli.synthetic import RenderSynthetic, run
    from worldline.io.store import load
    from worldline.io.video import load_video

    out = tmp_path / "clip"
    assert run(RenderSynthetic(out=out, seed=3, frames=3, size="32x48", category="both")) == 0
    truth = load(out / "truth")
    expected = render_clip(3, frames=3, size=SIZE, category="both")
    torch.testing.assert_close(truth.points, expected.points, atol=1e-5, rtol=1e-5)
    assert set(truth.extras) == set(expected.extras) and truth.provenance.settings["seed"] == 3
    video = load_video(out / "video.mp4")
    assert video.size == SIZE and float((video.rgb() - expected.video.rgb()).abs().mean()) < 0.06
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(RenderSynthetic(out=out, seed=4, frames=3, size="32x48"))
    assert run(RenderSynthetic(out=out, seed=4, frames=2, size="32x48", overwrite=True, json=True)) == 0


def test_motion_blur_runs_along_the_image_motion_and_leaves_a_still_picture_alone() -> None:
    rows = torch.zeros(2, 16, 24, 3)
    rows[:, :, 12] = 1  # a vertical line
    across, along = torch.zeros(2, 16, 24, 2), torch.zeros(2, 16, 24, 2)
    across[..., 0], along[..., 1] = 6, 6
    blurred = motion_blur(rows, across, 0.5)
    assert blurred[0, 8, 12, 0] < 0.7 and blurred[0, 8, 11, 0] > 0.05
    assert torch.allclose(blurred.sum(2), rows.sum(2), atol=0.35)  # light is spread, not lost
    assert torch.allclose(motion_blur(rows, along, 0.5), rows, atol=1e-5)
    assert torch.equal(motion_blur(rows, torch.zeros_like(across), 0.5), rows)


def test_image_velocity_is_what_the_pixels_do() -> None:
    clip = render_batch([5], frames=3, size=SIZE, category="camera_only")
    speed = image_velocity(clip.points[0], clip.sky[0], clip.scene_flow[0], clip.intrinsics[0], clip.cam2world[0])
    flow = sceneflow.to_optical_flow(
        clip.points[0, 0], clip.scene_flow[0, 0], clip.intrinsics[0, 1], clip.cam2world[0, 1]
    )
    seen = clip.valid[0, 0] & (flow.norm(dim=-1) < 5)
    assert seen.float().mean() > 0.3
    assert torch.allclose(speed[0][seen], flow[seen], atol=1e-3)
    both = clip.valid[0, 1] & clip.valid[0, 2]
    steady = (speed[2] - speed[1])[both].norm(dim=-1).median()
    assert steady < 0.5 * speed[1][both].norm(dim=-1).median() + 0.1  # the last frame goes on as the one before


def test_compression_loses_detail_not_the_picture() -> None:
    clip = render_batch([6], frames=1, size=(33, 47)).rgb[0]
    assert torch.equal(compress(clip, 0.0), clip)
    light, heavy = ((compress(clip, s) - clip).abs().mean() for s in (0.005, 0.1))
    assert light < 0.008 < heavy < 0.1
    flat = torch.full((1, 16, 16, 3), 0.5)
    assert (compress(flat, 0.1) - flat).abs().max() <= 0.1 / 16 + 1e-4


def test_a_hand_held_video_changes_colours_only_and_repeats_by_seed() -> None:
    config = RenderConfig(sensor=SensorConfig.video())
    real, again = (render_batch([8], frames=2, size=SIZE, config=config) for _ in range(2))
    perfect = render_batch([8], frames=2, size=SIZE)
    assert torch.equal(real.rgb, again.rgb) and torch.equal(real.points, perfect.points)
    assert not torch.equal(real.rgb, perfect.rgb)
    with pytest.raises(ValueError, match="needs the image velocity"):
        expose(perfect.rgb, [8], SensorConfig.video())
