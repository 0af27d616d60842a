"""What a small MoRe4D checkpoint is worth on held-back synthetic scenes, beside predictors that know nothing.

python benchmarks/more4d_mini.py --weights mini.safetensors [--scenes 64] [--choose] [--json] [--write]

Scenes: seeds from 1,000,600,000 (training stays below 1,000,000,000), at the size and length the model was trained on;
--choose picks steps and guidance on scenes from 1,000,650,000, which are not scored.

    motion       mean distance of generated tracks from true ones, over all later times, where the truth moves by at
                 least a pixel and is known; in % of the median depth. Depth, camera and caption are given. Beside zero
                 motion; beside the caption of another scene (does the text matter?); and how much stands still that
                 should (mean motion where the truth has none)
    autoencoder  the same distance for tracks that were encoded and decoded, over all known pixels and where they move
    holes        PSNR where double reprojection left holes, of the whole set, beside the nearest pixel and mid grey

A scene without motion, or with too few holes, is counted and left out of the mean it has nothing to say to. Differences
are paired by scene, with their standard error. --write puts everything into the JSON beside the weights; what does not
beat its trivial predictor by two standard errors is "unreliable" there.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.synthetic import RenderConfig, SensorConfig, render_batch
from worldline.io.atomic import atomic_file
from worldline.systems.more4d import infer, pretrained
from worldline.systems.more4d.depth import GivenDepth
from worldline.systems.more4d.infer import SamplingConfig
from worldline.systems.more4d.networks import MoRe4D
from worldline.systems.more4d.representation import to_channels, to_maps
from worldline.systems.more4d.samples import FillSamples, MotionSamples, fill_samples, motion_samples
from worldline.systems.more4d.splatting import Rendering
from worldline.systems.more4d.system import MINI_SAMPLING

SCORED, CHOSEN_ON = 1_000_600_000, 1_000_650_000
LEAST_MOVING, LEAST_HOLES = 0.005, 0.005
STEPS, GUIDANCE = (1, 2, 4, 8), (1.0, 1.5, 2.5)


class Scene:
    """One held-back scene: samples of both kinds and the camera."""

    def __init__(self, model: MoRe4D, seed: int) -> None:
        sizes = model.config
        clip = render_batch(
            [seed], frames=sizes.frames, size=sizes.size, config=RenderConfig(sensor=SensorConfig(), tracks=True)
        )
        self.motion: MotionSamples = motion_samples(
            clip.rgb[:, 0], clip.tracks, clip.visible, clip.valid[:, 0], clip.intrinsics[:, 0], clip.cam2world[:, 0],
            clip.captions, focal=sizes.focal,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.fill: FillSamples = fill_samples(
            clip.rgb, clip.depth, clip.valid, clip.intrinsics, clip.captions, generator
        )
        self.intrinsics = clip.intrinsics[0, 0].float()
        self.caption = clip.captions[0]
        height, width = sizes.size
        focal = sizes.focal or (float(self.intrinsics[0, 0]) / width, float(self.intrinsics[1, 1]) / height)
        depth = self.motion.depth[0]
        self.metres = depth[..., None] / torch.tensor([*focal, 1.0])  # of one unit of normalised motion
        self.unit = float(depth[clip.valid[0, 0]].median()) if bool(clip.valid[0, 0].any()) else math.nan
        self.known = self.motion.weight[0, 1:] > 0
        pixels = self.motion.motion[0, 1:] * torch.tensor([width, height, width])
        self.moving = self.known & (pixels.norm(dim=-1) >= 1)
        self.still = self.known & (pixels.norm(dim=-1) < 0.05)

    def error(self, motion: Tensor, where: Tensor) -> float:
        """Mean distance in % of the median depth; nan where nothing counts."""
        wrong = ((motion[1:] - self.motion.motion[0, 1:]) * self.metres).norm(dim=-1)
        return 100 * float(wrong[where].mean()) / self.unit


def generated(scene: Scene, model: MoRe4D, config: SamplingConfig, caption: str) -> Tensor:
    """Normalised motion of what `infer.generate` makes of a scene's picture."""
    prior = GivenDepth(depth=scene.motion.depth[0], intrinsics=scene.intrinsics)
    tracks = infer.generate(scene.motion.image[0], caption, model, prior, config)
    return ((tracks.points - tracks.points[:1]) / scene.metres).float()


def paired(model: list[float], trivial: list[float]) -> dict[str, float]:
    """Means, and the mean paired gain with its standard error."""
    gain = torch.tensor(trivial, dtype=torch.float64) - torch.tensor(model, dtype=torch.float64)
    error = float(gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else math.nan
    return {
        "model": sum(model) / max(len(model), 1),
        "trivial": sum(trivial) / max(len(trivial), 1),
        "gain": float(gain.mean()) if len(gain) else math.nan,
        "standard_error": error,
        "better_in": int((gain > 0).sum()),
        "scenes": len(gain),
    }


def score_motion(scenes: list[Scene], model: MoRe4D, config: SamplingConfig, *, swapped: bool = True) -> dict:
    """Generated tracks beside zero motion, and beside those of another scene's caption."""
    own, zero, other, idle, without = [], [], [], [], 0
    for number, scene in enumerate(scenes):
        motion = generated(scene, model, config, scene.caption)
        if bool(scene.still.any()):
            idle.append(100 * float((motion[1:] * scene.metres).norm(dim=-1)[scene.still].mean()) / scene.unit)
        if float(scene.moving.float().mean()) < LEAST_MOVING:
            without += 1
            continue
        own.append(scene.error(motion, scene.moving))
        zero.append(scene.error(torch.zeros_like(motion), scene.moving))
        if swapped:
            caption = scenes[(number + 1) % len(scenes)].caption
            other.append(scene.error(generated(scene, model, config, caption), scene.moving))
    out = {"where_it_moves": paired(own, zero), "without_motion": without}
    out["moved_that_stands_still"] = sum(idle) / max(len(idle), 1)
    if swapped:
        out["own_caption_beside_another"] = paired(own, other)
    return out


@torch.no_grad()
def score_autoencoder(scenes: list[Scene], model: MoRe4D) -> dict:
    """Encoded and decoded tracks beside zero motion."""
    rows: dict[str, list[float]] = {"all": [], "all_zero": [], "moving": [], "moving_zero": []}
    for scene in scenes:
        motion = scene.motion.motion
        back = to_maps(model.vae.decode(model.vae.encode(to_channels(motion)).mean).float())[0]
        for name, where in (("all", scene.known), ("moving", scene.moving)):
            if float(where.float().mean()) >= LEAST_MOVING:
                rows[name].append(scene.error(back, where))
                rows[f"{name}_zero"].append(scene.error(torch.zeros_like(back), where))
    return {name: paired(rows[name], rows[f"{name}_zero"]) for name in ("all", "moving")}


def score_holes(scenes: list[Scene], model: MoRe4D, config: SamplingConfig) -> dict:
    """PSNR in holes; per scene for the paired gain, and of all pixels together."""
    squares: dict[str, list[float]] = {"model": [], "nearest": [], "grey": []}
    sums, pixels, without = dict.fromkeys(squares, 0.0), 0, 0
    for scene in scenes:
        truth, rendered, known = scene.fill.video[0], scene.fill.rendered[0], scene.fill.known[0]
        if float((~known).float().mean()) < LEAST_HOLES:
            without += 1
            continue
        seen = Rendering(frames=rendered, depth=known.float(), coverage=known)
        answers = {
            "model": infer.inpaint(rendered, known, truth[0], model, scene.caption, config).clamp(0, 1),
            "nearest": infer.nearest(seen),
            "grey": torch.full_like(truth, 0.5),
        }
        for name, answer in answers.items():
            error = (answer - truth)[~known].square()
            squares[name].append(float(error.mean()))
            sums[name] += float(error.sum())
        pixels += 3 * int((~known).sum())
    decibels = {name: [-10 * math.log10(max(value, 1e-9)) for value in values] for name, values in squares.items()}
    gains = paired([-value for value in decibels["model"]], [-value for value in decibels["nearest"]])
    pooled = {name: -10 * math.log10(max(total / max(pixels, 1), 1e-9)) for name, total in sums.items()}
    return {"psnr_db": pooled, "gain_over_nearest_db": gains, "too_few_holes": without}


def choose(model: MoRe4D, config: SamplingConfig, count: int) -> SamplingConfig:
    """Steps and guidance with the least motion error on scenes of their own."""
    scenes = usable(model, CHOSEN_ON, count)
    possible = STEPS[:1] if model.config.deterministic else STEPS
    tried = [replace(config, steps=steps, guidance=guidance) for steps in possible for guidance in GUIDANCE]

    def error(candidate: SamplingConfig) -> float:
        return score_motion(scenes, model, candidate, swapped=False)["where_it_moves"]["model"]

    return min(tried, key=error)


def usable(model: MoRe4D, start: int, count: int) -> list[Scene]:
    """Scenes of which anything is known."""
    scenes, seed = [], start
    while len(scenes) < count:
        scene = Scene(model, seed)
        seed += 1
        if math.isfinite(scene.unit) and bool(scene.known.any()):
            scenes.append(scene)
    return scenes


def unreliable(scores: dict) -> list[str]:
    """Outputs that do not beat their trivial predictor by two standard errors."""
    gains = {"motion": scores["motion"]["where_it_moves"], "holes": scores["holes"]["gain_over_nearest_db"]}
    return [name for name, row in gains.items() if not row["gain"] > 2 * row["standard_error"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    loaded = pretrained.load_file(args.weights)
    config = replace(MINI_SAMPLING, **loaded.card.get("sampling", {}))
    if args.choose:
        config = choose(loaded.model, config, max(8, args.scenes // 4))
    scenes = usable(loaded.model, SCORED, args.scenes)
    scores = {
        "scenes": args.scenes,
        "sampling": {"steps": config.steps, "guidance": config.guidance, "shift": config.shift},
        "motion": score_motion(scenes, loaded.model, config),
        "autoencoder": score_autoencoder(scenes, loaded.model),
        "holes": score_holes(scenes, loaded.model, config),
    }
    if args.write:
        about = args.weights.with_suffix(".json")
        card = json.loads(about.read_text())
        card |= {"sampling": scores["sampling"], "metrics": scores, "unreliable": unreliable(scores)}
        with atomic_file(about) as draft:
            draft.write_text(json.dumps(card, indent=1) + "\n")
    if args.json:
        print(json.dumps(scores, indent=1))
        return
    table(scores)


def table(scores: dict) -> None:
    """For people."""
    motion, vae, holes = scores["motion"], scores["autoencoder"], scores["holes"]
    print(f"{scores['scenes']} held-back scenes, {scores['sampling']}")
    rows = {
        "tracks where they move, % of depth (zero motion)": motion["where_it_moves"],
        "  with the caption of another scene": motion["own_caption_beside_another"],
        "autoencoder, all pixels (zero motion)": vae["all"],
        "autoencoder where they move (zero motion)": vae["moving"],
        "holes, -dB (nearest pixel)": holes["gain_over_nearest_db"],
    }
    print(f"{'':<52}{'model':>9}{'trivial':>9}{'gain':>9}{'+-':>7}{'better in':>12}")
    for name, row in rows.items():
        print(
            f"{name:<52}{row['model']:>9.3f}{row['trivial']:>9.3f}{row['gain']:>9.3f}{row['standard_error']:>7.3f}"
            f"{row['better_in']:>6}/{row['scenes']}"
        )
    print(f"stands still but was moved: {motion['moved_that_stands_still']:.3f} % of depth on average")
    print("PSNR in all holes together: " + ", ".join(f"{k} {v:.2f} dB" for k, v in holes["psnr_db"].items()))
    print(f"left out: {motion['without_motion']} scenes without motion, {holes['too_few_holes']} with too few holes")


if __name__ == "__main__":
    main()
