"""The start of the alignment: which windows can be trusted, where they are, a focal and a pose for every frame."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldline.align.config import AlignConfig, Priors
from worldline.align.resection import Rig, solve_poses, sweep_focal
from worldline.align.sampling import Samples
from worldline.align.synchronize import Pairs, find_pairs, masked_quantile, spanning_tree, synchronise
from worldline.geometry.pose import Similarity, from_rt, interpolate

_KEYFRAMES = 8
USUAL_FOCAL = 0.9  # of max(H, W): 58 degrees, where the points do not say
LEAST_CONTRAST = 0.05  # by how much extreme focals must fit worse than the best one
_FEW = 8  # fewer usable samples than this do not make a camera


@dataclass(frozen=True, kw_only=True)
class Start:
    """Windows and cameras before the joint refinement.

    Attributes:
        windows: [G] similarities window -> world.
        kept: [G] windows that are used.
        rig: one pose per frame (or one for all if the camera is static), focal in pixels.
        solved: [T] frames whose pose was found from points (others are interpolated).
        pairs: window pairs with their residuals.
        trusted: [P] pairs whose similarity can be trusted.
        notes: what was found out, for the report.
    """

    windows: Similarity
    kept: Bool[Tensor, " G"]
    rig: Rig
    solved: Bool[Tensor, " T"]
    pairs: Pairs
    trusted: Bool[Tensor, " P"]
    notes: dict[str, Any] = field(default_factory=dict)


def initialize(
    samples: Samples, xy: Float[Tensor, "T n 2"], size: tuple[int, int], priors: Priors, config: AlignConfig
) -> Start:
    """Windows joined by robust similarities, then cameras from their points.

    Args:
        samples: the pixel subset of every window.
        xy: undistorted pixels of the samples, measured from the principal point.
        size: (H, W).
        priors: what is known.
        config: focal range.
    """
    # 1. pairwise similarities, and which windows agree with nobody
    pairs, fit = find_pairs(samples)
    kept, good, notes = judge_windows(samples, xy, size, pairs)
    # 2. all windows at once
    use = good & kept[pairs.first] & kept[pairs.second]
    quality = torch.where(use, pairs.inliers / pairs.residual.clamp_min(1e-6), torch.zeros_like(pairs.residual))
    windows, component = spanning_tree(samples.num_windows, pairs, fit, quality)
    anchors = torch.zeros_like(kept)
    for label in component.unique():
        anchors[torch.nonzero(component == label)[0, 0]] = True
    windows = synchronise(windows, pairs, use, anchors)
    # 3. one focal, one pose per frame
    samples = replace(samples, weight=samples.weight * _speakers(samples, component, kept)[:, None])
    rig, solved, more = place_cameras(samples, xy, size, windows, priors, config)
    notes |= more
    # 4. groups of windows that share no frame are put where the camera would have gone
    windows, rig, more = join_components(samples, windows, component, kept, rig, solved)
    notes |= more
    return Start(windows=windows, kept=kept, rig=rig, solved=solved, pairs=pairs, trusted=good, notes=notes)


def judge_windows(
    samples: Samples, xy: Tensor, size: tuple[int, int], pairs: Pairs
) -> tuple[Bool[Tensor, " G"], Bool[Tensor, " P"], dict[str, Any]]:
    """Windows to keep, pairs to trust. A window that agrees with no other must at least look like a camera's view."""
    G = samples.num_windows
    kept = torch.zeros(G, dtype=torch.bool)
    kept.index_put_((samples.window[(samples.weight > 0).sum(1) >= _FEW],), torch.tensor(True))
    why = {k: "it has no usable pixels" for k in torch.nonzero(~kept).flatten().tolist()}
    level, share = pairs.residual.median() if len(pairs.first) else torch.tensor(0.0), pairs.inliers
    good = (pairs.residual <= (4 * level).clamp(0.05, 0.35)) & (share > 0.15)
    friends = torch.zeros(G).index_add_(0, pairs.first, good.float()).index_add_(0, pairs.second, good.float())
    tried = (
        torch.zeros(G)
        .index_add_(0, pairs.first, torch.ones(len(good)))
        .index_add_(0, pairs.second, torch.ones(len(good)))
    )
    lonely = kept & (friends == 0) & (tried > 0)
    if bool(lonely.any()):
        trusted = torch.nonzero(kept & (friends > 0)).flatten()[:4].tolist()
        score = {k: _self_error(samples, xy, size, k) for k in torch.nonzero(lonely).flatten().tolist() + trusted}
        best = min([score[k] for k in trusted] or list(score.values()))
        for k in torch.nonzero(lonely).flatten().tolist():
            if score[k] > max(4 * best, 0.02 * max(size)):
                kept[k] = False
                why[k] = (
                    f"it agrees with no other window and with no camera (median reprojection error {score[k]:.1f} px)"
                )
    notes: dict[str, Any] = {"windows": G, "windows_rejected": why}
    alone = torch.nonzero(lonely & kept).flatten().tolist()
    if alone:
        notes["windows_not_joined"] = alone
    return kept, good, notes


def _speakers(samples: Samples, component: Tensor, kept: Tensor) -> Bool[Tensor, " V"]:
    """Views that may speak for their frame: of kept windows, and of the largest group where groups disagree."""
    usable = kept[samples.window] & (samples.weight > 0).any(1)
    size = torch.bincount(component[kept], minlength=int(component.max()) + 1).double()
    size -= 1e-6 * torch.arange(len(size))
    mine = torch.where(usable, size[component[samples.window]], torch.full((len(usable),), -1.0).double())
    best = torch.full((samples.num_frames,), -1.0, dtype=torch.float64).scatter_reduce_(0, samples.frame, mine, "amax")
    return usable & (mine == best[samples.frame])


def _self_error(samples: Samples, xy: Tensor, size: tuple[int, int], k: int) -> float:
    """Median reprojection error in pixels of one window with its own best focal and poses."""
    views = torch.nonzero(samples.window == k).flatten()
    views = views[torch.linspace(0, len(views) - 1, min(4, len(views))).long()]
    step = max(1, samples.points.shape[1] // 160)
    points, weight = samples.points[views, ::step], samples.weight[views, ::step]
    pixels = xy[samples.frame[views], ::step]
    start = torch.eye(3, dtype=torch.float64).expand(len(views), 3, 3)
    focal, _ = sweep_focal(pixels, points, weight, start, (0.3 * max(size), 6.0 * max(size)))
    _, _, error = solve_poses(pixels, points, weight, torch.full((len(views),), focal).double(), start)
    return float(masked_quantile(error.flatten(), (weight > 0).flatten(), 0.5))


def world_points(samples: Samples, windows: Similarity) -> Float[Tensor, "V n 3"]:
    """All samples in the world."""
    k = samples.window
    each = Similarity(scale=windows.scale[k], rotation=windows.rotation[k], translation=windows.translation[k])
    return each.apply(samples.points)


def merge_views(
    samples: Samples, points: Float[Tensor, "V n 3"]
) -> tuple[Float[Tensor, "T n 3"], Float[Tensor, "T n"]]:
    """One robust point and weight per frame and sample from all windows (three Weiszfeld steps of the median)."""
    T, n = samples.num_frames, points.shape[1]

    def mean(weight: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(T, n, dtype=torch.float64).index_add_(0, samples.frame, weight)
        moment = torch.zeros(T, n, 3, dtype=torch.float64).index_add_(0, samples.frame, points * weight[..., None])
        return moment / total.clamp_min(1e-12)[..., None], total

    middle, total = mean(samples.weight)
    for _ in range(3):
        distance = (points - middle[samples.frame]).norm(dim=-1)
        typical = masked_quantile(distance.flatten(), (samples.weight > 0).flatten(), 0.5)
        middle, _ = mean(samples.weight / (distance + 0.1 * typical + 1e-9))
    return middle, total


def place_cameras(
    samples: Samples, xy: Tensor, size: tuple[int, int], windows: Similarity, priors: Priors, config: AlignConfig
) -> tuple[Rig, Bool[Tensor, " T"], dict[str, Any]]:
    """Focal by a sweep over a few frames, then every pose; poses that could not be found are interpolated."""
    points, weight = merge_views(samples, world_points(samples, windows))
    first_view = torch.full((samples.num_frames,), -1)
    first_view[samples.frame.flip(0)] = torch.arange(len(samples.frame) - 1, -1, -1)
    start = windows.rotation[samples.window[first_view.clamp_min(0)]]
    enough = (weight > 0).sum(1) >= _FEW
    notes: dict[str, Any] = {}
    focal = _known_focal(priors, samples.num_frames)
    if focal is None:
        focal, notes = _search_focal(xy, points, weight, start, enough, size, config)
    if priors.static_camera:
        xy, points, weight = (value.flatten(0, 1)[None] for value in (xy, points, weight))
        start, enough, shared = start[:1], enough.any()[None], focal[:1]
    else:
        shared = focal
    rotation, centre, error = _best_poses(xy, points, weight, shared, start)
    median = masked_quantile(error, weight > 0, 0.5)
    solved = enough & median.isfinite() & (median < 0.25 * max(size))
    pose = fill_poses(from_rt(rotation, centre), solved)
    one = focal if not priors.shared_focal and not priors.static_camera else focal[:1]
    log_focal = one.log() if priors.intrinsics is None or len(one) == 1 else focal.log()
    rig = Rig(rotation=pose[:, :3, :3], centre=pose[:, :3, 3], log_focal=log_focal)
    return rig, solved.expand(samples.num_frames), notes


def _known_focal(priors: Priors, frames: int) -> Float[Tensor, " T"] | None:
    if priors.intrinsics is None:
        return None
    K = priors.intrinsics.double().expand(frames, 3, 3)
    return (K[:, 0, 0] * K[:, 1, 1]).sqrt()


def _search_focal(
    xy: Tensor,
    points: Tensor,
    weight: Tensor,
    start: Tensor,
    enough: Tensor,
    size: tuple[int, int],
    config: AlignConfig,
) -> tuple[Tensor, dict[str, Any]]:
    bounds = (config.focal_range[0] * max(size), config.focal_range[1] * max(size))
    frames = torch.nonzero(enough).flatten()
    if len(frames) == 0:
        guess = torch.full((len(xy),), USUAL_FOCAL * max(size), dtype=torch.float64)
        return guess, {
            "focal_guessed": True,
            "undetermined": ["no frame has enough usable points: focal and cameras are guesses"],
        }
    keys = frames[torch.linspace(0, len(frames) - 1, min(_KEYFRAMES, len(frames))).long()].unique()
    step = max(1, xy.shape[1] // 128)
    focal, contrast = sweep_focal(xy[keys, ::step], points[keys, ::step], weight[keys, ::step], start[keys], bounds)
    notes: dict[str, Any] = {"focal_contrast": round(contrast, 4)}
    if contrast < LEAST_CONTRAST or not 1.02 * bounds[0] < focal < 0.98 * bounds[1]:
        notes["focal_guessed"] = True
        focal = USUAL_FOCAL * max(size)
    return torch.full((len(xy),), focal, dtype=torch.float64), notes


def guess_focal(start: Start, size: tuple[int, int]) -> Start:
    """The start with a usual focal, for points that ask for an impossible one."""
    usual = torch.full_like(start.rig.log_focal, USUAL_FOCAL * max(size)).log()
    return replace(start, rig=replace(start.rig, log_focal=usual), notes={**start.notes, "focal_guessed": True})


def _best_poses(
    xy: Tensor, points: Tensor, weight: Tensor, focal: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Poses from three kinds of start: algebraic, the window's axes, the neighbours; continuity breaks near ties."""
    best = solve_poses(xy, points, weight, focal, start)
    usable = weight > 0

    def better(
        best: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        old, new = (masked_quantile(e[2].nan_to_num(torch.inf), usable, 0.5) for e in (best, other))
        take = new <= 1.02 * old
        return (
            torch.where(take[:, None, None], other[0], best[0]),
            torch.where(take[:, None], other[1], best[1]),
            torch.where(take[:, None], other[2], best[2]),
        )

    best = better(best, solve_poses(xy, points, weight, focal, start, several=False))
    median = masked_quantile(best[2].nan_to_num(torch.inf), usable, 0.5)
    bad = median > 2 * median.median()
    if len(xy) > 1 and bool(bad.any()):
        for shift in (1, -1):
            best = better(best, solve_poses(xy, points, weight, focal, best[0].roll(shift, 0), several=False))
    return best


def fill_poses(pose: Float[Tensor, "C 4 4"], solved: Bool[Tensor, " C"]) -> Float[Tensor, "C 4 4"]:
    """Poses that are not solved are interpolated between solved neighbours, or copied from the nearest one."""
    known = torch.nonzero(solved).flatten().tolist()
    if not known:
        return torch.eye(4, dtype=pose.dtype).repeat(len(pose), 1, 1)
    pose = pose.clone()
    for i in torch.nonzero(~solved).flatten().tolist():
        before, after = [k for k in known if k < i], [k for k in known if k > i]
        if before and after:
            fraction = (i - before[-1]) / (after[0] - before[-1])
            pose[i] = interpolate(pose[before[-1]], pose[after[0]], fraction)
        else:
            pose[i] = pose[before[-1] if before else after[0]]
    return pose


def join_components(
    samples: Samples, windows: Similarity, component: Int[Tensor, " G"], kept: Tensor, rig: Rig, solved: Tensor
) -> tuple[Similarity, Rig, dict[str, Any]]:
    """Move every later group of windows so that its first camera continues the last camera before it.

    Between groups nothing is observed: the camera is assumed to stand still and the typical depth to stay the same.
    """
    labels = [int(v) for v in component[kept].unique()]
    if len(labels) < 2 or len(rig.centre) != samples.num_frames:
        return windows, rig, {}
    of_frame = torch.full((samples.num_frames,), -1)
    usable = (samples.weight > 0).any(1)
    of_frame[samples.frame[usable]] = component[samples.window[usable]]
    depth = _typical_depth(samples, windows, rig)
    labels.sort(key=lambda c: int(torch.nonzero(of_frame == c)[0, 0]) if bool((of_frame == c).any()) else 10**9)
    scale, rotation, translation = windows.scale.clone(), windows.rotation.clone(), windows.translation.clone()
    R, c = rig.rotation.clone(), rig.centre.clone()
    done = of_frame == labels[0]
    for label in labels[1:]:
        own = torch.nonzero((of_frame == label) & solved).flatten()
        if len(own) == 0 or not bool(done.any()):
            continue
        last = torch.nonzero(done).flatten()
        before = int(last[last < own[0]][-1]) if bool((last < own[0]).any()) else int(last[0])
        ratio = depth[before] / depth[int(own[0])]
        turn = R[before] @ R[own[0]].T
        move = Similarity(scale=ratio, rotation=turn, translation=c[before] - ratio * turn @ c[own[0]])
        mine = component == label
        part = Similarity(scale=scale[mine], rotation=rotation[mine], translation=translation[mine])
        lifted = Similarity(
            scale=move.scale * part.scale,
            rotation=move.rotation @ part.rotation,
            translation=move.apply(part.translation),
        )
        scale[mine], rotation[mine], translation[mine] = lifted.scale, lifted.rotation, lifted.translation
        R[own], c[own] = turn @ R[own], move.apply(c[own])
        depth[own] *= ratio
        done = done | (of_frame == label)
    pose = fill_poses(from_rt(R, c), solved)
    notes = {
        "undetermined": [
            f"{len(labels)} groups of windows share no trustworthy frame: their relative scale and pose are assumed "
            "(camera at rest, same typical depth)"
        ]
    }
    moved = Similarity(scale=scale, rotation=rotation, translation=translation)
    return moved, replace(rig, rotation=pose[:, :3, :3], centre=pose[:, :3, 3]), notes


def _typical_depth(samples: Samples, windows: Similarity, rig: Rig) -> Float[Tensor, " T"]:
    """Median depth of the samples of each frame."""
    points = world_points(samples, windows)
    z = ((points - rig.centre[samples.frame][:, None]) * rig.rotation[samples.frame][:, None, :, 2]).sum(-1)
    middle = masked_quantile(z, samples.weight > 0, 0.5)
    out = torch.ones(samples.num_frames, dtype=torch.float64)
    good = middle > 0
    out[samples.frame[good]] = middle[good]
    return out
