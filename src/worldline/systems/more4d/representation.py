"""Scene <-> what the networks see: motion as a normalised map, depth and picture as conditions, holes as latents.

generator's input   [noise | picture, still | zeros | depth, still]                        (spec 2.3)
inpainter's input   [noise | known mask, folded in time | masked rendering]                (spec 4.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldline.geometry import camera
from worldline.systems.more4d.vae import MotionVae

FARTHEST, NEAREST = 1e4, 1e-5
"""Depths beyond are clamped, below count as unknown, in the depth picture."""


def published_focal(original: tuple[int, int], target: tuple[int, int]) -> tuple[float, float]:
    """(fx, fy) that the published code guesses for pictures of one (H, W) brought to another (spec 9, 15)."""
    (height, width), (rows, columns) = original, target
    if width / columns > height / rows:
        return 1.0, (width / height) / (columns / rows)
    return (height / width) / (rows / columns), 1.0


def to_channels(maps: Float[Tensor, "*any T H W 3"]) -> Float[Tensor, "*any 3 T H W"]:
    """Maps with channels last as the networks' videos."""
    return maps.movedim(-1, -4)


def to_maps(video: Float[Tensor, "*any 3 T H W"]) -> Float[Tensor, "*any T H W 3"]:
    """The inverse of `to_channels`."""
    return video.movedim(-4, -1)


@dataclass(frozen=True, kw_only=True)
class FirstFrameExtent:
    """The published code's other normalisation: displacement / largest extent of the first frame along an axis.

    Attributes:
        reference: [H, W, 3] points of the first frame.
        extent: the scale, 1 if all points are one.
    """

    reference: Float[Tensor, "H W 3"]
    extent: Float[Tensor, ""]

    @classmethod
    def fit(cls, reference: Float[Tensor, "H W 3"]) -> FirstFrameExtent:
        """From the first frame itself."""
        flat = reference.flatten(0, 1)
        extent = (flat.amax(0) - flat.amin(0)).amax()
        return cls(reference=reference, extent=torch.where(extent > 0, extent, torch.ones_like(extent)))

    def apply(self, points: Float[Tensor, "T H W 3"]) -> Float[Tensor, "T H W 3"]:
        """Normalised displacements of tracks."""
        return (points - self.reference) / self.extent

    def invert(self, motion: Float[Tensor, "T H W 3"]) -> Float[Tensor, "T H W 3"]:
        """Tracks of normalised displacements."""
        return self.reference + motion * self.extent


def depth_picture(depth: Float[Tensor, "B H W"]) -> Float[Tensor, "B 3 H W"]:
    """Depth as a grey picture in [-1, 1]: nearest to farthest of each picture, linear; what is unknown counts as 1."""
    known = depth.isfinite() & (depth >= NEAREST)
    depth = torch.where(known, depth, torch.ones_like(depth)).clamp(0, FARTHEST)
    low, high = depth.amin((1, 2), keepdim=True), depth.amax((1, 2), keepdim=True)
    grey = 2 * (depth - low) / (high - low).clamp(min=1e-8) - 1
    return grey[:, None].expand(-1, 3, -1, -1)


def still(
    vae: MotionVae, picture: Float[Tensor, "B 3 H W"], frames: int, kind: Literal["clip", "frame"] = "clip"
) -> Float[Tensor, "B Z t h w"]:
    """Latent (mode) of a picture in [-1, 1] that stands still for some frames.

    As a "clip", latents differ over time although the picture does not (spec 9, 32); one "frame" is repeated.
    """
    if kind == "frame":
        latents = 1 + (frames - 1) // vae.config.frames_per_latent
        return vae.encode_video(picture[:, :, None]).mean.expand(-1, -1, latents, -1, -1)
    return vae.encode_video(picture[:, :, None].expand(-1, -1, frames, -1, -1)).mean


def generator_conditions(
    vae: MotionVae,
    picture: Float[Tensor, "B 3 H W"],
    depth: Float[Tensor, "B H W"],
    frames: int,
    kind: Literal["clip", "frame"] = "clip",
) -> Float[Tensor, "B C t h w"]:
    """Conditions of the generator: picture (in [-1, 1]), zeros, depth."""
    control, grey = (still(vae, view, frames, kind) for view in (picture, depth_picture(depth)))
    return torch.cat([control, torch.zeros_like(control), grey], dim=1)


def fold_in_time(mask: Float[Tensor, "B 1 T H W"], step: int) -> Float[Tensor, "B S t H W"]:
    """A mask per frame as `step` channels per latent frame; the first frame fills its latent frame alone."""
    repeated = torch.cat([mask[:, :, :1].expand(-1, -1, step, -1, -1), mask[:, :, 1:]], dim=2)[:, 0]
    return repeated.unflatten(1, (-1, step)).transpose(1, 2)


def on_latent_grid(mask: Float[Tensor, "B S t H W"], size: tuple[int, int]) -> Float[Tensor, "B S t h w"]:
    """A folded mask resized to the latent grid, the first latent frame and the others apart."""
    resize = lambda part: functional.interpolate(part, (part.shape[2], *size), mode="trilinear", align_corners=False)  # noqa: E731
    parts = [resize(mask[:, :, :1])] + ([resize(mask[:, :, 1:])] if mask.shape[2] > 1 else [])
    return torch.cat(parts, dim=2)


def inpainter_conditions(
    vae: MotionVae, rendered: Float[Tensor, "B 3 T H W"], known: Bool[Tensor, "B 1 T H W"]
) -> Float[Tensor, "B C t h w"]:
    """Conditions of the inpainter from a rendering in [-1, 1] and where it shows anything at all.

    Known (1) or hole (0), folded, then the latent of the rendering with holes in mid grey. A clip that is nothing but
    holes gives zeros.
    """
    latent = vae.encode_video(torch.where(known, rendered, torch.zeros_like(rendered))).mean
    folded = fold_in_time(known.to(rendered), vae.config.frames_per_latent)
    joined = torch.cat([on_latent_grid(folded, (latent.shape[-2], latent.shape[-1])), latent], dim=1)
    return joined * known.flatten(1).any(1)[:, None, None, None, None]


def along_edges(
    motion: Float[Tensor, "T h w 3"],
    picture: Float[Tensor, "h w 3"],
    depth: Float[Tensor, "h w"],
    large_picture: Float[Tensor, "H W 3"],
    large_depth: Float[Tensor, "H W"],
    *,
    color_sigma: float = 0.1,
    depth_sigma: float = 0.1,
) -> Float[Tensor, "T H W 3"]:
    """Motion at more pixels: of the 3 x 3 small pixels around each, those of its colour and log depth count most.

    Joint bilateral upsampling (Kopf et al. 2007): a body's motion does not leak onto what is behind it.
    """
    size = (large_picture.shape[0], large_picture.shape[1])
    rows, columns = (
        (torch.arange(n, device=motion.device) + 0.5) * m / n - 0.5 for n, m in zip(size, depth.shape, strict=True)
    )
    total, weights = motion.new_zeros(len(motion), *size, 3), motion.new_zeros(size)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = rows.round() + dy, columns.round() + dx
            far = (rows - y)[:, None].square() + (columns - x)[None].square()
            y, x = y.long().clamp(0, depth.shape[0] - 1), x.long().clamp(0, depth.shape[1] - 1)
            color = (picture[y][:, x] - large_picture).square().sum(-1)
            behind = (depth[y][:, x].clamp(min=NEAREST) / large_depth.clamp(min=NEAREST)).log().square()
            weight = (-0.5 * (2 * far + color / color_sigma**2 + behind / depth_sigma**2)).exp()
            weight = weight + 1e-9 * (-2 * far).exp()  # where nothing is alike, the nearest
            total += weight[..., None] * motion[:, y][:, :, x]
            weights += weight
    return total / weights[..., None]


def masked_in_file(mask: Float[Tensor, "*any"]) -> Bool[Tensor, "*any"]:
    """A mask of values 0 to 255 read back from a file: at least half of the range counts."""
    return mask >= 0.5 * 255


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A picture cropped, never stretched, to a model's shape, with the way back.

    Attributes:
        image: [H, W, 3] in [0, 1].
        top, left, height, width: the part of the original that it shows.
    """

    image: Float[Tensor, "H W 3"]
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, image: Float[Tensor, "h w 3"], size: tuple[int, int]) -> Fitted:
        """The largest central part of the right shape, resized with half-pixel centres and without aliasing."""
        own, ratio = (image.shape[0], image.shape[1]), size[0] / size[1]
        height, width = min(own[0], round(own[1] * ratio)), min(own[1], round(own[0] / ratio))
        top, left = (own[0] - height) // 2, (own[1] - width) // 2
        part = image[top : top + height, left : left + width].movedim(-1, 0)[None]
        resized = functional.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)
        return cls(image=resized[0].movedim(0, -1).clamp(0, 1), top=top, left=left, height=height, width=width)

    def maps(self, value: Float[Tensor, "h w"]) -> Float[Tensor, "H W"]:
        """A map (depth) of the original on the picture's pixels; nearest, so that edges stay edges."""
        part = value[self.top : self.top + self.height, self.left : self.left + self.width][None, None]
        return functional.interpolate(part, self.image.shape[:2], mode="nearest-exact")[0, 0]

    def intrinsics(self, original: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
        """The camera of the picture, from that of the original."""
        cut = camera.crop(original, self.top, self.left)
        return camera.resize(cut, (self.height, self.width), (self.image.shape[0], self.image.shape[1]))
