"""The U-Net as a regressor: one look at no noise gives all latents, judged by the maps they decode to (ours).

    x_T = 0,  v = U(x_T, video, T)          z^ = (sqrt(a_T) x_T - sqrt(1 - a_T) v) / s_T = -v / s_T
    loss = decoded points, disparity and rays against the truth, and a little |z^ - z|^2

It is the sampler's first step (a_T = 0) with its noise replaced by the mean of the noise, which is what a network too
small to sample from a distribution answers anyway; then nothing is spent on ignoring noise, and what is minimised is
what is measured. Decoders learn with the U-Net, so the latents are the autoencoder's only nearly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldline.diffusion import ddim
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.config import Modality
from worldline.systems.geo4d.networks import Geo4D
from worldline.systems.geo4d.objective import (
    NEAREST,
    Clips,
    conditions,
    flat,
    masked_mean,
    point_terms,
    some_frames,
    target_latents,
)

FURTHEST = 2.0
"""Distances count as this at most when disparities are weighed, in units of the points' pictures."""
SHORTEST_PATH = 0.02
"""Errors of the camera's place are relative to how far it went, but to no less than this, in the same unit."""
LEAST_SCALE = 0.05
"""A map is not aligned by less than this scale: it must not become right by being turned around."""


@dataclass(frozen=True, kw_only=True)
class DirectObjective:
    """Latents of all modalities in one deterministic step.

    Attributes:
        decoded: frames of each clip that are decoded and judged; all of them go through the U-Net.
        ray_reduction: rays are decoded from latents averaged over so many cells a side, as in inference.
    """

    decoded: int = 1
    ray_reduction: int = 2

    def __call__(self, model: Geo4D, clips: Clips, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Latent errors by the modality's name; terms of decoded points, disparity and rays."""
        chosen = some_frames(clips, self.decoded, generator)
        predicted = direct_latents(model, clips.frames, clips.fps, clips.flow)[:, :, chosen]
        truth = _of_frames(clips.pictures, chosen)
        error = model.split((predicted - target_latents(model, truth)).square())
        terms: dict[str, Tensor] = {name: value.mean() for name, value in error.items()}
        latents = {
            name: part.transpose(1, 2).flatten(0, 1)
            for name, part in model.split(predicted / model.config.vae.scaling_factor).items()
        }
        distance = clips.distance[:, chosen]
        terms |= _of_points(model, latents["points"], truth, distance)
        if "disparity" in latents:
            terms |= _of_disparity(model, latents["disparity"], truth, distance)
        if "ray_direction" in latents:
            terms |= self._of_rays(model, latents, truth, _farthest(clips.pictures, model.config.moment_gain))
        return terms

    def _of_rays(
        self, model: Geo4D, latents: dict[Modality, Tensor], truth: rep.Pictures, path: Float[Tensor, " B"]
    ) -> dict[str, Float[Tensor, ""]]:
        both = torch.cat([latents["ray_direction"], latents["ray_moment"]])
        decoded = model.vae.decode(F.avg_pool2d(both, self.ray_reduction)).float()
        pictures = torch.cat([flat(truth.ray_direction), flat(truth.ray_moment)])
        pictures = F.adaptive_avg_pool2d(pictures, (decoded.shape[-2], decoded.shape[-1]))
        direction, moment = (decoded - pictures).abs().chunk(2)
        gain = model.config.moment_gain
        found, true = (rep.read_rays(maps.chunk(2)[0], maps.chunk(2)[1], gain) for maps in (decoded, pictures))
        turn, place = camera_errors(found, true)
        frames = truth.points.shape[1]
        return {
            "decoded_ray_direction": direction.mean(),
            "decoded_ray_moment": moment.mean(),
            "camera_turn": torch.rad2deg(turn).mean(),
            "camera_place": (place / path.repeat_interleave(frames)).mean(),
        }


def direct_latents(
    model: Geo4D,
    frames: Float[Tensor, "B T H W 3"],
    fps: Float[Tensor, " B"],
    flow: Float[Tensor, "B T 6 H W"] | None = None,
) -> Float[Tensor, "B C T h w"]:
    """Scaled latents of all modalities from the video and its flow; clips may be shorter than the model's window."""
    schedule, count = ddim.zero_snr_schedule(), frames.shape[1]
    seen = conditions(model, frames, flow)
    nothing = seen.new_zeros(len(seen), model.config.unet.out_channels, *seen.shape[2:])
    last = len(schedule.alphas_cumprod) - 1
    timestep = torch.full((len(seen),), last, device=seen.device)
    tokens = model.config.unet.text_tokens + count * model.config.unet.image_tokens
    context = model.context[:tokens].expand(len(seen), -1, -1)
    predicted = model.unet(torch.cat([nothing, seen], dim=1), timestep, context, fps).float()
    return -predicted * float((1 - schedule.alphas_cumprod[last]).sqrt() / schedule.scale[last])


def camera_errors(
    found: tuple[Float[Tensor, "N h w 3"], Float[Tensor, "N h w 3"]],
    true: tuple[Float[Tensor, "N h w 3"], Float[Tensor, "N h w 3"]],
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """What of the errors of ray maps is a turn, in radians, and a move of the camera, in the moments' unit.

    To first order: a turn w adds w x d to the directions, a move e adds e x d to the moments; both are the least
    squares solution of sum (I - d d^T) y = sum d x error.
    """
    rays, moments = (value.flatten(1, 2) for value in true)
    turn = _common(rays, found[0].flatten(1, 2) - rays)
    place = _common(rays, found[1].flatten(1, 2) - moments)
    return tuple((value.square().sum(-1) + 1e-10).sqrt() for value in (turn, place))  # type: ignore[return-value]


def _common(rays: Float[Tensor, "N P 3"], change: Float[Tensor, "N P 3"]) -> Float[Tensor, "N 3"]:
    """The y for which y x d explains the change of the vectors at unit rays d best."""
    unit = torch.eye(3, device=rays.device)
    matrix = unit - rays.mT @ rays / rays.shape[1]
    return torch.linalg.solve(matrix + 1e-4 * unit, torch.linalg.cross(rays, change).mean(1))


def _farthest(pictures: rep.Pictures, gain: float) -> Float[Tensor, " B"]:
    """How far each clip's camera gets from where it was first, in the unit of the points' pictures."""
    direction, moment = (maps[..., ::8, ::8].flatten(0, 1) for maps in (pictures.ray_direction, pictures.ray_moment))
    rays, moments = (value.flatten(1, 2) for value in rep.read_rays(direction, moment, gain))
    centre = _common(rays, moments).norm(dim=-1).unflatten(0, pictures.points.shape[:2])
    return centre.amax(1).clamp(min=SHORTEST_PATH)


def _of_frames(pictures: rep.Pictures, chosen: list[int]) -> rep.Pictures:
    names = ("points", "ray_direction", "ray_moment", "disparity", "valid")
    return replace(pictures, **{name: getattr(pictures, name)[:, chosen] for name in names})


def _of_points(
    model: Geo4D, latents: Float[Tensor, "N Z h w"], truth: rep.Pictures, distance: Float[Tensor, "B T H W"]
) -> dict[str, Float[Tensor, ""]]:
    found, raw = model.point_vae.decode_with_uncertainty(latents)
    terms = point_terms(found, raw, flat(truth.points), truth.valid.flatten(0, 1), distance.flatten(0, 1))
    clips = found.float().unflatten(0, truth.points.shape[:2]).movedim(2, -1)
    near = 2 * distance.clamp(min=NEAREST)
    weight = truth.valid / near.square()
    error = aligned(clips, truth.points.movedim(2, -1), weight) - truth.points.movedim(2, -1)
    length = (error.square().sum(-1) + 1e-8).sqrt()
    terms["points_aligned"] = masked_mean(length / near, truth.valid)
    return {f"decoded_{name}": value for name, value in terms.items()}


def _of_disparity(
    model: Geo4D, latents: Float[Tensor, "N Z h w"], truth: rep.Pictures, distance: Float[Tensor, "B T H W"]
) -> dict[str, Float[Tensor, ""]]:
    found = model.vae.decode(latents).float().unflatten(0, truth.disparity.shape[:2])
    error, valid = (found - truth.disparity).abs().mean(2), truth.valid
    near = distance.clamp(NEAREST, FURTHEST)
    inverse = 1 / near[..., None]
    ours = aligned(found.mean(2)[..., None], inverse, valid * near.square())
    relative = ((ours - inverse)[..., 0] * near).abs()
    return {
        "decoded_disparity": masked_mean(error, valid),
        "decoded_disparity_mark": masked_mean(error, ~valid),
        "decoded_disparity_aligned": masked_mean(relative, valid),
    }


def aligned(
    found: Float[Tensor, "B T H W C"], true: Float[Tensor, "B T H W C"], weight: Float[Tensor, "B T H W"]
) -> Float[Tensor, "B T H W C"]:
    """Maps after the scale and shift, one for each clip, that bring them nearest to the truth (least squares).

    Scale and shift are constants for the gradient.
    """
    with torch.no_grad():
        share = (weight / weight.sum((1, 2, 3), keepdim=True).clamp(min=1e-9))[..., None]
        dims = (1, 2, 3)
        middle, goal = ((share * value).sum(dims, keepdim=True) for value in (found, true))
        together = (share * (found - middle) * (true - goal)).sum((1, 2, 3, 4), keepdim=True)
        spread = (share * (found - middle).square()).sum((1, 2, 3, 4), keepdim=True)
        scale = (together / spread.clamp(min=1e-9)).clamp(min=LEAST_SCALE)
        shift = goal - scale * middle
    return scale * found + shift
