"""MotionCrafter's losses against the golden numbers: values and gradients."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from worldline.systems.motioncrafter import losses
from worldline.systems.motioncrafter.objective import PAPER_GRIDS

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def golden(golden_dir):
    folder = golden_dir / "motioncrafter"
    manifest = json.loads((folder / "manifest.json").read_text())["files"]["losses.safetensors"]
    return load_file(folder / "losses.safetensors"), manifest["arrays"]


def check(golden, name, value):
    arrays, manifest = golden
    tolerance = manifest[name]
    expected = arrays[name]
    torch.testing.assert_close(
        value.reshape(expected.shape).to(expected.dtype), expected, atol=tolerance["atol"], rtol=tolerance["rtol"]
    )


@pytest.fixture
def clip(golden):
    arrays, _ = golden
    return {
        "prediction": arrays["in.pred"].clone().requires_grad_(),
        "target": arrays["in.gt"],
        "mask": arrays["in.mask"].bool(),
        "deform": arrays["in.deform_mask"].bool(),
        "pose": arrays["in.pose"],
        "flow": arrays["in.flow_pred"].clone().requires_grad_(),
        "flow_target": arrays["in.flow_gt"],
    }


def stage1(clip):
    depth = losses.depth_in_camera(clip["prediction"], clip["pose"])
    depth_target = losses.depth_in_camera(clip["target"], clip["pose"])
    patches = losses.multi_scale_depth(depth, depth_target, clip["mask"], PAPER_GRIDS)
    return (
        losses.squared(clip["prediction"], clip["target"], clip["mask"])
        + losses.depth_absolute(depth, depth_target, clip["mask"])
        + patches
        + 0.2 * losses.normal(clip["prediction"], clip["target"], clip["mask"]),
        patches,
    )


def test_motioncrafter_point_terms(golden, clip):
    pair = (clip["prediction"], clip["target"])
    check(golden, "out.loss.point_wmse", losses.squared(*pair, clip["mask"]))
    check(golden, "out.loss.point_wl1", losses.absolute(*pair, clip["mask"]))
    check(golden, "out.loss.point_mse_nomask", losses.squared(*pair, None))
    check(golden, "out.loss.point_wmse_empty_mask", losses.squared(*pair, torch.zeros_like(clip["mask"])))


def test_motioncrafter_depth_terms(golden, clip):
    depth = losses.depth_in_camera(clip["prediction"], clip["pose"])
    target = losses.depth_in_camera(clip["target"], clip["pose"])
    check(golden, "out.depth_pred", depth)
    check(golden, "out.depth_gt", target)
    check(golden, "out.loss.depth_wl1", losses.depth_absolute(depth, target, clip["mask"]))
    for grid in PAPER_GRIDS:
        value = losses.patch_depth_absolute(depth, target, clip["mask"], grid)
        check(golden, f"out.loss.msdepth.scale{grid}", value)
    check(golden, "out.loss.msdepth", losses.multi_scale_depth(depth, target, clip["mask"], PAPER_GRIDS))


def test_motioncrafter_normal_term(golden, clip):
    pair = (clip["prediction"], clip["target"])
    check(golden, "out.loss.normal", losses.normal(*pair, clip["mask"]))
    check(golden, "out.loss.normal_nomask", losses.normal(*pair, None))


def test_motioncrafter_flow_terms(golden, clip):
    flow, target = clip["flow"], clip["flow_target"]
    check(golden, "out.loss.flow_wmse_deform", losses.squared(flow, target, clip["deform"]))
    check(golden, "out.loss.zero_flow", losses.flow_size(flow))
    total = losses.squared(flow, target, clip["deform"]) + 0.01 * losses.flow_size(flow)
    check(golden, "out.loss.flow_vae_total", total)
    for name, mask in (("valid", clip["mask"]), ("deform", clip["deform"])):
        value = losses.squared(flow[:, :-1], target[:, :-1], mask[:, :-1])
        check(golden, f"out.loss.flow_unet_stage_{name}", value)
    check(golden, "out.grad.flow_vae_total.l1norm_per_frame", l1_per_frame(total, flow))


def test_motioncrafter_latent_and_kl_terms(golden):
    arrays, _ = golden
    check(golden, "out.loss.kl", losses.kl(arrays["in.kl_mean"], arrays["in.kl_logvar"]))
    error = (-arrays["in.lat_model_out"] - arrays["in.lat_target"]).square()
    check(golden, "out.loss.latent_geo", error[:, :, :4].mean())
    check(golden, "out.loss.latent_mot", error[:, :-1, 4:].mean())


def test_motioncrafter_stage1_total_and_gradients(golden, clip):
    total, patches = stage1(clip)
    check(golden, "out.loss.stage1_total", total)
    check(golden, "out.grad.msdepth.l1norm_per_frame", l1_per_frame(patches, clip["prediction"]))
    normal = losses.normal(clip["prediction"], clip["target"], clip["mask"])
    check(golden, "out.grad.normal.l1norm_per_frame", l1_per_frame(normal, clip["prediction"]))
    (gradient,) = torch.autograd.grad(total, clip["prediction"])
    check(golden, "out.grad.stage1_total", gradient)


def l1_per_frame(value, leaf):
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
    return gradient.abs().sum((-3, -2)).reshape(-1, 3)
