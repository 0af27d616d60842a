"""What a dataset adapter hands over, and the convention all adapters follow.

An adapter is a module of `data/adapters`, listed in `adapters.ADAPTERS`. It defines

    sequences(root: Path) -> Iterator[Sequence]        cheap: names and lengths, no frame is decoded
    convert(root: Path) -> Iterator[Scene4D]           = clips.scenes(sequences(root)): the sequences, whole

A `Sequence` reads a range of its frames on demand, so that conversion can be parallel, can stop and resume, and never
holds a long sequence in memory. Its `read` is picklable: `functools.partial` of a function of the module. A module with
`convert` alone still works: its scenes are read one after the other in one process.

What `read` returns is a Scene4D in the world of ITS first frame (`assemble.scene_from_depth` does that), metric where
the dataset is, flow in the world, `flow_valid` false in the last frame read. `provenance.settings` says what else is
known of the sequence: "dataset", "split", "static" (nothing moves), "synthetic", "caption". Dense tracks are the extras
"tracks" [T, H, W, 3] and "visible_from_reference" [T, H, W] (with settings "reference"); sparse ones need a `Clip`.

A file that cannot be decoded is a `DamagedFile`, raised by `with reading(path):`. The caller reports it by name and
goes on with the next clip; nothing takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.geometry import pose
from worldline.scene import Scene4D


class DamagedFile(ValueError):
    """A file of a dataset cannot be used; the clips that need it are left out.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return DamagedFile, (self.path, self.reason)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever goes wrong while a file is decoded becomes a DamagedFile that names it.

    Raises:
        DamagedFile: the block failed; a DamagedFile of its own passes as it is, as do a full memory and interruptions.
    """
    try:
        yield
    except (DamagedFile, MemoryError):
        raise
    except Exception as error:  # every decoder has its own ways to say that bytes are wrong
        missing = isinstance(error, FileNotFoundError)
        raise DamagedFile(path, "the file is missing" if missing else _sentence(error, path)) from error


def _sentence(error: Exception, path: Path | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{path}: ").removeprefix(f"{path} ")


@dataclass(frozen=True, kw_only=True)
class PointTracks:
    """Some surface points followed through a clip.

    Attributes:
        points: [T, N, 3] world positions; 0 where not known.
        known: [T, N] whether the position is known (in view or not).
        visible: [T, N] whether the camera of that frame sees the point.
    """

    points: Float[Tensor, "T N 3"]
    known: Bool[Tensor, "T N"]
    visible: Bool[Tensor, "T N"]

    def __post_init__(self) -> None:
        """Refuse shapes that do not agree."""
        shapes = {tuple(self.points.shape[:2]), tuple(self.known.shape), tuple(self.visible.shape)}
        if len(shapes) != 1:
            raise ValueError(f"Point tracks disagree about times and points: {sorted(shapes)}.")

    def select(self, index: slice | list[int]) -> PointTracks:
        """The tracks at the chosen times, in the same world."""
        return PointTracks(points=self.points[index], known=self.known[index], visible=self.visible[index])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A scene with what a Scene4D cannot hold.

    Attributes:
        scene: the frames with their truth.
        tracks: sparse tracks in the world of the scene, None where there are none.
    """

    scene: Scene4D
    tracks: PointTracks | None = None

    def __post_init__(self) -> None:
        """Refuse tracks of another length."""
        if self.tracks is not None and len(self.tracks.points) != len(self.scene):
            raise ValueError(f"Tracks of {len(self.tracks.points)} times do not fit {len(self.scene)} frames.")

    def select(self, index: slice) -> Clip:
        """Consecutive frames, in the same world; the flow out of the last of them is dropped."""
        return Clip(scene=cut(self.scene, index), tracks=None if self.tracks is None else self.tracks.select(index))


def cut(scene: Scene4D, index: slice) -> Scene4D:
    """Consecutive frames of a scene, in the same world, without the flow that leads out of them."""
    part = scene.select(index)
    if part.scene_flow is None or part.flow_valid is None or not len(part):
        return part
    flow, flow_valid = part.scene_flow.clone(), part.flow_valid.clone()
    flow[-1], flow_valid[-1] = 0, False
    return replace(part, scene_flow=flow, flow_valid=flow_valid)


WORLD_POINTS = ("tracks",)
WORLD_DIRECTIONS = ("normals",)
"""Extras that are positions or directions in the world."""


def rebased(clip: Clip) -> Clip:
    """The same clip in the world of its first camera; unchanged without cameras."""
    scene = clip.scene
    if scene.cameras is None:
        return clip
    first = pose.inverse(scene.cameras.cam2world[0].double())
    poses = first @ scene.cameras.cam2world.double()
    move = lambda points: pose.transform(first, points.double()).float()  # noqa: E731
    turn = lambda vectors: pose.rotate(first[:3, :3], vectors.double()).float()  # noqa: E731
    extras = {
        name: move(values) if name in WORLD_POINTS else turn(values) if name in WORLD_DIRECTIONS else values
        for name, values in scene.extras.items()
    }
    moved = replace(
        scene,
        points=move(scene.points) * scene.valid[..., None],
        cameras=replace(scene.cameras, intrinsics=scene.cameras.intrinsics.double(), cam2world=poses),
        scene_flow=None if scene.scene_flow is None else turn(scene.scene_flow),
        extras=extras,
    )
    tracks = clip.tracks
    if tracks is not None:
        tracks = replace(tracks, points=move(tracks.points) * tracks.known[..., None])
    return Clip(scene=moved, tracks=tracks)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One sequence of a dataset, not read yet.

    Attributes:
        name: unique in the dataset, parts separated by "/"; what people call it ("Scene01/clone/Camera_0").
        frames: how many there are.
        read: (first frame, one past the last) -> those frames, in the world of the first of them. Raises DamagedFile.
        cuttable: whether a range may be asked for that is not the whole.
        facts: what is known before reading, as in `provenance.settings`.
    """

    name: str
    frames: int
    read: Callable[[int, int], Scene4D | Clip]
    cuttable: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    def whole(self) -> Scene4D:
        """All frames.

        Raises:
            DamagedFile: a file cannot be decoded.
        """
        found = self.read(0, self.frames)
        return found.scene if isinstance(found, Clip) else found


def scenes(sequences: Iterable[Sequence]) -> Iterator[Scene4D]:
    """Every sequence as one scene; the first damaged file stops it (convert one by one to go on).

    Raises:
        DamagedFile: a file cannot be decoded.
    """
    for sequence in sequences:
        yield sequence.whole()


def ranges(frames: int, longest: int | None, shortest: int = 2) -> list[tuple[int, int]]:
    """Consecutive frame ranges of at most `longest` frames, as even as possible; all frames when it is None.

    Raises:
        ValueError: fewer than `shortest` frames are allowed.
    """
    if longest is not None and longest < shortest:
        raise ValueError(f"Clips need {shortest} frames or more, got at most {longest}.")
    if longest is None or frames <= longest:
        return [(0, frames)] if frames else []
    count = -(-frames // longest)
    edges = torch.linspace(0, frames, count + 1).round().long().tolist()
    return list(zip(edges[:-1], edges[1:], strict=True))
