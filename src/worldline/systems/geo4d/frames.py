"""Frames of a video and their optical flow as the networks read them, and maps back to its pixels; never stretched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldline.flow.neighbours import flow_between
from worldline.scene import Video
from worldline.systems import flow_input
from worldline.systems.geo4d.config import FLOW_CELLS
from worldline.systems.geo4d.vae import Geo4DVae


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How frames of a video fit into the networks: shrunk to `inner`, then padded to multiples; undone by the readers.

    Padding is half on each side with the edges repeated, so that the centre of the picture, where the optical axis is
    expected, stays its centre.

    Attributes:
        size: (H, W) of the video.
        inner: (h, w) the frames are shrunk to; same aspect, never enlarged.
        outer: (h, w) with padding.
    """

    size: tuple[int, int]
    inner: tuple[int, int]
    outer: tuple[int, int]

    @staticmethod
    def of(size: tuple[int, int], multiple: int, max_pixels: int | None = None) -> Fit:
        """For a video of (H, W), sides in multiples of `multiple`, at most `max_pixels` with padding where that can be.

        Of all padded sizes of that area the one that shows the video largest.
        """
        inner = size
        if max_pixels is not None and padded(size, multiple)[0] * padded(size, multiple)[1] > max_pixels:
            cells = max(1, max_pixels // multiple**2)
            grids = ((multiple * rows, multiple * (cells // rows)) for rows in range(1, cells + 1))
            ratio = max(min(1.0, rows / size[0], columns / size[1]) for rows, columns in grids)
            inner = (max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio)))
        return Fit(size=size, inner=inner, outer=padded(inner, multiple))

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the first real pixel."""
        return (self.outer[0] - self.inner[0]) // 2, (self.outer[1] - self.inner[1]) // 2

    def pictures(self, rgb: Float[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 h w"]:
        """Frames in [0, 1] as pictures in [-1, 1]."""
        pictures = rgb.movedim(-1, 1)
        if self.inner != self.size:
            shrunk = F.interpolate(pictures, self.inner, mode="bicubic", align_corners=False, antialias=True)
            pictures = shrunk.clamp(0, 1)
        return self.pad(pictures * 2 - 1)

    def pad(self, maps: Float[Tensor, "N C h2 w2"]) -> Float[Tensor, "N C h w"]:
        """Maps of `inner` size as maps of `outer` size."""
        top, left = self.corner
        bottom, right = self.outer[0] - self.inner[0] - top, self.outer[1] - self.inner[1] - left
        return F.pad(maps, (left, right, top, bottom), mode="replicate")

    def crop(self, maps: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h2 w2"]:
        """The real pixels of padded maps; maps decoded at reduced size are first brought to the padded size."""
        if tuple(maps.shape[-2:]) != self.outer:
            maps = F.interpolate(maps, self.outer, mode="bilinear", align_corners=False)
        top, left = self.corner
        return maps[..., top : top + self.inner[0], left : left + self.inner[1]]

    def smooth(self, maps: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C H W"]:
        """Cropped maps without edges (rays) at the video's size."""
        if self.inner == self.size:
            return maps
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)


def padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Sides rounded up to multiples."""
    return size[0] + -size[0] % multiple, size[1] + -size[1] % multiple


class FrameLatents:
    """Latents of the frames of a video, each encoded once although windows overlap; old ones are forgotten."""

    def __init__(self, video: Video, fit: Fit, vae: Geo4DVae, device: torch.device, chunk: int) -> None:
        self._video, self._fit, self._vae, self._device, self._chunk = video, fit, vae, device, chunk
        self._known: dict[int, Tensor] = {}

    @torch.inference_mode()
    def of(self, frames: Sequence[int]) -> Float[Tensor, "T Z h w"]:
        """Posterior means of some frames, unscaled, on the networks' device; frames before them are not asked again."""
        self._known = {index: latent for index, latent in self._known.items() if index >= min(frames)}
        missing = sorted(set(frames) - set(self._known))
        dtype = next(self._vae.parameters()).dtype
        for start in range(0, len(missing), self._chunk):
            part = missing[start : start + self._chunk]
            pictures = self._fit.pictures(self._video.select(part).rgb().to(self._device))
            latents = self._vae.encode(pictures.to(dtype)).mode().float()
            self._known.update(zip(part, latents, strict=True))
        return torch.stack([self._known[index] for index in frames])


def flow_cells(maps: Float[Tensor, "N 6 H W"], latent: tuple[int, int]) -> Float[Tensor, "N C h w"]:
    """Channels of optical flow as the U-Net reads them: means at FLOW_CELLS x FLOW_CELLS places of a latent cell."""
    places = F.adaptive_avg_pool2d(maps, (FLOW_CELLS * latent[0], FLOW_CELLS * latent[1]))
    return F.pixel_unshuffle(places, FLOW_CELLS)


class FrameFlow:
    """Optical flow between the frames of a video, each pair estimated once although windows overlap."""

    def __init__(self, video: Video, fit: Fit, pixels: int) -> None:
        self._video, self._fit, self._pixels = video, fit, pixels
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.inference_mode()
    def of(self, window: range) -> Float[Tensor, "T 6 h w"]:
        """The channels of `flow_input` for the frames of a window, padded; frames before it are not asked again.

        Frames too small for flow have none.
        """
        self._known = {frame: pair for frame, pair in self._known.items() if frame >= window.start}
        missing = [frame for frame in window[:-1] if frame not in self._known]
        if missing:
            self._estimate(range(missing[0], window.stop))
        if not self._known:
            return torch.zeros(len(window), flow_input.CHANNELS, *self._fit.outer)
        size = self._known[window[0]][1].shape[-2:]
        flows, errors = torch.zeros(2, len(window), *size, 2), torch.zeros(2, len(window), *size)
        for place, frame in enumerate(window[:-1]):
            (flows[0, place], flows[1, place + 1]), (errors[0, place], errors[1, place + 1]) = self._known[frame]
        maps = flow_input.assembled(flows, errors).movedim(-1, 1)
        return self._fit.pad(F.interpolate(maps, self._fit.inner, mode="area"))

    def _estimate(self, frames: range) -> None:
        pictures = flow_input.shrunk(self._video.select(list(frames)).rgb().movedim(-1, 1), self._pixels)
        if min(pictures.shape[-2:]) < flow_input.SMALLEST:
            return
        found = flow_between(pictures.movedim(1, -1))
        for place, frame in enumerate(frames[:-1]):
            flow = torch.stack([found.forward[place], found.backward[place + 1]])
            self._known[frame] = flow, torch.stack([found.forward_error[place], found.backward_error[place + 1]])
