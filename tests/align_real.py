"""Real sequences with measured or rendered depth, as windows in random gauges with noise; their cameras are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline import windows
from worldline.align.alignment import Alignment
from worldline.align.observation import Observation
from worldline.align.solve import Priors, solve
from worldline.geometry.fit import umeyama
from worldline.geometry.pose import Similarity, quaternion_to_matrix, rotation_angle_deg, so3_exp

STEP = 4  # every 4th row and column


@dataclass(frozen=True)
class Sequence:
    depth: Tensor  # [T, H, W], 0 = unknown
    pose: Tensor  # [T, 4, 4]
    intrinsics: Tensor  # [3, 3]

    @property
    def size(self) -> tuple[int, int]:
        return self.depth.shape[1], self.depth.shape[2]


def scaled(K: list[list[float]]) -> Tensor:
    out = torch.tensor(K, dtype=torch.float64)
    out[:2] /= STEP
    return out


def tartanair(data: Path) -> Sequence:
    rows = torch.from_numpy(np.loadtxt(data / "tartanair" / "pose_left_045_059.txt"))
    rotation = quaternion_to_matrix(rows[:, [6, 3, 4, 5]])
    body = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]).double()  # camera axes of NED body axes
    pose = torch.eye(4).double().repeat(len(rows), 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation @ body.T, rows[:, :3]
    files = sorted((data / "tartanair" / "depth_left").glob("*.npy"))
    depth = torch.stack([torch.from_numpy(np.load(f)[::STEP, ::STEP].astype(np.float32)) for f in files])
    return Sequence(depth, pose, scaled([[320, 0, 320], [0, 320, 240], [0, 0, 1]]))


def hololens(data: Path) -> Sequence:
    import cv2

    folder = data / "hololens"
    pose = torch.from_numpy(np.loadtxt(folder / "poses_first60.txt")).reshape(-1, 4, 4)[:20]
    files = sorted((folder / "depth").glob("*.png"))[:20]
    maps = [cv2.imread(str(f), cv2.IMREAD_UNCHANGED)[::STEP, ::STEP].astype(np.float32) / 1000 for f in files]
    return Sequence(torch.from_numpy(np.stack(maps)), pose, scaled(np.loadtxt(folder / "K.txt").tolist()))


def observe(s: Sequence, plan: list[range], noise: float, seed: int = 0) -> list[Observation]:
    """Points of the windows in random gauges; noise relative to depth, half of it shared by neighbours."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(s.size[0]).double(), torch.arange(s.size[1]).double(), indexing="ij")
    K = s.intrinsics
    ray = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)], -1)
    out = []
    for part in plan:
        f = torch.tensor(list(part))
        coarse = torch.randn(len(f), 1, 8, 12, generator=g)
        shared = torch.nn.functional.interpolate(coarse, s.size, mode="bilinear")[:, 0]
        wild = torch.randn(len(f), *s.size, generator=g)
        depth = s.depth[f] * (1 + noise * 0.7 * (shared + wild))
        side = 0.2 * noise * s.depth[f, ..., None] * torch.randn(len(f), *s.size, 3, generator=g)
        local = depth[..., None].double() * ray + side.double()
        world = local @ s.pose[f, None, :3, :3].mT + s.pose[f, None, None, :3, 3]
        gauge = Similarity(
            scale=torch.exp(0.5 * torch.randn((), generator=g)).double(),
            rotation=so3_exp(torch.randn(3, generator=g).double()),
            translation=torch.randn(3, generator=g).double(),
        )
        usable = (s.depth[f] > 0) & (s.depth[f] < 100)
        out.append(Observation(frames=tuple(part), points=gauge.apply(world).float(), confidence=usable.float()))
    return out


def errors(alignment: Alignment, s: Sequence) -> tuple[float, float]:
    """Largest centre error (percent of the path, after a similarity) and largest rotation error (degrees)."""
    found, true = alignment.cameras.cam2world, s.pose
    fit = umeyama(found[:, :3, 3], true[:, :3, 3])
    path = (true[1:, :3, 3] - true[:-1, :3, 3]).norm(dim=-1).sum()
    gap = (fit.apply(found[:, :3, 3]) - true[:, :3, 3]).norm(dim=-1).max()
    first = true[0, :3, :3] @ found[0, :3, :3].T
    turn = rotation_angle_deg(first @ found[:, :3, :3], true[:, :3, :3]).max()
    return float(100 * gap / path), float(turn)


def run(s: Sequence, intrinsics: str, noise: float = 0.01) -> dict[str, float | bool]:
    """Cameras from depth alone: how far off they are, and whether the intrinsics are said to contradict the points.

    Args:
        s: the sequence.
        intrinsics: unknown (the principal point is given), known, or wrong by 15 %.
        noise: relative, of the depth.
    """
    K = s.intrinsics.clone()
    if intrinsics == "wrong":
        K[0, 0] *= 1.15
        K[1, 1] *= 1.15
    centre = (float(K[0, 2]), float(K[1, 2]))
    priors = Priors(principal_point=centre) if intrinsics == "unknown" else Priors(intrinsics=K)
    T = len(s.depth)
    alignment = solve(observe(s, windows.plan(T, 8, 4), noise=noise), T, s.size, priors)
    gap, turn = errors(alignment, s)
    return {
        "centre_pct": gap, "turn_deg": turn,
        "focal_err_pct": 100 * (float(alignment.cameras.focal_px[0] / s.intrinsics[0, 0]) - 1),
        "noticed": any("contradicts" in text for text in alignment.report["undetermined"]),
    }  # fmt: skip
