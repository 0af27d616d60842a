"""Where a small Geo4D loses accuracy, before any alignment: one window, decoded maps against the truth.

python benchmarks/geo4d_diagnosis.py --weights mini.safetensors --autoencoder autoencoder.safetensors [--clips 48]

`--autoencoder` is what the stage of that name wrote: the embedded file has no encoder of maps. Scenes are of seeds
from 1,000,400,000 on: never drawn in training, and not those of the benchmark, so that they can be looked at while a
design is changed. Rows: AbsRel and the share within 25 % after one scale and shift per clip in disparity; then the
error of latents over their variance, beside that of a constant for each cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.data.synthetic import SyntheticBatch, render_batch
from worldline.diffusion import ddim
from worldline.evaluation.ablation import LEAST_VALID, Truth, depth_scores
from worldline.evaluation.baselines import mean_map
from worldline.geometry import pointmap
from worldline.scene import Video
from worldline.systems.geo4d import representation as rep
from worldline.systems.geo4d.networks import Geo4D, build
from worldline.systems.geo4d.objective import conditions, target_latents
from worldline.systems.geo4d.pretrained import load_file
from worldline.training.stages import load_weights, read_prior

START, SIZE, FPS = 1_000_400_000, (48, 64), 24.0
Maps = dict[str, Tensor]


def rendered(count: int, frames: int) -> list[SyntheticBatch]:
    """Clips that show more than sky, each a batch of its own."""
    found: list[SyntheticBatch] = []
    seed = START
    while len(found) < count:
        batch = render_batch([seed], frames=frames, size=SIZE)
        found += [batch] if float(batch.valid.float().mean()) > LEAST_VALID else []
        seed += 1
    return found


def network(weights: Path, autoencoder: Path) -> Geo4D:
    """The model with the encoder of maps that its latents were made by."""
    loaded = load_file(weights).model
    model = build(loaded.config)
    load_weights(model, loaded.state_dict())
    maps = read_prior(autoencoder)
    load_weights(model, {k: v for k, v in maps.items() if k.startswith(("vae.encoder.", "vae.quant_conv."))})
    return model.eval()


def predicted(model: Geo4D, frames: Float[Tensor, "1 T H W 3"], noise: Float[Tensor, "1 C T h w"]) -> Tensor:
    """Clean latents of one step from this noise."""
    seen, context = conditions(model, frames), model.prepared_context(frames.device)
    fps = torch.tensor([FPS])
    return ddim.sample(
        lambda x, timestep: model.unet(torch.cat([x, seen], dim=1), timestep, context, fps),
        noise,
        ddim.zero_snr_schedule(),
        1,
        final="clean",
    )


def decoded(model: Geo4D, latents: Float[Tensor, "1 C T h w"]) -> Maps:
    """Pictures [T, 3, H, W] of points and disparity, and the raw uncertainty."""
    parts = {k: v[0].transpose(0, 1) for k, v in model.split(latents / model.config.vae.scaling_factor).items()}
    points, raw = model.point_vae.decode_with_uncertainty(parts["points"])
    return {"points": points, "raw": raw, "disparity": model.vae.decode(parts["disparity"])}


def disparities(maps: Maps, clip: SyntheticBatch, pictures: rep.Pictures) -> Maps:
    """What each map says, [T, H, W] up to scale and shift, and points with the shift along Z known or estimated."""
    box, pose = pictures.boxes[0], clip.cam2world[0].clone()
    pose[:, :3, 3] /= box.scale
    points = rep.read_points(maps["points"])
    found = {"disparity": rep.read_disparity(maps["disparity"])}
    shifts = {"points, true shift": box.low / box.scale}
    if "raw" in maps:
        confidence = rep.confidence_of(maps["raw"][:, 0], rep.invalid_points(maps["points"]))
        seen = rep.first_camera_shift(points[0], confidence[0])
        shifts["points, estimated shift"] = points.new_zeros(()) if seen is None else seen[1]
    for name, shift in shifts.items():
        found[name] = 1 / pointmap.depth_of(rep.shifted(points, shift), pose).clamp(min=1e-3)
    return found


def one_clip(
    model: Geo4D, clip: SyntheticBatch, other: SyntheticBatch, generator: torch.Generator
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Scores of every row, and the latents, true and predicted."""
    gain = model.config.moment_gain
    pictures = rep.to_pictures(clip.points, clip.valid, clip.intrinsics, clip.cam2world, moment_gain=gain)
    true = target_latents(model, pictures)
    noise = torch.randn(true.shape, generator=generator)
    usual = torch.zeros_like(noise) if model.config.deterministic else noise
    latents = predicted(model, clip.rgb, usual)
    whole = {"points": pictures.points[0], "disparity": pictures.disparity[0]}
    sources: dict[str, Callable[[], Maps]] = {
        "truth": lambda: whole,
        "autoencoder": lambda: decoded(model, true),
        "prediction": lambda: decoded(model, latents),
        "prediction from zeros": lambda: decoded(model, predicted(model, clip.rgb, 0 * noise)),
        "prediction, another video": lambda: decoded(model, predicted(model, other.rgb, usual)),
    }
    truth = Truth(
        seed=clip.seeds[0],
        video=Video(frames=clip.rgb[0], timestamps=torch.arange(len(clip.rgb[0]), dtype=torch.float64) / FPS),
        depth=clip.depth[0],
        valid=clip.valid[0],
        cam2world=clip.cam2world[0],
    )
    rows = {"mean depth map": depth_scores((1 / mean_map(SIZE)).expand_as(truth.depth), truth)}
    for source, make in sources.items():
        for name, disparity in disparities(make(), clip, pictures).items():
            rows[f"{source}: {name}"] = depth_scores(disparity, truth)
    return rows, {"true": true, "predicted": latents}


def main(argv: list[str] | None = None) -> int:
    """Score and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=48)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, generator = network(options.weights, options.autoencoder), torch.Generator().manual_seed(0)
    clips = rendered(options.clips, model.config.window)
    with torch.no_grad():
        found = [one_clip(model, clip, clips[index - 1], generator) for index, clip in enumerate(clips)]
    for name in found[0][0]:
        for metric in ("abs_rel", "delta"):
            values = torch.tensor([rows[name][metric] for rows, _ in found])
            print(f"{name:45s} {metric:8s} {values.mean():6.2f} +- {values.std() / len(values) ** 0.5:.2f}")
    both = {key: torch.cat([latents[key] for _, latents in found]) for key in ("true", "predicted")}
    for name, true in model.split(both["true"]).items():
        error = (model.split(both["predicted"])[name] - true).square().mean() / true.var()
        constant = (true - true.mean((0, 2), keepdim=True)).square().mean() / true.var()
        print(f"latents of {name:20s} error / variance {error:.4f}, of a constant {constant:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
