"""Point maps: depth <-> points, camera <-> world, edges, normals, sampling and resizing that keep surfaces apart."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import camera, pose
from worldline.scene import Scene4D


def from_depth(
    depth: Float[Tensor, "*batch H W"], intrinsics: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch H W 3"]:
    """Camera-frame points of a z-depth map (intrinsics in pixels)."""
    return camera.camera_rays(intrinsics.to(depth.dtype), (depth.shape[-2], depth.shape[-1])) * depth[..., None]


def to_world(
    points_cam: Float[Tensor, "*batch H W 3"], cam2world: Float[Tensor, "*batch 4 4"]
) -> Float[Tensor, "*batch H W 3"]:
    """Camera-frame points in the world frame."""
    return pose.transform(cam2world, points_cam)


def to_camera(
    points_world: Float[Tensor, "*batch H W 3"], cam2world: Float[Tensor, "*batch 4 4"]
) -> Float[Tensor, "*batch H W 3"]:
    """World points in the frame of their camera."""
    return pose.transform(pose.inverse(cam2world), points_world)


def depth_of(
    points_world: Float[Tensor, "*batch H W 3"], cam2world: Float[Tensor, "*batch 4 4"]
) -> Float[Tensor, "*batch H W"]:
    """Depth (z) of world points in their camera: r3 . (X - c), r3 the camera's viewing axis."""
    offset = points_world - cam2world[..., None, None, :3, 3].to(points_world.dtype)
    return (offset * cam2world[..., None, None, :3, 2].to(points_world.dtype)).sum(-1)


def scene_depth(scene: Scene4D) -> Float[Tensor, "T H W"]:
    """Depth (z) of every pixel of a scene in the camera that sees it; 0 where the scene is not valid.

    Raises:
        ValueError: the scene has no cameras.
    """
    if scene.cameras is None:
        raise ValueError("Depth needs cameras, and this scene has none: solve for cameras first (align.solve).")
    return depth_of(scene.points, scene.cameras.cam2world) * scene.valid


def depth_edges(depth: Float[Tensor, "*batch H W"], rtol: float = 0.1) -> Bool[Tensor, "*batch H W"]:
    """Pixels next to a depth step: in their 3x3 neighbourhood the depth varies by more than rtol times the least one.

    Depths that are not positive or not finite are holes and count for nothing.
    """
    known = (depth > 0) & depth.isfinite()
    grow = lambda value: torch.nn.functional.max_pool2d(value[None, None], 3, 1, 1)[0, 0]  # noqa: E731
    shape = depth.shape
    flat, mask = depth.reshape(-1, *shape[-2:]), known.reshape(-1, *shape[-2:])
    out = torch.zeros_like(mask)
    for i in range(len(flat)):  # frame by frame: bounded memory on long clips
        highest = grow(flat[i].masked_fill(~mask[i], -torch.inf))
        lowest = -grow((-flat[i]).masked_fill(~mask[i], -torch.inf))
        out[i] = mask[i] & (highest - lowest > rtol * lowest)
    return out.reshape(shape)


def normals(points: Float[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch H W 3"]:
    """Unit surface normals of a point map by central differences (one-sided at the border).

    In the frame of the points, on the side of the camera that saw them: dX/dv x dX/du. Zero where undefined.
    """
    across = torch.cat([points[..., :1, :], points, points[..., -1:, :]], -2)
    down = torch.cat([points[..., :1, :, :], points, points[..., -1:, :, :]], -3)
    du, dv = across[..., 2:, :] - across[..., :-2, :], down[..., 2:, :, :] - down[..., :-2, :, :]
    normal = torch.linalg.cross(dv, du, dim=-1)
    return torch.nn.functional.normalize(normal, dim=-1, eps=torch.finfo(points.dtype).tiny ** 0.5)


def resize(
    points: Float[Tensor, "*batch H W 3"], valid: Bool[Tensor, "*batch H W"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*batch h w 3"], Bool[Tensor, "*batch h w"]]:
    """Point map at another size (h, w): every output point IS an input point, so surfaces never mix.

    Of the input pixels around the centre of an output pixel, and inside it when shrinking, the nearest valid one is
    taken; the output is not valid (and zero) if none is. Image edges map onto image edges, as in camera.resize.
    """
    grid = camera.pixel_grid(size, torch.float64, points.device)
    scale = torch.tensor(
        [points.shape[-2] / size[1], points.shape[-3] / size[0]], dtype=torch.float64, device=points.device
    )
    uv = (grid + 0.5) * scale - 0.5
    reach = torch.maximum(scale / 2, torch.full_like(scale, 0.5)) + 1e-6
    best = _nearest_valid(valid, uv.expand(*valid.shape[:-2], *uv.shape), reach)
    picked, found = _gather(points, best.clamp(min=0)), best >= 0
    return torch.where(found[..., None], picked, torch.zeros_like(picked)), found


def _corners(uv: Tensor, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Linear indices, bilinear weights and offsets |duv| of the four pixels around uv (clamped to the image)."""
    limit = torch.tensor([size[1], size[0]], dtype=uv.dtype, device=uv.device)
    uv = torch.minimum(uv.clamp(min=0), limit - 1)
    first = torch.minimum(uv.floor(), (limit - 2).clamp(min=0))
    index, weight, offset = [], [], []
    for dv in (0, 1):
        for du in (0, 1):
            pixel = torch.minimum(first + torch.tensor([du, dv], dtype=uv.dtype, device=uv.device), limit - 1)
            index.append(pixel[..., 1].long() * size[1] + pixel[..., 0].long())
            offset.append((uv - pixel).abs())
            weight.append((1 - (uv - first - torch.tensor([du, dv]).to(uv)).abs()).clamp(min=0).prod(-1))
    return index, weight, offset


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Pick values [*batch, H, W, C] at linear pixel indices [*batch, h, w] -> [*batch, h, w, C]."""
    lead = values.shape[:-3]
    flat = values.reshape(*lead, -1, values.shape[-1])
    picked = flat.gather(-2, index.reshape(*lead, -1, 1).expand(*lead, -1, values.shape[-1]))
    return picked.reshape(*index.shape, values.shape[-1])


def _nearest_valid(valid: Tensor, uv: Tensor, reach: Tensor | None = None) -> Tensor:
    """Linear index of the nearest valid pixel of the four around uv, -1 where none is (within reach (u, v))."""
    index, _, offset = _corners(uv, (valid.shape[-2], valid.shape[-1]))
    usable = torch.stack([_gather(valid[..., None], i)[..., 0] for i in index], -1)
    offsets = torch.stack(offset, -2)
    if reach is not None:
        usable = usable & (offsets <= reach).all(-1)
    nearest = offsets.square().sum(-1).masked_fill(~usable, torch.inf).argmin(-1, keepdim=True)
    return torch.where(usable.any(-1), torch.stack(index, -1).gather(-1, nearest)[..., 0], -1)


def sample(
    points: Float[Tensor, "*batch H W 3"], valid: Bool[Tensor, "*batch H W"], uv: Float[Tensor, "*batch h w 2"]
) -> tuple[Float[Tensor, "*batch h w 3"], Bool[Tensor, "*batch h w"]]:
    """Points of a point map at real-valued pixel positions, without mixing surfaces; see sample_values."""
    return sample_values(points, valid, points, uv)


def sample_values(
    points: Float[Tensor, "*batch H W 3"],
    valid: Bool[Tensor, "*batch H W"],
    values: Float[Tensor, "*batch H W C"],
    uv: Float[Tensor, "*batch h w 2"],
) -> tuple[Float[Tensor, "*batch h w C"], Bool[Tensor, "*batch h w"]]:
    """Per-pixel values of a point map's surfaces at real-valued pixel positions, without mixing surfaces.

    Bilinear where the four pixels around are valid and on one surface; elsewhere the nearest valid one of them. Four
    points count as one surface if the longest side of their quadrilateral is at most 6 times the shortest one, which
    needs no scale. Not valid (and zero) outside the image or where all four are invalid.
    """
    size = (points.shape[-3], points.shape[-2])
    inside = (uv >= -0.5).all(-1) & (uv[..., 0] <= size[1] - 0.5) & (uv[..., 1] <= size[0] - 0.5)  # False for NaN
    uv = torch.where(inside[..., None], uv, torch.zeros_like(uv)).double()
    index, weight, _ = _corners(uv, size)
    corner = [_gather(points, i) for i in index]  # 00, 01, 10, 11
    usable = torch.stack([_gather(valid[..., None], i)[..., 0] for i in index], -1)
    sides = torch.stack([(corner[a] - corner[b]).norm(dim=-1) for a, b in ((0, 1), (2, 3), (0, 2), (1, 3))], -1)
    one_surface = usable.all(-1) & (sides.amax(-1) <= 6 * sides.amin(-1))
    best = _nearest_valid(valid, uv)
    out = _gather(values, best.clamp(min=0))
    blend = torch.zeros_like(out)
    for i, w in zip(index, weight, strict=True):
        blend = blend + w.to(out.dtype)[..., None] * _gather(values, i)
    out = torch.where(one_surface[..., None], blend, out)
    found = inside & (best >= 0)
    return torch.where(found[..., None], out, torch.zeros_like(out)), found
