"""RGB frames -> what the networks are conditioned on: CLIP's pixels, and frames whose sides the networks can halve.

Frames are [N, 3, H, W] in [-1, 1] here. They are padded, never stretched, and results are cropped back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_antialiased(images: Float[Tensor, "N C H W"], size: tuple[int, int]) -> Float[Tensor, "N C h w"]:
    """SVD's own resize: Gaussian blur, then bicubic with aligned corners (spec 3.3).

    Along an axis shrunk by r: sigma = max((r - 1)/2, 0.001), kernel of int(max(4 sigma, 3)) taps made odd, reflected
    borders. No clamp.
    """
    for axis, target in ((-2, size[0]), (-1, size[1])):
        images = _blur(images, max((images.shape[axis] / target - 1) / 2, 0.001), axis)
    return F.interpolate(images, size=size, mode="bicubic", align_corners=True)


def _blur(images: Tensor, sigma: float, axis: int) -> Tensor:
    taps = int(max(4 * sigma, 3)) | 1
    offset = torch.arange(taps, dtype=images.dtype, device=images.device) - taps // 2
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    half, channels = taps // 2, images.shape[1]
    pad = (0, 0, half, half) if axis == -2 else (half, half, 0, 0)
    mode = "reflect" if half < images.shape[axis] else "replicate"  # a picture narrower than the kernel has no mirror
    shape = (1, 1, taps, 1) if axis == -2 else (1, 1, 1, taps)
    return F.conv2d(F.pad(images, pad, mode=mode), kernel.reshape(shape).repeat(channels, 1, 1, 1), groups=channels)


def clip_pixels(frames: Float[Tensor, "N 3 H W"], size: int, chunk: int = 8) -> Float[Tensor, "N 3 size size"]:
    """What the image encoder sees of frames in [-1, 1]: resized, in CLIP's colours; a few frames at a time."""
    mean, std = (frames.new_tensor(v).reshape(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    small = torch.cat([resize_antialiased(part, (size, size)) for part in frames.split(chunk)])
    return ((small + 1) / 2 - mean) / std


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Rows and columns added around frames so that both sides are multiples; half on each side, edges repeated.

    Symmetric, so that the centre of the picture, where the networks expect the optical axis, stays its centre.
    """

    top: int
    bottom: int
    left: int
    right: int

    @staticmethod
    def to_multiple(size: tuple[int, int], multiple: int) -> Padding:
        """The least padding that makes frames of (H, W) multiples of `multiple`."""
        rows, columns = (-size[0] % multiple, -size[1] % multiple)
        return Padding(top=rows // 2, bottom=rows - rows // 2, left=columns // 2, right=columns - columns // 2)

    def apply(self, frames: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H2 W2"]:
        """Pad frames with their edge pixels."""
        return F.pad(frames, (self.left, self.right, self.top, self.bottom), mode="replicate")

    def crop(self, maps: Float[Tensor, "N C H2 W2"]) -> Float[Tensor, "N C H W"]:
        """Undo `apply`."""
        return maps[..., self.top : maps.shape[-2] - self.bottom, self.left : maps.shape[-1] - self.right]


def cover_resize(images: Float[Tensor, "N C H W"], size: tuple[int, int]) -> Float[Tensor, "N C h w"]:
    """Images scaled until they cover (h, w), aspect kept, bilinear with antialiasing, then the centre of that.

    For colours only: point maps go through `geometry.pointmap.resize`, which never mixes surfaces.
    """
    ratio = max(size[0] / images.shape[-2], size[1] / images.shape[-1])
    scaled = tuple(max(target, round(side * ratio)) for target, side in zip(size, images.shape[-2:], strict=True))
    images = F.interpolate(images, scaled, mode="bilinear", align_corners=False, antialias=True)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]
