"""Scene descriptions as the tables of numbers the ray-caster reads.

Everything is computed in float64 and rounded once to float32. The world of a clip is its first camera.
Slots 0, 1, 2 are the background (floor or ground, walls, ceiling); then come the ellipsoids, boxes and cones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldline.data.synthetic.bodies import Part
from worldline.data.synthetic.motion import affine, inverse
from worldline.data.synthetic.sampling import SceneSpec
from worldline.data.synthetic.shapes import KINDS
from worldline.data.synthetic.textures import PATTERNS

BACKGROUND_SLOTS = 3
ROUND_SLOTS = 64  # few table shapes, so that compiled code is rarely compiled again
KIND_CODES = {"ground": 0, "room": 1, "terrain": 2, "ellipsoid": 3, "box": 4, "cone": 5}

# Columns of Tables.fixed, per slot.
TEXTURE = slice(0, 12)  # 3x4 map from object to texture coordinates
COLOURS = slice(12, 21)
WEIGHTS = slice(21, 21 + len(PATTERNS))
(PERIOD, WARP, DETAIL, PATCHES, FREQUENCY, KIND, TAPER, INSTANCE, MOVING) = range(27, 36)
FIXED = 36
# Rows of Tables.frame, per frame.
FOCAL, CENTRE_X, CENTRE_Y = 0, 1, 2
TO_WORLD = slice(3, 15)
TO_STAGE = slice(15, 24)
LIGHT = slice(24, 27)
# Rows of Tables.scene.
LIGHT_COLOUR, ABOVE, BELOW, ZENITH, HORIZON = (slice(i, i + 3) for i in range(0, 15, 3))
REACH, CLOUDS, HAZE, EXPOSURE = range(15, 19)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Scenes with one kind of background, ready to render.

    Attributes:
        background: "room", "ground" or "terrain".
        counts: number of ellipsoids, boxes and cones (the greatest of the batch; unused slots are never hit).
        to_object: [K, 12, B, T, 1, 1] camera to object, row-major 3x4.
        taper: [K, B, 1, 1, 1] of cones.
        light: [K, 3, B, T, 1, 1] the light in object coordinates.
        timed: [24, B, T, R] camera to object, then camera point to world scene flow; R is K rounded up.
        fixed: [FIXED, B, R] paint and identity.
        frame: [27, B, T, 1, 1] camera of each frame.
        scene: [19, B, 1, 1, 1] light and air.
        waves: [4, N, B, 1, 1, 1] terrain.
        far: depth beyond which there is sky.
        regions: [K, T, 4] rows and columns (top, bottom, left, right) a slot can be seen in, for a single scene.
    """

    background: str
    counts: tuple[int, int, int]
    to_object: Tensor
    taper: Tensor
    light: Tensor
    timed: Tensor
    fixed: Tensor
    frame: Tensor
    scene: Tensor
    waves: Tensor
    far: Tensor
    regions: np.ndarray

    def frames(self, start: int, stop: int) -> Tables:
        """The tables of some of the frames."""
        return replace(
            self,
            to_object=self.to_object[:, :, :, start:stop].contiguous(),
            light=self.light[:, :, :, start:stop].contiguous(),
            timed=self.timed[:, :, start:stop].contiguous(),
            frame=self.frame[:, :, start:stop].contiguous(),
            regions=self.regions[:, start:stop],
        )


def slots_of(spec: SceneSpec) -> tuple[list[Part], list[int], list[int], tuple[int, int, int]]:
    """Parts in slot order, the object id of each, indices of the moving ones and the counts of each kind."""
    listed = [(part, number + 1) for number, body in enumerate(spec.bodies) for part in body.parts]
    listed.sort(key=lambda entry: KINDS.index(entry[0].kind))
    parts, ids = [p for p, _ in listed], [i for _, i in listed]
    moving = [k for k, p in enumerate(parts) if len(p.pose) > 1 and bool(np.ptp(p.pose, axis=0).max() > 0)]
    counts = tuple(sum(p.kind == kind for p in parts) for kind in KINDS)
    return parts, ids, moving, counts  # type: ignore[return-value]


def background_pose(spec: SceneSpec) -> np.ndarray:
    """Pose [4, 4] of the background: the unit cube as the room, else the stage itself."""
    return affine(None, spec.stage.centre, spec.stage.half) if spec.stage.kind == "room" else np.eye(4)


def poses(spec: SceneSpec, parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Object-to-stage poses [K, T, 4, 4] and their inverses; still parts are inverted once."""
    stacks = [background_pose(spec)[None]] * BACKGROUND_SLOTS + [p.pose for p in parts]
    sizes = np.cumsum([len(s) for s in stacks])[:-1]
    joined = np.concatenate(stacks)
    shape = (spec.frames, 4, 4)
    both = [
        np.stack([np.broadcast_to(one, shape) for one in np.split(values, sizes)])
        for values in (joined, inverse(joined))
    ]
    return both[0], both[1]


def _fixed(spec: SceneSpec, parts: list[Part], ids: list[int], moving: list[int]) -> np.ndarray:
    room = spec.stage.kind == "room"
    size = spec.stage.half if room else np.ones(3)
    rows = [(spec.stage.kind, size, paint, 1.0, 0) for paint in spec.stage.paints]
    rows += [(p.kind, p.size, p.paint, p.taper, i) for p, i in zip(parts, ids, strict=True)]
    fixed = np.zeros((FIXED, len(rows)))
    for k, (kind, extent, paint, taper, identity) in enumerate(rows):
        texture = np.concatenate([paint.frequency * paint.rotation * extent, paint.offset[:, None]], 1)
        fixed[TEXTURE, k] = texture.ravel()
        fixed[COLOURS, k] = np.ravel(paint.colours)
        fixed[WEIGHTS, k] = paint.weights
        fixed[PERIOD:, k] = (
            paint.period,
            paint.warp,
            paint.detail,
            paint.patches,
            paint.frequency,
            KIND_CODES[kind],
            taper,
            identity,
            0.0,
        )
    fixed[MOVING, [BACKGROUND_SLOTS + k for k in moving]] = 1
    return fixed


def _regions(poses: np.ndarray, cam2stage: np.ndarray, focal_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bounding rectangles [K, T, 4] of the unit cubes; the whole image for what reaches behind the camera."""
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(8, 3)
    to_camera = inverse(cam2stage) @ poses  # [K, T, 4, 4]
    seen = to_camera[..., None, :3, :3] @ corners[:, :, None]
    seen = seen[..., 0] + to_camera[..., None, :3, 3]
    behind = (seen[..., 2] < 0.05).any(-1)
    uv = seen[..., :2] / np.maximum(seen[..., 2:], 0.05) * focal_px[:, None, None]
    uv = uv + (np.array([size[1], size[0]]) - 1) / 2
    low = np.floor(uv.min(-2)).astype(np.int64)
    high = np.ceil(uv.max(-2)).astype(np.int64) + 1
    limits = np.array(size)[::-1]
    low, high = np.clip(low, 0, limits), np.clip(high, 0, limits)
    low[behind], high[behind] = 0, limits
    return np.stack([low[..., 1], high[..., 1], low[..., 0], high[..., 0]], -1)


def _frame(spec: SceneSpec, size: tuple[int, int]) -> np.ndarray:
    frames = spec.frames
    rows = np.zeros((27, frames))
    rows[FOCAL] = spec.focal * size[1]
    rows[CENTRE_X], rows[CENTRE_Y] = (size[1] - 1) / 2, (size[0] - 1) / 2
    rows[TO_WORLD] = world_poses(spec)[:, :3].reshape(frames, 12).T
    rows[TO_STAGE] = spec.cam2world[:, :3, :3].reshape(frames, 9).T
    light = np.append(spec.lighting.position, 1)
    rows[LIGHT] = (inverse(spec.cam2world) @ light)[:, :3].T
    return rows


def world_poses(spec: SceneSpec) -> np.ndarray:
    """cam2world [T, 4, 4] in the world of the first camera; the first is exactly the identity."""
    poses = inverse(spec.cam2world[:1]) @ spec.cam2world
    poses[0] = np.eye(4)
    return poses


def _scene(spec: SceneSpec) -> np.ndarray:
    light = spec.lighting
    colours = np.concatenate([light.colour, light.above, light.below, light.zenith, light.horizon])
    return np.append(colours, [light.reach, light.clouds, light.haze, light.exposure])


def _flow_maps(spec: SceneSpec, poses: np.ndarray, inverses: np.ndarray) -> np.ndarray:
    """Maps [K, T, 3, 4] from a camera point to its world displacement until the next frame; zero at the last."""
    to_world = inverse(spec.cam2world[0])[:3, :3]
    step = np.zeros_like(poses)
    step[:, :-1] = poses[:, 1:] - poses[:, :-1]  # exactly zero for what stands still
    return to_world @ (step @ (inverses @ spec.cam2world))[..., :3, :]


def _tables_of(spec: SceneSpec, size: tuple[int, int]) -> dict[str, np.ndarray]:
    parts, ids, moving, _ = slots_of(spec)
    placed, inverses = poses(spec, parts)
    to_object = (inverses @ spec.cam2world)[..., :3, :].reshape(len(placed), spec.frames, 12)
    flow = _flow_maps(spec, placed, inverses).reshape(len(placed), spec.frames, 12)
    light = (inverses @ np.append(spec.lighting.position, 1))[..., :3]
    return {
        "to_object": to_object,
        "timed": np.concatenate([to_object, flow], -1),
        "light": light,
        "fixed": _fixed(spec, parts, ids, moving),
        "frame": _frame(spec, size),
        "scene": _scene(spec),
        "regions": _regions(placed, spec.cam2world, spec.focal * size[1], size),
    }


def _slot_map(own: tuple[int, int, int], most: tuple[int, int, int]) -> np.ndarray:
    """Where the slots of one scene go among the padded slots of the batch."""
    places, base = list(range(BACKGROUND_SLOTS)), BACKGROUND_SLOTS
    for count, limit in zip(own, most, strict=True):
        places += list(range(base, base + count))
        base += limit
    return np.array(places)


def pack(specs: Sequence[SceneSpec], size: tuple[int, int], device: torch.device) -> Tables:
    """Tables of scenes that share the kind of background and the number of frames."""
    own = [slots_of(spec)[3] for spec in specs]
    most = tuple(max(counts[i] for counts in own) for i in range(len(KINDS)))
    slots, frames, batch = BACKGROUND_SLOTS + sum(most), specs[0].frames, len(specs)
    to_object = np.zeros((slots, batch, frames, 12))
    to_object[..., [3, 7, 11]] = 2.0  # an unused slot: a ray of zero direction outside the primitive, never hit
    rows = -(-slots // ROUND_SLOTS) * ROUND_SLOTS
    timed, light = np.zeros((24, batch, frames, rows)), np.full((slots, 3, batch, frames), 4.0)  # and shades nothing
    fixed, frame, scene = np.zeros((FIXED, batch, rows)), np.zeros((27, batch, frames)), np.zeros((19, batch))
    regions = np.zeros((slots, frames, 4), dtype=np.int64)
    for b, spec in enumerate(specs):
        table, place = _tables_of(spec, size), _slot_map(own[b], most)  # type: ignore[arg-type]
        to_object[place, b] = table["to_object"]
        timed[:, b, :, place] = table["timed"].transpose(0, 2, 1)
        light[place, :, b] = table["light"].transpose(0, 2, 1)
        fixed[:, b, place] = table["fixed"]
        frame[:, b], scene[:, b] = table["frame"], table["scene"]
        regions[place] = table["regions"]
    waves = [np.zeros((4, 4)) if spec.stage.waves is None else spec.stage.waves.T for spec in specs]

    def tensor(values: np.ndarray, trailing: int) -> Tensor:
        values = np.ascontiguousarray(values, dtype=np.float32)
        return torch.from_numpy(values.reshape(values.shape + (1,) * trailing)).to(device)

    return Tables(
        background=specs[0].stage.kind,
        counts=most,  # type: ignore[arg-type]
        to_object=tensor(to_object.transpose(0, 3, 1, 2), 2),
        taper=tensor(fixed[TAPER, :, :slots].T, 3),
        light=tensor(light, 2),
        timed=tensor(timed, 0),
        fixed=tensor(fixed, 0),
        frame=tensor(frame, 2),
        scene=tensor(scene, 3),
        waves=tensor(np.stack(waves, -1), 3),
        far=tensor(np.array([spec.stage.far for spec in specs]), 3),
        regions=regions,
    )
