"""A prediction and its truth made comparable: same frames, same world, same pixels; holes of the prediction are misses.

Whatever a protocol says, three rules hold. World means the first camera of the sequence, so a prediction with cameras
may live in any rigid frame. A pixel the prediction calls invalid (or that is not finite) takes no part in any fit and
is scored as zero: depth 0, a point at the world's origin, no motion. Frames are paired by index when the counts agree,
else by time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldline.evaluation import trajectory
from worldline.evaluation.gauge import DepthGauge, align_depth
from worldline.geometry import camera, pointmap, pose, sceneflow
from worldline.scene import Scene4D

Resize = Literal["nearest", "bilinear", "bilinear_corners", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Which of the common frames a protocol scores.

    Attributes:
        count: the first so many; None is all.
        count_with_flow: the first so many when both sides have scene flow (None: as `count`).
        random: take `count` frames at random (seed 0, in order) instead of the first.
    """

    count: int | None = None
    count_with_flow: int | None = None
    random: bool = False

    def choose(self, available: int, flow: bool) -> list[int]:
        """Indices of the frames to score."""
        limit = self.count_with_flow if flow and self.count_with_flow is not None else self.count
        if limit is None or limit >= available:
            return list(range(available))
        if not self.random:
            return list(range(limit))
        order = torch.randperm(available, generator=torch.Generator().manual_seed(0))
        return sorted(order[:limit].tolist())


def match_frames(prediction: Scene4D, truth: Scene4D) -> tuple[Scene4D, Scene4D]:
    """Both at their common moments: by index when the counts agree, else by time within 0.01 s.

    Raises ValueError when no moment is common.
    """
    if len(prediction) == len(truth):
        return prediction, truth
    ours, theirs = trajectory.associate(prediction.video.timestamps, truth.video.timestamps)
    if len(ours) == 0:
        raise ValueError(
            f"The prediction has {len(prediction)} frames, the truth {len(truth)}, and no times agree within 0.01 s: "
            "reconstruct the same frames."
        )
    return prediction.select(ours.tolist()), truth.select(theirs.tolist())


def in_first_camera(scene: Scene4D) -> Scene4D:
    """The scene in the world of its first camera; unchanged without cameras."""
    if scene.cameras is None:
        return scene
    first = pose.inverse(scene.cameras.cam2world[:1].double())
    turn = first[0, :3, :3]
    extras = dict(scene.extras)
    if "tracks" in extras:
        extras["tracks"] = pose.transform(first[0], extras["tracks"])
    return replace(
        scene,
        extras=extras,
        points=pose.transform(first[0], scene.points),
        scene_flow=None if scene.scene_flow is None else pose.rotate(turn, scene.scene_flow),
        cameras=replace(scene.cameras, cam2world=first @ scene.cameras.cam2world.double()),
    )


def resize_map(values: Float[Tensor, "T H W C"], size: tuple[int, int], how: Resize) -> Float[Tensor, "T h w C"]:
    """Per-pixel values at another size; bicubic and bilinear mix values across depth edges, as published scripts do."""
    if tuple(values.shape[1:3]) == size:
        return values
    planes = values.permute(0, 3, 1, 2)
    if how == "nearest":
        resized = functional.interpolate(planes, size, mode="nearest-exact")
    else:
        mode = "bicubic" if how == "bicubic" else "bilinear"
        resized = functional.interpolate(planes, size, mode=mode, align_corners=how == "bilinear_corners")
    return resized.permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Prediction and truth of the same frames, each in the world of its first camera; build with `pair_up`.

    Attributes:
        prediction: at its own size.
        truth: at its own size, which everything below has.
        resize: how predicted maps are brought to the truth's size.
        placement: [T, 4, 4] cameras that put the predicted camera-frame points into the world instead of the estimated
            ones (the truth's, to take pose errors out); None keeps the prediction's world.
    """

    prediction: Scene4D
    truth: Scene4D
    resize: Resize
    placement: Float[Tensor, "T 4 4"] | None = None
    _known: dict[Hashable, Any] = field(init=False, default_factory=dict, compare=False)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once per key: several parts share a fit."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    @cached_property
    def mask(self) -> Bool[Tensor, "T H W"]:
        """Pixels with truth."""
        return self.truth.valid & self.truth.points.isfinite().all(-1)

    @cached_property
    def seen(self) -> Bool[Tensor, "T H W"]:
        """Pixels with a prediction."""
        valid = self.prediction.valid & self.prediction.points.isfinite().all(-1)
        return resize_map(valid[..., None].float(), self.truth.size, "nearest")[..., 0] > 0.5

    @cached_property
    def true_poses(self) -> Float[Tensor, "T 4 4"]:
        """True cameras. Raises ValueError when the truth has none."""
        if self.truth.cameras is None:
            raise ValueError("The truth of this sequence has no cameras.")
        return self.truth.cameras.cam2world.double()

    @cached_property
    def poses(self) -> Float[Tensor, "T 4 4"]:
        """Estimated cameras. Raises ValueError when the prediction has none."""
        if self.prediction.cameras is None:
            raise ValueError("The prediction has no cameras.")
        return self.prediction.cameras.cam2world.double()

    @cached_property
    def true_depth(self) -> Float[Tensor, "T H W"]:
        """True z-depth."""
        return pointmap.depth_of(self.truth_points, self.true_poses)

    @cached_property
    def truth_points(self) -> Float[Tensor, "T H W 3"]:
        """True world points in double precision; 0 where there is no truth."""
        points = self.truth.points.double()
        return torch.where(self.mask[..., None], points, torch.zeros_like(points))

    @cached_property
    def scene_size(self) -> float:
        """Median true depth: the unit of errors given in percent of the scene."""
        return float(self.true_depth[self.mask].median())

    def depth(self, how: Resize | None = None) -> Float[Tensor, "T H W"]:
        """Predicted z-depth in its own cameras at the truth's size; 0 in holes and behind the camera."""
        native = pointmap.depth_of(self.prediction.points.double(), self.poses)
        good = self.prediction.valid & native.isfinite() & (native > 0)
        native = torch.where(good, native, torch.zeros_like(native))
        resized = resize_map(native[..., None], self.truth.size, how or self.resize)[..., 0]
        return torch.where(self.seen, resized.clamp(min=0), torch.zeros_like(resized))

    @cached_property
    def depth_scale(self) -> float:
        """The least-absolute-deviation scale of the predicted depth (scale_l1, whole sequence)."""
        depth = self.depth()
        return align_depth(depth, self.true_depth, self.mask & (depth > 0), DepthGauge(estimator="scale_l1"))[1]

    @cached_property
    def camera_points(self) -> Float[Tensor, "T H W 3"]:
        """Predicted points in their own cameras. Raises ValueError without cameras."""
        return self._resized(pointmap.to_camera(self.prediction.points.double(), self.poses))

    @cached_property
    def world_points(self) -> Float[Tensor, "T H W 3"]:
        """Predicted points in the predicted world."""
        return self._resized(self.prediction.points.double())

    @cached_property
    def flow(self) -> Float[Tensor, "T H W 3"]:
        """Predicted world flow; 0 where the prediction has none. Raises ValueError when it has no flow at all."""
        flow, valid = self._predicted_flow()
        return self._resized(torch.where(valid[..., None], flow, torch.zeros_like(flow)))

    @cached_property
    def camera_flow(self) -> Float[Tensor, "T H W 3"]:
        """Predicted x'(camera t+1) - x(camera t), which includes ego-motion; needs cameras and flow."""
        flow, valid = self._predicted_flow()
        flow = torch.where(valid[..., None], flow, torch.zeros_like(flow))
        following = torch.cat([self.poses[1:], self.poses[-1:]])
        return self._resized(
            sceneflow.world_to_camera_flow(self.prediction.points.double(), flow, self.poses, following)
        )

    @cached_property
    def true_camera_flow(self) -> Float[Tensor, "T H W 3"]:
        """True x'(camera t+1) - x(camera t)."""
        assert self.truth.scene_flow is not None
        following = torch.cat([self.true_poses[1:], self.true_poses[-1:]])
        points, flow = self.truth.points.double(), self.truth.scene_flow.double()
        return sceneflow.world_to_camera_flow(points, flow, self.true_poses, following)

    @property
    def flow_mask(self) -> Bool[Tensor, "T H W"]:
        """Pixels with true flow; never of the last frame."""
        if self.truth.flow_valid is None:
            raise ValueError("The truth of this sequence has no scene flow.")
        mask = self.truth.flow_valid & self.mask
        return torch.cat([mask[:-1], torch.zeros_like(mask[-1:])])

    def _predicted_flow(self) -> tuple[Tensor, Tensor]:
        scene = self.prediction
        if scene.scene_flow is None or scene.flow_valid is None:
            raise ValueError("The prediction has no scene flow.")
        return scene.scene_flow.double(), scene.flow_valid & scene.scene_flow.isfinite().all(-1)

    def _resized(self, values: Tensor) -> Tensor:
        return resize_map(values.nan_to_num(0.0, 0.0, 0.0), self.truth.size, self.resize)


def pair_up(
    prediction: Scene4D,
    truth: Scene4D,
    frames: Frames = Frames(),
    resize: Resize = "nearest",
    placement: Literal["estimated", "truth"] = "estimated",
) -> Pair:
    """Match frames, choose the protocol's, put both into the world of their first camera.

    With placement "truth" predicted points are put into the world by the true cameras. Raises ValueError when frames
    cannot be matched or cameras to be replaced are missing.
    """
    prediction, truth = match_frames(prediction, truth)
    flow = prediction.scene_flow is not None and truth.scene_flow is not None
    index = frames.choose(len(truth), flow)
    prediction, truth = (in_first_camera(scene.select(index)) for scene in (prediction, truth))
    if placement == "truth" and (prediction.cameras is None or truth.cameras is None):
        raise ValueError("True poses can replace estimated ones only where both prediction and truth have cameras.")
    cameras = truth.cameras if placement == "truth" else None
    return Pair(
        prediction=prediction,
        truth=truth,
        resize=resize,
        placement=None if cameras is None else cameras.cam2world.double(),
    )


def predicted_focal_px(pair: Pair) -> Float[Tensor, " T"]:
    """Estimated focal lengths in pixels of the truth's size. Raises ValueError when there are none."""
    cameras = pair.prediction.cameras
    if cameras is None or not bool(cameras.intrinsics.isfinite().all()):
        raise ValueError("The prediction has no intrinsics.")
    return replace(cameras, intrinsics=camera.resize(cameras.intrinsics, cameras.size, pair.truth.size)).focal_px
