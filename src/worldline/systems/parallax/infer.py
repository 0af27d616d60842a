"""Reconstruct a video from parallax alone: cameras, dense depth, moving things, world scene flow; no weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldline.align.config import Priors
from worldline.align.flow_adjust import DepthPrior, FlowState, Matches
from worldline.scene import Cameras, Progress, Provenance, Scene4D, Video, no_progress
from worldline.systems.parallax.cameras import CameraConfig, Clip, solve_cameras
from worldline.systems.parallax.dense import DenseConfig, DenseDepth, dense_depth
from worldline.systems.parallax.flow import DisFlow, Flow, FlowConfig, compute_flows
from worldline.systems.parallax.motion import scene_flow, world_points
from worldline.systems.parallax.observability import CameraSolution
from worldline.systems.parallax.representation import Arena, FlowPairs, take_matches
from worldline.systems.system import Loading, Options

Result = TypeVar("Result")
NOTHING_KNOWN = Priors()


@dataclass(frozen=True, kw_only=True)
class ParallaxConfig:
    """Everything that can be chosen.

    Attributes:
        pixels: most pixels per frame worked on, larger frames are reduced; None: the video's own resolution.
        flow: gaps and forward-backward weights.
        cameras: statistic, focal search, bundle adjustment.
        dense: triangulation, propagation to all pixels, moving things.
        memory_bytes: results beyond this live in a temporary file instead of memory.
    """

    pixels: int | None = 320 * 240
    flow: FlowConfig = field(default_factory=FlowConfig)
    cameras: CameraConfig = field(default_factory=CameraConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    memory_bytes: int = 2 << 30


def infer(
    video: Video,
    config: ParallaxConfig = ParallaxConfig(),
    *,
    prior: Float[Tensor, "T h w"] | None = None,
    priors: Priors = NOTHING_KNOWN,
    flow: Flow | None = None,
    cache: Any = None,
    progress: Progress = no_progress,
) -> Scene4D:
    """Cameras, depth everywhere with confidence, moving mask and scene flow of a video.

    Args:
        video: any number of frames, at least one.
        config: see there.
        prior: z-depth per frame from elsewhere, each frame up to a scale of its own, NaN or <= 0 where unknown; at any
            resolution with the video's aspect.
        priors: what is known beforehand; used here: intrinsics, principal point, static camera, moving mask.
        flow: dense flow to use instead of DIS.
        cache: where cameras are kept so that a stopped run can go on (`io.store.PartialRun`), or None.
        progress: called along the way.

    Returns:
        A scene at the working resolution, median confident depth 1; `extras["dynamic"]` is the moving mask, and
        `provenance.report` says what was and was not observable.

    Raises:
        ValueError: the video has no frames, or a prior does not fit it.
    """
    if len(video) == 0:
        raise ValueError("The video has no frames; give at least one.")
    priors.check(len(video), video.size)
    clock = Clock()
    # 1. Frames at the working resolution, and what is known before looking at them.
    rgb, gray = read_frames(video, working_size(video.size, config.pixels))
    known = what_is_known(video, gray[0].shape, config, prior, priors)
    # 2. Dense flow at several gaps, both ways, and its matches on a grid.
    pairs = clock("flow", lambda: compute_flows(gray, flow or DisFlow(config.flow.patch_stride), config.flow, progress))
    matches = without_moving(take_matches(pairs, config.cameras.grid_points), known.moving)
    # 3. Cameras: what can be known, focal length, several starts, bundle adjustment.
    solution = clock("cameras", lambda: find_cameras(matches, pairs, known, config, cache, progress))
    # 4. Depth of every pixel, its confidence, and what moves.
    dense = clock("depth", lambda: find_depth(rgb, gray, pairs, solution, known, config, progress))
    # 5. World points and scene flow at unit scale.
    arrays = clock("scene", lambda: to_world(pairs, solution.state, dense, config))
    return assemble(video, rgb, solution, dense, arrays, config, clock)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known before looking, at the working resolution.

    Attributes:
        intrinsics: [T, 4] fx, fy, cx, cy to start from.
        focal: whether they are true.
        static: the camera does not move.
        poses: known poses, as the camera solver wants them.
        inverse: [T, H, W] inverse depth of a prior, or None.
        moving: [T, H, W] what is known to move, or None.
    """

    intrinsics: np.ndarray
    focal: bool
    static: bool
    poses: Any
    inverse: np.ndarray | None
    moving: np.ndarray | None


def what_is_known(
    video: Video, size: tuple[int, int], config: ParallaxConfig, prior: Tensor | None, priors: Priors
) -> Known:
    """Priors brought to the working resolution."""
    intrinsics, focal = starting_intrinsics(priors, len(video), video.size, size, config.cameras.default_focal)
    return Known(
        intrinsics=intrinsics,
        focal=focal,
        static=priors.static_camera,
        poses=given_poses(priors),
        inverse=None if prior is None else inverse_prior(prior, len(video), size),
        moving=None if priors.moving_mask is None else resize_mask(priors.moving_mask, size),
    )


def find_cameras(
    matches: Matches, pairs: FlowPairs, known: Known, config: ParallaxConfig, cache: Any, progress: Progress
) -> CameraSolution:
    """Cameras and focal length, from the cache if an earlier run had got so far."""
    weight = config.cameras.prior_weight
    clip = Clip(
        matches=matches,
        offsets=pairs.offsets,
        intrinsics=known.intrinsics,
        known_focal=known.focal,
        longer_side=max(pairs.size),
        static=known.static,
        poses=known.poses,
        prior=None if known.inverse is None else grid_prior(known.inverse, matches, weight),
    )
    return cached_cameras(cache, lambda: solve_cameras(clip, config.cameras, progress))


def find_depth(
    rgb: list[np.ndarray],
    gray: list[np.ndarray],
    pairs: FlowPairs,
    solution: CameraSolution,
    known: Known,
    config: ParallaxConfig,
    progress: Progress,
) -> DenseDepth:
    """Depth of every pixel with the cameras found."""
    return dense_depth(
        rgb,
        gray,
        pairs,
        solution.state,
        config.dense,
        see_depth=solution.kind == "full",
        prior=known.inverse,
        known_moving=known.moving,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class ParallaxSystem:
    """The system as the registry wants it: works at the resolution of the video it is given."""

    config: ParallaxConfig = ParallaxConfig(pixels=None)
    parameters: int = 0

    def reconstruct(self, video: Video, options: Options) -> Scene4D:
        """One scene for the whole video."""
        return infer(video, self.config, priors=options.priors, cache=options.cache, progress=options.progress)


def load_parallax(loading: Loading) -> ParallaxSystem:
    """The system; there is nothing to load, and it runs on the CPU whatever device is asked for."""
    return ParallaxSystem()


class Clock:
    """Wall seconds per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str, work: Callable[[], Result]) -> Result:
        """Run `work` and note how long it took."""
        started = time.perf_counter()
        result = work()
        self.seconds[phase] = round(time.perf_counter() - started, 3)
        return result


@dataclass(frozen=True, kw_only=True)
class WorldArrays:
    """Points, scene flow and where it is known, and cameras, at the final scale."""

    points: np.ndarray
    flow: np.ndarray
    flow_valid: np.ndarray
    cam2world: np.ndarray


def working_size(size: tuple[int, int], pixels: int | None) -> tuple[int, int]:
    """(H, W) of the same aspect with at most about `pixels` pixels, never larger than `size`."""
    scale = 1.0 if pixels is None else min(1.0, float(np.sqrt(pixels / (size[0] * size[1]))))
    return max(2, round(size[0] * scale)), max(2, round(size[1] * scale))


def read_frames(video: Video, size: tuple[int, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """RGB [H, W, 3] and grey [H, W] uint8 frames at the given size."""
    import cv2

    rgb, gray = [], []
    for frame in video.frames:
        image = frame.numpy(force=True)
        if image.dtype != np.uint8:
            image = np.rint(np.clip(image.astype(np.float32), 0, 1) * 255).astype(np.uint8)
        if image.shape[:2] != size:
            image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        rgb.append(np.ascontiguousarray(image))
        gray.append(cv2.cvtColor(rgb[-1], cv2.COLOR_RGB2GRAY))
    return rgb, gray


def starting_intrinsics(
    priors: Priors, count: int, size_from: tuple[int, int], size: tuple[int, int], default_focal: float
) -> tuple[np.ndarray, bool]:
    """[T, 4] fx, fy, cx, cy at the working resolution, and whether they are known."""
    sx, sy = size[1] / size_from[1], size[0] / size_from[0]
    if priors.intrinsics is not None:
        K = priors.intrinsics.numpy(force=True).astype(np.float64).reshape(-1, 3, 3)
        K = np.broadcast_to(K, (count, 3, 3))
        cx, cy = (K[:, 0, 2] + 0.5) * sx - 0.5, (K[:, 1, 2] + 0.5) * sy - 0.5
        return np.stack([K[:, 0, 0] * sx, K[:, 1, 1] * sy, cx, cy], -1), True
    focal = default_focal * max(size)
    x, y = priors.principal_point or ((size_from[1] - 1) / 2, (size_from[0] - 1) / 2)
    values = [focal, focal * sy / sx, (x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5]
    return np.tile(np.array(values, np.float64), (count, 1)), False


def given_poses(priors: Priors) -> np.ndarray | None:
    """[T, 4, 4] world-to-camera poses when all are known, else None."""
    known = priors.known_poses()
    if priors.poses is None or known is None or not bool(known.all()):
        return None
    return np.linalg.inv(priors.poses.numpy(force=True).astype(np.float64))


def inverse_prior(prior: Tensor, count: int, size: tuple[int, int]) -> np.ndarray:
    """[T, H, W] float32 inverse depth of a prior, every frame's median 1; 0 where unknown."""
    import cv2

    if len(prior) != count:
        raise ValueError(f"The depth prior has {len(prior)} frames, but the video has {count}.")
    result = np.zeros((count, *size), np.float32)
    for t, depth in enumerate(prior):
        values = depth.numpy(force=True).astype(np.float32)
        known = np.isfinite(values) & (values > 0)
        inverse = np.where(known, 1 / np.where(known, values, 1), 0).astype(np.float32)
        smaller = size[0] < inverse.shape[0]
        inverse = cv2.resize(inverse, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
        known = inverse > 0
        result[t] = inverse / np.median(inverse[known]) if known.any() else 0
    return result


def grid_prior(inverse: np.ndarray, matches: Matches, weight: float) -> DepthPrior:
    """The prior at the grid points."""
    x, y = matches.pixels[..., 0].astype(int), matches.pixels[..., 1].astype(int)
    r = inverse[np.arange(len(inverse))[:, None], y, x].astype(np.float64)
    return DepthPrior(r=r, weight=np.where(r > 0, weight, 0.0))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> np.ndarray:
    """[T, H, W] bool, nearest."""
    import cv2

    frames = mask.numpy(force=True).astype(np.uint8)
    return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_NEAREST) for frame in frames]).astype(bool)


def without_moving(matches: Matches, moving: np.ndarray | None) -> Matches:
    """The matches without those that start on something known to move."""
    if moving is None:
        return matches
    x, y = matches.pixels[..., 0].astype(int), matches.pixels[..., 1].astype(int)
    still = ~moving[np.arange(len(moving))[:, None], y, x]
    return replace(matches, weight=matches.weight * still[:, None].astype(np.float32))


def cached_cameras(cache: Any, solve: Callable[[], CameraSolution]) -> CameraSolution:
    """Cameras from the cache, else solved and put there."""
    import json

    if cache is not None and (found := cache.get("cameras")) is not None:
        rest = json.loads(bytes(found["rest"].tolist()).decode())
        arrays = {name: found[name].numpy().copy() for name in ("w2c", "intrinsics", "r", "log_scale")}
        registered = found["registered"].numpy().copy()
        return CameraSolution(state=FlowState(**arrays), registered=registered, **rest)
    solution = solve()
    if cache is not None:
        rest = {name: getattr(solution, name) for name in ("kind", "focal", "report", "warnings")}
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in vars(solution.state).items()}
        tensors["registered"] = torch.from_numpy(solution.registered.copy())
        tensors["rest"] = torch.tensor(list(json.dumps(rest).encode()), dtype=torch.uint8)
        cache.put("cameras", tensors)
    return solution


def to_world(pairs: FlowPairs, state: FlowState, dense: DenseDepth, config: ParallaxConfig) -> WorldArrays:
    """World points and scene flow, median confident depth 1."""
    count, (height, width) = len(dense.r), pairs.size
    some = dense.r[:: max(1, count // 32)]
    sure = dense.confidence[:: max(1, count // 32)] > 0.5
    unit = float(np.median(some[sure] if sure.any() else some))
    arena = Arena(config.memory_bytes)
    points, flow = (arena.zeros((count, height, width, 3), np.float32) for _ in range(2))
    flow_valid = arena.zeros((count, height, width), np.bool_)
    for t in range(count):
        points[t] = unit * world_points(dense.r[t], state, t)
        if t + 1 < count:
            step, flow_valid[t] = scene_flow(dense.r, dense.moving, pairs, state, t)
            flow[t] = unit * step
    cam2world = np.linalg.inv(state.w2c)
    cam2world[:, :3, 3] *= unit
    return WorldArrays(points=points, flow=flow, flow_valid=flow_valid, cam2world=cam2world)


def assemble(
    video: Video,
    rgb: list[np.ndarray],
    solution: CameraSolution,
    dense: DenseDepth,
    arrays: WorldArrays,
    config: ParallaxConfig,
    clock: Clock,
) -> Scene4D:
    """The scene with its report."""
    count, size = len(rgb), rgb[0].shape[:2]
    intrinsics = np.tile(np.eye(3), (count, 1, 1))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2] = solution.state.intrinsics.T
    report = dict(solution.report)
    report["moving_share"] = round(float(dense.moving.mean()), 4)
    report["mean_confidence"] = round(float(dense.confidence.mean()), 4)
    report["seconds"] = dict(clock.seconds)
    report["warnings"] = list(solution.warnings)
    return Scene4D(
        video=Video(frames=torch.from_numpy(np.stack(rgb)), timestamps=video.timestamps),
        points=torch.from_numpy(arrays.points),
        valid=torch.ones((count, *size), dtype=torch.bool),
        cameras=Cameras(
            intrinsics=torch.from_numpy(intrinsics), cam2world=torch.from_numpy(arrays.cam2world), size=size
        ),
        scene_flow=torch.from_numpy(arrays.flow),
        flow_valid=torch.from_numpy(arrays.flow_valid),
        confidence=torch.from_numpy(dense.confidence),
        scale="relative",
        provenance=Provenance(
            system="parallax", settings=asdict(config), seconds=sum(clock.seconds.values()), report=report
        ),
        extras={"dynamic": torch.from_numpy(dense.moving)},
    )
