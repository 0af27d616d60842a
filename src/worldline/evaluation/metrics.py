"""Every metric's name, unit, direction and meaning: one list for tables, pages and documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a number means.

    Attributes:
        unit: "" for shares in 0..1 and ratios, else "%", "deg", "truth" (unit of the ground truth), "s", "MiB".
        better: direction.
        meaning: one sentence.
    """

    unit: str
    better: Literal["lower", "higher"]
    meaning: str


def _low(unit: str, meaning: str) -> Metric:
    return Metric(unit=unit, better="lower", meaning=meaning)


def _high(unit: str, meaning: str) -> Metric:
    return Metric(unit=unit, better="higher", meaning=meaning)


METRICS: Mapping[str, Metric] = {
    "abs_rel": _low("", "mean |p-g|/g of depth"),
    "sq_rel": _low("truth", "mean (p-g)^2/g of depth"),
    "rmse": _low("truth", "root mean square depth error"),
    "log_rmse": _low("", "root mean square of log p - log g, p clamped at 1e-5"),
    "delta_1.25": _high("", "share of pixels with max(p/g, g/p) < 1.25"),
    "delta_1.25^2": _high("", "share of pixels with max(p/g, g/p) < 1.25^2"),
    "delta_1.25^3": _high("", "share of pixels with max(p/g, g/p) < 1.25^3"),
    "abs_rel_confident": _low("", "AbsRel of the half of the pixels the system is surer of"),
    "boundary_f1": _high("", "F1 of depth boundaries at ten ratios in 1.05..1.25, to the pixel"),
    "coverage_percent": _high("%", "pixels with truth that have a prediction"),
    "tae_percent": _low("%", "change of depth from frame to frame once true camera motion is taken out"),
    "rel_p": _low("", "mean |p-g|/|g| of points; |g| from the origin, at least 0.01"),
    "delta_p_*": _high("", "share of points with a relative error below the threshold"),
    "depth_abs_rel": _low("", "AbsRel of the z of the aligned points in the true cameras"),
    "depth_delta_1.25": _high("", "delta < 1.25 of the z of the aligned points in the true cameras"),
    "epe": _low("truth", "mean length of the scene flow error"),
    "apd_*": _high("", "share of scene flow errors at most the threshold, in the unit of the truth"),
    "epe_percent": _low("%", "scene flow error over the median true depth"),
    "epe_moving_percent": _low("%", "the same, pixels that truly move"),
    "epe_moving_over_zero": _low(
        "", "flow error of moving pixels over that of predicting no motion: below 1 is better"
    ),
    "static_flow_percent": _low("%", "predicted motion of static pixels over their depth"),
    "dynamic_iou": _high("", "intersection over union of the pixels that move by > 0.5 % of their depth"),
    "ate": _low("truth", "root mean square distance of aligned camera centres"),
    "unit_ate": _low("", "ATE in units of the distance from the first to the last true camera"),
    "ate_percent_path": _low("%", "ATE over the length of the true path"),
    "ate_percent_scene": _low("%", "ATE over the median true depth, scaled like the depth"),
    "rpe_translation": _low("truth", "root mean square translation of relative pose errors, consecutive frames"),
    "unit_rpe_translation": _low("", "the same in units of the distance from the first to the last true camera"),
    "rpe_translation_percent_scene": _low("%", "the same over the median true depth, scaled like the depth"),
    "rpe_rotation_deg": _low("deg", "root mean square angle of relative pose errors, consecutive frames"),
    "pose_auc_*": _high("", "area under the accuracy curve of pairwise pose angles up to the threshold in degrees"),
    "focal_error_percent": _low("%", "median error of the focal length"),
    "track_aj": _high("", "3D average Jaccard: position and visibility of tracks"),
    "track_apd": _high("", "share of visible track points within reach, mean of five distances"),
    "track_oa": _high("", "share of track points with the right visibility"),
    "psnr": _high("dB", "peak signal-to-noise ratio of pictures"),
    "ssim": _high("", "structural similarity of pictures"),
    "seconds_per_frame": _low("s", "wall time of the whole prediction over the number of frames"),
    "peak_memory_mib": _low("MiB", "highest resident memory of the process during the prediction"),
    "parameters": _low("", "number of weights"),
}
"""By name; `*` stands for a threshold."""


def describe(name: str) -> Metric:
    """What a metric's name means. Raises KeyError for a name no metric has."""
    return METRICS[_entry(name)]


def rank(name: str) -> int:
    """Place in the list above, which is the order of tables. Raises KeyError for a name no metric has."""
    return list(METRICS).index(_entry(name))


def _entry(name: str) -> str:
    pattern = name if name in METRICS else re.sub(r"_[\d.]+$", "_*", name)
    if pattern not in METRICS:
        raise KeyError(f"No metric is called {name}.")
    return pattern
