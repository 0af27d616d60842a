"""What is known beforehand about a video, and how the alignment is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KnownDistance:
    """A measured distance between two pixels of one frame: what makes a scene metric.

    Attributes:
        frame: index of the frame.
        first: (x, y) pixel.
        second: (x, y) pixel.
        metres: distance between the two surface points.
    """

    frame: int
    first: tuple[float, float]
    second: tuple[float, float]
    metres: float


@dataclass(frozen=True, kw_only=True)
class Priors:
    """What is known about a video before looking at it; everything may be absent.

    Attributes:
        intrinsics: [3, 3] or [T, 3, 3] pixels, used as given and not changed, or None.
        distortion: OpenCV coefficients (k1, k2, p1, p2[, k3]) of the images, needs intrinsics; points are put on the
            undistorted rays, the returned cameras are the pinhole part.
        principal_point: (x, y) pixels where it is not ((W-1)/2, (H-1)/2); ignored when intrinsics are given.
        poses: [T, 4, 4] cam2world, finite where known, or None. The world is then theirs.
        poses_known: [T] which poses are known; None = all that are finite.
        static_camera: the camera does not move: one pose for all frames.
        moving_mask: [T, H, W] True on things known to move; not used to solve cameras.
        distance: a measured distance, makes the scene metric.
        sensor_depth: [T, H, W] metres, 0 or NaN where unknown; makes the scene metric.
        optical_flow: [T-1, H, W, 2] pixels from each frame to the next, NaN where unknown (see optical_flow.dis_flow);
            cameras, depth and scene flow must then reproduce it.
        shared_focal: one focal for all frames (False: it may change slowly, as in a zoom).
    """

    intrinsics: Float[Tensor, "*T 3 3"] | None = None
    distortion: tuple[float, ...] | None = None
    principal_point: tuple[float, float] | None = None
    poses: Float[Tensor, "T 4 4"] | None = None
    poses_known: Bool[Tensor, " T"] | None = None
    static_camera: bool = False
    moving_mask: Bool[Tensor, "T H W"] | None = None
    distance: KnownDistance | None = None
    sensor_depth: Float[Tensor, "T H W"] | None = None
    optical_flow: Float[Tensor, "S H W 2"] | None = None
    shared_focal: bool = True

    def check(self, num_frames: int, size: tuple[int, int]) -> None:
        """Refuse priors that do not fit the video.

        Raises:
            ValueError: a shape does not fit, or distortion is given without intrinsics.
        """
        if self.intrinsics is not None and self.intrinsics.ndim == 3 and len(self.intrinsics) != num_frames:
            raise ValueError(f"{len(self.intrinsics)} intrinsics do not fit a video of {num_frames} frames.")
        if self.distortion is not None and self.intrinsics is None:
            raise ValueError("Distortion coefficients need the intrinsics they were calibrated with.")
        if self.poses is not None and len(self.poses) != num_frames:
            raise ValueError(f"{len(self.poses)} known poses do not fit a video of {num_frames} frames.")
        for name in ("moving_mask", "sensor_depth"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (num_frames, *size):
                raise ValueError(f"{name} is {list(value.shape)}, but the video is {[num_frames, *size]}.")
        if self.optical_flow is not None and tuple(self.optical_flow.shape) != (num_frames - 1, *size, 2):
            raise ValueError(
                f"Optical flow is {list(self.optical_flow.shape)}, the video needs {[num_frames - 1, *size, 2]}."
            )
        if self.distance is not None and not 0 <= self.distance.frame < num_frames:
            raise ValueError(f"The known distance is in frame {self.distance.frame} of a video of {num_frames} frames.")

    def known_poses(self) -> Bool[Tensor, " T"] | None:
        """Which poses are known, or None when none are."""
        if self.poses is None:
            return None
        known = torch.isfinite(self.poses).flatten(1).all(1)
        known = known if self.poses_known is None else known & self.poses_known
        return known if bool(known.any()) else None


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """How windows become one world.

    Attributes:
        objective: "default" = unbiased terms, judged by accuracy; "published" = Geo4D's (eq. 4-9), to compare.
        samples_per_frame: pixels per frame the solvers look at (a stratified subset); depth is solved at every pixel.
        most_samples: of all frames together; long videos get fewer per frame.
        ray_focal_sigma: relative error that ray maps' focals have in common, however well they agree.
        focal_range: smallest and largest focal considered, in units of max(H, W).
        points_on_rays: put every point on its pixel's ray at the fused depth, so that points and cameras agree exactly;
            False keeps the blended points of the windows.
        loops: tie windows far apart in time that look at the same surfaces (default objective, several windows).
        dynamic_threshold: motion between two frames, relative to depth, above which a pixel counts as moving (raised to
            the noise level of the windows where that is higher).
        seed: of the pixel subset and the hypotheses.
    """

    objective: Literal["default", "published"] = "default"
    samples_per_frame: int = 128
    most_samples: int = 100_000
    ray_focal_sigma: float = 0.005
    focal_range: tuple[float, float] = (0.3, 6.0)
    points_on_rays: bool = True
    loops: bool = True
    dynamic_threshold: float = 0.005
    seed: int = 0
