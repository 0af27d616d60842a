"""The fixed suites of this project: which clips, at what size, scored by what. A change here is a new version.

`synthetic-v1`: 64 rendered clips with exact truth; training uses seeds below SEED_START, so none was trained on.
`real-v1`: sequences with measured truth that are not part of this repository, read by `worldline.data.adapters`.
"""

from __future__ import annotations

from dataclasses import dataclass

from worldline.evaluation.gauge import DepthGauge
from worldline.evaluation.parts import DepthPart, Part, PointPart
from worldline.evaluation.parts_camera import FocalPart, PathPercentPart, RotationPart, ScenePercentPart
from worldline.evaluation.parts_depth import BoundaryPart, ConfidentHalfPart, CoveragePart
from worldline.evaluation.parts_motion import DynamicMaskPart, FlowPercentPart, MovingFlowPart, StaticFlowPart
from worldline.evaluation.protocols.protocol import Protocol

SEED_START = 1_000_000_000
"""Seeds from here on belong to evaluation."""

_DEPTH = (
    DepthPart(gauge=DepthGauge(estimator="scale_l1"), metrics=("abs_rel", "delta_1.25"), resize="nearest", fit_every=8),
    DepthPart(
        gauge=DepthGauge(estimator="scale_shift_l1"), metrics=("abs_rel", "delta_1.25"), resize="nearest", fit_every=8
    ),
    ConfidentHalfPart(),
    CoveragePart(),
    BoundaryPart(),
)
_MOTION = (FlowPercentPart(), MovingFlowPart(), StaticFlowPart(), DynamicMaskPart())
_CAMERA = (PathPercentPart(), ScenePercentPart(), RotationPart(), FocalPart())

WORLDLINE_V1 = Protocol(
    name="worldline-v1",
    parts=(PointPart(), *_DEPTH, *_MOTION, *_CAMERA),
    source="this project: the metrics of the suites synthetic-v1 and real-v1",
    pitfall=(
        "Everything is per sequence and exact, except that depth is fitted on every eighth pixel. Percentages are of "
        "the median true depth, so that clips in different units can be averaged. World points of a clip with a still "
        "camera say nothing about poses."
    ),
)
"""What the suites measure."""


@dataclass(frozen=True, kw_only=True)
class SyntheticClip:
    """A clip of `worldline.data.synthetic`.

    Attributes:
        category: what it is about.
        seed: what it is.
        frames: its length.
        size: (H, W) in pixels.
    """

    category: str
    seed: int
    frames: int
    size: tuple[int, int] = (96, 144)

    @property
    def name(self) -> str:
        """For example `rigid-1000000000`."""
        return f"{self.category}-{self.seed}"


_CATEGORIES = (
    "rigid",
    "articulated",
    "deforming",
    "camera_only",
    "object_only",
    "both",
    "fast",
    "occlusion",
    "low_texture",
    "long",
)

SYNTHETIC_V1 = tuple(
    SyntheticClip(
        category=_CATEGORIES[index % len(_CATEGORIES)],
        seed=SEED_START + index,
        frames=48 if _CATEGORIES[index % len(_CATEGORIES)] == "long" else 16,
    )
    for index in range(64)
)
"""64 clips: categories in turn, seeds from SEED_START."""


@dataclass(frozen=True, kw_only=True)
class RealClip:
    """Some frames of a sequence that an adapter reads.

    Attributes:
        name: of the row.
        adapter: module of `worldline.data.adapters`.
        folder: below the data folder.
        source: last part of the scene's provenance source, to pick one of several the adapter finds; "" is the first.
        start, count, step: which frames.
        rows: height of the video given to systems (never enlarged); the truth is scored at half of it.
        parts: replaces the parts of WORLDLINE_V1 where the truth is not enough for all.
    """

    name: str
    adapter: str
    folder: str
    source: str = ""
    start: int = 0
    count: int = 16
    step: int = 1
    rows: int = 240
    parts: tuple[Part, ...] | None = None


REAL_V1 = (
    RealClip(name="tartanair-45", adapter="tartanair", folder="tartanair", count=15),
    RealClip(name="hololens-0", adapter="hololens", folder="hololens"),
    RealClip(name="hololens-30", adapter="hololens", folder="hololens", start=30),
    RealClip(name="slambook-ch5", adapter="slambook", folder="slambook2", source="ch5_rgbd", count=5),
    RealClip(name="kitti-odometry-0", adapter="kitti_odometry", folder="kitti_odometry", count=24),
    # the camera's own motion between the two frames is not known: depth only
    RealClip(name="deepdeform-shirt", adapter="deepdeform", folder="deepdeform", count=2, parts=_DEPTH),
)
"""Sequences with truth. Left out: the FlyingThings excerpt, whose two frames have no common world, and SLAMBook's
ch12_dense_rgbd, whose second and third frame (of five, up to 91 degrees apart) see no common point."""

SUITES = ("synthetic-v1", "real-v1")
