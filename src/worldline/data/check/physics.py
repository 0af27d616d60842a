"""The tests, each of which is a pure function of a few frames, and the score of a clip.

    cameras      poses are rigid and finite, the principal point is in the image, time runs forwards
    projection   every point lies on the ray of its pixel (within 0.5 px)
    depth        points at rest, seen from later frames, have those frames' depth (`compare`)
    motion       X + V has the depth of the next frame
    at rest      points that the flow says never move still have the right depth frames later
    tracks       tracked points lie on the depth of the frames that see them
    images       optical flow finds the moved points where they project (if asked); where no depth is known, it follows
                 the epipolar lines of the cameras (always)

The score of a test is its worst frame pair, that of a clip its worst test: one wrong pose in a hundred is a fault.
A test without anything to test says so, and a clip without any test has no score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from worldline.data.check import epipolar
from worldline.data.check.compare import Count, Label, compare, count
from worldline.data.clips import Clip, PointTracks
from worldline.data.store import StoredClip
from worldline.geometry import camera, pointmap, pose, sceneflow
from worldline.scene import Cameras, Scene4D


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """How clips are tested.

    Attributes:
        tolerance: relative difference of depth that still agrees; a clip whose sensor is worse says so in
            `provenance.settings["depth_tolerance"]`, and the outcome notes it.
        pairs: at most so many frame pairs per test, spread over the clip.
        gap: frames between the pairs of the long tests.
        pixels: at most so many pixels per pair, on a regular grid.
        least_tested: a pair with fewer tested pixels says nothing; or 2 % of a small image's pixels.
        rest: a point rests if it moves by less than this times its depth per frame.
        images: also compare the images' motion and colours with cameras and points where depth is known.
        passes: score that each test must reach. Wrong axes and inverted poses of a real sequence score 0.11 to 0.63,
            the worst pair of the real sequences of this project 0.89; synthetic data deserve 0.98.
    """

    tolerance: float = 0.05
    pairs: int = 16
    gap: int = 5
    pixels: int = 40_000
    least_tested: int = 300
    rest: float = 0.005
    images: bool = False
    passes: float = 0.85


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one test found.

    Attributes:
        name: of the test.
        score: of the worst pair, in [0, 1]; None when there was nothing to test.
        mean: over all tested pixels.
        worst: frames of the worst pair.
        note: what a person should know.
    """

    name: str
    score: float | None
    mean: float | None = None
    worst: tuple[int, int] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ClipCheck:
    """What all tests found in a clip.

    Attributes:
        name: of the clip.
        outcomes: of the tests, in the order above.
        passes: score that each had to reach.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    passes: float = 0.85
    damage: tuple[str, ...] = field(default=())

    @property
    def score(self) -> float | None:
        """That of the worst test; 0 if the clip cannot be read, None if nothing could be tested."""
        scores = [outcome.score for outcome in self.outcomes if outcome.score is not None]
        return 0.0 if self.damage else min(scores) if scores else None

    @property
    def worst(self) -> Outcome | None:
        """The test with the lowest score."""
        scored = [outcome for outcome in self.outcomes if outcome.score is not None]
        return min(scored, key=lambda outcome: outcome.score or 0.0) if scored else None

    @property
    def verdict(self) -> str:
        """One of "passes", "fails" and "untested"."""
        return "untested" if self.score is None else "passes" if self.score >= self.passes else "fails"


Frames = Callable[[int, int], Scene4D]
"""(first, one past the last) -> those frames, in the world of the clip."""


def check_scene(scene: Scene4D, config: CheckConfig | None = None, name: str = "") -> ClipCheck:
    """Test a scene in memory."""
    return _check(name, len(scene), lambda a, b: scene.select(slice(a, b)), None, config or CheckConfig())


def check_clip(clip: Clip | StoredClip, config: CheckConfig | None = None, name: str = "") -> ClipCheck:
    """Test a clip; a stored one is read a few frames at a time.

    Raises:
        ValueError: a chunk of a stored clip is damaged.
    """
    config = config or CheckConfig()
    if isinstance(clip, Clip):
        scene = clip.scene
        return _check(name, len(scene), lambda a, b: scene.select(slice(a, b)), clip.tracks, config)
    stored = clip
    tracks = None
    if "tracks/points" in stored.entry.arrays:
        tracks = stored.read(fields={"tracks/points", "tracks/known", "tracks/visible"}).tracks

    def frames(first: int, last: int) -> Scene4D:
        return stored.read(slice(first, last), fields=WANTED).scene

    return _check(stored.entry.name, len(stored), frames, tracks, config)


WANTED = {"rgb", "points", "scene_flow"}
"""Arrays that the tests read."""


def for_clip(config: CheckConfig, scene: Scene4D) -> CheckConfig:
    """The config with the tolerance that the clip's sensor needs, and fewer pixels for small images."""
    said = float(scene.provenance.settings.get("depth_tolerance", 0.0))
    enough = max(30, scene.size[0] * scene.size[1] // 50)
    return replace(config, tolerance=max(config.tolerance, said), least_tested=min(config.least_tested, enough))


def _check(name: str, length: int, frames: Frames, tracks: PointTracks | None, config: CheckConfig) -> ClipCheck:
    first = frames(0, min(2, length))
    config = for_clip(config, first)
    if first.cameras is None:
        return ClipCheck(name=name, outcomes=(Outcome(name="cameras", score=None, note="the clip has no cameras"),),
                         passes=config.passes)  # fmt: skip
    has_depth = any(bool(frames(t, t + 1).valid.any()) for t in _spread(length, 3))
    outcomes = [_cameras(length, frames)]
    if has_depth:
        outcomes += [_projection(length, frames, config), _rest_or_all(length, frames, config)]
        if first.flow_valid is not None:
            outcomes += [_motion(length, frames, config), _at_rest(length, frames, config)]
    if tracks is not None and has_depth:
        outcomes.append(_tracks(length, frames, tracks, config))
    if config.images or not has_depth:
        outcomes.append(_images(length, frames, config, has_depth))
    return ClipCheck(name=name, outcomes=tuple(outcomes), passes=config.passes)


def _spread(length: int, wanted: int) -> list[int]:
    """At most `wanted` numbers below `length`, evenly spread, the first and the last among them."""
    count = min(wanted, max(length, 0))
    return sorted({round(i * (length - 1) / max(count - 1, 1)) for i in range(count)})


def _cameras(length: int, frames: Frames) -> Outcome:
    problems = set()
    times = []
    for t in range(length) if length <= 256 else _spread(length, 256):
        frame = frames(t, t + 1)
        assert frame.cameras is not None
        times.append(float(frame.video.timestamps[0]))
        problems |= set(_camera_problems(frame.cameras))
    if any(later <= earlier for earlier, later in zip(times, times[1:], strict=False)):
        problems.add("timestamps do not increase")
    return Outcome(name="cameras", score=0.0 if problems else 1.0, note="; ".join(sorted(problems)))


def _camera_problems(cameras: Cameras) -> Iterator[str]:
    matrix, k = cameras.cam2world[0].double(), cameras.intrinsics[0].double()
    if not bool(matrix.isfinite().all() and k.isfinite().all()):
        yield "a pose or its intrinsics are not finite"
        return
    rotation = matrix[:3, :3]
    if float((rotation @ rotation.T - torch.eye(3).double()).abs().max()) > 1e-4 or float(rotation.det()) < 0:
        yield "a pose is not a rotation and a translation"
    if float(k[0, 0]) <= 0 or float(k[1, 1]) <= 0:
        yield "a focal length is not positive"
    if not (0 < float(k[0, 2]) < cameras.size[1] and 0 < float(k[1, 2]) < cameras.size[0]):
        yield "a principal point is outside of the image"


def _grid(valid: Tensor, pixels: int) -> Tensor:
    """Of a mask [H, W], the pixels on a regular grid, about as many as allowed."""
    step = max(1, round((valid.numel() / pixels) ** 0.5))
    chosen = torch.zeros_like(valid)
    chosen[step // 2 :: step, step // 2 :: step] = True
    return chosen & valid


def labels_of_projection(frame: Scene4D, pixels: int) -> Tensor:
    """Labels [H, W] of one frame: AGREES where a point projects onto its own pixel within 0.5 px, else THROUGH."""
    assert frame.cameras is not None
    chosen = _grid(frame.valid[0], pixels)
    local = pose.transform(pose.inverse(frame.cameras.cam2world[0].double()), frame.points[0][chosen].double())
    uv = camera.project(local, frame.cameras.intrinsics[0].double())
    fits = ((uv - camera.pixel_grid(frame.size)[chosen]).norm(dim=-1) < 0.5) & (local[:, 2] > 0)
    labels = torch.zeros(frame.size, dtype=torch.uint8)
    labels[chosen] = torch.where(fits, Label.AGREES, Label.THROUGH).to(torch.uint8)
    return labels


def _projection(length: int, frames: Frames, config: CheckConfig) -> Outcome:
    total, worst, where = Count(), 1.0, None
    for t in _spread(length, config.pairs):
        found = count(labels_of_projection(frames(t, t + 1), config.pixels))
        if found.tested >= config.least_tested:
            total += found
            worst, where = (found.agreement, (t, t)) if where is None or found.agreement < worst else (worst, where)
    if where is None:
        return Outcome(name="projection", score=None, note="too few points")
    return Outcome(name="projection", score=worst, mean=total.agreement, worst=where)


def _pairs(name: str, pairs: list[tuple[int, int]], compare_pair: Callable[[int, int], Count], config: CheckConfig,
           empty: str) -> Outcome:  # fmt: skip
    """Run a comparison over frame pairs; score = consistency of the worst, mean = agreement over all."""
    total, worst, where = Count(), 1.0, None
    for t, later in pairs:
        found = compare_pair(t, later)
        if found.tested < config.least_tested or not found.agrees + found.through:
            continue
        total += found
        if found.consistency < worst or where is None:
            worst, where = found.consistency, (t, later)
    if where is None:
        return Outcome(name=name, score=None, note=empty)
    note = (
        f"{100 * total.hidden / total.tested:.1f} % hidden, {100 * total.through / total.tested:.1f} % looked through"
    )
    if config.tolerance != CheckConfig.tolerance:
        note += f", within {100 * config.tolerance:g} %"
    return Outcome(name=name, score=worst, mean=total.agreement, worst=where, note=note)


def _near_and_far(length: int, config: CheckConfig) -> list[tuple[int, int]]:
    near = [(t, t + 1) for t in _spread(length - 1, config.pairs)]
    gap = min(config.gap, length - 1)
    far = [(t, t + gap) for t in _spread(length - gap, max(config.pairs // 2, 1))] if gap > 1 else []
    return near + far


def resting(scene: Scene4D, t: int, config: CheckConfig) -> Tensor:
    """Valid pixels [H, W] of a frame that rest as far as the scene's flow says; all of them without flow."""
    if scene.scene_flow is None or scene.flow_valid is None:
        return scene.valid[t]
    depth = pointmap.scene_depth(scene.select([t]))[0]
    return scene.flow_valid[t] & (scene.scene_flow[t].norm(dim=-1) < config.rest * depth)


def labels_at_rest(frames: Frames, t: int, later: int, config: CheckConfig, pixels: int | None = None) -> Tensor:
    """Labels [H, W] of the resting points of frame t in a later frame."""
    here = frames(t, min(t + 2, later + 1))
    chosen = _grid(resting(here, 0, config), pixels or config.pixels)
    return compare(here.points[0], chosen, frames(later, later + 1), config.tolerance)


def _rest_or_all(length: int, frames: Frames, config: CheckConfig) -> Outcome:
    """Depth of points at rest; with flow only over one frame, as what rests now may move later."""
    has_flow = frames(0, 1).flow_valid is not None
    pairs = [(t, t + 1) for t in _spread(length - 1, config.pairs)] if has_flow else _near_and_far(length, config)
    found = _pairs("depth", pairs, lambda t, later: count(labels_at_rest(frames, t, later, config)), config,
                   "no two frames to compare" if length < 2 else "no points at rest that two frames see")  # fmt: skip
    return found


def labels_in_motion(frames: Frames, t: int, later: int, config: CheckConfig, pixels: int | None = None) -> Tensor:
    """Labels [H, W] of X + V of frame t in the next one."""
    here = frames(t, t + 2)
    assert here.scene_flow is not None and here.flow_valid is not None
    chosen = _grid(here.valid[0] & here.flow_valid[0], pixels or config.pixels)
    return compare(here.points[0] + here.scene_flow[0], chosen, frames(later, later + 1), config.tolerance)


def _motion(length: int, frames: Frames, config: CheckConfig) -> Outcome:
    """X + V of what moves; of everything if nothing does."""
    moving: list[int] = []

    def moved(t: int, later: int) -> Count:
        labels = labels_in_motion(frames, t, later, config, 1 << 30)
        labels[resting(frames(t, t + 2), 0, config)] = 0
        moving.append(count(labels).tested)
        return count(labels)

    pairs = [(t, t + 1) for t in _spread(length - 1, config.pairs)]
    found = _pairs("motion", pairs, moved, config, "")
    if found.score is not None:
        return found
    everything = lambda t, later: count(labels_in_motion(frames, t, later, config))  # noqa: E731
    return _pairs("motion", pairs, everything, config, "no flow that leads to a known depth")


def _at_rest(length: int, frames: Frames, config: CheckConfig) -> Outcome:
    """Points whose composed flow over `gap` frames is next to nothing."""
    gap = min(config.gap, length - 1)
    if gap < 2:
        return Outcome(name="at rest", score=None, note="too few frames")

    def rested(t: int, later: int) -> Count:
        part = frames(t, later + 1)
        assert part.scene_flow is not None and part.flow_valid is not None and part.cameras is not None
        k, poses = part.cameras.intrinsics.double(), part.cameras.cam2world.double()
        flow, valid = sceneflow.compose(
            part.points.double(), part.scene_flow.double(), part.flow_valid, k, poses, later - t
        )
        depth = pointmap.scene_depth(part.select([0]))[0]
        chosen = _grid(valid[0] & (flow[0].norm(dim=-1) < config.rest * depth), config.pixels)
        return count(compare(part.points[0], chosen, part.select([later - t]), config.tolerance))

    pairs = [(t, t + gap) for t in _spread(length - gap, max(config.pairs // 4, 1))]
    return _pairs("at rest", pairs, rested, config, "no points that rest for long enough")


def _tracks(length: int, frames: Frames, tracks: PointTracks, config: CheckConfig) -> Outcome:
    def on_surface(t: int, _: int) -> Count:
        return count(compare(tracks.points[t], tracks.known[t] & tracks.visible[t], frames(t, t + 1), config.tolerance))

    few = replace(config, least_tested=min(config.least_tested, 20))
    pairs = [(t, t) for t in _spread(length, config.pairs)]
    return _pairs("tracks", pairs, on_surface, few, "no visible tracks on a known depth")


def _images(length: int, frames: Frames, config: CheckConfig, has_depth: bool) -> Outcome:
    """Optical flow against points and their flow; where there are none, against the cameras' epipolar lines."""
    worst, where, shares, inverse = 1.0, None, [], []
    for t in _spread(length - 1, config.pairs):
        if has_depth:
            near = epipolar.point_motion(frames(t, t + 2))[1]
            share, found = float(near.double().mean()) if len(near) else 0.0, len(near)
        else:
            share, backwards, found = epipolar.image_motion(frames(t, t + 2))
            inverse.append(backwards)
        if found >= config.least_tested:
            shares.append(share)
            worst, where = (share, (t, t + 1)) if share < worst or where is None else (worst, where)
    if where is None:
        return Outcome(name="images", score=None, note="no two frames with enough texture to follow")
    note = f"{100 * sum(inverse) / len(inverse):.1f} % for the inverse motion" if inverse else ""
    return Outcome(name="images", score=worst, mean=sum(shares) / len(shares), worst=where, note=note)
