"""From a picture to tracks to a video: exact where it can be, deterministic, and none of the published slips."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from more4d_tiny import TINY
from worldline.geometry.camera import intrinsics_from_focal
from worldline.geometry.pointmap import from_depth
from worldline.render.paths import camera_path
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D, Video
from worldline.systems.more4d import flow, infer, splatting
from worldline.systems.more4d.depth import (
    BEYOND,
    DepthGuess,
    GivenDepth,
    SystemDepth,
    TransformersDepth,
    without_blocks,
)
from worldline.systems.more4d.infer import SamplingConfig, generate, synthesize
from worldline.systems.more4d.networks import MoRe4D, build
from worldline.systems.more4d.representation import Fitted, depth_picture, masked_in_file, to_channels, to_maps

SIZE = TINY.size
FAST = SamplingConfig(steps=2)
K = intrinsics_from_focal(torch.tensor(20.0), SIZE)


@pytest.fixture(scope="module")
def model() -> MoRe4D:
    torch.manual_seed(0)
    return build(TINY).eval()


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(*size, 3, generator=torch.Generator().manual_seed(seed))


def plane(size: tuple[int, int] = SIZE) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return 2 + 0.01 * rows + 0.02 * columns


def tracks(frames: int = 5, colors: Tensor | None = None) -> Tracks4D:
    points = from_depth(plane(), K).expand(frames, *SIZE, 3).clone()
    points[..., 0] += 0.05 * torch.arange(frames)[:, None, None]
    return Tracks4D(
        points=points,
        visible=torch.ones(frames, *SIZE, dtype=torch.bool),
        reference=0,
        colors=picture() if colors is None else colors,
        timestamps=torch.arange(frames, dtype=torch.float64),
        cameras=Cameras(intrinsics=K.expand(frames, 3, 3), cam2world=torch.eye(4).expand(frames, 4, 4), size=SIZE),
        provenance=Provenance(system="truth"),
    )


def test_tracks_begin_at_the_picture_and_depend_on_the_seed(model: MoRe4D) -> None:
    image, prior = picture(), GivenDepth(depth=plane(), intrinsics=K, scale="metric")
    first, again = (generate(image, "a ball rolls", model, prior, FAST) for _ in range(2))
    other = generate(image, "a ball rolls", model, prior, replace(FAST, seed=1))
    assert torch.equal(first.points, again.points) and not torch.equal(first.points, other.points)
    assert torch.allclose(first.points[0], from_depth(plane(), K), atol=1e-6)
    assert torch.allclose(first.colors, image, atol=1e-6) and first.scale == "metric"
    assert bool(first.visible[0].all()) and len(first) == TINY.frames
    assert bool(first.points.isfinite().all())


def test_blocking_3_the_normalisation_is_undone_with_its_constants(
    model: MoRe4D, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = 0.1 * torch.randn(1, 3, TINY.frames, *SIZE)
    monkeypatch.setattr(model.vae, "decode", lambda latents: moved)
    monkeypatch.setattr(infer.flow, "sample", lambda velocity, noise, **options: noise)
    for focal in (None, (1.04348, 1.0)):
        model.config = replace(TINY, focal=focal)
        fx, fy = focal or (float(K[0, 0]) / SIZE[1], float(K[1, 1]) / SIZE[0])
        found = generate(picture(), "", model, GivenDepth(depth=plane(), intrinsics=K), FAST)
        step = found.points - found.points[:1]
        for t in range(1, TINY.frames):
            expected = moved[0, :, t] * plane() / torch.tensor([fx, fy, 1.0])[:, None, None]
            assert torch.allclose(step[t].movedim(-1, 0), expected, atol=1e-5)
        assert not bool(step[0].any())
    model.config = TINY


def test_blocking_6_guidance_sees_the_picture_in_inference(model: MoRe4D, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, told, forward = [], [], model.generator.forward
    look = model.generator.look

    def spy_look(image: Tensor) -> Tensor:
        looked.append(image)
        return look(image)

    def spy_forward(*args: Tensor, **options: Tensor) -> Tensor:
        told.append(options)
        return forward(*args, **options)

    monkeypatch.setattr(model.generator, "look", spy_look)
    monkeypatch.setattr(model.generator, "forward", spy_forward)
    generate(picture(), "a ball", model, GivenDepth(depth=plane()), FAST)
    assert len(looked) == 1 and torch.allclose(looked[0][0].movedim(0, -1), picture(), atol=1e-6)
    assert len(told) == 2 * FAST.steps  # with and without the prompt
    assert all(options["motion"] is not None and options["reference"].any() for options in told)


def test_blocking_7_the_prior_gets_the_picture_itself_and_its_camera_is_used(model: MoRe4D) -> None:
    given = []

    def prior(image: Tensor) -> DepthGuess:
        given.append(image)
        depth = plane((image.shape[0], image.shape[1]))
        known = torch.ones_like(depth, dtype=torch.bool)
        return DepthGuess(depth=depth, valid=known, intrinsics=2 * K + torch.diag(torch.tensor([0.0, 0, -1])))

    image = picture(1, (40, 60))
    found = generate(image, "", model, prior, FAST)
    assert torch.equal(given[0], image)
    assert float(found.cameras.intrinsics[0, 0, 0]) == pytest.approx(2 * 20 * 24 / 60)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        generate(2 * image - 1, "", model, prior, FAST)


def test_blocking_12_axes_keep_their_places() -> None:
    maps = torch.arange(2 * 4 * 5 * 3.0).reshape(2, 4, 5, 3)
    assert to_channels(maps).shape == (3, 2, 4, 5)
    assert torch.equal(to_maps(to_channels(maps)), maps)
    assert float(to_channels(maps)[1, 0, 2, 3]) == float(maps[0, 2, 3, 1])


def test_pictures_are_cropped_not_stretched() -> None:
    wide = picture(2, (32, 96))
    fitted = Fitted.of(wide, SIZE)
    assert (fitted.top, fitted.left, fitted.height, fitted.width) == (0, 24, 32, 48)
    camera = intrinsics_from_focal(torch.tensor(50.0), (32, 96))
    found = fitted.intrinsics(camera)
    assert torch.allclose(found, intrinsics_from_focal(torch.tensor(25.0), SIZE), atol=1e-5)
    depth = torch.arange(96.0).expand(32, 96)
    assert float(fitted.maps(depth)[0, 0]) in (24.0, 25.0)


def test_the_input_view_shows_the_input(model: MoRe4D) -> None:
    source = tracks()
    path = camera_path("orbit", torch.eye(4), 2.0, 5)
    for networks in (None, model):
        video = synthesize(source, path, networks, FAST)
        seen = splatting.render(source, path, [0, 1, 2, 3, 4])
        assert float(seen.coverage[0].float().mean()) > 0.9
        where = seen.coverage[0]
        assert float((video.frames[0] - source.colors).abs()[where].median()) < 1e-6
        assert video.frames.shape == (5, *SIZE, 3) and video.fps == pytest.approx(8.0)
    assert not bool(seen.coverage[-1].all())


def test_holes_are_where_no_point_is_not_where_it_is_black() -> None:
    source = tracks(colors=torch.zeros(*SIZE, 3))
    seen = splatting.render(source, torch.eye(4)[None], [0])
    assert bool(seen.coverage.all()) and not bool(seen.frames.any())
    apart = tracks()
    points = apart.points.clone()
    points[:, :, 12:] *= 3  # a depth step: pixels at it are left out
    edge = splatting.render(replace(apart, points=points), torch.eye(4)[None], [0], radius_px=0)
    assert not bool(edge.coverage[0, :, 12].any()) and bool(edge.coverage[0, :, 2].all())


def test_blocking_13_tracks_and_scenes_are_rendered_from_memory(model: MoRe4D) -> None:
    moving = tracks()
    frames = moving.colors.expand(5, *SIZE, 3)
    scene = Scene4D(
        video=Video(frames=frames, timestamps=moving.timestamps),
        points=moving.points,
        valid=torch.ones(5, *SIZE, dtype=torch.bool),
        cameras=moving.cameras,
        provenance=Provenance(system="truth"),
    )
    path = torch.eye(4).expand(7, 4, 4)  # longer than the model: two windows
    video = synthesize(scene, path, model, FAST, times=[0, 1, 2, 3, 4, 4, 4])
    seen = splatting.render(scene, path[:1], [4]).coverage[0]
    assert len(video) == 7 and torch.equal(video.frames[5][seen], video.frames[6][seen])
    with pytest.raises(ValueError, match="0 to 4"):
        synthesize(scene, path, None, FAST, times=[9] * 7)
    assert infer.times_of(tracks(5), 9) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_nearest_filling() -> None:
    frames = torch.zeros(1, 2, 4, 3)
    frames[0, :, 0], frames[0, :, 3] = 0.2, 0.8
    coverage = torch.tensor([[[True, False, False, True]] * 2])
    seen = splatting.Rendering(frames=frames, depth=torch.zeros(1, 2, 4), coverage=coverage)
    assert infer.nearest(seen)[0, 0, :, 0].tolist() == pytest.approx([0.2, 0.2, 0.8, 0.8])


def test_shrinking_does_not_darken_the_border_of_holes() -> None:
    frames, coverage = torch.ones(1, 4, 4, 3), torch.ones(1, 4, 4, dtype=torch.bool)
    coverage[0, :, 0] = False
    small, known = infer.shrunk(frames * coverage[..., None], coverage, (2, 2))
    assert bool(known.all()) and torch.allclose(small, torch.ones_like(small))
    assert not bool(infer.shrunk(frames, coverage & False, (2, 2))[1].any())


def test_a_point_behind_another_is_not_seen() -> None:
    points = from_depth(plane(), K)
    hidden = points.clone()
    hidden[4, 4] = points[8, 8] * 1.5
    away = points.clone()
    away[4, 4, 2] = -1
    poses = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    seen = splatting.seen_by(torch.stack([points, hidden, away]), poses, K)
    assert bool(seen[0].all()) and not bool(seen[1, 4, 4]) and not bool(seen[2, 4, 4])


def test_depth_priors() -> None:
    depth = plane()
    depth[0, 0], depth[0, 1] = float("nan"), 0.0
    guess = GivenDepth(depth=depth)(picture())
    assert int((~guess.valid).sum()) == 2
    assert float(guess.filled()[0, 0]) == pytest.approx(BEYOND * float(plane().max()))
    with pytest.raises(ValueError, match="resize it"):
        GivenDepth(depth=depth)(picture(0, (8, 8)))
    with pytest.raises(ValueError, match="give a depth map"):
        GivenDepth(depth=torch.zeros(*SIZE))(picture()).filled()

    class Known:
        parameters = 0

        def reconstruct(self, video: Video, options: object) -> Scene4D:
            count = len(video)
            return Scene4D(
                video=video,
                points=from_depth(plane(), K).expand(count, *SIZE, 3),
                valid=torch.ones(count, *SIZE, dtype=torch.bool),
                cameras=Cameras(
                    intrinsics=K.expand(count, 3, 3), cam2world=torch.eye(4).expand(count, 4, 4), size=SIZE
                ),
                scale="metric",
                provenance=Provenance(system="truth"),
            )

    found = SystemDepth(system=Known(), frames=2)(picture())
    assert torch.allclose(found.depth, plane(), atol=1e-5) and torch.equal(found.intrinsics, K)
    assert found.scale == "metric"


def test_stairs_of_a_coarse_depth_become_slopes_and_edges_stay() -> None:
    coarse = 2 + torch.linspace(0, 1, 8)[:, None] + torch.linspace(0, 2, 12)[None] ** 2
    stairs = coarse.repeat_interleave(6, 0).repeat_interleave(6, 1)
    slopes = without_blocks(stairs)
    steepest = [float(depth.log().diff(dim=1).abs().max()) for depth in (stairs, slopes)]
    assert steepest[1] < 0.4 * steepest[0] and float((slopes / stairs).log().abs().max()) < 0.2
    edge = torch.full((48, 72), 4.0)
    edge[10:30, 20:50] = 2.0
    fine = coarse.repeat_interleave(6, 0).repeat_interleave(6, 1) + torch.rand(48, 72)
    for depth in (edge, fine, torch.zeros(48, 72)):
        assert torch.equal(without_blocks(depth), depth)


def test_a_transformers_depth_model_is_shown_the_picture_in_8_bits() -> None:
    class Inputs(dict):
        def to(self, device: object) -> Inputs:
            return self

    class Processor:
        def __call__(self, images: object, return_tensors: str) -> Inputs:
            self.seen = images
            return Inputs(pixel_values=torch.zeros(1))

        def post_process_depth_estimation(self, outputs: object, target_sizes: list) -> list[dict]:
            return [{"predicted_depth": plane(target_sizes[0]), "field_of_view": torch.tensor(90.0)}]

    class Network:
        device = torch.device("cpu")

        def __call__(self, pixel_values: Tensor) -> SimpleNamespace:
            return SimpleNamespace(predicted_depth=pixel_values)

    processor = Processor()
    guess = TransformersDepth(model=Network(), processor=processor)(torch.ones(*SIZE, 3))
    assert processor.seen.dtype.name == "uint8" and int(processor.seen.max()) == 255
    assert float(guess.intrinsics[0, 0]) == pytest.approx(SIZE[1] / 2)  # 90 degrees
    assert guess.scale == "metric" and torch.allclose(guess.depth, plane())
    with pytest.raises(FileNotFoundError, match="no depth model"):
        TransformersDepth.by_name("./no-such-folder")


def test_depth_picture() -> None:
    depth = torch.tensor([[[2.0, 4.0], [float("inf"), 0.0]]])
    assert depth_picture(depth)[0, 0].flatten().tolist() == pytest.approx([-1 + 2 / 3, 1.0, -1.0, -1.0])
    assert masked_in_file(torch.tensor([0.0, 127.0, 128.0, 255.0])).tolist() == [False, False, True, True]


def test_euler_steps_solve_a_straight_flow_exactly() -> None:
    """With the true velocity of one sample, e - z, any number of steps ends at z."""
    z, e = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    for steps in (1, 4):
        assert torch.allclose(flow.sample(lambda x, t: e - z, e, steps=steps), z, atol=1e-5)
    asked = []
    velocity = flow.guided(lambda x, t: x, lambda x, t: asked.append(1), 1.0)
    velocity(z, torch.ones(1))
    assert not asked
    drawn = [flow.draw(500, torch.Generator().manual_seed(i), rank=i, ranks=2) for i in range(2)]
    assert int(drawn[0].max()) < 500 <= int(drawn[1].min())
