"""Geo4D: pictures of scenes and back, inference on clips of any length and shape, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geo4d_tiny import SMALL, live, video
from worldline.data.synthetic import render_clip
from worldline.diffusion import ddim
from worldline.evaluation.baselines import plane, still_scene
from worldline.geometry import fit, pointmap, pose
from worldline.scene import Video
from worldline.systems.geo4d import infer as g4
from worldline.systems.geo4d import pretrained
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.config import MODALITIES, Geo4DConfig, mini_config
from worldline.systems.geo4d.frames import Fit, FrameLatents
from worldline.systems.geo4d.networks import Geo4D, build, widened
from worldline.systems.geo4d.observe import agreement
from worldline.systems.geo4d.system import Geo4DSystem, load_mini
from worldline.systems.system import Loading, Options


@pytest.fixture(scope="module")
def model() -> Geo4D:
    torch.manual_seed(1)
    return live(build(SMALL))


@pytest.fixture(scope="module")
def truth():
    return render_clip(4, frames=20, size=(48, 64))


def pictures_of(scene, gain: float = 1.0) -> rep.Pictures:
    cameras = scene.cameras
    return rep.to_pictures(
        scene.points[None], scene.valid[None], cameras.intrinsics[None], cameras.cam2world[None], moment_gain=gain
    )


# --- sizes


def test_sizes_are_the_published_ones():
    model = build(Geo4DConfig(), meta=True)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.unet) == 1_438_924_112 and len(model.unet.state_dict()) == 1516
    assert count(model.vae) == 83_653_863
    assert Geo4DConfig().size_multiple == 64 and Geo4DConfig().context_tokens == 333


def test_mini_fits_its_budget():
    model = build(mini_config(), meta=True, encoders=False)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000
    assert Geo4DConfig.from_dict(mini_config().to_dict()) == mini_config()
    with pytest.raises(ValueError, match="no field wide"):
        Geo4DConfig.from_dict({"wide": 3})


@pytest.mark.parametrize("change", [{"modalities": ("disparity", "points")}, {"modalities": ("points",)}])
def test_configurations_that_cannot_work_are_refused(change):
    with pytest.raises(ValueError):
        replace(SMALL, **change)


# --- pictures


def test_points_and_disparity_invert(truth):
    pictures = pictures_of(truth)
    to_first = pose.inverse(truth.cameras.cam2world[:1])
    points = pose.transform(to_first, truth.points)
    inside = truth.valid & (rep.channels_last(pictures.points[0]).abs() < 2).all(-1)
    assert float(inside.float().mean()) > 0.5 * float(truth.valid.float().mean())
    back = pictures.boxes[0].invert(rep.channels_last(pictures.points[0]))
    torch.testing.assert_close(back[inside], points[inside], atol=1e-3, rtol=1e-4)
    unit = rep.read_points(pictures.points[0])  # without its constants: right up to the unit and a shift along Z
    shift = torch.tensor([0.0, 0.0, 1.0]) * pictures.boxes[0].low
    torch.testing.assert_close((unit * pictures.boxes[0].scale + shift)[inside], points[inside], atol=1e-3, rtol=1e-4)
    depth = pointmap.depth_of(truth.points, truth.cameras.cam2world)
    span = pictures.ranges[0]
    disparity = rep.read_disparity(pictures.disparity[0]) * span.scale + span.low
    unclamped = truth.valid & (pictures.disparity[0].mean(1).abs() < 1.09)
    torch.testing.assert_close(disparity[unclamped], (1 / depth)[unclamped], atol=1e-5, rtol=1e-3)


def test_invalid_pixels_say_so(truth):
    pictures = pictures_of(truth)
    found = rep.invalid_points(pictures.points[0])
    assert bool(found[~truth.valid].all())
    assert float(found[truth.valid].float().mean()) < 0.1
    confidence = rep.confidence_of(torch.zeros(truth.valid.shape), found)
    assert bool((confidence[found] == 0).all()) and bool((confidence[~found] > 1).all())


@pytest.mark.parametrize("method", ["published", "paper"])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_rays_give_the_cameras_back(truth, method, gain):
    pictures = pictures_of(truth, gain)
    rays = rep.read_rays(pictures.ray_direction[0].double(), pictures.ray_moment[0].double(), gain)
    k, found = rep.ray_cameras(rays, method)
    expected = pose.relative_to_first(truth.cameras.cam2world.double())
    assert float(pose.rotation_angle_deg(found[:, :3, :3], expected[:, :3, :3]).max()) < 0.05
    centre = expected[:, :3, 3] / pictures.boxes[0].scale.double()
    torch.testing.assert_close(found[:, :3, 3], centre, atol=1e-4, rtol=0)
    if k is not None:
        torch.testing.assert_close(k[:, 0, 0].float(), truth.cameras.focal_px, rtol=2e-2, atol=0)


def test_the_first_camera_is_found_from_perspective(truth):
    pictures = pictures_of(truth)
    points = rep.read_points(pictures.points[0])
    usable = truth.valid & ~rep.invalid_points(pictures.points[0])
    focal, shift = rep.first_camera_shift(points[0], usable[0].float())
    assert float(focal) == pytest.approx(float(truth.cameras.focal_px[0]), rel=1e-2)
    assert float(shift) == pytest.approx(float(pictures.boxes[0].low / pictures.boxes[0].scale), abs=1e-2)
    assert rep.first_camera_shift(points[0], torch.zeros_like(points[0, ..., 0])) is None
    flat = torch.zeros_like(points[0])
    assert rep.first_camera_shift(flat, torch.ones_like(flat[..., 0])) is None


def test_a_clip_of_sky_has_no_pictures(truth):
    cameras = truth.cameras
    with pytest.raises(ValueError, match="at least one valid point"):
        rep.to_pictures(
            truth.points[None], torch.zeros_like(truth.valid)[None], cameras.intrinsics[None], cameras.cam2world[None]
        )


# --- frames


@given(height=st.integers(1, 90), width=st.integers(1, 90), multiple=st.sampled_from([4, 16, 64]))
@settings(max_examples=30, deadline=None)
def test_padding_is_undone_exactly(height, width, multiple):
    fitted = Fit.of((height, width), multiple)
    rgb = torch.rand(2, height, width, 3)
    pictures = fitted.pictures(rgb)
    assert pictures.shape[-2] % multiple == 0 and pictures.shape[-1] % multiple == 0
    assert pictures.shape[-2] - height < multiple and pictures.shape[-1] - width < multiple
    assert torch.equal(fitted.crop(pictures), rgb.movedim(-1, 1) * 2 - 1)
    top, left = fitted.corner
    assert abs((fitted.outer[0] - height) - 2 * top) <= 1 and abs((fitted.outer[1] - width) - 2 * left) <= 1


def test_large_frames_are_shrunk_without_stretching():
    fitted = Fit.of((480, 854), 16, max_pixels=96 * 160)
    assert fitted.outer[0] * fitted.outer[1] <= 96 * 160
    assert fitted.inner[1] / fitted.inner[0] == pytest.approx(854 / 480, rel=0.01)
    assert fitted.smooth(torch.rand(1, 3, *fitted.inner)).shape[-2:] == (480, 854)


@pytest.mark.parametrize(
    "size, inner, outer",
    [
        ((96, 144), (48, 72), (48, 80)),
        ((480, 640), (48, 64), (48, 64)),
        ((1080, 1920), (45, 80), (48, 80)),
        ((640, 480), (64, 48), (64, 48)),
        ((300, 300), (64, 64), (64, 64)),
        ((20, 30), (20, 30), (32, 32)),
        ((9, 3000), (1, 256), (16, 256)),
    ],
)
def test_frames_are_shown_as_large_as_their_padding_allows(size, inner, outer):
    fitted = Fit.of(size, 16, max_pixels=64 * 64)
    assert (fitted.inner, fitted.outer) == (inner, outer)


def test_maps_decoded_small_come_back_in_place():
    """A ramp stays the same ramp: pixel edges onto pixel edges."""
    fitted = Fit.of((32, 48), 16)
    ramp = torch.arange(24, dtype=torch.float32).expand(1, 1, 16, 24) * 2 + 0.5
    expected = torch.arange(48, dtype=torch.float32)
    assert torch.allclose(fitted.crop(ramp)[0, 0, 5, 1:-1], expected[1:-1], atol=1e-4)


# --- inference


def spy(monkeypatch, owner, name):
    calls, original = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(a) or original(*a, **k))
    return calls


def test_each_frame_is_encoded_once(model, monkeypatch):
    encoded = spy(monkeypatch, model.vae, "encode")
    clip = video(9)
    observer = g4.Observer(clip, model)
    plan = g4.window_plan(9, model, g4.DEFAULTS)
    for window in plan:
        observer.observe(window)
    assert [window.start for window in plan] == [0, 2, 4, 5]
    assert sum(len(call[0]) for call in encoded) == 9


def test_the_context_is_prepared_once_for_all_videos_and_again_for_other_weights(monkeypatch):
    model = live(build(SMALL))
    prepared = spy(monkeypatch, model.unet, "context_cache")
    observe = lambda seed: g4.Observer(video(4, seed=seed), model).observe(range(4)).points  # noqa: E731
    before, _ = observe(1), observe(2)
    assert len(prepared) == 1
    with torch.no_grad():
        model.context.mul_(2)
    changed = observe(1)
    assert len(prepared) == 2 and not torch.equal(before, changed)
    fresh = live(build(SMALL))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(g4.Observer(video(4, seed=1), fresh).observe(range(4)).points, changed)
    model.load_state_dict({"context": model.context.detach() / 2}, strict=False, assign=True)
    assert torch.equal(observe(1), before)


def test_latents_do_not_depend_on_the_company_they_are_encoded_in(model):
    clip, fitted = video(5), Fit.of((16, 24), model.config.size_multiple)
    together = FrameLatents(clip, fitted, model.vae, torch.device("cpu"), chunk=5).of([0, 1, 2, 3, 4])
    one_by_one = FrameLatents(clip, fitted, model.vae, torch.device("cpu"), chunk=1)
    assert torch.allclose(one_by_one.of([3, 4, 4]), together[[3, 4, 4]], atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, (16, 24)), (3, (20, 20)), (7, (37, 22)), (6, (9, 50))])
def test_clips_of_any_length_and_shape_become_scenes(model, count, size):
    scene = g4.infer(video(count, size), model)
    assert scene.points.shape == (count, *size, 3) and len(scene.cameras) == count
    assert bool(torch.isfinite(scene.points).all()) and bool(torch.isfinite(scene.cameras.cam2world).all())
    assert scene.provenance.settings["windows"] == len(g4.window_plan(count, model, g4.DEFAULTS))


def test_a_short_clip_stands_still_after_its_end(model):
    short = video(2)
    longer = Video(frames=short.frames[[0, 1, 1, 1]], timestamps=torch.arange(4, dtype=torch.float64) / 24)
    found = g4.Observer(short, model).observe(range(2))
    expected = g4.Observer(longer, model).observe(range(4))
    assert len(found) == 2
    assert torch.equal(found.confidence, expected.confidence[:2])
    assert torch.allclose(found.disparity, expected.disparity[:2])


def test_the_seed_decides(model):
    clip = video(4)
    observe = lambda *seeds: g4.Observer(clip, model, g4.InferConfig(seeds=seeds)).observe(range(4))  # noqa: E731
    first, again, other = observe(0), observe(0), observe(1)
    assert torch.equal(first.points, again.points) and not torch.equal(first.points, other.points)
    both = observe(0, 1)
    assert torch.allclose(both.disparity, (first.disparity + other.disparity) / 2, atol=1e-5)


def test_seeds_that_disagree_lower_the_confidence():
    same = torch.rand(1, 2, 4, 5, 3).expand(3, -1, -1, -1, -1)
    assert bool((agreement(same, 0.02) > 0.999).all())
    apart = same + torch.tensor([-0.02, 0.0, 0.02])[:, None, None, None, None] * torch.tensor([1.0, 0, 0])
    expected = 1 / (1 + (2 / 3) * 0.02**2 / 0.02**2)
    assert torch.allclose(agreement(apart, 0.02), torch.full((2, 4, 5), expected), atol=1e-3)


class Kept(dict):
    """A cache of windows that counts how often it is asked."""

    asked = 0

    def get(self, key):
        self.asked += 1
        return super().get(key)

    def put(self, key, tensors):
        self[key] = tensors


def test_finished_windows_are_not_made_again_and_stay_in_the_cache(model, monkeypatch):
    cache, clip = Kept(), video(6)
    seen = g4.observe_all(clip, model, cache=cache)
    assert len(cache) == len(seen) == 2
    asked = cache.asked
    expected = [g4.Observer(clip, model).observe(window) for window in g4.window_plan(6, model, g4.DEFAULTS)]
    monkeypatch.setattr(g4.Observer, "observe", lambda *_: pytest.fail("a finished window was made again"))
    assert [torch.equal(a.points, b.points) for a, b in zip(seen, expected, strict=True)] == [True, True]
    assert cache.asked == asked + 2  # fetched when asked for, not held
    again = g4.told(g4.observe_all(clip, model, cache=cache), ("points",))
    assert again[-1].disparity is None and seen[-1].disparity is not None
    with pytest.raises(IndexError):
        seen[2]


def test_coarse_rays_cost_less(model, monkeypatch):
    cells = []
    original = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda z: cells.append(z[0, 0].numel()) or original(z))
    exact = g4.Observer(video(4), model).observe(range(4))
    full = sum(cells)
    cells.clear()
    coarse = g4.Observer(video(4), model, g4.InferConfig(ray_reduction=2)).observe(range(4))
    assert sum(cells) == full / 2  # three decodes, two of them a quarter: 1.5 of 3
    assert coarse.ray_direction.shape == exact.ray_direction.shape
    assert torch.equal(coarse.points, exact.points)


def test_the_alignment_is_told_only_what_is_asked_for(model, monkeypatch):
    told = []
    solve = g4.alignment.solve
    monkeypatch.setattr(g4.alignment, "solve", lambda o, *rest, **options: told.extend(o) or solve(o, *rest))
    assert "disparity" in g4.infer(video(4), model, g4.InferConfig(modalities=("points", "disparity"))).extras
    assert told[0].ray_direction is None and told[0].disparity is not None
    assert not g4.infer(video(4), model, g4.InferConfig(modalities=("points",))).extras
    assert told[1].ray_direction is None and told[1].disparity is None


def test_a_clip_of_400_frames_is_read_window_by_window(model, monkeypatch):
    """133 windows, where upstream breaks at 80; the alignment has its own tests, and a benchmark of 1,000 frames."""
    read = []

    class Quick:
        def scene(self, clip, provenance):
            return still_scene(clip, plane(clip.size), "quick")

    def solve(windows, count, *rest, **options):
        read.extend(window.frames for window in windows)
        return Quick()

    monkeypatch.setattr(g4.alignment, "solve", solve)
    cache = Kept()
    scene = g4.infer(video(400, (8, 8)), model, g4.InferConfig(stride=3, steps=1), cache=cache)
    assert len(scene) == 400 and len(cache) == len(read) == 133 and cache.asked > 2 * 133
    assert {frame for frames in read for frame in frames} == set(range(400))
    assert all(set(a) & set(b) for a, b in zip(read, read[1:], strict=False))
    assert scene.extras["disparity"].shape == (400, 8, 8)


def test_a_kept_alignment_is_not_taken_for_that_of_other_modalities(model):
    """One cache for all: with rays the cameras are others than without, as if nothing had been kept."""
    clip, cache = video(4), Kept()
    told = [("points",), ("points", "ray_direction", "ray_moment")]
    kept, fresh = (
        [g4.infer(clip, model, g4.InferConfig(modalities=m), cache=c).cameras.cam2world for m in told]
        for c in (cache, None)
    )
    assert not torch.allclose(kept[0], kept[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept, fresh, strict=True))


def test_windows_must_overlap_and_have_the_length_of_the_context(model):
    with pytest.raises(ValueError, match="stride of 1 to 3"):
        g4.infer(video(9), model, g4.InferConfig(stride=4))
    system = Geo4DSystem(name="g", model=model, config=g4.InferConfig(), weights_sha256="0")
    with pytest.raises(ValueError, match="leave out --window or give 4"):
        system.reconstruct(video(9), Options(window=8))
    assert system.reconstruct(video(5), Options(overlap=3)).provenance.settings["windows"] == 2


def test_true_pictures_give_the_true_scene(truth, model, monkeypatch):
    """Everything but the networks: normalisation per window, shift, masks, alignment."""
    sixteen = build(replace(SMALL, window=16, stride=4)).eval()

    def pictures(self, latents, count):
        start = int(latents[0, 0, 0, 0])
        window = pictures_of(truth.select(slice(start, start + count)))
        found = {name: getattr(window, name)[0] for name in MODALITIES}
        return found | {"uncertainty": torch.full((count, 1, *truth.size), -2.0)}

    monkeypatch.setattr(
        g4.Observer, "_denoise", lambda self, seen, seed, start: torch.full((8, 16, 1, 1), float(start))
    )
    monkeypatch.setattr(g4.Observer, "_pictures", pictures)
    scene = g4.infer(truth.video, sixteen)
    centre, expected = scene.cameras.cam2world[:, :3, 3].double(), truth.cameras.cam2world[:, :3, 3].double()
    aligned = fit.umeyama(centre, expected).apply(centre)
    path = (expected - expected.mean(0)).norm(dim=-1).max()
    assert float((aligned - expected).norm(dim=-1).max()) < 0.03 * float(path)
    both = scene.valid & truth.valid
    found, depth = (pointmap.depth_of(s.points, s.cameras.cam2world)[both] for s in (scene, truth))
    ratio = found / depth
    assert float(both.float().mean()) > 0.8 * float(truth.valid.float().mean())
    assert float((ratio / ratio.median() - 1).abs().median()) < 0.01
    disparity = scene.extras["disparity"]
    assert float((disparity * found.new_zeros(both.shape).masked_scatter(both, found) - 1)[both].abs().median()) < 0.01
    assert float(disparity[truth.valid & ~scene.valid].median()) > 0  # known where points are not
    assert float(disparity.min()) >= 0


# --- widening, schedule


@torch.no_grad()
def test_a_widened_model_says_the_same_about_points():
    torch.manual_seed(2)
    narrow = live(build(SMALL.with_modalities(("points",))))
    wide = widened(narrow, MODALITIES).eval()
    assert wide.config == SMALL
    noisy, seen = torch.randn(1, 8, 4, 4, 6), torch.randn(1, 2, 4, 4, 6)
    rest = (torch.tensor([500]), narrow.context[None], torch.tensor([24.0]))
    expected = narrow.unet(torch.cat([noisy[:, :2], seen], 1), *rest)
    found = wide.unet(torch.cat([noisy, seen], 1), *rest)
    assert torch.allclose(found[:, :2], expected, atol=1e-5) and not found[:, 2:].any()
    with pytest.raises(ValueError, match="cannot be widened"):
        widened(wide, ("points",))


def test_noise_and_v_give_the_clean_latents_back():
    schedule = ddim.zero_snr_schedule()
    clean, noise = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    timestep = torch.tensor([0, 500, 999])
    noisy, v = schedule.noised(clean, noise, timestep)
    alpha, scale = (ddim.spread(t[timestep], clean) for t in (schedule.alphas_cumprod, schedule.scale))
    assert torch.allclose((alpha.sqrt() * noisy - (1 - alpha).sqrt() * v) / scale, clean, atol=1e-5)
    assert torch.equal(noisy[2], noise[2]) and torch.allclose(v[2], -0.7 * clean[2])  # nothing but noise at the end


@pytest.mark.parametrize("steps", [1, 5])
def test_only_the_clean_end_returns_what_an_oracle_knows(steps):
    """The published last step shrinks the answer and leaves noise in it; "clean" does neither."""
    schedule, clean = ddim.zero_snr_schedule(), torch.randn(2, 4, 6)

    def oracle(x, timestep):
        alpha, scale = (ddim.spread(t[timestep], x) for t in (schedule.alphas_cumprod, schedule.scale))
        return (alpha.sqrt() * x - scale * clean) / (1 - alpha).sqrt()

    error = {}
    for final in ("published", "unscaled", "clean"):
        found = ddim.sample(oracle, torch.randn(2, 4, 6), schedule, steps, final=final)
        error[final] = float((found - clean).square().mean().sqrt())
    assert error["clean"] < 1e-5 < error["unscaled"] < error["published"]
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        schedule.steps(0)


def test_a_small_checkpoint_runs_and_its_card_is_believed(tmp_path):
    path = pretrained.export(build(mini_config()), tmp_path / "mini.safetensors", {"unreliable": ["points"]})
    assert path.stat().st_size < 16e6
    system = load_mini(Loading(device=torch.device("cpu"), weights=str(path)))
    assert system.parameters <= 8_000_000
    scene = system.reconstruct(video(3, (33, 50)), Options())
    assert scene.points.shape == (3, 33, 50, 3) and scene.confidence is not None and len(scene.cameras) == 3
    assert scene.provenance.unreliable == ("points",)
    assert scene.provenance.weights_sha256 == json.loads(path.with_suffix(".json").read_text())["sha256"]
    with pytest.raises(FileNotFoundError, match="There is no"):
        load_mini(Loading(device=torch.device("cpu"), weights=str(tmp_path / "none.safetensors")))
