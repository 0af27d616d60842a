"""Cameras of a whole clip from its flow matches: what can be known, focal length, several starts, bundle adjustment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from worldline.align.flow_adjust import R_MIN, DepthPrior, FlowProblem, FlowState, Matches, adjust
from worldline.scene import Progress, no_progress
from worldline.systems.parallax.epipolar import TwoView, search_focal, start_pairs
from worldline.systems.parallax.flow import workers
from worldline.systems.parallax.grow import Grown, extend, grow, normalise, retriangulate
from worldline.systems.parallax.observability import (
    CORRELATED,
    NOISE_PX,
    CameraSolution,
    describe,
    focal_deviation,
    focal_kind,
    plausible_focal,
    unexplained,
)
from worldline.systems.parallax.pieces import Piece, joined, piece_frames, retied, scale_doubt, window
from worldline.systems.parallax.statistic import (
    CameraKind,
    Parallax,
    classify,
    failed_gaps,
    measure,
    rotation_focal,
    still,
    zoom_curve,
    zooms,
)

FOCAL_STEP = 0.1  # change of log focal length that bundle adjustment follows from where it is


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """How cameras are solved.

    Attributes:
        grid_points: matches per frame and direction.
        sigma_px: reprojection error at which a match counts a quarter.
        starts: parts of the clip in which a reconstruction is started; the best one is kept.
        iterations: bundle adjustment steps per round; there are two rounds.
        floor_px: parallax below this at every gap means there is no translation to see (flow noise is about 0.07).
        low_px: parallax below this at every gap is reported as weak.
        noise_share: above this share of the rotations' residual left by the full solution, it explained noise.
        zoom_noise_share: the same where a zoom explains most of what rotations alone do not: there it has a rival.
        longest_focal: of a camera that stands and zooms, in units of the longer side.
        least_zoom: change of log focal length over the clip from which a standing camera is said to zoom.
        focal_range: smallest and largest focal length searched, in units of the longer side.
        focal_steps: of that search.
        default_focal: usual focal length, in units of the longer side.
        focal_spread: how far focal lengths usually are from it (standard deviation of the log).
        focal_deviation: standard deviation of log focal above which it is called not observable.
        turning_focal_deviation: the same of a camera that only turns: a little unseen translation passes for another
            focal length there, so that a deviation says less.
        prior_weight: of a depth prior in bundle adjustment, px^2 per unit of squared log ratio.
        prior_below_px: parallax below which it takes part there (above, its shape would only bend the cameras).
    """

    grid_points: int = 320
    sigma_px: float = 0.75
    starts: int = 4
    iterations: int = 12
    floor_px: float = 0.25
    low_px: float = 1.0
    noise_share: float = 0.4
    zoom_noise_share: float = 0.33
    least_zoom: float = 0.04
    longest_focal: float = 6.0
    focal_range: tuple[float, float] = (0.45, 2.2)
    focal_steps: int = 15
    default_focal: float = 0.9
    focal_spread: float = 0.4
    focal_deviation: float = 0.15
    turning_focal_deviation: float = 0.08
    prior_weight: float = 0.1
    prior_below_px: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What the cameras are solved from.

    Attributes:
        matches: grid matches.
        offsets: frame offset of each slot.
        intrinsics: [T, 4] float64 fx, fy, cx, cy; only the principal point and the aspect count if not known.
        known_focal: keep the intrinsics.
        longer_side: max(H, W) in pixels.
        static: the camera is known not to move.
        poses: [T, 4, 4] float64 known world-to-camera poses, or None.
        prior: inverse depth of the grid points from elsewhere, or None.
    """

    matches: Matches
    offsets: tuple[int, ...]
    intrinsics: np.ndarray
    known_focal: bool
    longer_side: int
    static: bool = False
    poses: np.ndarray | None = None
    prior: DepthPrior | None = None

    def __len__(self) -> int:
        return len(self.matches)

    def with_focal(self, focal_px: float) -> np.ndarray:
        """The intrinsics with another mean fx."""
        factor = focal_px / float(self.intrinsics[:, 0].mean())
        return self.intrinsics * np.array([factor, factor, 1, 1])


def solve_cameras(
    clip: Clip, config: CameraConfig = CameraConfig(), progress: Progress = no_progress
) -> CameraSolution:
    """Cameras of all frames; `CameraSolution.report` says what was observable."""
    # 1. How much parallax is there? (for an unknown focal length: under the one that rotations like best)
    usual = clip.intrinsics if clip.known_focal else clip.with_focal(config.default_focal * clip.longer_side)
    clip = replace(clip, intrinsics=usual)
    factor = 1.0 if clip.known_focal else rotation_focal(clip.matches, usual, focal_factors(config))
    rotating = usual * np.array([factor, factor, 1, 1])
    parallax = measure(clip.matches, rotating)
    if failed := failed_gaps(parallax, clip.offsets, config.floor_px):
        found = solve_cameras(_without_gaps(clip, failed), config, progress)
        return replace(found, report={**found.report, "failed_gaps": failed})
    kind: CameraKind = "static" if clip.static else classify(parallax, clip.offsets, config.floor_px)
    standing = parallax if clip.known_focal or kind != "full" else _zooming(clip, usual, config)[1]
    if kind == "full" and classify(standing, clip.offsets, config.floor_px) != "full":
        kind = "rotation_only"
    # 2. Known poses, or no translation: nothing to grow.
    if clip.poses is not None:
        return _with_poses(clip, clip.poses, parallax, standing if kind == "full" else None, config)
    if kind != "full":
        return _without_translation(clip, rotating, kind, parallax, config)
    # 3. Focal length: the epipolar search's minimum, and the usual one.
    guesses = [usual]
    if not clip.known_focal:
        factors = focal_factors(config)
        best_factor = factors[search_focal(clip.matches, parallax, usual, factors).argmin()]
        guesses.insert(0, usual * np.array([best_factor, best_factor, 1, 1]))
    # 4. Several starts, grown to the whole clip; keep what registers most frames at least cost.
    grown = _best_start(clip, parallax, guesses, config, progress)
    if grown is None:
        return _without_translation(clip, rotating, "rotation_only", parallax, config)
    # 5. Bundle adjustment over everything; was it parallax that it explained?
    state, cost = refine(clip, grown, config, config.iterations, with_prior=_weak(clip, parallax, config))
    share = unexplained(clip.matches, state, clip.offsets, standing)
    rival = zooms(standing, parallax, clip.offsets)
    if share > (config.zoom_noise_share if rival else config.noise_share):
        return _without_translation(clip, rotating, "rotation_only", parallax, config)
    # 6. A focal length that the motion does not show is a usual one.
    deviation = focal_deviation(_problem(clip, config, config.sigma_px), state)
    focal = focal_kind(clip.known_focal, deviation, config.focal_deviation)
    if focal == "not_observable":
        clip = _with_usual_focal(clip, state, deviation, config)
        if abs(np.log(clip.intrinsics[0, 0] / state.intrinsics[0, 0])) > FOCAL_STEP:
            grown = _best_start(clip, parallax, [clip.intrinsics], config, progress) or grown
        grown = replace(grown, state=replace(grown.state, intrinsics=clip.intrinsics))
        state, cost = refine(clip, grown, config, config.iterations, with_prior=_weak(clip, parallax, config))
        share = unexplained(clip.matches, state, clip.offsets, standing)
    solution = CameraSolution(state=state, kind="full", focal=focal, registered=grown.registered)
    numbers = {"cost": cost, "unexplained": share, "focal_deviation": deviation}
    return describe(solution, parallax, clip.offsets, config.low_px, numbers, grown.doubt)


def _without_gaps(clip: Clip, gaps: list[int]) -> Clip:
    """The clip without the matches between frames so far apart."""
    away = np.isin(np.abs(clip.offsets), gaps)
    return replace(clip, matches=replace(clip.matches, target=np.where(away, -1, clip.matches.target).astype(np.int32)))


def _weak(clip: Clip, parallax: Parallax, config: CameraConfig) -> bool:
    """Whether there is so little parallax that a depth prior helps the cameras."""
    return bool(np.nanmax(list(parallax.by_gap(clip.offsets).values())) < config.prior_below_px)


def _zooming(clip: Clip, intrinsics: np.ndarray, config: CameraConfig) -> tuple[np.ndarray, Parallax]:
    """Intrinsics [T, 4] and parallax of a standing camera that turns and zooms, as the flow likes them best."""
    low, high = config.focal_range[0], config.longest_focal
    factors = np.geomspace(low, high, config.focal_steps) / config.default_focal
    for tried in (factors, np.exp(np.linspace(-0.3, 0.3, 5))):  # again, now that the focal length changes
        intrinsics = _scaled(intrinsics, rotation_focal(clip.matches, intrinsics, tried, zoom=True))
        curve = zoom_curve(measure(clip.matches, intrinsics, zoom=True), clip.offsets)
        intrinsics = _scaled(intrinsics, np.exp(curve))
    return intrinsics, measure(clip.matches, intrinsics, zoom=True)


def _with_zoom(
    clip: Clip, intrinsics: np.ndarray, parallax: Parallax, config: CameraConfig
) -> tuple[Clip, np.ndarray, Parallax]:
    """The clip, its intrinsics and parallax with a focal length that changes, if a standing camera's does."""
    free, standing = _zooming(clip, clip.intrinsics, config)
    curve = np.log(free[:, 0] / clip.intrinsics[:, 0])
    if np.ptp(curve) < config.least_zoom or not zooms(standing, parallax, clip.offsets):
        return clip, intrinsics, parallax
    return replace(clip, intrinsics=_scaled(clip.intrinsics, np.exp(curve - curve.mean()))), free, standing


def _scaled(intrinsics: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    """Intrinsics [T, 4] with other focal lengths."""
    return np.concatenate([intrinsics[:, :2] * np.reshape(factor, (-1, 1)), intrinsics[:, 2:]], -1)


def _with_usual_focal(clip: Clip, state: FlowState, deviation: float, config: CameraConfig) -> Clip:
    """The clip with the most plausible focal length for given, where its motion does not show it."""
    usual = config.default_focal * clip.longer_side
    focal_px = plausible_focal(float(state.intrinsics[:, 0].mean()), deviation, usual, config.focal_spread)
    return replace(clip, intrinsics=clip.with_focal(focal_px), known_focal=True)


def focal_factors(config: CameraConfig) -> np.ndarray:
    """Focal lengths to try, relative to the default one."""
    low, high = config.focal_range
    return np.geomspace(low, high, config.focal_steps) / config.default_focal


def refine(
    clip: Clip, grown: Grown, config: CameraConfig, iterations: int, with_prior: bool = False
) -> tuple[FlowState, float]:
    """Rounds of fresh triangulation and bundle adjustment; the state and its relative cost (spec 1.7)."""
    state, cost = grown.state, 1.0
    everyone = np.ones(len(clip), bool)
    for sigma in (2 * config.sigma_px, config.sigma_px):
        state = normalise(retriangulate(clip.matches, state, everyone, everyone, sigma), everyone)
        problem = _problem(clip, config, sigma)
        problem = problem if with_prior else replace(problem, prior=None)
        state, cost = adjust(problem, state, iterations)
    return normalise(to_first_camera(state), everyone), cost


def to_first_camera(state: FlowState) -> FlowState:
    """The same reconstruction in the first camera's frame."""
    return replace(state, w2c=state.w2c @ np.linalg.inv(state.w2c[0]))


def _problem(clip: Clip, config: CameraConfig, sigma_px: float) -> FlowProblem:
    noise = CORRELATED * (NOISE_PX / config.focal_spread) ** 2
    return FlowProblem(
        matches=clip.matches,
        sigma_px=sigma_px,
        free_focal=not clip.known_focal,
        fixed=np.arange(len(clip)) == 0,
        prior=clip.prior,
        focal_prior=None if clip.known_focal else (config.default_focal * clip.longer_side, noise),
        banded=True,
    )


def _best_start(
    clip: Clip, parallax: Parallax, guesses: list[np.ndarray], config: CameraConfig, progress: Progress
) -> Grown | None:
    """Pieces of the clip grown from a pair each and joined, all with the intrinsics that explain some of them best."""
    starts, length = piece_frames(len(clip), config.starts)
    pairs = start_pairs(clip.matches, parallax, guesses[0], starts)
    trials = [pairs[t] for t in sorted({len(pairs) // 4, 3 * len(pairs) // 4})] if len(guesses) > 1 and pairs else []
    total, done = len(pairs) + len(trials) * (len(guesses) - 1), count(1)
    pieces: list[Piece] = []

    def attempts(jobs: list[tuple[TwoView, np.ndarray]]) -> list[tuple[Piece, float]]:
        found = []
        for attempt in pool.map(lambda job: _attempt(clip, job[0], job[1], length, config), jobs):
            found += [attempt] if attempt is not None else []
            progress("cameras", next(done), total)
        pieces.extend(piece for piece, _ in found)
        return found

    with ThreadPoolExecutor(workers()) as pool:
        # 1. Which intrinsics: those that two pieces like best, as they refined them.
        tried = [attempts([(pair, guess) for pair in trials]) for guess in guesses] if trials else []
        likely = _likely(clip, guesses, tried)
        # 2. A piece around every other pair.
        attempts([(pair, likely) for pair in pairs if not any(pair is trial for trial in trials)])
    if not pieces:
        return None
    # 3. The best of each part joined, or a piece that covers the clip.
    whole = joined(clip.matches, clip.intrinsics, _alike(pieces, likely), config.sigma_px)
    whole = extend(clip.matches, whole, 2 * config.sigma_px)
    pieces.append(Piece(first=0, state=refine(clip, whole, config, 4)[0], registered=whole.registered))
    problem = replace(_problem(clip, config, config.sigma_px), prior=None)
    covering = [piece for piece in pieces if len(piece.registered) == len(clip)]
    best = max(covering, key=lambda piece: (int(piece.registered.sum()), -problem.cost(piece.state)))
    # 4. Where pieces disagree about scale, what hardly shows is decided by depth that does not jump.
    doubt = scale_doubt(clip.matches, pieces, config.sigma_px)
    grown = Grown(state=best.state, registered=best.registered, doubt=doubt)
    return retied(clip.matches, grown, 2 * config.sigma_px)


def _alike(pieces: list[Piece], intrinsics: np.ndarray) -> list[Piece]:
    """The pieces whose focal length is about that of `intrinsics` [T, 4]; parts of others would not fit. Else all."""
    away = [abs(np.log(piece.state.intrinsics[0, 0] / intrinsics[piece.first, 0])) for piece in pieces]
    return [piece for piece, step in zip(pieces, away, strict=True) if step < FOCAL_STEP] or pieces


def _likely(clip: Clip, guesses: list[np.ndarray], tried: list[list[tuple[Piece, float]]]) -> np.ndarray:
    """The intrinsics [T, 4] that pieces explain their matches best with; the first guess if none was tried."""
    known = [found for found in tried if found]
    if not known:
        return guesses[0]
    best = min(known, key=lambda found: (-len(found), float(np.mean([cost for _, cost in found]))))
    return clip.with_focal(float(np.median([piece.state.intrinsics[:, 0].mean() for piece, _ in best])))


def _attempt(
    clip: Clip, pair: TwoView, intrinsics: np.ndarray, length: int, config: CameraConfig
) -> tuple[Piece, float] | None:
    """The piece of `length` frames that grows from a pair, and its relative cost; None if nothing does."""
    part = window(pair.host, length, len(clip))
    frames = np.arange(part.start, part.stop)
    short = replace(clip, matches=clip.matches.restrict(frames), intrinsics=intrinsics[frames], prior=None)
    grown = grow(short.matches, short.intrinsics, replace(pair, host=pair.host - part.start), 2 * config.sigma_px)
    if grown is None:
        return None
    state, cost = refine(short, grown, config, 4)
    return Piece(first=part.start, state=state, registered=grown.registered), cost


def _with_poses(
    clip: Clip, poses: np.ndarray, parallax: Parallax, standing: Parallax | None, config: CameraConfig
) -> CameraSolution:
    """Given poses: only the focal length is left to solve for.

    Cameras that move may still show no parallax: where the flow looks like that of a standing camera (`standing` is
    None), or the poses explain as little of it as noise would. Depth from it is better than none, but not than a prior.
    """
    everyone = np.ones(len(clip), bool)
    state = FlowState(
        w2c=poses,
        intrinsics=clip.intrinsics,
        r=np.full(clip.matches.pixels.shape[:2], R_MIN),
        log_scale=np.zeros(len(clip)),
    )
    problem = replace(_problem(clip, config, config.sigma_px), fixed=everyone)
    deviation = 0.0
    state = retriangulate(clip.matches, state, everyone, everyone, 2 * config.sigma_px)
    if not clip.known_focal:
        for _ in range(2):
            state, _ = adjust(problem, state, config.iterations)
            state = retriangulate(clip.matches, state, everyone, everyone, config.sigma_px)
        deviation = focal_deviation(problem, state)
    focal = focal_kind(clip.known_focal, deviation, config.focal_deviation)
    moved = float(np.ptp(np.linalg.inv(state.w2c)[:, :3, 3], axis=0).max()) > 1e-6
    share = 1.0 if standing is None else unexplained(clip.matches, state, clip.offsets, standing)
    kind: CameraKind = "full" if moved else "rotation_only"
    noise = moved and share > config.noise_share
    solution = CameraSolution(state=state, kind=kind, focal=focal, registered=everyone, posed=True, noise=noise)
    numbers = {"focal_deviation": deviation, "unexplained": share}
    return describe(solution, parallax, clip.offsets, config.low_px, numbers)


def _without_translation(
    clip: Clip, intrinsics: np.ndarray, kind: CameraKind, parallax: Parallax, config: CameraConfig
) -> CameraSolution:
    """Rotations, chained then adjusted with all points at infinity; identity for a static camera."""
    frames = len(clip)
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    r = np.full(clip.matches.pixels.shape[:2], R_MIN)
    if kind == "rotation_only" and not clip.known_focal:
        clip, intrinsics, parallax = _with_zoom(clip, intrinsics, parallax, config)
    state = FlowState(w2c=w2c, intrinsics=intrinsics, r=r, log_scale=np.zeros(frames))
    deviation = float("inf")
    if kind == "rotation_only" and still(parallax, clip.offsets, config.floor_px):
        kind = "static"
    if kind == "rotation_only" and frames > 1:
        for t in range(1, frames):
            w2c[t, :3, :3] = parallax.rotation[t - 1, clip.offsets.index(1)] @ w2c[t - 1, :3, :3]
        problem = replace(_problem(clip, config, config.sigma_px), fix_translation=True, prior=None)
        state, _ = adjust(problem, state, config.iterations)
        deviation = focal_deviation(problem, state)
    focal = focal_kind(clip.known_focal, deviation, config.turning_focal_deviation)
    if kind == "static" and not clip.known_focal:
        state = replace(state, intrinsics=clip.intrinsics)
    elif focal == "not_observable":
        known = _with_usual_focal(clip, state, deviation, config)
        state = replace(state, intrinsics=known.intrinsics)
        if kind == "rotation_only" and frames > 1:
            state, _ = adjust(replace(problem, free_focal=False), state, config.iterations)
    solution = CameraSolution(state=state, kind=kind, focal=focal, registered=np.ones(frames, bool))
    return describe(solution, parallax, clip.offsets, config.low_px, {"focal_deviation": deviation})
