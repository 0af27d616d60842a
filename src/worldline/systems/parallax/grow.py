"""From one pair of frames to all of them: PnP, triangulation and small bundle adjustments in turn (spec 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.align.flow_adjust import R_MIN, FlowProblem, FlowState, Matches, adjust
from worldline.systems.parallax.epipolar import TwoView, relative_pose_of
from worldline.systems.parallax.resect import resect
from worldline.systems.parallax.triangulate import triangulate_host

ADJUST_EVERY = 6  # frames registered between two small bundle adjustments
WINDOW = 24  # frames nearest to the newest that take part in them once the clip is longer


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A reconstruction grown from one pair, or joined from several; poses of frames not registered are interpolated.

    Attributes:
        state: poses, focal length, inverse depths.
        registered: [T] bool.
        doubt: [T - 1] log factor by which the scale may be wrong from each frame to the next, or None if unknown.
    """

    state: FlowState
    registered: np.ndarray
    doubt: np.ndarray | None = None


def grow(matches: Matches, intrinsics: np.ndarray, pair: TwoView, sigma_px: float) -> Grown | None:
    """Register every frame that can be, starting from `pair`; None if the pair has no relative pose."""
    relative = relative_pose_of(pair, matches, intrinsics)
    if relative is None:
        return None
    frames, points = matches.pixels.shape[:2]
    first, second = pair.host, int(matches.target[pair.host, pair.slot])
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[second] = relative
    state = FlowState(
        w2c=w2c, intrinsics=intrinsics.copy(), r=np.full((frames, points), R_MIN), log_scale=np.zeros(frames)
    )
    registered = np.zeros(frames, bool)
    registered[[first, second]] = True
    state = normalise(retriangulate(matches, state, registered, registered, 2 * sigma_px), registered)
    state = adjust_near(matches, state, registered, second, sigma_px, 4)
    return extend(matches, Grown(state=state, registered=registered), sigma_px)


def extend(matches: Matches, grown: Grown, sigma_px: float) -> Grown:
    """Register every further frame that can be."""
    state, registered = grown.state, grown.registered.copy()
    sums, failed, since = matches.weight.sum(-1), np.zeros(len(registered), int), 0
    while (newest := _next_frame(matches.target, sums, registered, failed)) is not None:
        pose = locate(matches, state, registered, newest)
        if pose is None:
            failed[newest] = registered.sum()  # worth another try once more frames are known
            continue
        state.w2c[newest] = pose
        registered[newest] = True
        near = registered & _near(matches, newest)
        state = retriangulate(matches, state, near, registered, sigma_px)
        since += 1
        if since == ADJUST_EVERY:
            state, since = adjust_near(matches, state, registered, newest, sigma_px, 3), 0
    return Grown(state=interpolate_missing(state, registered), registered=registered)


def retriangulate(matches: Matches, state: FlowState, hosts: np.ndarray, use: np.ndarray, sigma_px: float) -> FlowState:
    """Fresh inverse depths for the grid points of `hosts` [T] bool, seen from the frames in `use` [T] bool."""
    r = state.r.copy()
    for i in np.flatnonzero(hosts):
        r[i] = triangulate_host(matches, state, int(i), use, sigma_px).r
    return replace(state, r=r)


def normalise(state: FlowState, registered: np.ndarray) -> FlowState:
    """Median inverse depth 1."""
    r = state.r[registered]
    r = r[r > 2 * R_MIN]
    return state.rescaled(1 / float(np.median(r))) if len(r) else state


def adjust_near(
    matches: Matches, state: FlowState, registered: np.ndarray, newest: int, sigma_px: float, iterations: int
) -> FlowState:
    """A few steps of bundle adjustment over the registered frames around the newest one, the far half held fixed."""
    frames = np.flatnonzero(registered)
    if len(frames) > WINDOW:
        frames = np.sort(frames[np.argsort(np.abs(frames - newest), kind="stable")[:WINDOW]])
    distance = np.abs(frames - newest)
    fixed = distance == distance.max()
    if registered.sum() > WINDOW:
        fixed = distance > np.median(distance)
    part = FlowState(
        w2c=state.w2c[frames], intrinsics=state.intrinsics[frames], r=state.r[frames], log_scale=state.log_scale[frames]
    )
    part_matches = matches.restrict(frames)
    problem = FlowProblem(matches=part_matches, sigma_px=sigma_px, free_focal=False, fixed=fixed, banded=True)
    part, _ = adjust(problem, part, iterations)
    w2c, r = state.w2c.copy(), state.r.copy()
    w2c[frames], r[frames] = part.w2c, part.r
    state = replace(state, w2c=w2c, r=r)
    return normalise(state, registered) if registered.sum() <= WINDOW else state


def locate(matches: Matches, state: FlowState, registered: np.ndarray, frame: int) -> np.ndarray | None:
    """World-to-camera pose [4, 4] of a new frame from the points of the registered frames that look at it, or None."""
    points, pixels, weight = _known_points(matches, state, registered, frame)
    return resect(points, pixels, weight, state.intrinsics[frame], _likely_poses(state.w2c, registered, frame))


def _likely_poses(w2c: np.ndarray, registered: np.ndarray, frame: int) -> list[np.ndarray]:
    """The nearest registered pose, and the one reached by going on as before."""
    known = np.flatnonzero(registered)
    near = known[np.argsort(np.abs(known - frame), kind="stable")]
    guesses = [w2c[near[0]]]
    if len(near) > 1 and abs(near[1] - near[0]) == abs(frame - near[0]):
        guesses.append(w2c[near[0]] @ np.linalg.inv(w2c[near[1]]) @ w2c[near[0]])
    return guesses


def interpolate_missing(state: FlowState, registered: np.ndarray) -> FlowState:
    """Poses of unregistered frames, interpolated in time between the registered ones around them."""
    from scipy.spatial.transform import Rotation, Slerp

    known = np.flatnonzero(registered)
    missing = np.flatnonzero(~registered)
    if not len(missing):
        return state
    c2w = np.linalg.inv(state.w2c[known])
    at = np.clip(missing, known[0], known[-1])
    filled = np.tile(np.eye(4), (len(missing), 1, 1))
    if len(known) > 1:
        filled[:, :3, :3] = Slerp(known, Rotation.from_matrix(c2w[:, :3, :3]))(at).as_matrix()
    else:
        filled[:, :3, :3] = c2w[0, :3, :3]
    for axis in range(3):
        filled[:, axis, 3] = np.interp(at, known, c2w[:, axis, 3])
    w2c = state.w2c.copy()
    w2c[missing] = np.linalg.inv(filled)
    return replace(state, w2c=w2c)


def _known_points(
    matches: Matches, state: FlowState, registered: np.ndarray, frame: int, most: int = 800
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points [M, 3], their pixels [M, 2] in `frame` and weights [M], from registered hosts that look at it."""
    hosts, slots = np.nonzero((matches.target == frame) & registered[:, None])
    points, pixels, weights = [np.empty((0, 3))], [np.empty((0, 2))], [np.empty(0)]
    for i, k in zip(hosts, slots, strict=True):
        r, weight = state.r[i], matches.weight[i, k]
        good = (weight > 0.3) & (r > 20 * R_MIN)
        fx, fy, cx, cy = state.intrinsics[i]
        x = (matches.pixels[i][good] - (cx, cy)) / (fx, fy)
        camera = np.c_[x, np.ones(len(x))] / r[good, None]
        R, t = state.w2c[i, :3, :3], state.w2c[i, :3, 3]
        points.append((camera - t) @ R)
        pixels.append(matches.goal[i, k][good].astype(np.float64))
        weights.append(weight[good].astype(np.float64))
    world, image, trust = np.concatenate(points), np.concatenate(pixels), np.concatenate(weights)
    chosen = slice(None, None, max(1, len(world) // most))
    return world[chosen], image[chosen], trust[chosen]


def _next_frame(target: np.ndarray, sums: np.ndarray, registered: np.ndarray, failed: np.ndarray) -> int | None:
    """The unregistered frame most seen by registered ones; None when none is left that could be tried anew."""
    use = (target >= 0) & registered[:, None]
    score = np.bincount(target[use], sums[use], len(registered))
    score[registered] = 0
    score[(failed > 0) & (failed + 2 > registered.sum())] = 0
    best = int(np.argmax(score))
    return best if score[best] > 0 else None


def _near(matches: Matches, frame: int) -> np.ndarray:
    near = np.zeros(len(matches), bool)
    target = matches.target[frame]
    near[target[target >= 0]] = True
    near[frame] = True
    return near
