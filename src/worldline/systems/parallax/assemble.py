"""World points, scene flow and the report: from inverse depths and cameras to a Scene4D."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from worldline.align.config import Priors
from worldline.io.arena import Arena
from worldline.scene import Cameras, Provenance, Scale, Scene4D, Video
from worldline.systems.parallax.dense import DenseDepth
from worldline.systems.parallax.motion import scene_flow, world_points
from worldline.systems.parallax.observability import CameraSolution
from worldline.systems.parallax.representation import RELEASE_EVERY, FlowPairs

UNRELIABLE = ("scene_flow",)
"""Its scene flow does not beat predicting no motion on synthetic-v1 (benchmarks/RESULTS.md): kept, but hidden."""
WORTH_SAYING = 0.1  # weight of a prior that overrules parallax
CONTRADICTION = (
    "Depth from parallax and the depth prior contradict each other, and the cameras may be the reason: depth leans on "
    "the prior, confidence is low, and cameras should not be relied on. Give the focal length if you know it."
)

Result = TypeVar("Result")


class Clock:
    """Wall and CPU seconds per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    def __call__(self, phase: str, work: Callable[[], Result]) -> Result:
        """Run `work` and note how long it took."""
        started, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[phase] = round(time.perf_counter() - started, 3)
        self.cpu_seconds[phase] = round(time.process_time() - cpu, 3)
        return result


@dataclass(frozen=True, kw_only=True)
class WorldArrays:
    """Points, scene flow and where it is known, and cameras, at the final scale.

    Attributes:
        points: [T, H, W, 3] float32.
        flow: [T, H, W, 3] float32.
        flow_valid: [T, H, W] bool.
        valid: [T, H, W] bool, True.
        cam2world: [T, 4, 4] float64.
        scale: whether the unit is a metre.
    """

    points: np.ndarray
    flow: np.ndarray
    flow_valid: np.ndarray
    valid: np.ndarray
    cam2world: np.ndarray
    scale: Scale


def to_world(
    pairs: FlowPairs,
    solution: CameraSolution,
    dense: DenseDepth,
    priors: Priors,
    video_size: tuple[int, int],
    arena: Arena,
) -> WorldArrays:
    """World points and scene flow; metric if a prior says how long a metre is, else median confident depth 1."""
    count, (height, width), state = len(dense.r), pairs.size, solution.state
    unit, scale = unit_length(solution, dense, priors, video_size)
    points, flow = (arena.zeros((count, height, width, 3), np.float32) for _ in range(2))
    flow_valid, valid = (arena.zeros((count, height, width), np.bool_) for _ in range(2))
    for t in range(count):
        valid[t] = True
        points[t] = unit * world_points(dense.r[t], state, t)
        if t + 1 < count:
            step, flow_valid[t] = scene_flow(dense.r, dense.moving, pairs, state, t)
            flow[t] = unit * step
        if t % RELEASE_EVERY == 0:
            arena.release()
    cam2world = np.linalg.inv(state.w2c)
    cam2world[:, :3, 3] *= unit
    return WorldArrays(points=points, flow=flow, flow_valid=flow_valid, valid=valid, cam2world=cam2world, scale=scale)


def unit_length(
    solution: CameraSolution, dense: DenseDepth, priors: Priors, video_size: tuple[int, int]
) -> tuple[float, Scale]:
    """How many output units one unit of the reconstruction is, and whether these are metres.

    Given poses are metric and stay as they are. A measured distance or a sensor's depth makes the rest metric.

    Raises:
        ValueError: the two pixels of the known distance have the same point, or the sensor's depth is empty.
    """
    if solution.posed:
        return 1.0, "metric"
    if priors.distance is not None:
        known = priors.distance
        ends = [_point(dense.r, solution, known.frame, pixel, video_size) for pixel in (known.first, known.second)]
        length = float(np.linalg.norm(ends[0] - ends[1]))
        if length <= 0:
            raise ValueError("The two pixels of the known distance lie on the same point; choose others.")
        return known.metres / length, "metric"
    if priors.sensor_depth is not None:
        return _sensor_unit(dense, priors), "metric"
    some = slice(None, None, max(1, len(dense.r) // 32))
    sure = dense.confidence[some] > 0.5
    return float(np.median(dense.r[some][sure] if sure.any() else dense.r[some])), "relative"


def _point(
    r: np.ndarray, solution: CameraSolution, t: int, pixel: tuple[float, float], video_size: tuple[int, int]
) -> np.ndarray:
    """World point of a pixel (x, y) of the video."""
    height, width = r.shape[1:]
    x = min(max(round((pixel[0] + 0.5) * width / video_size[1] - 0.5), 0), width - 1)
    y = min(max(round((pixel[1] + 0.5) * height / video_size[0] - 0.5), 0), height - 1)
    return world_points(r[t], solution.state, t)[y, x]


def _sensor_unit(dense: DenseDepth, priors: Priors) -> float:
    import cv2

    assert priors.sensor_depth is not None
    ratios = [np.empty(0)]
    for t in np.unique(np.linspace(0, len(dense.r) - 1, 16).astype(int)):
        given = np.nan_to_num(priors.sensor_depth[t].numpy(force=True).astype(np.float32))
        sensor = cv2.resize(given, dense.r.shape[:0:-1], interpolation=cv2.INTER_NEAREST)
        usable = (sensor > 0) & ~dense.moving[t]
        weight = dense.confidence[t][usable]
        sure = weight >= np.median(weight) if len(weight) else np.empty(0, bool)
        ratios.append((sensor * dense.r[t])[usable][sure])
    every = np.concatenate(ratios)
    if not len(every):
        raise ValueError("The sensor depth has no pixel where the reconstruction is valid.")
    return float(np.median(every))


def assemble(
    video: Video,
    rgb: np.ndarray,
    solution: CameraSolution,
    dense: DenseDepth,
    arrays: WorldArrays,
    settings: Mapping[str, Any],
    clock: Clock,
) -> Scene4D:
    """The scene with its report."""
    count, size = len(rgb), (rgb.shape[1], rgb.shape[2])
    intrinsics = np.tile(np.eye(3), (count, 1, 1))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2] = solution.state.intrinsics.T
    report = dict(solution.report)
    report["moving_share"] = round(float(dense.moving.mean()), 4)
    report["mean_confidence"] = round(float(dense.confidence.mean()), 4)
    report["seconds"], report["cpu_seconds"] = dict(clock.seconds), dict(clock.cpu_seconds)
    report["warnings"] = list(solution.warnings)
    if dense.overruled > WORTH_SAYING:
        report["prior_overrules"] = round(dense.overruled, 3)
        report["warnings"].append(CONTRADICTION)
    return Scene4D(
        video=Video(frames=torch.from_numpy(rgb), timestamps=video.timestamps),
        points=torch.from_numpy(arrays.points),
        valid=torch.from_numpy(arrays.valid),
        cameras=Cameras(
            intrinsics=torch.from_numpy(intrinsics), cam2world=torch.from_numpy(arrays.cam2world), size=size
        ),
        scene_flow=torch.from_numpy(arrays.flow),
        flow_valid=torch.from_numpy(arrays.flow_valid),
        confidence=torch.from_numpy(dense.confidence),
        scale=arrays.scale,
        provenance=Provenance(
            system="parallax",
            settings=settings,
            seconds=sum(clock.seconds.values()),
            unreliable=UNRELIABLE,
            report=report,
        ),
        extras={"dynamic": torch.from_numpy(dense.moving)},
    )
