"""Invertible normalisations of point maps and displacements: fit on data, apply, invert.

Both halves of a normalisation share the constants of one object, so apply and invert cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def _valid_points(points: Tensor, valid: Tensor | None) -> Tensor:
    chosen = points.flatten(0, -2) if valid is None else points[valid]
    if len(chosen) == 0:
        raise ValueError("A normalisation needs at least one valid point to be fitted to.")
    return chosen


@dataclass(frozen=True, kw_only=True)
class MeanDistance:
    """x -> (x - shift) / scale: shift is the mean of the valid points, scale their mean distance to it.

    MotionCrafter 4.3, step 7.
    """

    shift: Float[Tensor, "3"]
    scale: Float[Tensor, ""]

    @classmethod
    def fit(
        cls,
        points: Float[Tensor, "*any 3"],
        valid: Bool[Tensor, "*any"] | None = None,
        centred: bool = True,
        epsilon: float = 1e-8,
    ) -> MeanDistance:
        """Constants of a whole clip; centred=False keeps the origin where it is."""
        chosen = _valid_points(points, valid).double()
        shift = chosen.mean(0) if centred else torch.zeros_like(chosen[0])
        scale = (chosen - shift).norm(dim=-1).mean() + epsilon
        return cls(shift=shift.to(points.dtype), scale=scale.to(points.dtype))

    def apply(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Normalised points."""
        return (points - self.shift) / self.scale

    def invert(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Points in the original frame and unit."""
        return points * self.scale + self.shift

    def apply_vector(self, vectors: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Normalised displacements: scaled, not shifted."""
        return vectors / self.scale

    def invert_vector(self, vectors: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Displacements in the original unit."""
        return vectors * self.scale

    def apply_pose(self, cam2world: Float[Tensor, "*any 4 4"]) -> Float[Tensor, "*any 4 4"]:
        """Cameras in the normalised frame; rotations unchanged."""
        out = cam2world.clone()
        out[..., :3, 3] = (cam2world[..., :3, 3] - self.shift.to(out.dtype)) / self.scale.to(out.dtype)
        return out

    def invert_pose(self, cam2world: Float[Tensor, "*any 4 4"]) -> Float[Tensor, "*any 4 4"]:
        """Cameras back in the original frame."""
        out = cam2world.clone()
        out[..., :3, 3] = cam2world[..., :3, 3] * self.scale.to(out.dtype) + self.shift.to(out.dtype)
        return out


@dataclass(frozen=True, kw_only=True)
class MaxDistance:
    """x -> x / scale, scale the largest absolute coordinate of the valid points: everything lands in [-1, 1]."""

    scale: Float[Tensor, ""]

    @classmethod
    def fit(cls, points: Float[Tensor, "*any 3"], valid: Bool[Tensor, "*any"] | None = None) -> MaxDistance:
        """Constant of a whole clip; 1 if all valid points are the origin."""
        largest = _valid_points(points, valid).abs().max()
        return cls(scale=torch.where(largest > 0, largest, torch.ones_like(largest)))

    def apply(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Normalised points."""
        return points / self.scale

    def invert(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Points in the original unit."""
        return points * self.scale

    apply_vector = apply
    invert_vector = invert


def _percentile_range(values: Tensor, low: float, high: float, margin: float) -> tuple[Tensor, Tensor]:
    """(scale, lowest) of the sorted values between two fractions, widened by a margin (Geo4D 1.6)."""
    ordered, count = values.double().sort().values, values.numel()
    bottom = ordered[int(low * count)] - margin
    top = ordered[min(int(high * count), count - 1)] + margin
    return top - bottom, bottom


@dataclass(frozen=True, kw_only=True)
class PercentileBox:
    """Geo4D's point-map box (1.6): x = 2X/s, y = 2Y/s, z = 2(Z - lo)/s - 1; lo, lo + s percentiles of the clip's Z.

    Points are in the frame of the clip's first camera. Invalid pixels become (1.05, 1.05, 1.05); everything is clamped
    to [-2, 2], so what lies outside the box by more than that does not invert.
    """

    scale: Float[Tensor, ""]
    low: Float[Tensor, ""]
    INVALID = 1.05
    LIMIT = 2.0

    @classmethod
    def fit(
        cls, points: Float[Tensor, "*any 3"], valid: Bool[Tensor, "*any"] | None = None, ratio: float = 0.02
    ) -> PercentileBox:
        """Constants of a clip from all valid Z of all frames."""
        scale, low = _percentile_range(_valid_points(points, valid)[:, 2], ratio, 1 - ratio, 0.01)
        return cls(scale=scale.to(points.dtype), low=low.to(points.dtype))

    def apply(
        self, points: Float[Tensor, "*any 3"], valid: Bool[Tensor, "*any"] | None = None
    ) -> Float[Tensor, "*any 3"]:
        """Normalised points, invalid ones marked, clamped."""
        xy = 2 * points[..., :2] / self.scale
        z = 2 * (points[..., 2:] - self.low) / self.scale - 1
        out = torch.cat([xy, z], -1)
        if valid is not None:
            out = torch.where(valid[..., None], out, torch.full_like(out, self.INVALID))
        return out.clamp(-self.LIMIT, self.LIMIT)

    def invert(self, points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Points in the original frame and unit (of what was not clamped)."""
        unit = self.to_unit(points) * self.scale
        return torch.cat([unit[..., :2], unit[..., 2:] + self.low], -1)

    @staticmethod
    def to_unit(points: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Point map when the constants are unknown: (x/2, y/2, (z+1)/2), right up to scale 1/s and a z shift -lo/s."""
        return torch.cat([points[..., :2] / 2, (points[..., 2:] + 1) / 2], -1)

    def apply_vector(self, vectors: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Normalised displacements."""
        return 2 * vectors / self.scale

    def invert_vector(self, vectors: Float[Tensor, "*any 3"]) -> Float[Tensor, "*any 3"]:
        """Displacements in the original unit."""
        return vectors * self.scale / 2


@dataclass(frozen=True, kw_only=True)
class PercentileDisparity:
    """Geo4D's disparity range (1.6): v = 2(D - lo)/s - 1, invalid -1.05, clamped to [-1.1, 1.1]."""

    scale: Float[Tensor, ""]
    low: Float[Tensor, ""]
    INVALID = -1.05
    LIMIT = 1.1

    @classmethod
    def fit(
        cls, disparity: Float[Tensor, "*any"], valid: Bool[Tensor, "*any"] | None = None, ratio: float = 0.02
    ) -> PercentileDisparity:
        """Constants of a clip from all valid disparities of all frames."""
        chosen = disparity.flatten() if valid is None else disparity[valid]
        if len(chosen) == 0:
            raise ValueError("A normalisation needs at least one valid disparity to be fitted to.")
        scale, low = _percentile_range(chosen, ratio, 1 - ratio, 0.01)
        return cls(scale=scale.to(disparity.dtype), low=low.to(disparity.dtype))

    def apply(
        self, disparity: Float[Tensor, "*any"], valid: Bool[Tensor, "*any"] | None = None
    ) -> Float[Tensor, "*any"]:
        """Normalised disparity, invalid pixels marked, clamped."""
        out = 2 * (disparity - self.low) / self.scale - 1
        if valid is not None:
            out = torch.where(valid, out, torch.full_like(out, self.INVALID))
        return out.clamp(-self.LIMIT, self.LIMIT)

    def invert(self, value: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Disparity in the original unit (of what was not clamped)."""
        return self.to_unit(value) * self.scale + self.low

    @staticmethod
    def to_unit(value: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Disparity when the constants are unknown: (v + 1)/2, right up to scale and shift."""
        return (value + 1) / 2


@dataclass(frozen=True, kw_only=True)
class DepthGuidedMotion:
    """MoRe4D's depth-guided motion (1.3c): displacement d = P_t - P_0 -> (dx fx/z0, dy fy/z0, dz/z0), z0 = P_0.z.

    x and y count in frustum widths and heights at the depth of the reference pixel; fx, fy are focal lengths divided by
    the image width and height. Depths that are 0 or not finite count as 1.

    Attributes:
        reference: [H, W, 3] points P_0 of the reference frame, in its camera frame.
        focal: [2] (fx, fy) in image widths and heights.
    """

    reference: Float[Tensor, "H W 3"]
    focal: Float[Tensor, "2"]

    @classmethod
    def fit(cls, reference: Float[Tensor, "H W 3"], valid: Bool[Tensor, "H W"] | None = None) -> DepthGuidedMotion:
        """Focal lengths by least squares of u against x/z and v against y/z of the reference frame itself."""
        height, width = reference.shape[:2]
        good = reference.isfinite().all(-1) & (reference[..., 2] > 0)
        good = good if valid is None else good & valid
        if int(good.sum()) < 2:
            raise ValueError("A normalisation needs at least two valid points to be fitted to.")
        slope = (reference[..., :2] / reference[..., 2:])[good].double()
        rows, columns = torch.nonzero(good, as_tuple=True)
        uv = torch.stack([columns, rows], -1).double()
        slope, uv = slope - slope.mean(0), uv - uv.mean(0)
        focal_px = (slope * uv).sum(0) / (slope * slope).sum(0)
        extent = torch.tensor([width, height], dtype=torch.float64, device=reference.device)
        return cls(reference=reference, focal=(focal_px / extent).to(reference.dtype))

    @property
    def factor(self) -> Float[Tensor, "H W 3"]:
        """What displacements are multiplied by at each pixel: (fx, fy, 1) / z0."""
        z = self.reference[..., 2:]
        z = torch.where(z.isfinite() & (z != 0), z, torch.ones_like(z))
        return torch.cat([self.focal, torch.ones_like(self.focal[:1])]) / z

    def apply(self, points: Float[Tensor, "*any H W 3"]) -> Float[Tensor, "*any H W 3"]:
        """Normalised displacement of the tracks P_t from the reference frame."""
        return self.apply_vector(points - self.reference)

    def invert(self, motion: Float[Tensor, "*any H W 3"]) -> Float[Tensor, "*any H W 3"]:
        """Tracks P_t of a normalised displacement."""
        return self.reference + self.invert_vector(motion)

    def apply_vector(self, vectors: Float[Tensor, "*any H W 3"]) -> Float[Tensor, "*any H W 3"]:
        """Normalised displacements."""
        return vectors * self.factor

    def invert_vector(self, vectors: Float[Tensor, "*any H W 3"]) -> Float[Tensor, "*any H W 3"]:
        """Displacements in the original unit."""
        return vectors / self.factor
