"""Pairs of synthetic pictures with exact optical flow, and the hints that the network is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldline.data.synthetic import RenderConfig, SensorConfig, SyntheticBatch, at_frames, render_specs, sample_scene
from worldline.flow.dis import Flow
from worldline.geometry import camera, pose

NEAREST = 1e-3  # metres before the second camera


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures and the flow between them, in pixels.

    Attributes:
        source: [B, 3, H, W] in [0, 1], in steps of 1/255.
        target: [B, 3, H, W], some frames later.
        flow: [B, 2, H, W] (x, y) from source to target; exact, also where the target does not see the point.
        known: [B, H, W] where there is a flow: not behind the second camera.
        moving: [B, H, W] what moves by itself.
        hint: [B, 2, H, W] an estimate of `flow` that comes from the pictures alone; None where there is none.
        back: [B, 2, H, W] the same from target to source.
    """

    source: Float[Tensor, "B 3 H W"]
    target: Float[Tensor, "B 3 H W"]
    flow: Float[Tensor, "B 2 H W"]
    known: Bool[Tensor, "B H W"]
    moving: Bool[Tensor, "B H W"]
    hint: Float[Tensor, "B 2 H W"] | None
    back: Float[Tensor, "B 2 H W"] | None

    def mirrored(self, turn: int) -> Pairs:
        """The same pairs as seen in a mirror: 1 left and right, 2 up and down, 3 both; 0 as they are."""
        axes = [axis for bit, axis in ((1, -1), (2, -2)) if turn & bit]
        signs = torch.tensor([-1.0 if turn & 1 else 1.0, -1.0 if turn & 2 else 1.0], device=self.flow.device)

        def flows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.flip(axes) * signs[:, None, None]

        pictures: dict[str, Any] = {
            name: getattr(self, name).flip(axes) for name in ("source", "target", "known", "moving")
        }
        pictures |= {name: flows(getattr(self, name)) for name in ("flow", "hint", "back")}
        return replace(self, **pictures)


def rendered_pairs(
    seeds: Sequence[int],
    gap: int,
    size: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    config: RenderConfig | None = None,
) -> SyntheticBatch:
    """Scenes of one pair each, `gap` frames apart; `scene_flow` of frame 0 runs to the second picture."""
    specs = [at_frames(sample_scene(seed, frames=gap + 1), (0, gap)) for seed in seeds]
    config = config or RenderConfig(sensor=SensorConfig())
    if config.sensor is not None:  # the shutter is open for a share of one frame, not of the gap
        config = replace(config, sensor=replace(config.sensor, shutter=config.sensor.shutter / gap))
    return render_specs(specs, size=size, device=device, config=config)


def optical_flow(scenes: SyntheticBatch) -> tuple[Float[Tensor, "B H W 2"], Bool[Tensor, "B H W"]]:
    """Exact flow in pixels from frame 0 to frame 1, and where it is known.

    Surfaces: project(X + V) - p. Sky: the pixel's ray turned by the second camera, as for a point infinitely far.
    """
    size = (scenes.depth.shape[-2], scenes.depth.shape[-1])
    to_second = pose.inverse(scenes.cam2world[:, 1])
    arrived = pose.transform(to_second, scenes.points[:, 0] + scenes.scene_flow[:, 0])
    turn = to_second[:, :3, :3] @ scenes.cam2world[:, 0, :3, :3]
    turned = pose.rotate(turn, camera.camera_rays(scenes.intrinsics[:, 0], size))
    there = torch.where(scenes.sky[:, 0, ..., None], turned, arrived)
    ahead = there[..., 2] > NEAREST
    landed = camera.project(torch.where(ahead[..., None], there, torch.ones_like(there)), scenes.intrinsics[:, 1])
    return landed - camera.pixel_grid(size, landed.dtype, landed.device), ahead


def hints(source: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"], flow: Flow) -> Float[Tensor, "B 2 H W"]:
    """What a weight-free flow says of each pair, on the device of the pictures."""
    grey = [_grey(pictures) for pictures in (source, target)]
    found = np.stack([flow(one, two) for one, two in zip(*grey, strict=True)])
    return torch.from_numpy(found).permute(0, 3, 1, 2).to(source)


def _grey(pictures: Tensor) -> np.ndarray:
    weights = torch.tensor([0.299, 0.587, 0.114], device=pictures.device)
    luma = torch.einsum("bchw,c->bhw", pictures.float(), weights)
    return (luma * 255).round().clamp(0, 255).byte().cpu().numpy()


def make_pairs(
    seeds: Sequence[int],
    gap: int,
    size: tuple[int, int],
    *,
    hint: Flow | None = None,
    device: torch.device | str = "cpu",
    config: RenderConfig | None = None,
) -> Pairs:
    """Render pairs, in the 256 steps of a recorded picture; with `hint`, what it says in both directions."""
    scenes = rendered_pairs(seeds, gap, size, device=device, config=config)
    flow, known = optical_flow(scenes)
    source, target = ((scenes.rgb[:, t].permute(0, 3, 1, 2) * 255).round().contiguous() / 255 for t in (0, 1))
    return Pairs(
        source=source,
        target=target,
        flow=flow.permute(0, 3, 1, 2).contiguous(),
        known=known,
        moving=scenes.dynamic[:, 0],
        hint=None if hint is None else hints(source, target, hint),
        back=None if hint is None else hints(target, source, hint),
    )
