"""The parallax system on real sequences with truth: accuracy, speed, memory, and what its confidence means.

    python benchmarks/parallax.py [--data DIR] [--json]     # everything below, about 6 CPU minutes
    python benchmarks/parallax.py --real                    # cameras and depth, intrinsics known and unknown
    python benchmarks/parallax.py --speed                   # CPU seconds per frame and phase at 192x320
    python benchmarks/parallax.py --long                    # 250 against 1,000 frames: memory, time, drift
    python benchmarks/parallax.py --prior                   # auto's prior: windows joined against windows aligned
    python benchmarks/parallax.py --fusion [CLIPS]          # network, parallax and both together on rendered clips
    python benchmarks/parallax.py --calibration             # confidence against error (default system); --plot FILE

DIR (default: WORLDLINE_SHARED_DATA or ../shared/data) holds tartanair, hololens and kitti_odometry, read by
`worldline.data.adapters`. The system's constants were chosen with these sequences in sight: their numbers are
in-sample; its confidence was not fitted on the rendered clips of --calibration. AbsRel uses one scale per clip
(median); "half" is the more confident half of the pixels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline import api
from worldline.align import solve as alignment
from worldline.align.config import AlignConfig, Priors
from worldline.align.observation import Observation
from worldline.align.window_depth import frame_depths
from worldline.data.synthetic import render_clip
from worldline.evaluation import trajectory
from worldline.evaluation.protocols.suites import SYNTHETIC_V1
from worldline.evaluation.resizing import resize_scene
from worldline.geometry import fit
from worldline.geometry.pointmap import scene_depth
from worldline.io.arena import Arena
from worldline.io.video import load_video
from worldline.scene import Provenance, Scene4D, Video
from worldline.systems.parallax.infer import ParallaxConfig, infer
from worldline.systems.system import Loading, Options, WindowSystem

ROOT = Path(__file__).resolve().parents[1]
REAL = {"tartanair": 15, "hololens": 60, "kitti_odometry": 51}
CALIBRATION_SEED = 730_000_000  # below the suites' seeds, in a range that no training run of this project draws
FUSION_SEED = 731_000_120  # likewise; clips from here on took no part in the choice of the rule of fusion
CATEGORIES = [clip.category for clip in SYNTHETIC_V1[:10]]
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def truth_of(data: Path, name: str) -> Scene4D:
    """A sequence at about 320x240 pixels."""
    adapter = importlib.import_module(f"worldline.data.adapters.{name}")
    scene = next(iter(adapter.convert(data / name))).select(slice(0, REAL[name]))
    height, width = scene.size
    shrink = min(1.0, (240 * 320 / (height * width)) ** 0.5)
    return resize_scene(scene, (round(height * shrink), round(width * shrink)))


def depth_scores(found: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """AbsRel and delta of the masked pixels at their own median scale."""
    found = found * (truth / found)[mask].median()
    ratio = torch.maximum(found / truth, truth / found)[mask]
    error = ((found - truth).abs() / truth)[mask]
    return {"abs_rel": float(error.mean()), "delta_1.25": float((ratio < 1.25).float().mean())}


def compare(scene: Scene4D, truth: Scene4D) -> dict[str, Any]:
    """Everything about one reconstruction."""
    assert scene.cameras is not None and truth.cameras is not None and scene.confidence is not None
    estimated, true = scene.cameras.cam2world, truth.cameras.cam2world
    path = trajectory.path_length(true)
    row: dict[str, Any] = {
        "ate_percent_path": 100 * trajectory.absolute_trajectory_error(estimated, true, "sim3") / path,
        "focal_error_percent": 100 * float(scene.cameras.focal_px[0] / truth.cameras.focal_px[0] - 1),
        "report": dict(scene.provenance.report),
    }
    if truth.valid.any():
        wanted = scene_depth(truth)
        mask = truth.valid & (wanted > 0) & (wanted < 1e4)
        half = mask & (scene.confidence >= scene.confidence[mask].median())
        found = scene_depth(scene)
        row["full"], row["half"] = depth_scores(found, wanted, mask), depth_scores(found, wanted, half)
        ramp = torch.linspace(1, 0, scene.size[0]).mul(3).add(1)[None, :, None].expand_as(wanted)
        row["trivial"] = {
            "constant": depth_scores(torch.ones_like(wanted), wanted, mask)["abs_rel"],
            "y-ramp": depth_scores(ramp, wanted, mask)["abs_rel"],
        }
    return row


def real(data: Path) -> dict[str, Any]:
    """Each sequence with known and with unknown intrinsics."""
    table: dict[str, Any] = {}
    for name in REAL:
        truth = truth_of(data, name)
        assert truth.cameras is not None
        for label, priors in (("known", Priors(intrinsics=truth.cameras.intrinsics)), ("unknown", Priors())):
            started = time.process_time()
            scene = infer(truth.video, ParallaxConfig(pixels=None), priors=priors)
            row = compare(scene, truth)
            row["cpu_seconds_per_frame"] = (time.process_time() - started) / len(truth)
            table[f"{name}, intrinsics {label}"] = row
    return table


def speed(data: Path) -> dict[str, Any]:
    """CPU and wall seconds per frame and phase: 50 frames of a real video at 192x320, after a first run to compile."""
    frames = torch.nn.functional.interpolate(
        truth_of(data, "hololens").video.rgb()[:50].permute(0, 3, 1, 2), (192, 320), mode="area"
    ).permute(0, 2, 3, 1)
    video = Video(frames=frames, timestamps=torch.arange(50, dtype=torch.float64))
    infer(video.select(slice(0, 10)), ParallaxConfig(pixels=None))
    wall, cpu = time.perf_counter(), time.process_time()
    scene = infer(video, ParallaxConfig(pixels=None))
    wall, cpu = (time.perf_counter() - wall) / 50, (time.process_time() - cpu) / 50
    phases = {name: value / 50 for name, value in scene.provenance.report["cpu_seconds"].items()}
    return {
        "cpu_seconds_per_frame": cpu,
        "frames_per_second_on_two_cores": 2 / cpu,
        "wall_seconds_per_frame_here": wall,
        "cpu_seconds_per_frame_by_phase": phases,
    }


def resident_bytes() -> dict[str, int]:
    """Memory of this process: "anon" is its own, "total" counts pages of files that it looks at too."""
    with open("/proc/self/status") as status:
        found = dict(line.split(":") for line in status)
    return {"anon": 1024 * int(found["RssAnon"].split()[0]), "total": 1024 * int(found["VmRSS"].split()[0])}


def long_one(data: Path, frames: int) -> dict[str, float]:
    """One long clip (a real one there and back again) at 96x144: memory, time, drift.

    Memory is the largest seen every 50 ms, of the whole process and beyond that before the run. Every large array
    lives in a temporary file (`memory_bytes=0`), so that what remains is what grows. Drift: how far the camera is from
    where it began when it is there again for the last time, as a share of the path.
    """
    truth = truth_of(data, "hololens")
    assert truth.cameras is not None
    base = truth.video.rgb()[:50]
    base = torch.nn.functional.interpolate(base.permute(0, 3, 1, 2), (96, 144), mode="area").permute(0, 2, 3, 1)
    order = np.concatenate([np.arange(50), np.arange(48, 0, -1)])[np.arange(frames) % 98]
    video = Video(frames=(base * 255).byte()[order], timestamps=torch.arange(frames, dtype=torch.float64))
    infer(video.select(slice(0, 12)), ParallaxConfig(pixels=None))
    before, stop = resident_bytes(), threading.Event()
    peak = dict(before)

    def watch() -> None:
        while not stop.wait(0.05):
            for name, value in resident_bytes().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    scene = infer(video, ParallaxConfig(pixels=None, memory_bytes=0))
    cpu = time.process_time() - started
    stop.set()
    watcher.join()
    assert scene.cameras is not None
    true, centres = truth.cameras.cam2world[order], scene.cameras.cam2world[:, :3, 3]
    path, again = float((centres[1:] - centres[:-1]).norm(dim=1).sum()), (frames - 1) // 98 * 98
    return {
        "mib_beyond_start": (peak["anon"] - before["anon"]) / 2**20,
        "mib_own": peak["anon"] / 2**20,
        "mib_with_files": peak["total"] / 2**20,
        "cpu_seconds_per_frame": cpu / frames,
        "registered": scene.provenance.report["registered"],
        "drift_percent_path": 100 * float((centres[again] - centres[0]).norm()) / path,
        "ate_percent_path": 100
        * trajectory.absolute_trajectory_error(scene.cameras.cam2world, true, "sim3")
        / trajectory.path_length(true),
    }


def long_clips(data: Path) -> dict[str, Any]:
    """250 and 1,000 frames, each in a process of its own."""
    table: dict[str, Any] = {}
    for frames in (250, 1000):
        command = [sys.executable, __file__, "--data", str(data), "--one-long", str(frames)]
        table[f"{frames} frames"] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for name in ("mib_beyond_start", "mib_own", "mib_with_files"):
        table[f"{name}, 1,000 frames over 250"] = table["1000 frames"][name] / table["250 frames"][name]
    return table


def prior(data: Path) -> dict[str, Any]:
    """Depth of the embedded network's windows, aligned and merely joined: CPU time, AbsRel of it and of `auto` with it.

    The prior's own AbsRel has a scale per frame, as that is how it is used. The last row is 50 frames, timed only.
    """
    clips = {name: truth_of(data, name).select(slice(0, 15)) for name in ("tartanair", "hololens")}
    clips |= {f"rendered {n}": scene for n, scene in enumerate(rendered_clips(3))}
    table = {name: prior_row(truth) for name, truth in clips.items()}
    table["hololens, 50 frames"] = prior_row(truth_of(data, "hololens").select(slice(0, 50)), timed_only=True)
    return table


def prior_row(truth: Scene4D, timed_only: bool = False) -> dict[str, float]:
    """One clip of `prior`."""
    system = api.card(api.AUTO_PRIOR).load(Loading(device=torch.device("cpu")))
    assert isinstance(system, WindowSystem)
    small = load_video(truth.video.frames, size=api.working_size(truth.size, api.card(api.AUTO_PRIOR)))
    started = time.process_time()
    windows = list(system.observe(small, Options()))
    row = {"windows": len(windows), "cpu_seconds_network": time.process_time() - started}
    wanted, mask = scene_depth(truth), truth.valid & (scene_depth(truth) > 0) & (scene_depth(truth) < 1e4)
    for name, depths in (("aligned", aligned_depth), ("joined", joined_depth)):
        started = time.process_time()
        depth = depths(windows, small)
        row[f"cpu_seconds_{name}"] = time.process_time() - started
        if timed_only:
            continue
        scene = infer(truth.video, ParallaxConfig(pixels=None), prior=depth)
        row[f"abs_rel_auto_{name}"] = depth_scores(scene_depth(scene), wanted, mask)["abs_rel"]
        large = torch.nn.functional.interpolate(depth[:, None], truth.size, mode="nearest")[:, 0]
        seen = mask & large.isfinite()
        scores = [depth_scores(large[t], wanted[t], seen[t])["abs_rel"] for t in range(len(truth)) if seen[t].any()]
        row[f"abs_rel_prior_{name}"] = float(np.mean(scores))
        row[f"covered_{name}"] = float(large.isfinite().float().mean())
    return row


def fusion(count: int) -> dict[str, Any]:
    """AbsRel of the embedded network's depth, of parallax and of both, one L1 scale per clip as in the suites."""
    rows = []
    for n in range(count):
        category = CATEGORIES[n % len(CATEGORIES)]
        frames = 24 if category == "long" else 16
        truth = render_clip(FUSION_SEED + n, frames=frames, size=(96, 144), category=category)
        system = api.card(api.AUTO_PRIOR).load(Loading(device=torch.device("cpu")))
        assert isinstance(system, WindowSystem)
        small = load_video(truth.video.frames, size=api.working_size(truth.size, api.card(api.AUTO_PRIOR)))
        network = joined_depth(list(system.observe(small, Options())), small)
        alone = infer(truth.video, ParallaxConfig(pixels=None))
        both = infer(truth.video, ParallaxConfig(pixels=None), prior=network)
        found = {"parallax": scene_depth(alone), "both": scene_depth(both)}
        found["network"] = torch.nn.functional.interpolate(network[:, None], truth.size, mode="nearest")[:, 0]
        wanted, mask = scene_depth(truth), truth.valid & (scene_depth(truth) > 0) & (scene_depth(truth) < 1e4)
        scores = {}
        for name, depth in found.items():
            seen = mask & depth.isfinite()
            depth, true = depth[seen], wanted[seen]
            scores[name] = float(((fit.scale_l1(depth, true) * depth - true).abs() / true).mean())
        overrules = both.provenance.report.get("prior_overrules", 0.0)
        rows.append({"category": category, **scores, "prior_overrules": overrules})
    better = np.array([min(row["network"], row["parallax"]) for row in rows])
    ratio = np.array([row["both"] for row in rows]) / better
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("network", "parallax", "both")}
    worse = {"worse_by_5_percent": int((ratio > 1.05).sum()), "worst_ratio": float(ratio.max())}
    return {"clips": rows, **mean, "better_alone": float(better.mean()), **worse}


def aligned_depth(windows: list[Observation], video: Video) -> torch.Tensor:
    """Depth [T, H, W] of windows that the whole alignment has brought into one world; NaN where not valid."""
    solved = alignment.solve(windows, len(video), video.size, Priors(), AlignConfig())
    scene = solved.scene(video, Provenance(system="aligned"))
    return scene_depth(scene).where(scene.valid, torch.nan)


def joined_depth(windows: list[Observation], video: Video) -> torch.Tensor:
    """Depth [T, H, W] of windows that are merely brought to one scale."""
    return frame_depths(windows, len(video), Arena(1 << 30))


def rendered_clips(count: int) -> list[Scene4D]:
    """Clips that no training run draws and no suite holds, one of each category in turn."""
    return [
        render_clip(CALIBRATION_SEED + n, frames=24 if category == "long" else 16, size=(96, 144), category=category)
        for n, category in enumerate((2 * CATEGORIES)[:count])
    ]


def calibration_clips(data: Path) -> dict[str, list[Scene4D]]:
    """Rendered clips that no training run draws and no suite holds, and real ones (in-sample)."""
    return {
        "rendered": rendered_clips(2 * len(CATEGORIES)),
        "real": [truth_of(data, name) for name in ("tartanair", "hololens")],
    }


def calibration(data: Path) -> dict[str, Any]:
    """Share of pixels within 10 % of the truth per confidence bin, for the default system where the camera moves."""
    table: dict[str, Any] = {}
    for group, truths in calibration_clips(data).items():
        confidence, errors = [], []
        for truth in truths:
            scene = api.reconstruct(truth.video, size=truth.size)
            if scene.provenance.report["camera"] != "full":
                continue
            wanted, found = scene_depth(truth), scene_depth(scene)
            assert scene.confidence is not None
            mask = truth.valid & (wanted > 0) & (wanted < 1e4)
            sure = mask & (scene.confidence >= scene.confidence[mask].median())
            found = found * (wanted / found)[sure].median()
            confidence.append(scene.confidence[mask])
            errors.append(((found / wanted) - 1).abs()[mask])
        table[group] = bins(torch.cat(confidence), torch.cat(errors))
    return table


def bins(confidence: torch.Tensor, errors: torch.Tensor) -> list[dict[str, Any]]:
    """One row per confidence bin: share of pixels, mean confidence, share within 10 %, median relative error."""
    rows = []
    for low, high in zip(BINS[:-1], (*BINS[1:-1], 1.01), strict=True):
        inside = (confidence >= low) & (confidence < high)
        some = bool(inside.any())
        rows.append(
            {
                "bin": [low, min(high, 1.0)],
                "share": float(inside.float().mean()),
                "said": float(confidence[inside].mean()) if some else None,
                "within_10_percent": float((errors[inside] < 0.1).float().mean()) if some else None,
                "median_error": float(errors[inside].median()) if some else None,
            }
        )
    return rows


def draw(table: dict[str, Any], path: Path) -> None:
    """The calibration as a picture: what confidence said against what was true."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.6))
    axes[0].plot([0, 1], [0, 1], color="0.7", linestyle="--", label="perfect")
    for group, rows in table.items():
        found = [row for row in rows if row["said"] is not None]
        said = [row["said"] for row in found]
        axes[0].plot(said, [row["within_10_percent"] for row in found], marker="o", label=group)
        axes[1].plot(said, [row["median_error"] for row in found], marker="o", label=group)
    axes[0].set(xlabel="confidence", ylabel="share of pixels within 10 % of the truth")
    axes[1].set(xlabel="confidence", ylabel="median relative error of depth", yscale="log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def show(results: dict[str, Any]) -> None:
    """Print tables."""
    for name, row in results.get("real", {}).items():
        depth = ""
        if "full" in row:
            depth = (
                f"  AbsRel {row['full']['abs_rel']:.3f} (constant {row['trivial']['constant']:.3f}, y-ramp "
                f"{row['trivial']['y-ramp']:.3f}) delta {row['full']['delta_1.25']:.3f}  confident half "
                f"{row['half']['abs_rel']:.3f}"
            )
        report = row["report"]
        print(
            f"{name:34s} ATE {row['ate_percent_path']:.2f} % of path  focal {row['focal_error_percent']:+.1f} % "
            f"({report['focal']}){depth}  {row['cpu_seconds_per_frame']:.2f} CPU s/frame"
        )
    if "speed" in results:
        row = results["speed"]
        phases = "  ".join(f"{name} {value:.3f}" for name, value in row["cpu_seconds_per_frame_by_phase"].items())
        print(
            f"192x320: {row['cpu_seconds_per_frame']:.3f} CPU s/frame = {row['frames_per_second_on_two_cores']:.1f} "
            f"frames/s on two free cores ({row['wall_seconds_per_frame_here']:.3f} s/frame of wall time here): {phases}"
        )
    for name, row in results.get("long", {}).items():
        if isinstance(row, dict):
            print(
                f"{name}: peak memory {row['mib_own']:.0f} MiB, {row['mib_beyond_start']:.0f} beyond that before the "
                f"run, {row['mib_with_files']:.0f} with files; {row['cpu_seconds_per_frame']:.3f} CPU s/frame, "
                f"{row['registered']:.0f} cameras registered, drift {row['drift_percent_path']:.3f} % of the path, ATE "
                f"{row['ate_percent_path']:.3f} %"
            )
        else:
            print(f"{name}: {row:.2f}")
    for name, row in results.get("prior", {}).items():
        print(f"prior, {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    for row in results.get("fusion", {}).get("clips", []):
        print(
            "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{value:12s}" for key, value in row.items()
            )
        )
    if "fusion" in results:
        print(", ".join(f"{key} {value:.3g}" for key, value in results["fusion"].items() if key != "clips"))
    for group, rows in results.get("calibration", {}).items():
        print(f"confidence on {group} clips:  bin  share of pixels  mean confidence  within 10 % of the truth")
        for row in rows:
            low, high = row["bin"]
            if row["said"] is not None:
                print(
                    f"    {low:.1f}-{high:.1f}  {row['share']:.3f}  {row['said']:.2f}  {row['within_10_percent']:.2f}"
                    f"  median error {row['median_error']:.3f}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("WORLDLINE_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--json", action="store_true")
    for part in ("real", "speed", "long", "prior", "calibration"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--fusion", type=int, nargs="?", const=30, default=0, metavar="CLIPS", help="8 CPU s a clip")
    parser.add_argument("--plot", type=Path, help="picture of the calibration to write")
    parser.add_argument("--one-long", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one_long:
        print(json.dumps(long_one(args.data, args.one_long)))
        return
    if args.fusion:
        found = {"fusion": fusion(args.fusion)}
        print(json.dumps(found, indent=1)) if args.json else show(found)
        return
    if not args.data.is_dir():
        raise SystemExit(f"{args.data} is missing; give the folder of real sequences with --data.")
    parts = {"real": real, "speed": speed, "long": long_clips, "prior": prior, "calibration": calibration}
    chosen = [name for name in parts if getattr(args, name)] or list(parts)
    results = {name: parts[name](args.data) for name in chosen}
    if args.plot is not None and "calibration" in results:
        draw(results["calibration"], args.plot)
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        show(results)


if __name__ == "__main__":
    main()
