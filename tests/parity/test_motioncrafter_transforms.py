"""MotionCrafter's data transforms against the golden numbers: poses, world, normalisation, filling, resizing."""

from __future__ import annotations

import pytest
import torch

from worldline.geometry import pose, sceneflow
from worldline.geometry.normalize import MeanDistance
from worldline.systems.motioncrafter.conditioning import cover_resize
from worldline.systems.motioncrafter.representation import fill_invalid, to_channels

pytestmark = pytest.mark.shared


@pytest.fixture
def clip(motioncrafter_golden):
    arrays = motioncrafter_golden.load("transforms")
    return {
        "points": arrays["in.point_map"].movedim(1, -1),
        "valid": arrays["in.valid_mask"] > 0.5,
        "deform": arrays["in.deform_mask"] > 0.5,
        "flow": arrays["in.scene_flow"].movedim(1, -1),
        "cam2world": pose.relative_to_first(arrays["in.camera_pose"].double()).float(),
    }


def world(clip, masked=True):
    points = pose.transform(clip["cam2world"], clip["points"])
    following = clip["cam2world"][[1, 2, 3, 3]]
    flow = sceneflow.camera_to_world_flow(clip["points"], clip["flow"], clip["cam2world"], following)
    flow_valid = clip["valid"] & clip["deform"] if masked else clip["valid"].clone()
    flow_valid[-1] = False
    return points * clip["valid"][..., None], flow * flow_valid[..., None], flow_valid


def test_motioncrafter_camera_to_world(motioncrafter_golden, clip):
    points, flow, _ = world(clip)
    motioncrafter_golden.check("transforms", "out.pose_rel", clip["cam2world"])
    motioncrafter_golden.check("transforms", "out.world.point_map", points.movedim(-1, 1))
    motioncrafter_golden.check("transforms", "out.world.scene_flow", flow.movedim(-1, 1))
    flow = world(clip, masked=False)[1].movedim(-1, 1)
    motioncrafter_golden.check("transforms", "out.world.scene_flow_no_deform_mask", flow)


def test_motioncrafter_world_to_channels(motioncrafter_golden, clip):
    """Also from another world frame: the first camera is what counts."""
    points, flow, flow_valid = world(clip)
    moved = pose.se3_exp(torch.tensor([0.3, -0.2, 0.5, 0.4, 0.1, -0.3]))
    arrays = motioncrafter_golden.load("transforms")
    for frame in (torch.eye(4), moved):
        channels = to_channels(
            pose.transform(frame, points)[None],
            clip["valid"][None],
            (frame @ clip["cam2world"])[None],
            pose.rotate(frame[:3, :3], flow)[None],
            flow_valid[None],
        )
        (by,) = channels.normalization
        motioncrafter_golden.check("transforms", "out.norm.shift", by.shift)
        motioncrafter_golden.check("transforms", "out.norm.scale", by.scale)
        motioncrafter_golden.check("transforms", "out.norm.camera_pose", channels.cam2world)
        motioncrafter_golden.check("transforms", "out.norm.scene_flow", channels.scene_flow)
        motioncrafter_golden.check("transforms", "out.padded.point_map", channels.points)
        valid = channels.valid[0][:, None].expand(-1, 3, -1, -1)
        expected = arrays["out.norm.point_map"]
        torch.testing.assert_close(channels.points[0][valid], expected[valid], atol=1e-5, rtol=1e-5)
        motioncrafter_golden.check("transforms", "out.valid_mask_pm1", channels.valid.int() * 2 - 1)


def test_motioncrafter_normalisation_without_shift(motioncrafter_golden, clip):
    by = MeanDistance.fit(world(clip)[0], clip["valid"], centred=False)
    motioncrafter_golden.check("transforms", "out.norm_noshift.scale", by.scale)
    motioncrafter_golden.check("transforms", "out.norm_noshift.camera_pose", by.apply_pose(clip["cam2world"]))


@pytest.mark.parametrize("name", ["pad", "pad2"])
def test_motioncrafter_fill_invalid(motioncrafter_golden, name):
    arrays = motioncrafter_golden.load("transforms")
    filled = fill_invalid(arrays[f"in.{name}.points"], arrays[f"in.{name}.mask"] > 0.5)
    motioncrafter_golden.check("transforms", f"out.{name}", filled)


def test_motioncrafter_cover_resize(motioncrafter_golden):
    arrays = motioncrafter_golden.load("transforms")
    motioncrafter_golden.check("transforms", "out.resize.frame", cover_resize(arrays["in.resize.frame"], (18, 32)))
    mask = cover_resize(arrays["in.resize.mask"][:, None], (18, 32))
    motioncrafter_golden.check("transforms", "out.resize.mask", mask)
