"""What a curation run is made of: clip, tracker, rules, gates, output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FollowConfig:
    """How flow and a scene become tracks; pixels are those of the scene.

    Attributes:
        noise_px: forward-backward error of flow that is still believed, plus `relative` of its length.
        relative: see there.
        still_px: distance from where a still point would be seen, below which a point stands still ...
        typical: ... or below this many times the distance that the stiller third of the picture shows, whichever is
            more: errors of cameras and depth look like motion everywhere.
        apart: relative depth difference at which two points are not the same.
        colour: mean difference of colours, of 1, at which they are not.
        often: share of the frames it is seen in that a point must be away in, to be one that moves.
        agree: relative depth difference at which a still point is on the surface that a later frame sees.
        speckle: moving regions smaller than this share of the picture are noise.
        smooth: frames over which the depth of a moving point is a median.
    """

    noise_px: float = 1.0
    relative: float = 0.05
    still_px: float = 1.0
    typical: float = 4.0
    apart: float = 0.1
    colour: float = 0.06
    often: float = 0.15
    agree: float = 0.03
    speckle: float = 0.0005
    smooth: int = 5


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """When the rules, without a language model, call a clip one of countable things that move.

    Attributes:
        smallest: share of the picture of the smallest region that counts.
        persistence: share of the clip that a region's points must be seen, on average; water and crowds are lost soon.
        most: regions beyond which nobody counts.
        largest: share of the picture beyond which everything moves, so nothing does.
    """

    smallest: float = 0.002
    persistence: float = 0.3
    most: int = 12
    largest: float = 0.7


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Thresholds of the quality gates (spec section 5: unpublished there, so these are ours).

    Attributes:
        invalid: largest share of points without a positive finite depth, at the worst time.
        out_of_range: largest share of points nearer or farther than the range, at the worst time.
        range_m: that range in metres, for metric scenes.
        range_relative: the same in median depths of the first frame, for scenes without a metre.
        spread: largest standard deviation of depth over its median, at the worst time.
        rescale: factors by which the cloud is scaled about the camera; its picture must not change.
        changed: largest share of pixels that change then.
        near_m: near plane of those pictures, which is the published renderer's, in metres.
        near_relative: the same in median depths, for scenes without a metre.
        unknown: largest share of the first frame that has no surface.
        cut: largest distance of the colour histograms of neighbouring frames, 0 to 1.
        still: largest share of points that stand still once the camera's motion is removed.
        motion: largest normalised displacement (99.9th percentile, in picture widths and heights).
        reprojection_px: largest median distance of visible points from where they were seen.
    """

    invalid: float = 0.01
    out_of_range: float = 0.02
    range_m: tuple[float, float] = (0.05, 200.0)
    range_relative: tuple[float, float] = (0.01, 50.0)
    spread: float = 5.0
    rescale: tuple[float, ...] = (0.6, 1.7)
    changed: float = 0.01
    near_m: float = 0.2
    near_relative: float = 0.02
    unknown: float = 0.5
    cut: float = 0.5
    still: float = 0.98
    motion: float = 3.0
    reprojection_px: float = 2.0


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """A curation run.

    Attributes:
        frames: frames of a clip; shorter videos are left out.
        stride: every n-th frame is taken.
        size: (H, W) of the first frame's grid of points; the published data has 384 x 512.
        video_area: frames are kept at no more pixels than this.
        layout: what is written: the published files, our compact record, or both.
        archives: also pack the published files, `archive_samples` to an archive.
        archive_samples: see there.
        keep_cache: keep the tracks of finished clips, so that other gates can be tried without tracking again.
        rules: of the judge without a language model.
        gates: quality gates.
    """

    frames: int = 49
    stride: int = 1
    size: tuple[int, int] = (384, 512)
    video_area: int = 1280 * 720
    layout: Literal["both", "released", "compact"] = "both"
    archives: bool = False
    archive_samples: int = 50
    keep_cache: bool = False
    rules: RuleConfig = field(default_factory=RuleConfig)
    gates: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot be a clip."""
        if self.frames < 2 or self.stride < 1:
            raise ValueError(f"A clip needs at least 2 frames and a stride of 1, not {self.frames} and {self.stride}.")
        if min(self.size) < 16:
            raise ValueError(f"Tracks on a grid of {self.size[0]}x{self.size[1]} are too few; use at least 16x16.")
        if self.archive_samples < 1:
            raise ValueError("An archive holds at least one sample.")
