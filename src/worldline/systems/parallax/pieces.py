"""Reconstructions of parts of a clip, joined: each part of the clip is taken from the one that explains it best.

A reconstruction grown over a fast turn or past a large mover often takes a wrong pose there, and all that is registered
later hangs on it: another scale, another direction, at a cost that no adjustment finds its way out of. Reconstructions
that began on the other side have made the turn in the other direction and are right where the first is wrong. The cost
of a frame's matches does not depend on the frame of reference of a reconstruction, so the costs C[p, t] of frame t's
matches in piece p can be compared, and the cheapest sequence of pieces

    min over p(1..T) of  sum_t C[p(t), t] + penalty * (number of changes)

is found by dynamic programming. Where it changes, the next piece is moved by the similarity under which the matches
across the change cost least; a weak belief that depth does not jump decides the scale where they say nothing.

Pieces that explain the same frames about equally well and yet change scale differently show where it is in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldline.align.flow_adjust import R_MIN, FlowState, Matches, host_costs
from worldline.systems.parallax.grow import Grown
from worldline.systems.parallax.observability import CORRELATED, NOISE_PX, doubtful

WHOLE = 24
"""A clip of so many frames is reconstructed whole, from every start."""
PIECE = 50
"""Frames of a piece of a long clip."""
SCALES = np.linspace(-1.2, 1.2, 25)
"""Changes of log scale tried where two pieces meet."""
JUMP = 0.3
"""Usual change of log median depth from one frame to the next where pieces meet (standard deviation)."""
CHANGE = 0.1
"""Penalty for a change of piece, in mean costs of a frame."""
RIVAL = 1.1
"""A piece whose cost around a frame is within this factor of the least there is a rival explanation of it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A reconstruction of consecutive frames.

    Attributes:
        first: index in the clip of its first frame.
        state: of its frames only, in a frame of reference of its own.
        registered: [W] bool, which of them it found.
    """

    first: int
    state: FlowState
    registered: np.ndarray

    @property
    def frames(self) -> slice:
        """Where it is in the clip."""
        return slice(self.first, self.first + len(self.registered))

    def has(self, frame: int) -> bool:
        """Whether it knows the pose of a frame of the clip."""
        return 0 <= frame - self.first < len(self.registered) and bool(self.registered[frame - self.first])

    def moved(self, factor: float, world: np.ndarray) -> Piece:
        """The same with inverse depths times `factor`, then `world` [4, 4] put before its world-to-camera poses."""
        state = self.state.rescaled(factor)
        return replace(self, state=replace(state, w2c=state.w2c @ world))


def piece_frames(count: int, starts: int) -> tuple[int, int]:
    """(how many pieces, frames of each) such that a clip is covered `starts` times over.

    Every start of a short clip covers all of it.
    """
    if count <= WHOLE:
        return starts, count
    length = max(WHOLE, min(PIECE, count // 2))
    return round(starts * count / length), length


def window(host: int, length: int, count: int) -> slice:
    """The frames of the piece that begins around `host`."""
    first = min(max(0, host - length // 2), count - length)
    return slice(first, first + length)


def joined(matches: Matches, intrinsics: np.ndarray, pieces: Sequence[Piece], sigma_px: float) -> Grown:
    """One reconstruction of the whole clip from pieces that overlap; frames that no chosen piece has stay unknown.

    Args:
        matches: of the whole clip.
        intrinsics: [T, 4] fx, fy, cx, cy up to one focal factor, which is that of the piece used most.
        pieces: at least one.
        sigma_px: reprojection error at which a match counts half.
    """
    # 1. Which piece explains which frames best.
    costs = piece_costs(matches, pieces, sigma_px)
    path = cheapest_path(costs + _jumps(pieces, len(matches)), CHANGE * float(costs.min(0).mean()))
    # 2. These parts, one after the other, each moved to fit the one before.
    most, placed = pieces[int(np.bincount(path).argmax())], pieces[path[0]]
    factor = most.state.intrinsics[0, 0] / intrinsics[most.first, 0]
    state = _nothing(matches, intrinsics * np.array([factor, factor, 1, 1]))
    registered = np.zeros(len(matches), bool)
    for start in np.flatnonzero(np.diff(path, prepend=-1)):
        following = pieces[path[start]]
        if start > 0:
            following = _attached(matches, state, registered, placed, following, int(start), 2 * sigma_px)
        placed = placed if following is None else following
        _put(state, registered, placed, int(start))
    return Grown(state=state, registered=registered)


def scale_doubt(matches: Matches, pieces: Sequence[Piece], sigma_px: float) -> np.ndarray:
    """Log factor [T - 1] by which rival pieces disagree about how the scale changes from each frame to the next.

    The scale of a frame is the median inverse depth of its points, which are the same in all pieces; 0 without rivals.
    """
    costs = np.where(
        np.isfinite(scales := _scales(pieces, len(matches))), piece_costs(matches, pieces, sigma_px), np.inf
    )
    change, doubt = np.diff(scales, axis=1), np.zeros(len(matches) - 1)
    for t in range(len(doubt)):
        around = costs[:, max(0, t - 3) : t + 5].sum(1)
        rivals = np.isfinite(around) & (around <= RIVAL * around.min())
        doubt[t] = np.ptp(change[rivals, t]) if rivals.sum() > 1 else 0.0
    return doubt


def retied(matches: Matches, grown: Grown, sigma_px: float) -> Grown:
    """The same with the scale after every doubtful frame chosen anew, by matches across it and the jump of depth."""
    doubt = np.zeros(0) if grown.doubt is None else grown.doubt
    state = replace(grown.state, w2c=grown.state.w2c.copy(), r=grown.state.r.copy())
    for start in doubtful(doubt) + 1:
        whole = Piece(first=0, state=state, registered=grown.registered)
        moved = _attached(matches, state, grown.registered, whole, whole, int(start), sigma_px)
        if moved is not None:
            _put(state, grown.registered.copy(), moved, int(start))
    return replace(grown, state=state)


def _scales(pieces: Sequence[Piece], count: int) -> np.ndarray:
    """Log median inverse depth [P, T] of every frame in every piece; NaN where it is not known."""
    scales = np.full((len(pieces), count), np.nan)
    for row, piece in zip(scales, pieces, strict=True):
        row[piece.frames] = [_log_depth(r) for r in piece.state.r]
        row[piece.frames][~piece.registered] = np.nan
    return scales


def _jumps(pieces: Sequence[Piece], count: int) -> np.ndarray:
    """What it costs to believe in the jumps of depth from the frame before, [P, T]."""
    jumps = np.diff(_scales(pieces, count), axis=1, prepend=np.nan)
    return _jump_cost(np.nan_to_num(jumps))


def _jump_cost(change: Any) -> Any:
    """Negative log likelihood of a change of log median depth, in the unit of matches' costs."""
    return CORRELATED * (NOISE_PX / JUMP) ** 2 / 2 * change**2


def piece_costs(matches: Matches, pieces: Sequence[Piece], sigma_px: float) -> np.ndarray:
    """Cost [P, T] of every frame's matches in every piece; matches that a piece does not know have failed in it."""
    failed = sigma_px**2 / 2 * np.where(matches.target >= 0, matches.weight.sum(-1, dtype=np.float64), 0)
    costs = np.tile(failed.sum(1), (len(pieces), 1))
    for row, piece in zip(costs, pieces, strict=True):
        known = np.zeros(len(matches) + 1, bool)
        known[piece.frames] = piece.registered
        frames = np.arange(len(matches))[piece.frames]
        part = matches.restrict(frames)
        part = replace(part, target=np.where(known[matches.target[frames]], part.target, -1))
        missing = np.where(known[matches.target[frames]], 0, failed[frames]).sum(1)
        found = host_costs(part, piece.state, sigma_px) + missing
        row[frames] = np.where(piece.registered, found, row[frames])
    return costs


def cheapest_path(costs: np.ndarray, penalty: float) -> np.ndarray:
    """The piece [T] of every frame that makes costs [P, T] and a penalty for every change least (Viterbi)."""
    pieces, frames = costs.shape
    best, back = costs[:, 0].copy(), np.empty((frames, pieces), int)
    for t in range(1, frames):
        other = int(best.argmin())
        stay = best <= best[other] + penalty
        back[t] = np.where(stay, np.arange(pieces), other)
        best = np.where(stay, best, best[other] + penalty) + costs[:, t]
    path = np.full(frames, int(best.argmin()))
    for t in range(frames - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return path


def _nothing(matches: Matches, intrinsics: np.ndarray) -> FlowState:
    """A state to be filled in."""
    frames, points = matches.pixels.shape[:2]
    return FlowState(
        w2c=np.tile(np.eye(4), (frames, 1, 1)),
        intrinsics=intrinsics,
        r=np.full((frames, points), R_MIN),
        log_scale=np.zeros(frames),
    )


def _put(state: FlowState, registered: np.ndarray, piece: Piece, start: int) -> None:
    """Take over a piece from frame `start` on; what lies beyond it is not known yet."""
    frames = np.arange(min(start, piece.frames.stop), piece.frames.stop)
    state.w2c[frames], state.r[frames] = piece.state.w2c[frames - piece.first], piece.state.r[frames - piece.first]
    registered[start:] = False
    registered[frames] = piece.registered[frames - piece.first]


def _attached(
    matches: Matches, state: FlowState, registered: np.ndarray, left: Piece, right: Piece, start: int, sigma_px: float
) -> Piece | None:
    """`right` moved so that the matches across the change in front of frame `start` cost least; None if it cannot be.

    Its pose is that of `left` in the last frame before or the first one after the change; `left` is in place already.
    """
    meeting = [at for at in (start - 1, start) if left.has(at) and right.has(at)]
    usual = _scale_between(left, right, meeting)
    before = _log_depth(state.r[max(0, start - 4) : start])
    best: tuple[float, Piece] | None = None
    for at in meeting:
        for change in SCALES:
            scaled = right.state.rescaled(float(np.exp(usual + change)))
            world = np.linalg.inv(scaled.w2c[at - right.first]) @ left.state.w2c[at - left.first]
            found = right.moved(float(np.exp(usual + change)), world)
            after = _log_depth(found.state.r[start - right.first :][:4])
            cost = _across(matches, state, registered, found, start, sigma_px) + float(_jump_cost(after - before))
            if best is None or cost < best[0]:
                best = (cost, found)
    return None if best is None else best[1]


def _scale_between(left: Piece, right: Piece, frames: Sequence[int]) -> float:
    """Log of what inverse depths of `right` are multiplied by to be those of `left`: the median over points of both."""
    ratios = [np.empty(0)]
    for frame in frames:
        r, other = left.state.r[frame - left.first], right.state.r[frame - right.first]
        both = (r > 2 * R_MIN) & (other > 2 * R_MIN)
        ratios.append(np.log(r[both] / other[both]))
    known = np.concatenate(ratios)
    return float(np.median(known)) if len(known) else 0.0


def _log_depth(r: np.ndarray) -> float:
    """Log median inverse depth of the points that have one."""
    known = r[r > 2 * R_MIN]
    return float(np.median(np.log(known))) if len(known) else 0.0


def _across(
    matches: Matches, state: FlowState, registered: np.ndarray, right: Piece, start: int, sigma_px: float
) -> float:
    """Cost of the matches between the frames before `start`, in `state`, and those from there on, in `right`."""
    reach = int(np.abs(np.where(matches.target >= 0, matches.target - np.arange(len(matches))[:, None], 0)).max())
    frames = np.arange(max(0, start - reach), min(right.frames.stop, start + reach))
    later = frames >= start
    inside = frames[later] - right.first
    known = np.concatenate([registered[frames[~later]], right.registered[inside]])
    part = matches.restrict(frames)
    target = part.target
    crossing = (target >= 0) & (later[:, None] != later[target]) & known[:, None] & known[target]
    both = FlowState(
        w2c=np.concatenate([state.w2c[frames[~later]], right.state.w2c[inside]]),
        intrinsics=np.concatenate([state.intrinsics[frames[~later]], right.state.intrinsics[inside]]),
        r=np.concatenate([state.r[frames[~later]], right.state.r[inside]]),
        log_scale=np.zeros(len(frames)),
    )
    return float(host_costs(replace(part, target=np.where(crossing, target, -1)), both, sigma_px).sum())
