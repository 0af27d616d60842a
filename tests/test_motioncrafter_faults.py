"""What else the published MotionCrafter gets wrong (specification, section 6), one test per fault, named after it.

The other tests called `test_fault_...` stand where their subject is tested; systems/motioncrafter/README.md lists all.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldline import api
from worldline.data.synthetic import render_batch
from worldline.evaluation import motion_ablation
from worldline.evaluation.points import point_errors
from worldline.geometry import pointmap, sceneflow
from worldline.io.store import load, save
from worldline.io.video import load_video, write_video
from worldline.scene import Video
from worldline.systems import registry
from worldline.systems.motioncrafter import ablation, losses, pretrained, representation, system
from worldline.systems.motioncrafter import infer as mc
from worldline.systems.motioncrafter.conditioning import clip_pixels
from worldline.systems.motioncrafter.config import mini_config
from worldline.systems.motioncrafter.networks import GeometryMotionVAE, build, build_unet, time_ids
from worldline.systems.motioncrafter.objective import UNetObjective
from worldline.systems.system import Loading


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    return build(ablation.networks(), encoders=False).eval()


def clip(count: int, size: tuple[int, int] = (24, 32), fps: float = 24.0) -> Video:
    frames = (torch.rand(count, *size, 3) * 255).to(torch.uint8)
    return Video(frames=frames, timestamps=torch.arange(count, dtype=torch.float64) / fps)


# --- 6.1 inference


def test_fault_frame_rate_is_always_30_and_names_end_at_the_first_dot(tmp_path):
    source = tmp_path / "take.one.v2.mp4"
    write_video(source, clip(3, (32, 48), fps=12.0))
    assert torch.allclose(load_video(source).timestamps.diff(), torch.tensor(1 / 12, dtype=torch.float64), atol=1e-4)
    scene = api.reconstruct(source, system="motioncrafter-mini", device="cpu")
    save(scene, tmp_path / "scene.of.take.one")
    stored = load(tmp_path / "scene.of.take.one")
    assert torch.allclose(stored.video.timestamps.diff(), torch.tensor(1 / 12, dtype=torch.float64), atol=1e-4)
    assert not (tmp_path / "scene").exists()


def test_fault_whole_video_becomes_floats_at_once(model, monkeypatch):
    seen = []
    rgb = Video.rgb
    monkeypatch.setattr(Video, "rgb", lambda self: seen.append(len(self)) or rgb(self))
    mc.observe_window(model, clip(9), range(2, 6), mc.InferConfig())
    assert seen == [4]


def test_fault_clip_preprocessing_leaves_torch():
    """Upstream's detour through numpy ends gradients and needs the CPU."""
    images = torch.rand(2, 3, 24, 32, requires_grad=True)
    pixels = clip_pixels(images * 2 - 1, 16)
    pixels.square().sum().backward()
    assert pixels.shape == (2, 3, 16, 16) and images.grad is not None and bool(images.grad.any())


def test_fault_masks_are_always_true(model, monkeypatch):
    broken = torch.rand(3, 3, 24, 32)
    broken[1, 0, 5, 7] = float("nan")
    monkeypatch.setattr(mc, "decode", lambda *_: (broken, torch.zeros(3, 3, 24, 32)))
    seen = mc.observe(model, torch.rand(3, 24, 32, 3))
    assert float(seen.confidence[1, 5, 7]) == 0 and not bool(seen.flow_valid[1, 5, 7])
    assert bool(torch.isfinite(seen.points).all()) and float((seen.confidence == 0).float().sum()) == 1


def test_fault_noise_strength_is_ignored():
    config = mini_config()  # at width 32 each group norm sees one channel and removes the time embedding altogether
    unet = build_unet(config).eval()
    condition, tokens = torch.randn(1, 2, config.unet_in_channels, 4, 4), torch.randn(1, 2, 64)
    answers = [unet(condition, 1.6378, tokens, time_ids(condition, torch.tensor([level]))) for level in (0.02, 50.0)]
    assert float((answers[0] - answers[1]).detach().abs().max()) > 1e-4


def test_fault_motion_is_decoded_by_the_decoder_of_pictures():
    """Without a motion branch, flow comes out of the geometry VAE that encoded it."""
    vae = GeometryMotionVAE(ablation.networks().vae, fusion="none")
    latent = torch.randn(1, 4, 4, 4)
    assert torch.equal(vae.decode_2(latent), vae.decode(latent))


def test_fault_separate_class_is_not_shipped():
    vae = GeometryMotionVAE(ablation.networks().vae, fusion="separate")
    assert vae.decoder_2.conv_in.weight.shape[1] == 4
    assert torch.equal(vae.decode_2(torch.ones(1, 4, 4, 4)), vae.decode_2(torch.ones(1, 4, 4, 4), None))


def test_fault_guidance_crashes():
    """There is none: nothing published was trained for it, so no option may promise it."""
    settings = {*inspect.signature(mc.InferConfig).parameters, *inspect.signature(system.load_published).parameters}
    assert not any("guidance" in name or "cfg" in name for name in settings)


def test_fault_unused_encoders_are_loaded(model):
    assert not any(name.startswith(("vae.encoder", "vae.quant_conv")) for name in model.state_dict())
    small = pretrained.load_file(system.MINI_CHECKPOINT).model
    assert not hasattr(small.vae, "encoder") and not hasattr(small.vae, "encoder_2")


def test_fault_output_is_half_precision_without_cameras(model):
    scene = mc.infer(clip(3), model)
    assert scene.points.dtype == torch.float32 and scene.scene_flow.dtype == torch.float32
    assert scene.cameras is not None and len(scene.cameras.cam2world) == 3
    assert scene.confidence is not None


def test_fault_the_denoiser_cannot_be_asked_how_sure_it_is(tmp_path, monkeypatch):
    """By name: several seeds per window, whose spread is the confidence; and never the other U-Net in its place."""
    asked = {}

    def fake(paradigm, **options):
        asked.update(options, paradigm=paradigm)
        torch.manual_seed(0)
        networks = build(replace(ablation.networks(), paradigm=paradigm), encoders=False).eval()
        return pretrained.Loaded(model=networks.requires_grad_(False), sha256="0" * 64)

    monkeypatch.setattr(pretrained, "load", fake)
    (tmp_path / "unet_determ").mkdir()
    loading = Loading(device=torch.device("cpu"), weights=str(tmp_path), accept_license=True)
    loaded = registry.card("motioncrafter-denoising").load(loading)
    assert asked["paradigm"] == "denoising" and loaded.runs == 3 and loaded.config.steps == 5
    scene = loaded.reconstruct(clip(2), registry.Options(seed=4))
    assert scene.provenance.settings["seeds"] == [4, 5, 6] and scene.provenance.system == "motioncrafter-denoising"
    assert 0 < float(scene.confidence.min()) < float(scene.confidence.max()) < 1
    registry.card("motioncrafter").load(loading)
    assert asked["paradigm"] == "deterministic"
    (tmp_path / "unet_determ").rmdir(), (tmp_path / "unet_diff").mkdir()
    registry.card("motioncrafter").load(loading)
    assert asked["paradigm"] == "denoising"


# --- 6.2 training, 6.4 data


def test_fault_poses_are_rounded_before_they_are_relative():
    """A kilometre from the origin float16 moves cameras by half a metre; here the clip comes out as near the origin."""
    torch.manual_seed(0)
    near = torch.eye(4, dtype=torch.float64).repeat(1, 3, 1, 1)
    near[0, :, 0, 3] = torch.tensor([0.0, 0.01, 0.02])
    far = near.clone()
    far[..., :3, 3] += torch.tensor([1000.3, -700.7, 400.1], dtype=torch.float64)
    points = torch.rand(1, 3, 6, 8, 3, dtype=torch.float64) + 1
    valid = torch.ones(1, 3, 6, 8, dtype=torch.bool)
    here = representation.to_channels(points, valid, near)
    there = representation.to_channels(points + far[0, 0, :3, 3], valid, far)
    torch.testing.assert_close(there.points, here.points, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(there.cam2world, here.cam2world, atol=1e-6, rtol=1e-6)


def test_fault_resizing_mixes_foreground_and_background():
    points = torch.zeros(1, 16, 16, 3)
    points[..., 2] = 10.0
    points[:, :, 8:, 2] = 1.0
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[:, :3] = False
    points[:, :3] = 1e6
    moved, known = pointmap.resize(points, valid, (7, 11))
    assert set(moved[known][:, 2].tolist()) <= {1.0, 10.0}


def test_fault_normals_need_a_function_that_is_gone():
    """Our own normals: a plane seen at any slant has none of the loss."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    plane = torch.stack([x, y, 5 + 0.3 * x - 0.2 * y], -1)[None, None]
    valid = torch.ones(1, 1, 12, 16, dtype=torch.bool)
    assert float(losses.normal(2 * plane, plane, valid)) < 1e-5
    assert float(losses.normal(plane.flip(-1), plane, valid)) > 0.1


def test_fault_losses_are_computed_in_half_precision():
    """SD-type autoencoders overflow in float16: losses are float32 even where the networks are not."""
    torch.manual_seed(0)
    networks = build(ablation.networks())
    from worldline.systems.motioncrafter.objective import Clips

    clips = Clips(
        frames=torch.rand(1, 2, 16, 16, 3),
        points=torch.randn(1, 2, 16, 16, 3),
        valid=torch.ones(1, 2, 16, 16, dtype=torch.bool),
        cam2world=torch.eye(4).repeat(1, 2, 1, 1),
        scene_flow=torch.zeros(1, 2, 16, 16, 3),
        flow_valid=torch.ones(1, 2, 16, 16, dtype=torch.bool),
        intrinsics=torch.eye(3).repeat(1, 2, 1, 1),
    )
    with torch.autocast("cpu", torch.bfloat16):
        terms = UNetObjective(grids=())(networks, clips, torch.Generator().manual_seed(0))
    assert {value.dtype for value in terms.values()} == {torch.float32}


# --- 6.4 evaluation


def test_fault_camera_relative_truth_is_compared_with_world_flow():
    """A resting scene seen by a moving camera: between camera frames its flow is ego-motion, in the world zero."""
    clip = render_batch([21], frames=2, size=(16, 24), category="camera_only")
    still = clip.valid[0, 0] & ~clip.dynamic[0, 0]
    now, ahead = clip.cam2world[0]
    points = clip.points[0, 0].to(now.dtype)
    seen = sceneflow.world_to_camera_flow(points, torch.zeros_like(points), now, ahead)
    assert float(seen[still].norm(dim=-1).mean()) > 1e-3
    back = sceneflow.camera_to_world_flow(pointmap.to_camera(points, now), seen, now, ahead)
    assert float(back[still].norm(dim=-1).max()) < 1e-4


def test_fault_frames_without_valid_pixels_give_nan():
    truth = torch.rand(3, 4, 6, 3) + 1
    mask = torch.ones(3, 4, 6, dtype=torch.bool)
    mask[1] = False
    assert point_errors(1.1 * truth, truth, mask)["rel_p"] == pytest.approx(0.1, rel=1e-5)


def test_fault_clips_without_flow_pull_the_mean_to_minus_one():
    scores = {"row": {0: {"epe_moving": [2.0, float("nan"), 4.0]}}}
    assert motion_ablation.means(scores, "row")["epe_moving"][0] == pytest.approx(3.0)


def test_the_readme_lists_every_test_of_a_fault():
    here = Path(__file__).parent
    listed = set(re.findall(r"`(test_fault_\w+)`", (Path(system.__file__).parent / "README.md").read_text()))
    written = {
        name
        for path in here.glob("test_motioncrafter*.py")
        for name in re.findall(r"def (test_fault_\w+)", path.read_text())
    }
    assert listed == written
