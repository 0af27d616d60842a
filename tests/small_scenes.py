"""A small moving scene built by hand: a checkered ground, a wall, and a ball that rolls by, seen by a moving camera."""

from __future__ import annotations

import torch

from worldline.geometry.camera import camera_rays, intrinsics_from_focal
from worldline.geometry.pose import se3_exp
from worldline.scene import Cameras, Provenance, Scene4D, Tracks4D, Video


def ball_scene(count: int = 8, size: tuple[int, int] = (60, 90), unreliable: tuple[str, ...] = ()) -> Scene4D:
    """Exact points, scene flow and cameras; the ball (radius 0.6) moves 0.15 to the right each frame."""
    k = intrinsics_from_focal(torch.tensor(float(size[1])), size)
    poses = torch.stack(
        [se3_exp(torch.tensor([0.08 * t, -0.02 * t, 0.05 * t, 0, -0.015 * t, 0])) for t in range(count)]
    )
    step = torch.tensor([0.15, 0.0, 0.0])
    frames, points, flows, valid = [], [], [], []
    for t, pose in enumerate(poses):
        rays = camera_rays(k, size) @ pose[:3, :3].T
        eye, centre = pose[:3, 3], torch.tensor([-0.7, 0.4, 4.0]) + t * step
        ground = (1.0 - eye[1]) / rays[..., 1]
        wall = (9.0 - eye[2]) / rays[..., 2]
        b = (rays * (eye - centre)).sum(-1)
        a, c = (rays**2).sum(-1), ((eye - centre) ** 2).sum() - 0.36
        root = b**2 - a * c
        ball = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, torch.inf)
        distances = torch.stack([torch.where(ground > 0, ground, torch.inf), wall, ball], -1)
        nearest, which = distances.min(-1)
        hit = eye + nearest[..., None] * rays
        checks = ((hit * 1.5).floor().long()[..., [0, 2]].sum(-1) % 2).float()[..., None]
        on_ball = (((hit - centre) * 6).floor().long().sum(-1) % 2).float()[..., None]
        shades = [0.35 + 0.4 * checks * torch.tensor([0.5, 1.0, 0.6]), torch.tensor([0.55, 0.62, 0.8]).expand_as(hit),
                  torch.tensor([0.9, 0.25, 0.15]) * (0.6 + 0.4 * on_ball)]  # fmt: skip
        color = torch.stack(shades, -2).gather(-2, which[..., None, None].expand(*size, 1, 3))[..., 0, :]
        frames.append((color * 255).to(torch.uint8))
        points.append(hit)
        flows.append(torch.where((which == 2)[..., None], step, torch.zeros(3)))
        valid.append(hit[..., 2] < 8.99)
    flow_valid = torch.stack(valid)
    flow_valid[-1] = False
    return Scene4D(
        video=Video(frames=torch.stack(frames), timestamps=torch.arange(count).double() / 10),
        points=torch.stack(points),
        valid=torch.stack(valid),
        cameras=Cameras(intrinsics=k.repeat(count, 1, 1), cam2world=poses, size=size),
        scene_flow=torch.stack(flows),
        flow_valid=flow_valid,
        confidence=torch.linspace(0, 1, size[1]).expand(count, *size).clone(),
        scale="metric",
        provenance=Provenance(system="truth", unreliable=unreliable),
    )


def ball_tracks(count: int = 8, size: tuple[int, int] = (60, 90)) -> Tracks4D:
    """Every pixel of the first frame of `ball_scene` followed through time."""
    scene = ball_scene(count, size)
    assert scene.scene_flow is not None
    times = torch.arange(count).float()[:, None, None, None]
    return Tracks4D(
        points=scene.points[0] + times * scene.scene_flow[0],
        visible=scene.valid[:1].expand(count, -1, -1).clone(),
        reference=0,
        colors=scene.video.rgb()[0],
        timestamps=scene.video.timestamps,
        cameras=scene.cameras,
        scale="metric",
        provenance=scene.provenance,
    )
