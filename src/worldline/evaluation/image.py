"""Image metrics: PSNR and SSIM of pictures in [0, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def psnr(predicted: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"]) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; infinite when they are equal."""
    error = (predicted.double() - truth.double()).square().mean()
    return float(-10 * error.log10())


def ssim(predicted: Float[Tensor, "T H W 3"], truth: Float[Tensor, "T H W 3"]) -> float:
    """Mean structural similarity of pictures in [0, 1], over the part the whole window fits in.

    Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, per colour channel. Raises ValueError below 11 x 11
    pixels. Source: Wang et al. 2004, equation 13.
    """
    if min(truth.shape[1:3]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {list(truth.shape[1:3])}.")
    x, y = (image.double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for image in (predicted, truth))
    offset = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    bell = torch.exp(-offset.square() / (2 * 1.5**2))
    bell = bell / bell.sum()

    def blur(image: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(image, bell[None, None, :, None]), bell[None, None, None, :])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))).mean())
