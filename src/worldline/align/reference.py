"""The published alignment, faithfully (specs/geo4d.md 3.3-3.7): for comparison only, nothing in Worldline uses it.

    L = L_p + [it >= 150] (2 L_d + 0.005 L_t) + 0.015 L_s

over full-resolution log depth, poses, focal, window similarities, disparity scale and shift and trajectory alignment,
by 500 iterations of Adam (betas 0.9, 0.9; lr 0.03 -> 0.001), after a focal solve, chained Umeyama and RANSAC PnP;
disparity joins after a least-absolute-deviation fit by another 5,000-11,000 Adam iterations per window.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.observation import Observation
from worldline.align.rays import published_ray_cameras
from worldline.align.reference_energy import (
    Data,
    Variables,
    matrix,
    objective,
    signed_exp,
    signed_log,
    total,
    window_transforms,
    xyzw,
)
from worldline.geometry.fit import umeyama
from worldline.geometry.pose import Similarity, from_rt, rotation_angle_deg


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Schedule of the published procedure.

    Attributes:
        iterations: of the global optimisation.
        switch: iteration at which disparity and trajectory join.
        learning_rate: first and last.
        fit_iterations: Adam iterations of the disparity fit, and of each retry.
    """

    iterations: int = 500
    switch: int = 150
    learning_rate: tuple[float, float] = (0.03, 0.001)
    fit_iterations: tuple[int, int] = (5000, 3000)


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """The published answer.

    Attributes:
        depth: [N, H, W].
        cam2world: [N, 4, 4].
        focal_px: pixels.
        window_sim3: [G, 4, 4] scaled.
        disparity: [G, 2] scale, shift.
        trajectory_pose: [G, 4, 4] A_k.
        trajectory_scale: [G] kappa_k.
        terms: last value of each term (unweighted) and of the total.
        cpu_seconds: process CPU time per phase.
        fit_iterations: Adam iterations the disparity fits took.
        ray_windows: windows whose trajectory took part.
    """

    depth: Tensor
    cam2world: Tensor
    focal_px: float
    window_sim3: Tensor
    disparity: Tensor
    trajectory_pose: Tensor
    trajectory_scale: Tensor
    terms: dict[str, float]
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    fit_iterations: int = 0
    ray_windows: tuple[int, ...] = ()


def stack(observations: Sequence[Observation]) -> Data:
    """Windows of equal length as one batch.

    Raises:
        ValueError: windows of different lengths.
    """
    if len({len(o) for o in observations}) != 1:
        raise ValueError("The published alignment needs windows of equal length.")
    disparity = [o.disparity for o in observations]
    rays = [None if o.ray_direction is None and o.ray_cam2world is None else o for o in observations]
    return Data(
        frames=torch.tensor([o.frames for o in observations]),
        points=torch.stack([o.points.flatten(1, 2).float() for o in observations]),
        weight=torch.stack([o.confidence.flatten(1).float() for o in observations]).clamp(max=10),
        disparity=torch.stack([d.flatten(1).float() for d in disparity if d is not None])
        if all(d is not None for d in disparity)
        else None,
        ray_pose=torch.stack([published_ray_cameras(o).float() for o in rays if o is not None])
        if all(o is not None for o in rays)
        else None,
        size=observations[0].size,
    )


def first_frame_focals(data: Data) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Focal and z shift of every window's first frame (3.4): half pixels, one global z minimum, outliers replaced."""
    from scipy.optimize import least_squares

    height, width = data.size
    diagonal = (height**2 + width**2) ** 0.5
    edge_x, edge_y = width / diagonal * (width - 1) / width, height / diagonal * (height - 1) / height
    v, u = torch.meshgrid(
        torch.linspace(-edge_y, edge_y, height), torch.linspace(-edge_x, edge_x, width), indexing="ij"
    )
    plane = torch.stack([u, v], -1).flatten(0, 1).double()
    first = data.points[:, 0].double()
    lowest = first[..., 2].min()
    focals, shifts = [], []
    for k in range(len(first)):
        mask = data.weight[k, 0] > 0.5
        xy, z, uv = first[k][mask][:, :2], first[k][mask][:, 2] - lowest + 1, plane[mask]

        def focal_of(shift: float, xy: Tensor = xy, z: Tensor = z, uv: Tensor = uv) -> tuple[Tensor, Tensor]:
            q = xy / (z + shift)[:, None]
            return (q * uv).sum() / (q * q).sum(), q

        def residual(shift, uv: Tensor = uv, focal_of=focal_of):  # noqa: ANN001, ANN202
            f, q = focal_of(float(shift[0]))
            return (f * q - uv).flatten().numpy()

        solution = least_squares(residual, x0=[0.0], ftol=1e-3, method="lm")
        focals.append(float(focal_of(float(solution.x[0]))[0]) * diagonal / 2)
        shifts.append(float(solution.x[0]))
    focal = torch.tensor(focals, dtype=torch.float64)
    usual = focal[focal > 30].mean() if bool((focal > 30).any()) else focal.mean()
    return torch.where((focal / usual - 1).abs() > 0.6, usual, focal), torch.tensor(shifts, dtype=torch.float64)


def _pnp(points: Tensor, mask: Tensor, pixels: Tensor, focal: float, size: tuple[int, int]) -> tuple[float, Tensor]:
    """RANSAC PnP with three focal candidates; most inliers wins."""
    import cv2
    import numpy as np

    if int(mask.sum()) < 4:
        return focal, torch.eye(4)
    step, best = 0.03 * max(size), (0, focal, torch.eye(4))
    x, uv = points[mask].double().numpy(), pixels[mask].double().numpy()
    for f in (focal, focal - step, focal + step):
        K = np.array([[f, 0, size[1] / 2], [0, f, size[0] / 2], [0, 0, 1.0]])
        try:
            ok, turn, move, inliers = cv2.solvePnPRansac(
                x, uv, K, None, iterationsCount=10, reprojectionError=5, flags=cv2.SOLVEPNP_SQPNP
            )
        except cv2.error:  # degenerate points: no pose from this focal
            continue
        if not ok or inliers is None or len(inliers) <= best[0]:
            continue
        rotation = torch.from_numpy(cv2.Rodrigues(turn)[0])
        pose = from_rt(rotation.T, (-rotation.T @ torch.from_numpy(move).reshape(3, 1))[:, 0])
        best = (len(inliers), f, pose.float())
    return best[1], best[2]


def initial_alignment(data: Data) -> Variables:
    """Focal solve, chained Umeyama and PnP per frame (last writer wins), window re-fit, scale 0.5, depths (3.5)."""
    N, P = data.num_frames, data.weight.shape[2]
    height, width = data.size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).flatten(0, 1)
    focals, _ = first_frame_focals(data)
    world, weight = torch.zeros(N, P, 3), torch.zeros(N, P)
    pose, focal, placed = torch.eye(4).repeat(N, 1, 1), torch.zeros(N), torch.zeros(N, dtype=torch.bool)
    for k in range(len(data.frames)):
        frames = data.frames[k]
        points = data.points[k]
        if k > 0:
            known = placed[frames]
            w = (data.weight[k] * weight[frames])[known]
            fit = umeyama(points[known].flatten(0, 1), world[frames[known]].flatten(0, 1), w.flatten())
            points = fit.apply(points)
        guess = float(focals[k])
        for i, n in enumerate(frames.tolist()):
            world[n], weight[n], placed[n] = points[i], data.weight[k, i], True
            guess, pose[n] = _pnp(world[n], weight[n] > 0.5, pixels, guess, data.size)
            focal[n] = guess
    fits = [
        umeyama(data.points[k].flatten(0, 1), world[f].flatten(0, 1), (data.weight[k] * weight[f]).flatten())
        for k, f in enumerate(data.frames)
    ]
    return _variables(data, fits, world, weight, pose, float(focal.mean()))


def _variables(
    data: Data, fits: list[Similarity], world: Tensor, weight: Tensor, pose: Tensor, focal: float
) -> Variables:
    """Normalise the unit to window scales of geometric mean 0.5 and fill the published parametrisation."""
    scale = torch.stack([f.scale for f in fits])
    factor = 0.5 * torch.exp(-scale.log().mean())
    shift = torch.stack([f.rotation.mT @ f.translation / f.scale for f in fits])
    turned = torch.stack([f.rotation @ s for f, s in zip(fits, shift, strict=True)])
    window = torch.cat([xyzw(torch.stack([f.rotation for f in fits])), signed_log(turned), scale.log()[:, None]], 1)
    centre = pose[:, :3, 3] * factor
    depth = ((world * factor - centre[:, None]) @ pose[:, :3, :3])[..., 2]
    hidden = weight < 1e-4
    far = depth[0][~hidden[0]].max() if bool((~hidden[0]).any()) else depth.new_tensor(1.0)
    depth = torch.where(hidden, far, depth)
    log_depth = torch.where(depth > 0, depth.clamp_min(1e-12).log(), torch.zeros_like(depth))
    G = len(fits)
    generator = torch.Generator().manual_seed(0)
    return Variables(
        log_depth=log_depth, quaternion=xyzw(pose[:, :3, :3]), translation=signed_log(centre),
        focal=20 * torch.tensor(focal).log(), window=window, disparity=torch.tensor([[1.0, 0.0]]).repeat(G, 1),
        trajectory=torch.randn(G, 8, generator=generator),
    )  # fmt: skip


def fit_disparity(data: Data, v: Variables, config: ReferenceConfig) -> tuple[Tensor, Tensor, int]:
    """Least absolute deviations by Adam per window; returns (s, b) [G, 2], windows that fit, iterations spent."""
    inverse = torch.exp(-v.log_depth.detach())
    fits, good, spent = [], [], 0
    assert data.disparity is not None
    for k, frames in enumerate(data.frames):
        d, z, sure = data.disparity[k], inverse[frames], (data.weight[k] > 0.5) & (data.disparity[k] > 0.05)
        best, score = (torch.tensor(1.0), torch.tensor(0.0)), -1.0
        for rate, count in (
            (1e-2, config.fit_iterations[0]),
            (1e-4, config.fit_iterations[1]),
            (1e-3, config.fit_iterations[1]),
        ):
            s, b, used = _adam_line(d.flatten(), z.flatten(), rate, count)
            spent += used
            depth, truth = 1 / (s * d + b).clamp_min(1e-5), 1 / z
            ratio = torch.maximum(depth / truth, truth / depth)[sure]
            share = float((ratio < 1.25).float().mean()) if len(ratio) else 0.0
            if share > score:
                best, score = (s, b), share
            if score >= 0.8:
                break
        fits.append(torch.stack(best))
        good.append(score >= 0.3)
    return torch.stack(fits), torch.tensor(good), spent


def _adam_line(x: Tensor, y: Tensor, rate: float, count: int) -> tuple[Tensor, Tensor, int]:
    with torch.enable_grad():
        s = (y.median() / x.median()).detach().requires_grad_()
        b = torch.zeros_like(s).requires_grad_()
        adam = torch.optim.Adam([s, b], lr=rate)
        # The published loop also stops when the loss changes by less than 1e-6, "practically never" (specs/geo4d.md
        # 3.6): its fits took 0.6 x the time of its first 150 iterations, which is all of the 5,000. A float32 sum
        # would seem to stand still long before, so there is no such test here.
        for _ in range(count):
            adam.zero_grad()
            loss = (s * x + b - y).abs().sum()
            loss.backward()
            adam.step()
    return s.detach(), b.detach(), count


def fit_trajectory(data: Data, v: Variables) -> tuple[Tensor, Tensor]:
    """A_k from the first ray camera of each window, kappa_k from its scale; windows under 4 degrees RPE."""
    assert data.ray_pose is not None
    rotation, centre = matrix(v.quaternion.detach()), signed_exp(v.translation.detach())
    sigma, _, _ = window_transforms(v.window.detach())
    raw, valid = [], []
    for k, frames in enumerate(data.frames):
        ray = data.ray_pose[k]
        turn = rotation[frames[0]] @ ray[0, :3, :3].T
        move = centre[frames[0]] - sigma[k] * turn @ ray[0, :3, 3]
        raw.append(torch.cat([xyzw(turn), signed_log(move), sigma[k].log()[None]]))
        R, Q = ray[:, :3, :3], rotation[frames]
        error = rotation_angle_deg(R[:-1].mT @ R[1:], Q[:-1].mT @ Q[1:])
        valid.append(bool(error.square().mean().sqrt() < 4.0))
    return torch.stack(raw), torch.tensor(valid)


def align_reference(
    observations: Sequence[Observation], config: ReferenceConfig, start: Variables | None = None
) -> ReferenceResult:
    """Run the whole published procedure."""
    clock = time.process_time()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        nonlocal clock
        now = time.process_time()
        seconds[name], clock = seconds.get(name, 0.0) + now - clock, now

    data = stack(observations)
    v = initial_alignment(data) if start is None else start
    lap("initial alignment")
    G = len(data.frames)
    use_d, use_t, spent = torch.zeros(G, dtype=torch.bool), torch.zeros(G, dtype=torch.bool), 0
    with torch.enable_grad():
        for value in v.tensors():
            value.requires_grad_()
        adam = torch.optim.Adam(v.tensors(), lr=config.learning_rate[0], betas=(0.9, 0.9))
        for it in range(config.iterations):
            if it == config.switch:
                lap("adam, points")
                with torch.no_grad():
                    if data.disparity is not None:
                        fit, use_d, spent = fit_disparity(data, v, config)
                        v.disparity.copy_(fit)
                    lap("disparity fit")
                    if data.ray_pose is not None:
                        raw, use_t = fit_trajectory(data, v)
                        v.trajectory.copy_(raw)
            high, low = config.learning_rate
            adam.param_groups[0]["lr"] = high + (low - high) * it / config.iterations
            adam.zero_grad()
            terms = objective(data, v, use_d, use_t)
            total(terms).backward()
            adam.step()
    lap("adam, all terms" if config.iterations > config.switch else "adam, points")
    return _result(data, v, use_d, use_t, seconds, spent)


def _result(
    data: Data, v: Variables, use_d: Tensor, use_t: Tensor, seconds: dict[str, float], spent: int
) -> ReferenceResult:
    with torch.no_grad():
        terms = objective(data, v, use_d, use_t)
        sigma, turn, shift = window_transforms(v.window)
        values = {name: float(value) for name, value in terms.items()}
        return ReferenceResult(
            depth=v.log_depth.exp().unflatten(1, data.size).detach(),
            cam2world=from_rt(matrix(v.quaternion), signed_exp(v.translation)).detach(),
            focal_px=float(torch.exp(v.focal / 20)),
            window_sim3=from_rt(sigma[:, None, None] * turn, sigma[:, None] * shift).detach(),
            disparity=v.disparity.detach(),
            trajectory_pose=from_rt(matrix(v.trajectory[:, :4]), signed_exp(v.trajectory[:, 4:7])).detach(),
            trajectory_scale=v.trajectory[:, 7].exp().detach(),
            terms={**values, "total": float(total(terms))}, cpu_seconds=seconds, fit_iterations=spent,
            ray_windows=tuple(torch.nonzero(use_t).flatten().tolist()),
        )  # fmt: skip
