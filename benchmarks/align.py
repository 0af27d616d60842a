"""Alignment: the solver beside the published procedure, in one run.

    python benchmarks/align.py --exam DIR [--json] [--extrapolate] [--seeds 1 2 3]
    python benchmarks/align.py --video            # 50 frames of 320x512, windows of 16, stride 4
    python benchmarks/align.py --long             # 1,000 frames of 96x160 against 250: memory and drift
    python benchmarks/align.py                    # all of them (the exam from WORLDLINE_GOLDEN or ../shared/golden)

DIR holds exam_seed*.json + .safetensors and score_exam.py, which does the scoring. Times are CPU seconds of this
process with one thread. --extrapolate runs a few iterations of the published procedure, scales its time to the full
schedule and takes its accuracy and objective from the answer stored in the exam; the output says which was done.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from worldline import windows
from worldline.align.alignment import Alignment
from worldline.align.observation import Observation
from worldline.align.reference import ReferenceConfig, ReferenceResult, align_reference
from worldline.align.solve import AlignConfig, Priors, solve
from worldline.geometry.pose import Similarity, from_rt, so3_exp

ROOT = Path(__file__).resolve().parents[1]
FULL, SHORT = ReferenceConfig(), ReferenceConfig(iterations=24, switch=8, fit_iterations=(200, 100))


def scorer(folder: Path) -> ModuleType:
    """That folder's score_exam.py."""
    spec = importlib.util.spec_from_file_location("score_exam", folder / "score_exam.py")
    if spec is None or spec.loader is None or not (folder / "score_exam.py").is_file():
        raise SystemExit(f"{folder} has no score_exam.py; give the folder of an alignment exam.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exam_observations(score: ModuleType, z: dict[str, np.ndarray], meta: dict[str, Any]) -> list[Observation]:
    """The windows of one exam."""
    out = []
    for k, start in enumerate(meta["windows"]):
        data = {
            name: torch.from_numpy(np.ascontiguousarray(v)).float()
            for name, v in score.window_inputs(z, meta, k).items()
        }
        out.append(
            Observation(
                frames=tuple(range(start, start + len(data["points"]))), points=data["points"],
                confidence=data["conf"].clamp(max=10), disparity=data["disparity"], ray_direction=data["ray_dir"],
                ray_moment=data["ray_moment"], ray_cam2world=torch.from_numpy(z[f"w{k}.upstream_ray_poses"]).float(),
            )
        )  # fmt: skip
    return out


def solution(alignment: Alignment) -> dict[str, Any]:
    """An alignment as score_exam.py wants it."""
    state = alignment.state
    matrix = lambda s, scaled: from_rt(s.rotation * (s.scale[:, None, None] if scaled else 1), s.translation).numpy()  # noqa: E731
    out = {
        "depth": alignment.depth.double().numpy(),
        "cam2world": from_rt(state.rotation, state.centre).numpy(),
        "focal": float(state.log_focal.exp()[0]),
    }
    if alignment.config.objective == "published" and state.disparity is not None and state.trajectory is not None:
        out |= {
            "window_sim3": matrix(state.windows, True),
            "disp_scale_shift": state.disparity.numpy(),
            "traj_align_pose": matrix(state.trajectory, False),
            "traj_kappa": state.trajectory.scale.numpy(),
        }
    return out


def reference_solution(result: ReferenceResult) -> dict[str, Any]:
    """The published answer as score_exam.py wants it."""
    named = {"depth": result.depth, "cam2world": result.cam2world, "window_sim3": result.window_sim3,
             "disp_scale_shift": result.disparity, "traj_align_pose": result.trajectory_pose,
             "traj_kappa": result.trajectory_scale}  # fmt: skip
    return {name: value.double().numpy() for name, value in named.items()} | {"focal": result.focal_px}


def timed_solve(
    observations: list[Observation], frames: int, size: tuple[int, int], objective: str
) -> tuple[Alignment, float]:
    """Alignment with every depth computed, and its CPU seconds."""
    centre = (size[1] / 2, size[0] / 2)  # the published convention
    clock = time.process_time()
    alignment = solve(observations, frames, size, Priors(principal_point=centre), AlignConfig(objective=objective))
    _ = alignment.depth
    return alignment, time.process_time() - clock


def reference_seconds(result: ReferenceResult, config: ReferenceConfig) -> float:
    """CPU seconds of the full schedule, from those of a shorter one."""
    t, full = result.cpu_seconds, FULL
    first = t["adam, points"] / config.switch * full.switch
    rest = t["adam, all terms"] / (config.iterations - config.switch) * (full.iterations - full.switch)
    fits = t.get("disparity fit", 0.0)
    if result.fit_iterations and config != full:
        fits = fits / result.fit_iterations * full.fit_iterations[0] * len(result.disparity)
    return t["initial alignment"] + first + rest + fits


def run_exam(folder: Path, seeds: list[int] | None, extrapolate: bool) -> list[dict[str, Any]]:
    """Every exam of a folder: accuracy, objective and time of both procedures."""
    score = scorer(folder)
    files = sorted(folder.glob("exam_seed*.json"))
    files = [f for f in files if seeds is None or any(f.stem == f"exam_seed{s}" for s in seeds)]
    if not files:
        raise SystemExit(f"{folder} has no exam_seed*.json.")
    out = []
    for file in files:
        z, meta = load_file(file.with_suffix(".safetensors")), json.loads(file.read_text())
        observations = exam_observations(score, z, meta)
        frames, size = meta["config"]["N"], (meta["config"]["H"], meta["config"]["W"])
        timed_solve(observations, frames, size, "default")  # warm up: first calls load libraries
        row: dict[str, Any] = {"exam": file.stem, "extrapolated": extrapolate}
        config = SHORT if extrapolate else FULL
        if extrapolate:
            align_reference(observations, ReferenceConfig(iterations=4, switch=2, fit_iterations=(5, 5)))
        reference = align_reference(observations, config)
        published = score.load_solution(z, "upstream") if extrapolate else reference_solution(reference)
        row["reference"] = {"cpu_seconds": reference_seconds(reference, config), **score.accuracy(z, meta, published),
                            "objective": score.objective(z, meta, published)["total"]}  # fmt: skip
        if "upstream_total" in meta:
            row["stored_objective"] = meta["upstream_total"]
        for objective in ("default", "published"):
            alignment, seconds = timed_solve(observations, frames, size, objective)
            answer = solution(alignment)
            row[objective] = {"cpu_seconds": seconds, **score.accuracy(z, meta, answer)}
            if "window_sim3" in answer:
                row[objective]["objective"] = score.objective(z, meta, answer)["total"]
        row["checks"] = exam_checks(row)
        out.append(row)
    return out


def exam_checks(row: dict[str, Any]) -> dict[str, bool]:
    """The pass marks of the exam."""
    new, old, same = row["default"], row["reference"], row["published"]
    goal = min(old["objective"], row.get("stored_objective", np.inf))
    return {
        "published objective <= 1.001 x reference": same["objective"] <= 1.001 * goal,
        "ATE, RPE, AbsRel no worse": all(
            new[k] <= old[k] for k in ("ATE_rmse", "RPE_trans_rmse", "RPE_rot_deg_rmse", "AbsRel_LAD")
        ),
        "focal error < 2 %": abs(new["focal_err_pct"]) < 2,
        "default 50 x less CPU": old["cpu_seconds"] >= 50 * new["cpu_seconds"],
        "published 50 x less CPU": old["cpu_seconds"] >= 50 * same["cpu_seconds"],
    }


def path_of(frames: int) -> torch.Tensor:
    """Poses of a camera that wanders through the corridor, first camera = identity."""
    t = torch.arange(frames).double() / 25
    turn = torch.stack([0.1 * torch.sin(0.9 * t), 0.5 * torch.sin(0.35 * t), 0.04 * torch.sin(0.7 * t)], -1)
    move = torch.stack([1.2 * torch.sin(0.31 * t), 0.3 * torch.sin(0.8 * t), 2.5 * torch.sin(0.17 * t)], -1)
    pose = from_rt(so3_exp(turn), move)
    return torch.linalg.inv(pose[0]) @ pose


def corridor(pose: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """z-depth [T, H, W] and rays (world axes, z = 1 in the camera) of walls and balls; focal 0.9 W."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    ray = torch.stack([(x - width / 2) / (0.9 * width), (y - height / 2) / (0.9 * width), torch.ones_like(x)], -1)
    direction = torch.einsum("tij,hwj->thwi", pose[:, :3, :3].float(), ray)
    direction = torch.where(direction.abs() < 1e-6, torch.full_like(direction, 1e-6), direction)
    origin = pose[:, None, None, :3, 3].float()
    low, high = torch.tensor([-3.0, -2.0, -6.0]), torch.tensor([3.0, 1.5, 9.0])
    depth = (torch.where(direction > 0, high - origin, low - origin) / direction).amin(-1)
    for ball in torch.tensor(
        [[1.0, 0.5, 4.0, 0.8], [-1.5, 0.0, 6.0, 1.0], [0.5, -0.5, 7.0, 0.7], [-1.0, 0.8, -3.0, 0.8]]
    ):
        offset = origin - ball[:3]
        a, b, c = (direction**2).sum(-1), (direction * offset).sum(-1), (offset**2).sum(-1) - ball[3] ** 2
        near = (-b - (b * b - a * c).clamp_min(0).sqrt()) / a
        depth = torch.where((b * b - a * c > 0) & (near > 0.1), torch.minimum(depth, near), depth)
    return depth, direction


class NoisyWindows(Sequence):
    """Windows of the corridor that exist only while they are looked at, as if read from a disk; always the same.

    Range noise of 2 % and 0.5 % of the depth in all directions, half of it shared by neighbouring pixels; a random
    gauge like Geo4D's: scale, one degree, a shift along z.
    """

    def __init__(self, frames: int, size: tuple[int, int], stride: int) -> None:
        self.plan, self.pose, self.size = windows.plan_stride(frames, 16, stride), path_of(frames), size

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, k: int) -> Observation:
        part = self.plan[k]
        pose = self.pose[part.start : part.stop]
        generator = torch.Generator().manual_seed(part.start)
        true, direction = corridor(pose, self.size)

        def noise(channels: int) -> torch.Tensor:
            coarse = torch.randn(len(part), channels, self.size[0] // 8, self.size[1] // 8, generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, self.size, mode="bilinear")
            return (smooth + 0.5 * torch.randn(smooth.shape, generator=generator)).permute(0, 2, 3, 1)

        depth = true * (1 + 0.02 * noise(1)[..., 0])
        points = pose[:, None, None, :3, 3].float() + depth[..., None] * direction + 0.005 * true[..., None] * noise(3)
        local = (points - pose[0, :3, 3].float()) @ pose[0, :3, :3].float()
        gauge = Similarity(
            scale=torch.exp(0.3 * torch.randn((), generator=generator)),
            rotation=so3_exp(0.02 * torch.randn(3, generator=generator)),
            translation=torch.tensor([0.0, 0.0, -0.2]),
        )
        disparity = 2 / true * (1 + 0.02 * noise(1)[..., 0]) - 0.1
        weight = torch.ones(local.shape[:3])
        return Observation(frames=tuple(part), points=gauge.apply(local), confidence=weight, disparity=disparity)


def camera_errors(alignment: Alignment) -> dict[str, float]:
    """Drift in the first camera's gauge with the scale of its first second, relative to the path; focal error."""
    found, true = alignment.cameras.cam2world, path_of(len(alignment.cameras))
    path = float((true[1:, :3, 3] - true[:-1, :3, 3]).norm(dim=-1).sum())
    a, b = found[:, :3, 3], true[:, :3, 3]
    scale = float((a[:25] * b[:25]).sum() / (a[:25] * a[:25]).sum())
    gap = (scale * a - b).norm(dim=-1)
    return {
        "path": path,
        "mean_pct_of_path": 100 * float(gap.mean()) / path,
        "last_pct_of_path": 100 * float(gap[-1]) / path,
        "focal_err_pct": 100 * (float(alignment.cameras.focal_px[0]) / (0.9 * alignment.cameras.size[1]) - 1),
    }


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_video(extrapolate: bool) -> dict[str, Any]:
    """50 frames at 320x512, stride 4."""
    size, frames = (320, 512), 50
    lazy = NoisyWindows(frames, size, 4)
    observations = [lazy[k] for k in range(len(lazy))]
    before = peak_mib()
    wall = time.perf_counter()
    alignment, seconds = timed_solve(observations, frames, size, "default")
    wall = time.perf_counter() - wall
    row = {"frames": frames, "size": size, "windows": len(observations), "cpu_seconds": seconds, "wall_seconds": wall,
           "peak_mib": peak_mib(), "peak_mib_before": before, **camera_errors(alignment)}  # fmt: skip
    if extrapolate:
        short = ReferenceConfig(iterations=4, switch=2, fit_iterations=(5, 5))
        reference = align_reference(observations, short)
        row["reference_cpu_seconds_extrapolated"] = reference_seconds(reference, short)
        row["reference_note"] = "extrapolated from 4 iterations, points and disparity"
    return row


def run_long() -> dict[str, Any]:
    """1,000 frames at 96x160 and 250, each in its own process: peak memory and drift."""
    rows = {}
    for frames in (250, 1000):
        answer = subprocess.run(
            [sys.executable, __file__, "--long-child", str(frames)], capture_output=True, text=True, check=True
        )
        rows[str(frames)] = json.loads(answer.stdout)
    ratio = rows["1000"]["peak_mib"] / rows["250"]["peak_mib"]
    return {
        **rows,
        "memory_ratio": ratio,
        "checks": {"memory <= 1.3 x": ratio <= 1.3, "drift < 1 %": rows["1000"]["last_pct_of_path"] < 1},
    }


def long_child(frames: int) -> dict[str, Any]:
    """One long video, fields streamed frame by frame."""
    size = (96, 160)
    clock, wall = time.process_time(), time.perf_counter()
    observations = NoisyWindows(frames, size, 12)
    alignment = solve(observations, frames, size, Priors(principal_point=(size[1] / 2, size[0] / 2)))
    solved = time.process_time() - clock
    valid = sum(float(fields.valid.float().mean()) for fields in alignment.frames()) / frames
    return {
        "cpu_seconds_solve": solved,
        "wall_seconds": time.perf_counter() - wall,
        "peak_mib": peak_mib(),
        "valid": valid,
        **camera_errors(alignment),
    }


def show(name: str, value: Any, depth: int = 0) -> None:
    if isinstance(value, dict):
        print("  " * depth + name)
        for key, inner in value.items():
            show(str(key), inner, depth + 1)
    else:
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        print("  " * depth + f"{name:36s} {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exam", type=Path, help="folder with exam_seed*.json and score_exam.py")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--video", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--long-child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--extrapolate", action="store_true", help="do not run the published procedure to its end")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.long_child:
        print(json.dumps(long_child(args.long_child)))
        return 0
    report: dict[str, Any] = {}
    everything = args.exam is None and not args.video and not args.long
    golden = Path(os.environ.get("WORLDLINE_GOLDEN", ROOT.parent / "shared" / "golden")) / "geo4d"
    folder = args.exam or (golden if everything and golden.is_dir() else None)
    if folder is not None:
        report["exam"] = run_exam(folder, args.seeds, args.extrapolate)
    if args.video or everything:
        report["video"] = run_video(True)
    if args.long or everything:
        report["long"] = run_long()
    if args.json:
        print(json.dumps(report))
    else:
        for row in report.pop("exam", []):
            show(row.pop("exam"), row)
        for name, row in report.items():
            show(name, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
