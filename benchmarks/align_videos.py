"""Synthetic videos for the alignment benchmark: a wandering camera in a closed room, seen in noisy windows."""

from __future__ import annotations

import resource
from collections.abc import Sequence

import torch

from worldline import windows
from worldline.align.alignment import Alignment
from worldline.align.observation import Observation
from worldline.geometry.pose import Similarity, from_rt, rotation_angle_deg, so3_exp

FOCAL = 0.9  # of the width


def path_of(frames: int) -> torch.Tensor:
    """Poses of a camera that wanders through the corridor, first camera = identity."""
    t = torch.arange(frames).double() / 25
    turn = torch.stack([0.1 * torch.sin(0.9 * t), 0.5 * torch.sin(0.35 * t), 0.04 * torch.sin(0.7 * t)], -1)
    move = torch.stack([1.2 * torch.sin(0.31 * t), 0.3 * torch.sin(0.8 * t), 2.5 * torch.sin(0.17 * t)], -1)
    pose = from_rt(so3_exp(turn), move)
    return torch.linalg.inv(pose[0]) @ pose


def corridor(pose: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """z-depth [T, H, W] and rays (world axes, z = 1 in the camera) of walls and balls; focal 0.9 W."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    ray = torch.stack([(x - width / 2) / (FOCAL * width), (y - height / 2) / (FOCAL * width), torch.ones_like(x)], -1)
    direction = torch.einsum("tij,hwj->thwi", pose[:, :3, :3].float(), ray)
    direction = torch.where(direction.abs() < 1e-6, torch.full_like(direction, 1e-6), direction)
    origin = pose[:, None, None, :3, 3].float()
    low, high = torch.tensor([-3.0, -2.0, -6.0]), torch.tensor([3.0, 1.5, 9.0])
    depth = (torch.where(direction > 0, high - origin, low - origin) / direction).amin(-1)
    for ball in torch.tensor(
        [[1.0, 0.5, 4.0, 0.8], [-1.5, 0.0, 6.0, 1.0], [0.5, -0.5, 7.0, 0.7], [-1.0, 0.8, -3.0, 0.8]]
    ):
        offset = origin - ball[:3]
        a, b, c = (direction**2).sum(-1), (direction * offset).sum(-1), (offset**2).sum(-1) - ball[3] ** 2
        near = (-b - (b * b - a * c).clamp_min(0).sqrt()) / a
        depth = torch.where((b * b - a * c > 0) & (near > 0.1), torch.minimum(depth, near), depth)
    return depth, direction


class NoisyWindows(Sequence):
    """Windows of the corridor that exist only while they are looked at, as if read from a disk; always the same.

    Range noise of 2 % and 0.5 % of the depth in all directions, half of it shared by neighbouring pixels; a random
    gauge like Geo4D's: scale, one degree, a shift along z. With `bend` the windows are also wrong as a whole, as
    networks are: scale and rotation drift linearly through each window, which no averaging over pixels removes.
    """

    def __init__(
        self, frames: int, size: tuple[int, int], stride: int, seed: int = 0, bend: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Take windows of 16; `bend` is the standard deviation of log scale and of degrees at a window's end."""
        self.plan, self.pose, self.size = windows.plan_stride(frames, 16, stride), path_of(frames), size
        self.seed, self.bend = seed, bend

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, k: int) -> Observation:
        part = self.plan[k]
        pose = self.pose[part.start : part.stop]
        generator = torch.Generator().manual_seed(part.start + 100_003 * self.seed)
        true, direction = corridor(pose, self.size)

        def noise(channels: int) -> torch.Tensor:
            coarse = torch.randn(len(part), channels, self.size[0] // 8, self.size[1] // 8, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, self.size, mode="bilinear")
            return (smooth + 0.5 * torch.randn(smooth.shape, generator=generator)).permute(0, 2, 3, 1)

        depth = true * (1 + 0.02 * noise(1)[..., 0])
        points = pose[:, None, None, :3, 3].float() + depth[..., None] * direction + 0.005 * true[..., None] * noise(3)
        local = (points - pose[0, :3, 3].float()) @ pose[0, :3, :3].float()
        gauge = Similarity(
            scale=torch.exp(0.3 * torch.randn((), generator=generator)),
            rotation=so3_exp(0.02 * torch.randn(3, generator=generator)),
            translation=torch.tensor([0.0, 0.0, -0.2]),
        )
        disparity = 2 / true * (1 + 0.02 * noise(1)[..., 0]) - 0.1
        return Observation(
            frames=tuple(part), points=gauge.apply(self._bent(local, generator)),
            confidence=torch.ones(local.shape[:3]), disparity=disparity,
        )  # fmt: skip

    def _bent(self, local: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Scale and rotation about the window's origin that grow with time."""
        if self.bend == (0.0, 0.0):
            return local
        share = torch.linspace(0, 1, len(local))
        grow = torch.exp(self.bend[0] * torch.randn((), generator=generator) * share)
        axis = torch.deg2rad(torch.tensor(self.bend[1])) * torch.randn(3, generator=generator)
        turn = so3_exp(share[:, None] * axis).to(local)
        return grow[:, None, None, None] * (local @ turn[:, None].mT)


def camera_errors(alignment: Alignment) -> dict[str, float]:
    """Drift in the first camera's gauge with the scale of its first second, relative to the path; focal error."""
    found, true = alignment.cameras.cam2world, path_of(len(alignment.cameras))
    path = float((true[1:, :3, 3] - true[:-1, :3, 3]).norm(dim=-1).sum())
    a, b = found[:, :3, 3], true[:, :3, 3]
    scale = float((a[:25] * b[:25]).sum() / (a[:25] * a[:25]).sum())
    gap = (scale * a - b).norm(dim=-1)
    return {
        "path": path,
        "mean_pct_of_path": 100 * float(gap.mean()) / path,
        "last_pct_of_path": 100 * float(gap[-1]) / path,
        "last_deg": float(rotation_angle_deg(found[-1, :3, :3], true[-1, :3, :3])),
        "focal_err_pct": 100 * (float(alignment.cameras.focal_px[0]) / (FOCAL * alignment.cameras.size[1]) - 1),
    }


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
