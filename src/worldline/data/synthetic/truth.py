"""Dense tracks: where every surface point seen by the reference frame is at every time, and which camera sees it.

Points move with the affine pose of their primitive; a point is visible if it is in the image, faces the camera, and the
ray from the camera through it meets it first (the ray is cast again, exactly through the point).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldline.data.synthetic import pack
from worldline.data.synthetic.motion import inverse
from worldline.data.synthetic.pack import Tables
from worldline.data.synthetic.raycast import Steps, closest_hit, image_coordinates
from worldline.data.synthetic.sampling import SceneSpec
from worldline.data.synthetic.shading import Surface
from worldline.data.synthetic.shapes import NEAR

OCCLUSION_TOLERANCE = 1.0e-3  # relative depth within which the point itself is what the ray meets


def follow(
    steps: Steps, tables: Tables, surface: Surface, specs: Sequence[SceneSpec], reference: int
) -> tuple[Tensor, Tensor]:
    """World tracks [B, T, H, W, 3] of what the reference frame sees, and their visibility [B, T, H, W].

    Raises:
        ValueError: if there is no such reference frame.
    """
    frames = surface.depth.shape[1]
    if not 0 <= reference < frames:
        raise ValueError(f"Reference frame {reference} is outside the clip of {frames} frames.")
    size = (surface.depth.shape[2], surface.depth.shape[3])
    now = tables.frames(reference, reference + 1)
    _, slot = closest_hit(steps, now, *image_coordinates(now, size), cull=False)
    solid = ~surface.sky[:, reference]
    followed = [
        _carry(spec, slot[b, 0].long(), surface.points[b, reference], surface.normals[b, reference], reference)
        for b, spec in enumerate(specs)
    ]
    world = torch.stack([track for track, _ in followed]) * solid[:, None, ..., None]
    facing = torch.stack([towards for _, towards in followed])
    visible = facing & solid[:, None] & _unoccluded(steps, tables, world, specs, size)
    world[:, reference], visible[:, reference] = surface.points[:, reference].double(), solid
    return world.float(), visible


def _carry(spec: SceneSpec, slot: Tensor, points: Tensor, normals: Tensor, reference: int) -> tuple[Tensor, Tensor]:
    """World tracks [T, H, W, 3] of the points of one scene, and whether they face the camera of each time."""
    parts, *_ = pack.slots_of(spec)
    poses = inverse(spec.cam2world[0]) @ pack.poses(spec, parts)[0]  # object to world, [K, T, 4, 4]
    inverses = inverse(poses)
    centres = (inverses @ pack.world_poses(spec)[:, :, 3:])[..., :3, 0]  # cameras in object coordinates, [K, T, 3]
    forward, backward, eyes = (torch.from_numpy(v).to(points.device) for v in (poses, inverses, centres))
    back = backward[:, reference][slot]  # [H, W, 4, 4]
    own = (back[..., :3, :3] @ points.double()[..., None])[..., 0] + back[..., :3, 3]
    forth = forward[:, reference][slot]
    normal = (forth[..., :3, :3].transpose(-1, -2) @ normals.double()[..., None])[..., 0]
    tracks, facing = [], []
    for t in range(spec.frames):
        pose = forward[:, t][slot]
        tracks.append((pose[..., :3, :3] @ own[..., None])[..., 0] + pose[..., :3, 3])
        facing.append(((own - eyes[:, t][slot]) * normal).sum(-1) < 0)
    return torch.stack(tracks), torch.stack(facing)


def _unoccluded(
    steps: Steps, tables: Tables, world: Tensor, specs: Sequence[SceneSpec], size: tuple[int, int]
) -> Tensor:
    """Whether world points [B, T, H, W, 3] are in the image of their frame and what their ray meets first."""
    to_camera = torch.stack([torch.from_numpy(inverse(pack.world_poses(spec))) for spec in specs]).to(world.device)
    to_camera = to_camera[:, :, None, None]
    p = (to_camera[..., :3, :3] @ world[..., None])[..., 0] + to_camera[..., :3, 3]
    z = p[..., 2]
    ahead = z > NEAR
    safe = torch.where(ahead, z, 1.0)
    x, y = ((p[..., i] / safe * ahead).float() for i in (0, 1))
    frame = tables.frame
    u, v = x * frame[pack.FOCAL] + frame[pack.CENTRE_X], y * frame[pack.FOCAL] + frame[pack.CENTRE_Y]
    inside = (u >= -0.5) & (u <= size[1] - 0.5) & (v >= -0.5) & (v <= size[0] - 0.5)
    met = torch.cat(
        [
            closest_hit(steps, tables.frames(t, t + 1), x[:, t : t + 1], y[:, t : t + 1], cull=False)[0]
            for t in range(world.shape[1])
        ],
        1,
    )
    return ahead & inside & ((met - z).abs() <= z * OCCLUSION_TOLERANCE)
