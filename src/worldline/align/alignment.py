"""The result of an alignment: cameras now, full-resolution fields when asked for, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.align.config import AlignConfig
from worldline.align.fuse import FrameFields, Fusion, fuse_frames, moved_pixels, rigid_flow
from worldline.align.observation import Observation
from worldline.align.state import State
from worldline.align.synchronize import masked_quantile
from worldline.geometry.pose import Similarity
from worldline.scene import Cameras, Provenance, Scale, Scene4D, Video

_PIXELS_AT_ONCE = 100_000


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Windows joined in one world, with a camera per frame.

    Per-pixel fields are computed from the observations on first use; `frames()` yields them one by one in bounded
    memory for long videos.

    Attributes:
        cameras: one per frame; world = first camera (or the world of known poses).
        windows: [G] similarities window -> world.
        kept: [G] windows that were used.
        report: JSON-able: objective per term, rejected windows, drift, what could not be determined, seconds.
        scale: "metric" when a prior made it so.
        observations: the windows themselves, any sequence (it may read from disk).
        rays: [H, W, 3] or [T, H, W, 3] camera rays with z = 1 (distortion included).
        config: settings.
        fusion: how the depth of a pixel follows from its windows.
        reference_weight: summed confidence of a well-seen pixel.
        dynamic_threshold: relative motion above which a pixel counts as moving.
        window_frames: frames of each window.
        optical_flow: [T-1, H, W, 2] what solve was given, or None; tells moving pixels where no scene flow does.
        state: every variable where the solver left it, in the solver's own world; depth and focal are the same.
    """

    cameras: Cameras
    windows: Similarity
    kept: Bool[Tensor, " G"]
    report: dict[str, Any]
    scale: Scale = "relative"
    observations: Sequence[Observation]
    rays: Float[Tensor, "*T H W 3"]
    config: AlignConfig
    fusion: Fusion
    reference_weight: float
    dynamic_threshold: float
    window_frames: tuple[tuple[int, ...], ...] = field(repr=False)
    state: State = field(repr=False)
    optical_flow: Float[Tensor, "S H W 2"] | None = field(default=None, repr=False)

    def frames(self) -> Iterator[FrameFields]:
        """Fields of every frame in order; each window is read once and dropped after its last frame."""
        order: dict[int, list[int]] = {}
        for k, frames in enumerate(self.window_frames):
            for frame in frames if bool(self.kept[k]) else ():
                order.setdefault(frame, []).append(k)
        loaded: dict[int, Observation] = {}
        T, most = len(self.cameras), max(1, _PIXELS_AT_ONCE // (self.cameras.size[0] * self.cameras.size[1]))
        n = 0
        while n < T:
            names = order.get(n, [])
            last = n + 1
            while last < T and last - n < most and order.get(last, []) == names:
                last += 1
            for k in names:
                if k not in loaded:
                    loaded[k] = self.observations[k]
            several = self._fuse(list(range(n, last)), [(k, loaded[k]) for k in names])
            yield from (several.frame(i) for i in range(last - n))
            loaded = {k: value for k, value in loaded.items() if self.window_frames[k][-1] >= last}
            n = last

    def _fuse(self, frames: list[int], views: list[tuple[int, Observation]]) -> FrameFields:
        """Fields of frames that the same windows see."""
        ray = self.rays[frames] if self.rays.ndim == 4 else self.rays.expand(len(frames), *self.rays.shape)
        if not views:
            return self._empty(ray)
        world, weight, flow, flow_weight, disparity = [], [], [], [], []
        has_flow = any(o.scene_flow is not None for _, o in views)
        for k, o in views:
            pick = [o.frames.index(n) for n in frames]
            i = slice(pick[0], pick[-1] + 1) if pick[-1] - pick[0] == len(pick) - 1 else pick
            s, device = self.windows, o.points.device
            similarity = Similarity(
                scale=s.scale[k].to(device), rotation=s.rotation[k].to(device), translation=s.translation[k].to(device)
            )
            w = o.confidence[i].float()
            world.append(similarity.apply(torch.where((w > 0)[..., None], o.points[i].float(), 0.0)))
            weight.append(w)
            disparity.append(None if o.disparity is None else o.disparity[i].float())
            if has_flow:
                asked = w * self._flow_mask(o, i, frames)
                value = o.scene_flow[i].float() if o.scene_flow is not None else torch.zeros_like(world[-1])
                flow.append(similarity.apply_vector(torch.where((asked > 0)[..., None], value, 0.0)))
                flow_weight.append(asked)
        ray, weights, names = ray.to(world[0]), torch.stack(weight), [k for k, _ in views]
        on_rays = self.config.points_on_rays
        fields = fuse_frames(
            torch.stack(world), weights, torch.stack(flow) if has_flow else None,
            torch.stack(flow_weight) if has_flow else None, self.cameras.cam2world[frames], ray, self.reference_weight,
            (lambda q: self.fusion.depth(names, q, weights, disparity, ray)) if on_rays else None,
        )  # fmt: skip
        return fields.cpu()

    def _flow_mask(self, o: Observation, i: slice | list[int], frames: list[int]) -> Tensor:
        if o.scene_flow is None:
            return torch.zeros_like(o.confidence[i])
        mask = torch.ones_like(o.confidence[i]) if o.flow_valid is None else o.flow_valid[i].to(o.confidence)
        if frames[-1] == len(self.cameras) - 1:
            mask = mask.clone()
            mask[-1] = 0
        return mask

    def _empty(self, ray: Tensor) -> FrameFields:
        """Frames that no window speaks about: nothing is valid."""
        ray = ray.float()
        nothing = torch.zeros(ray.shape[:3])
        flow = any(o is not None for o in (self.observations[0].scene_flow,))
        return FrameFields(
            points=ray, depth=torch.ones_like(nothing), valid=nothing.bool(), confidence=nothing,
            scene_flow=torch.zeros_like(ray) if flow else None, flow_valid=nothing.bool() if flow else None,
        )  # fmt: skip

    @cached_property
    def _all(self) -> dict[str, Tensor | None]:
        columns: dict[str, list[Any]] = {}
        for fields in self.frames():
            for name in ("points", "depth", "valid", "confidence", "scene_flow", "flow_valid"):
                columns.setdefault(name, []).append(getattr(fields, name))
        return {k: torch.stack(v) if all(x is not None for x in v) else None for k, v in columns.items()}

    def _get(self, name: str) -> Tensor:
        value = self._all[name]
        if value is None:
            raise ValueError(f"No window observed {name}.")
        return value

    @property
    def points(self) -> Float[Tensor, "T H W 3"]:
        """World points."""
        return self._get("points")

    @property
    def depth(self) -> Float[Tensor, "T H W"]:
        """z-depth in each frame's camera."""
        return self._get("depth")

    @property
    def valid(self) -> Bool[Tensor, "T H W"]:
        """Where points mean something."""
        return self._get("valid")

    @property
    def confidence(self) -> Float[Tensor, "T H W"]:
        """In [0, 1]: weight of the windows and how well they agree."""
        return self._get("confidence")

    @property
    def scene_flow(self) -> Float[Tensor, "T H W 3"] | None:
        """World displacement to the next frame, or None where no window observed any."""
        return self._all["scene_flow"]

    @property
    def flow_valid(self) -> Bool[Tensor, "T H W"] | None:
        """Where scene_flow means something."""
        return self._all["flow_valid"]

    @cached_property
    def dynamic(self) -> Bool[Tensor, "T H W"]:
        """Pixels on moving things: by their scene flow, else because optical flow is not what a rigid world would
        give, else because they vacate what a neighbouring frame sees.
        """
        threshold = self.dynamic_threshold
        if self.scene_flow is not None and self.flow_valid is not None:
            moving = (self.scene_flow.norm(dim=-1) > threshold * self.depth) & self.flow_valid
            if len(moving) > 1:
                moving[-1] = self._vacates(len(moving) - 1, len(moving) - 2)
            return moving
        T = len(self.cameras)
        if self.optical_flow is not None and T > 1:
            return self._against_flow(self.optical_flow)
        out = torch.zeros_like(self.valid)
        for n in range(T):
            for other in (n - 1, n + 1):
                if 0 <= other < T:
                    out[n] |= self._vacates(n, other)
        return out

    def _against_flow(self, flow: Tensor) -> Tensor:
        """Pixels whose optical flow differs from that of a resting point, by its noise and at least 1/4 pixel."""
        rigid = rigid_flow(self.points[:-1], self.cameras)
        gap = (rigid - flow.to(rigid)).norm(dim=-1)
        known = torch.isfinite(gap) & self.valid[:-1]
        level = float(masked_quantile(gap.flatten(), known.flatten(), 0.3))  # most pixels rest
        moving = known & (gap > max(6 * level, 0.25))
        return torch.cat([moving, self._vacates(len(self.cameras) - 1, len(self.cameras) - 2)[None]])

    def _vacates(self, n: int, other: int) -> Tensor:
        return moved_pixels(
            self.points[n], self.valid[n], self.depth[other], self.valid[other],
            self.cameras.cam2world[other], self.cameras.intrinsics[other], max(3 * self.dynamic_threshold, 0.05),
        )  # fmt: skip

    def scene(self, video: Video, provenance: Provenance) -> Scene4D:
        """The scene of this video; the report joins the provenance.

        Raises:
            ValueError: the video has another length or size than the observations.
        """
        if len(video) != len(self.cameras) or video.size != self.cameras.size:
            raise ValueError(
                f"The video has {len(video)} frames of {video.size}, "
                f"the alignment {len(self.cameras)} of {self.cameras.size}."
            )
        from dataclasses import replace

        return Scene4D(
            video=video,
            points=self.points,
            valid=self.valid,
            cameras=self.cameras,
            scene_flow=self.scene_flow,
            flow_valid=self.flow_valid,
            confidence=self.confidence,
            scale=self.scale,
            provenance=replace(provenance, report={**provenance.report, **self.report}),
        )
