"""Three estimators, all called "scale & shift", disagree on one and the same prediction.

    python examples/02_three_scale_and_shifts.py [PICTURE.png]

The truth is a synthetic clip. The prediction is the truth with an unknown scale AND an unknown shift, some noise, and a
few wrong pixels: what a good depth network gives. The published optimisers are Adam on the L1 error, stopped early or
late (MonST3R, Geo4D); `lstsq` is what other papers call by the same name; the exact L1 fit is what the first two want.
"""

from __future__ import annotations

import sys

import torch
from PIL import Image, ImageDraw

from worldline.data.synthetic import render_clip
from worldline.evaluation.depth import depth_errors
from worldline.evaluation.gauge import ESTIMATORS
from worldline.geometry.pointmap import scene_depth

NAMES = {
    "scale_shift_adam_1e-4_1000": ("Adam 1e-4, 1000 steps (MonST3R)", (224, 49, 49)),
    "scale_shift_l2": ("least squares (lstsq)", (25, 113, 194)),
    "scale_shift_adam_1e-2_5000": ("Adam 1e-2, 5000 steps (Geo4D)", (240, 140, 0)),
    "scale_shift_l1": ("exact least absolute deviations", (47, 158, 68)),
}


def make_prediction() -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true depth of the valid pixels of one clip."""
    clip = render_clip(7, frames=8, size=(48, 72), category="rigid")
    truth = scene_depth(clip)[clip.valid]
    generator = torch.Generator().manual_seed(0)
    noise = 1 + 0.04 * torch.randn(truth.shape, generator=generator)
    predicted = (truth + truth.median()) / 2 * noise
    wrong = torch.rand(truth.shape, generator=generator) < 0.05
    return torch.where(wrong, predicted * 0.7, predicted), truth


def compare(predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, dict[str, float]]:
    """Scale, shift and errors under each estimator."""
    table = {}
    for name in NAMES:
        scale, shift = ESTIMATORS[name](predicted, truth)
        errors = depth_errors(scale * predicted + shift, truth)
        residual = float((scale * predicted + shift - truth).abs().mean())
        table[name] = {"scale": scale, "shift": shift, "mean |error|": residual, **errors}
    return table


def draw(predicted: torch.Tensor, truth: torch.Tensor, table: dict[str, dict[str, float]]) -> Image.Image:
    """True depth over predicted depth, one dot per pixel, and the line each estimator draws through it."""
    width, height, edge = 900, 560, 50
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    (left, right), top = predicted.quantile(torch.tensor([0.001, 0.999])).tolist(), float(truth.quantile(0.995)) * 1.1
    x = lambda value: edge + (value - left) / (right - left) * (width - 2 * edge)  # noqa: E731
    y = lambda value: height - edge - value / top * (height - 2 * edge)  # noqa: E731
    for p, g in zip(predicted[::7].tolist(), truth[::7].tolist(), strict=True):
        pen.point((x(p), y(g)), fill=(134, 142, 150))
    for index, (name, (label, color)) in enumerate(NAMES.items()):
        row = table[name]
        ends = [(x(value), y(row["scale"] * value + row["shift"])) for value in (left, right)]
        pen.line(ends, fill=color, width=3)
        text = f"{label}:  AbsRel {row['abs_rel']:.3f}   delta<1.25 {100 * row['delta_1.25']:.1f} %"
        pen.text((edge + 15, 12 + 22 * index), text, fill=color, font_size=17)
    pen.text((width - 180, height - 32), "predicted depth", fill="black", font_size=17)
    pen.text((8, height - edge - 24), "true depth", fill="black", font_size=17)
    return picture


def main() -> None:
    predicted, truth = make_prediction()
    table = compare(predicted, truth)
    print(f"{'estimator':<34} {'scale':>7} {'shift':>8} {'AbsRel':>8} {'d<1.25':>8} {'mean |error|':>13}")
    for name, (label, _) in NAMES.items():
        row = table[name]
        numbers = f"{row['scale']:7.3f} {row['shift']:8.3f} {row['abs_rel']:8.4f} {row['delta_1.25']:8.4f}"
        print(f"{label:<34} {numbers} {row['mean |error|']:13.4f}")
    path = sys.argv[1] if len(sys.argv) > 1 else "three_scale_and_shifts.png"
    draw(predicted, truth, table).save(path)
    print(f"The lines are in {path}.")


if __name__ == "__main__":
    main()
