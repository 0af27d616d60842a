"""Dense tracks of the first frame from a reconstructed scene and optical flow; the camera's motion is removed.

    u(t+1) = u(t) + flow_t(u(t))            chained while forward and backward flow agree
    still:  u(t) stays where the first frame's point, standing still in the world, is seen:  X(t) = X(0)
    moving: X(t) = the surface that frame t sees at u(t), its depth a median over time
    hidden: a still point stays; a moving one goes on as its visible neighbours do

A still point that was hidden is visible again when the surface seen there is at its depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldline.data.curate.config import FollowConfig
from worldline.data.curate.tracked import Tracked, grid_in, resized
from worldline.flow.dis import DisFlow, Flow
from worldline.geometry import camera, pointmap, pose
from worldline.scene import Cameras, Scene4D, Tracks4D, Video


def follow_scene(
    scene: Scene4D, size: tuple[int, int], flow: Flow | None = None, config: FollowConfig | None = None
) -> Tracked:
    """Tracks of the pixels of a scene's first frame, on a grid of any size.

    Args:
        scene: with cameras; any size.
        size: (H, W) of the grid.
        flow: optical flow between grey frames; None: DIS.
        config: see there.

    Raises:
        ValueError: the scene has no cameras, or frames smaller than 16 pixels.
    """
    if scene.cameras is None:
        raise ValueError("Tracks without the camera's motion need cameras, and this scene has none.")
    config = config or FollowConfig()
    # 1. The chain of optical flow, from the grid's pixels.
    grid = grid_in(size, scene.size)
    uv, z = chain(scene, optical_flow(scene.video, flow or DisFlow(), config), grid)
    # 2. What stands still.
    k, cam2world = scene.cameras.intrinsics.double(), pose.relative_to_first(scene.cameras.cam2world.double())
    valid = z[0].isfinite() & (z[0] > 0)
    start = camera.unproject(grid, z[0].double().nan_to_num(), k[0])
    still_uv, still_z = _seen(start, k, cam2world)
    moving = moves(scene, uv, z, still_uv, still_z, config) & valid
    # 3. Where everything is, and what is visible.
    seen = uv.isfinite().all(-1) & valid
    points = start.float().expand(len(uv), *size, 3).clone()
    points[:, moving] = _place(uv[:, moving], z[:, moving], seen[:, moving], k, cam2world, config)
    offset = carry_on(points - points[:1], seen & moving, moving)
    points = (points[:1] + offset) * valid[..., None]
    back = _in_sight(scene, still_uv, still_z, config.agree)
    visible = torch.where(moving, seen, valid & (seen | back))
    return Tracked(
        tracks=Tracks4D(
            points=points,
            visible=visible,
            reference=0,
            colors=resized(scene.video.frames[:1], size)[0],
            timestamps=scene.video.timestamps,
            cameras=Cameras(intrinsics=camera.resize(k, scene.size, size), cam2world=cam2world, size=size),
            scale=scene.scale,
            provenance=scene.provenance,
        ),
        valid=valid,
        moving=moving,
        pixels=_to_grid(uv, scene.size, size),
        notes={"followed": round(float(seen[-1].float().mean()), 4), "scene": scene.provenance.system},
    )


def optical_flow(video: Video, flow: Flow, config: FollowConfig) -> Float[Tensor, "S H W 2"]:
    """Flow from each frame to the next in pixels, NaN where following it forth and back does not return.

    Raises:
        ValueError: frames smaller than 16 pixels.
    """
    import cv2

    if min(video.size) < 16:
        raise ValueError(f"Optical flow needs frames of at least 16x16 pixels, got {video.size[0]}x{video.size[1]}.")
    grid = camera.pixel_grid(video.size).numpy()
    grey = [cv2.cvtColor(f.numpy(), cv2.COLOR_RGB2GRAY) for f in (video.rgb() * 255).round().to(torch.uint8).cpu()]
    out = []
    for now, after in zip(grey, grey[1:], strict=False):
        forward, backward = flow(now, after), flow(after, now)
        at = (grid + forward).astype(np.float32)
        returned = cv2.remap(
            backward, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan
        )
        gap = np.linalg.norm(forward + returned, axis=-1)
        good = gap < config.noise_px + config.relative * np.linalg.norm(forward, axis=-1)  # False for NaN: outside
        out.append(torch.from_numpy(np.where(good[..., None], forward, np.float32(np.nan))))
    return torch.stack(out) if out else torch.zeros(0, *video.size, 2)


def chain(
    scene: Scene4D, flow: Float[Tensor, "S H W 2"], grid: Float[Tensor, "h w 2"]
) -> tuple[Float[Tensor, "T h w 2"], Float[Tensor, "T h w"]]:
    """Pixels of every frame that the grid's points are seen at, and the depth there; NaN from where they are lost."""
    depth = pointmap.scene_depth(scene)
    uv = grid
    read, good = pointmap.sample_values(scene.points[0], scene.valid[0], depth[0][..., None].float(), uv)
    pixels, depths = [uv.float()], [torch.where(good, read[..., 0], torch.nan)]
    for t in range(len(scene) - 1):
        known = scene.valid[t] & flow[t].isfinite().all(-1)
        step, found = pointmap.sample_values(scene.points[t], known, flow[t].nan_to_num(), uv)
        uv = uv + step.double()
        read, hit = pointmap.sample_values(scene.points[t + 1], scene.valid[t + 1], depth[t + 1][..., None].float(), uv)
        good = good & found & hit
        uv = torch.where(good[..., None], uv, torch.nan)
        pixels.append(uv.float())
        depths.append(torch.where(good, read[..., 0], torch.nan))
    return torch.stack(pixels), torch.stack(depths)


def moves(
    scene: Scene4D,
    uv: Float[Tensor, "T h w 2"],
    z: Float[Tensor, "T h w"],
    still_uv: Float[Tensor, "T h w 2"],
    still_z: Float[Tensor, "T h w"],
    config: FollowConfig,
) -> Bool[Tensor, "h w"]:
    """Points that flow carries away from where they would stand still, and that are no longer there.

    Flow alone drifts where there is no texture, so the place left must speak too: one sees through it, another colour
    is at its depth, or the point itself is at another depth.
    """
    rgb, depth = scene.video.rgb(), pointmap.scene_depth(scene).float()
    values = torch.cat([functional.avg_pool2d(rgb.movedim(-1, 1), 3, 1, 1).movedim(1, -1), depth[..., None]], -1)
    (away, seen, left), first = torch.zeros(3, *z.shape[1:]), None
    for t in range(len(z)):
        read, found = pointmap.sample_values(scene.points[t], scene.valid[t], values[t], still_uv[t])
        first = read[..., :3] if first is None else first
        gap = (uv[t] - still_uv[t].float()).norm(dim=-1)
        alive, expected = gap.isfinite(), still_z[t].float()
        usual = float(gap[alive].sort().values[int(0.3 * int(alive.sum()))]) if bool(alive.any()) else 0.0
        through = read[..., 3] > expected * (1 + config.apart)
        other = ((read[..., 3] - expected).abs() <= config.apart * expected) & (
            (read[..., :3] - first).abs().mean(-1) > config.colour
        )
        elsewhere = (z[t] - expected).abs() > config.apart * expected
        gone = ~found | through | other | elsewhere
        away += alive & gone & (gap > max(config.still_px, config.typical * usual))
        seen += alive
        left += found & (through | other)
    least = min(2, len(z) - 1)
    off = (away >= torch.clamp(config.often * seen, min=least)).float()
    told = (seen >= least + 1) | (off > 0)  # the first frame counts; the rest was lost at once
    if bool(told.any()):  # and is as its neighbours, if it is not where it was
        near = spread(off[..., None].expand(*off.shape, 3), told)[..., 0]
        off = torch.where(told, off, near * (left >= config.often * len(z)))
    return without_speckle(off > 0.5, config.speckle)


def without_speckle(mask: Bool[Tensor, "h w"], smallest: float) -> Bool[Tensor, "h w"]:
    """The regions of a mask after a vote of neighbours: holes filled, those below a share of the picture gone."""
    import cv2

    voted = functional.avg_pool2d(mask[None, None].float(), 5, 1, 2, count_include_pad=False)[0, 0] > 0.5
    outlines, _ = cv2.findContours(voted.numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(filled, connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= max(4, smallest * mask.numel())
    kept[0] = False
    return torch.from_numpy(kept[labels])


def _seen(
    points: Float[Tensor, "h w 3"], k: Float[Tensor, "T 3 3"], cam2world: Float[Tensor, "T 4 4"]
) -> tuple[Tensor, Tensor]:
    """Pixels [T, h, w, 2] and depths [T, h, w] of world points in every camera; pixels NaN behind it."""
    local = pointmap.to_camera(points.expand(len(k), *points.shape), cam2world)
    uv, z = camera.project(local, k), local[..., 2]
    return torch.where(z[..., None] > 0, uv, torch.nan), z


def _in_sight(scene: Scene4D, uv: Tensor, z: Tensor, agree: float) -> Bool[Tensor, "T h w"]:
    """Whether the surface that each frame sees at a pixel is at the depth given."""
    depth = pointmap.scene_depth(scene)
    out = []
    for t in range(len(scene)):
        read, found = pointmap.sample_values(scene.points[t], scene.valid[t], depth[t][..., None].float(), uv[t])
        out.append(found & ((read[..., 0] - z[t]).abs() <= agree * z[t]))
    return torch.stack(out)


def _place(uv: Tensor, z: Tensor, seen: Tensor, k: Tensor, cam2world: Tensor, config: FollowConfig) -> Tensor:
    """World points [T, N, 3] of pixels and depths; where they are not seen, NaN-free but meaningless."""
    half = config.smooth // 2
    depth = torch.where(seen, z, torch.nan)
    windows = functional.pad(depth.T[:, None], (half, half), value=torch.nan)[:, 0].unfold(1, 2 * half + 1, 1)
    depth = torch.cat([z[:1], windows.nanmedian(-1).values.T[1:]]).nan_to_num().double()  # the first frame is given
    return pose.transform(cam2world, camera.unproject(uv.nan_to_num().double(), depth, k)).float()


def carry_on(
    offset: Float[Tensor, "T h w 3"], known: Bool[Tensor, "T h w"], wanted: Bool[Tensor, "h w"]
) -> Float[Tensor, "T h w 3"]:
    """Displacements where they are known; elsewhere among the wanted those of known neighbours, else the last ones."""
    out = torch.where(wanted[..., None], offset, torch.zeros_like(offset))
    for t in range(1, len(out)):
        missing = wanted & ~known[t]
        if not bool(missing.any()):
            continue
        filled = spread(out[t], known[t]) if bool(known[t].any()) else out[t - 1]
        out[t] = torch.where(missing[..., None], filled, out[t])
    return out


def spread(values: Float[Tensor, "h w 3"], known: Bool[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Values everywhere from where they are known: averages of ever larger neighbourhoods (pull and push)."""
    weight = known[None, None].to(values)
    total = values.movedim(-1, 0)[None] * weight
    levels = [(total, weight)]
    while max(weight.shape[-2:]) > 1:
        total, weight = (functional.avg_pool2d(v, 2, 2, ceil_mode=True, count_include_pad=False) for v in levels[-1])
        levels.append((total, weight))
    coarse = levels[-1][0] / levels[-1][1].clamp(min=1e-12)
    for total, weight in reversed(levels[:-1]):
        coarse = functional.interpolate(coarse, size=weight.shape[-2:], mode="bilinear", align_corners=False)
        coarse = torch.where(weight > 0, total / weight.clamp(min=1e-12), coarse)
    return coarse[0].movedim(0, -1)


def _to_grid(uv: Float[Tensor, "T h w 2"], size_from: tuple[int, int], size_to: tuple[int, int]) -> Tensor:
    scale = torch.tensor([size_to[1] / size_from[1], size_to[0] / size_from[0]])
    return (uv + 0.5) * scale - 0.5


@dataclass(frozen=True, kw_only=True)
class TrackError:
    """Mean errors of tracks against truth over valid points.

    Attributes:
        moving: mean distance of points that truly move, in truth's unit.
        moving_if_still: the same if nothing is said to move: the trivial predictor.
        still: mean distance of points that truly stand still.
        visibility: share of (point, time) whose visibility is right.
    """

    moving: float
    moving_if_still: float
    still: float
    visibility: float


def track_error(tracked: Tracked, truth: Float[Tensor, "T H W 3"], visible: Bool[Tensor, "T H W"]) -> TrackError:
    """Errors of tracks on the truth's own grid; points the tracker has no depth for count as standing at the origin."""
    known = visible[0]
    moved = (truth - truth[:1]).norm(dim=-1).amax(0) > 1e-3 * truth[0, ..., 2]
    gap, stay = (tracked.tracks.points - truth).norm(dim=-1), (truth - truth[:1]).norm(dim=-1)

    def mean(values: Tensor, chosen: Tensor) -> float:
        return float(values[1:, chosen].mean()) if bool(chosen.any()) else float("nan")

    return TrackError(
        moving=mean(gap, known & moved),
        moving_if_still=mean(stay, known & moved),
        still=mean(gap, known & ~moved),
        visibility=float((tracked.tracks.visible == visible)[:, known].float().mean()),
    )
