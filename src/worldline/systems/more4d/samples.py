"""Training samples of MoRe4D's stages, made from clips with truth.

    MotionSamples   a picture, its depth, its pixels' normalised motion, and a sentence
    FillSamples     a video, and what is left of it after it was seen from another camera and brought back

The second is double reprojection: frame t's points are splatted into a camera beside the true one, and what that one
saw is splatted back. What it could not see is a hole, so holes come from viewpoints, not from motion alone (spec 4.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry.normalize import DepthGuidedMotion
from worldline.geometry.pointmap import depth_edges, from_depth, to_camera, to_world
from worldline.geometry.pose import se3_exp
from worldline.render.splat import splat
from worldline.systems.more4d.splatting import EDGE

FARTHEST = 100.0
"""Depth put where nothing is known, at most; otherwise 1.5 times the farthest that is known."""


@dataclass(frozen=True, kw_only=True)
class MotionSamples:
    """Pictures that begin to move.

    Attributes:
        image: [B, H, W, 3] in [0, 1].
        depth: [B, H, W] z-depth, behind the scene where unknown.
        motion: [B, T, H, W, 3] normalised displacement, 0 where unknown.
        weight: [B, T, H, W] how much a displacement counts: 1 where its point is seen, less where it is hidden, 0
            where nothing is known.
        captions: one per picture.
        video: [B, T, H, W, 3] in [0, 1], the pictures' future; None where it is not known.
    """

    image: Float[Tensor, "B H W 3"]
    depth: Float[Tensor, "B H W"]
    motion: Float[Tensor, "B T H W 3"]
    weight: Float[Tensor, "B T H W"]
    captions: tuple[str, ...]
    video: Float[Tensor, "B T H W 3"] | None = None


@dataclass(frozen=True, kw_only=True)
class FillSamples:
    """Videos with holes.

    Attributes:
        video: [B, T, H, W, 3] in [0, 1], the truth.
        rendered: [B, T, H, W, 3] what came back, 0 in holes.
        known: [B, T, H, W] False in holes.
        captions: one per video.
    """

    video: Float[Tensor, "B T H W 3"]
    rendered: Float[Tensor, "B T H W 3"]
    known: Bool[Tensor, "B T H W"]
    captions: tuple[str, ...]


def motion_samples(
    rgb: Float[Tensor, "B H W 3"],
    tracks: Float[Tensor, "B T H W 3"],
    visible: Bool[Tensor, "B T H W"],
    valid: Bool[Tensor, "B H W"],
    intrinsics: Float[Tensor, "B 3 3"],
    cam2world: Float[Tensor, "B 4 4"],
    captions: Sequence[str],
    *,
    focal: tuple[float, float] | None = None,
    hidden_weight: float = 0.2,
    largest: float = 3.0,
) -> MotionSamples:
    """Samples from tracks of the first frame's pixels.

    Args:
        rgb: first frames in [0, 1].
        tracks: world positions at each time of what the first frame sees.
        visible: whether the camera of that time sees them.
        valid: pixels of the first frame that see a surface.
        intrinsics: of the first frame, pixels.
        cam2world: of the first frame; tracks are brought into its frame.
        captions: sentences.
        focal: constants of the normalisation; None: those of the camera.
        hidden_weight: weight of points that are not seen at a time.
        largest: normalised displacements beyond count nothing and are clamped.
    """
    height, width = rgb.shape[1:3]
    depths, motions, weights = [], [], []
    for b in range(len(rgb)):
        points = to_camera(tracks[b], cam2world[b].to(tracks).expand(len(tracks[b]), 4, 4))
        depth = behind(points[0, ..., 2], valid[b])
        own = torch.stack([intrinsics[b, 0, 0] / width, intrinsics[b, 1, 1] / height])
        constants = own if focal is None else own.new_tensor(focal)
        normalization = DepthGuidedMotion(reference=from_depth(depth, intrinsics[b].to(depth)), focal=constants)
        moved = normalization.apply_vector(points - points[:1])
        known = valid[b] & moved.isfinite().all(-1) & (moved.abs() <= largest).all(-1)
        motions.append(torch.where(known[..., None], moved, torch.zeros_like(moved)))
        weights.append(known * torch.where(visible[b], 1.0, hidden_weight).to(moved))
        depths.append(depth)
    return MotionSamples(
        image=rgb,
        depth=torch.stack(depths),
        motion=torch.stack(motions),
        weight=torch.stack(weights),
        captions=tuple(captions),
    )


def behind(depth: Float[Tensor, "H W"], valid: Bool[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Depth with everything unknown put behind the scene."""
    known = valid & depth.isfinite() & (depth > 0)
    far = 1.5 * float(depth[known].max()) if bool(known.any()) else FARTHEST
    return torch.where(known, depth, torch.full_like(depth, min(far, FARTHEST)))


def fill_samples(
    rgb: Float[Tensor, "B T H W 3"],
    depth: Float[Tensor, "B T H W"],
    valid: Bool[Tensor, "B T H W"],
    intrinsics: Float[Tensor, "B T 3 3"],
    captions: Sequence[str],
    generator: torch.Generator,
    *,
    shift: float = 0.25,
    turn_deg: float = 12.0,
) -> FillSamples:
    """Samples by double reprojection from cameras that leave the true one over the clip.

    Args:
        rgb: videos in [0, 1].
        depth: z-depth of every frame.
        valid: where depth is known; the rest is put behind the scene.
        intrinsics: pixels.
        captions: sentences.
        generator: of the cameras.
        shift: largest distance of the other camera from the true one, in median depths.
        turn_deg: largest turn of it.
    """
    frames, known = torch.zeros_like(rgb), torch.zeros_like(valid)
    for b in range(len(rgb)):
        away = _offset(depth[b][valid[b]], generator, shift, turn_deg)
        for t in range(rgb.shape[1]):
            part = (t + 1) / rgb.shape[1]  # the other camera leaves the true one step by step
            back, seen = _there_and_back(rgb[b, t], behind(depth[b, t], valid[b, t]), intrinsics[b, t], part * away)
            frames[b, t], known[b, t] = back, seen
    return FillSamples(video=rgb, rendered=frames, known=known, captions=tuple(captions))


def _offset(depth: Tensor, generator: torch.Generator, shift: float, turn_deg: float) -> Tensor:
    """Twist [6] of the other camera: any direction, up to the largest amounts."""
    distance = float(depth.median()) if len(depth) else 1.0
    direction = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    amount = torch.rand(2, 1, generator=generator, dtype=torch.float64)
    limits = torch.tensor([[shift * distance], [math.radians(turn_deg)]], dtype=torch.float64)
    return (limits * amount * direction / direction.norm(dim=-1, keepdim=True)).flatten()


def _there_and_back(rgb: Tensor, depth: Tensor, intrinsics: Tensor, twist: Tensor) -> tuple[Tensor, Tensor]:
    """A frame seen from a camera at a twist from its own, and that picture seen from its own again."""
    size, pose = (rgb.shape[0], rgb.shape[1]), se3_exp(twist).to(depth)
    intrinsics = intrinsics.to(depth)
    solid = ~depth_edges(depth, EDGE)
    points, home = from_depth(depth, intrinsics), torch.eye(4, dtype=depth.dtype, device=depth.device)
    there = splat(points[solid], rgb[solid], pose, intrinsics, size)
    seen = there.coverage & ~depth_edges(there.depth, EDGE)
    returned = to_world(from_depth(there.depth, intrinsics), pose)
    back = splat(returned[seen], there.image[seen], home, intrinsics, size)
    return back.image, back.coverage
