"""The published alignment objective against the golden numbers (shared/golden/geo4d, align24 and the exam)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worldline.align.observation import Observation
from worldline.align.reference import first_frame_focals, initial_alignment, stack
from worldline.align.reference_energy import Variables, objective, signed_log, total, window_transforms, xyzw
from worldline.geometry.pose import from_rt

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def align24(golden_dir: Path):
    folder = golden_dir / "geo4d"
    z = load_file(folder / "align24.safetensors")
    meta = json.loads((folder / "align24.json").read_text())
    seen = [
        Observation(
            frames=tuple(range(start, start + 16)), points=z[f"w{k}.pts3d"], confidence=z[f"w{k}.conf"],
            disparity=z[f"w{k}.disparity"], ray_direction=z[f"w{k}.dir"], ray_moment=z[f"w{k}.mom"],
            ray_cam2world=z[f"w{k}.ray_cam2world"],
        )
        for k, start in enumerate(z["starts"].tolist())
    ]  # fmt: skip
    return z, meta, seen


def stored(z: dict, stage: str) -> Variables:
    """Stored solution in the published parametrisation, float64."""
    z = {name: value.double() for name, value in z.items()}
    pose, window = z[f"{stage}.pose"], z[f"{stage}.pw"]
    scale = torch.linalg.det(window[:, :3, :3]).pow(1 / 3)
    return Variables(
        log_depth=z[f"{stage}.depth"].flatten(1).log(),
        quaternion=xyzw(pose[:, :3, :3]),
        translation=signed_log(pose[:, :3, 3]),
        focal=20 * z[f"{stage}.focal"][0].log(),
        disparity=z[f"{stage}.st"],
        trajectory=z[f"{stage}.traj_align_raw"],
        window=torch.cat(
            [
                xyzw(window[:, :3, :3] / scale[:, None, None]),
                signed_log(window[:, :3, 3] / scale[:, None]),
                scale.log()[:, None],
            ],
            1,
        ),
    )


def test_the_published_loss_is_exact(align24) -> None:
    z, meta, seen = align24
    data = stack(seen)
    data = type(data)(
        **{k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in vars(data).items()}
    )
    for stage in ("init", "final"):
        every = torch.ones(3, dtype=torch.bool)
        terms = objective(data, stored(z, stage), every, every if stage == "final" else ~every)
        names = {"points": "L_points", "disparity": "L_disparity", "trajectory": "L_traj", "smoothness": "L_smooth"}
        for name, key in names.items():
            assert float(terms[name]) == pytest.approx(meta[stage][key], rel=1e-6, abs=1e-9), (stage, name)
        assert float(total(terms)) == pytest.approx(meta[stage]["total"], rel=1e-6)


def test_the_focal_solver_gives_the_published_values(align24) -> None:
    z, _, seen = align24
    focal, shift = first_frame_focals(stack(seen))
    np.testing.assert_allclose(focal, z["focal_solver_px"], rtol=1e-3)
    np.testing.assert_allclose(shift, z["focal_solver_shift"], atol=2e-3)


def test_the_initial_alignment_is_the_published_one(align24) -> None:
    z, meta, seen = align24
    v = initial_alignment(stack(seen))
    sigma, turn, shift = window_transforms(v.window)
    found = from_rt(sigma[:, None, None] * turn, sigma[:, None] * shift)
    torch.testing.assert_close(found, z["init.pw"], rtol=1e-3, atol=1e-3)
    none = torch.zeros(3, dtype=torch.bool)
    terms = objective(stack(seen), v, none, none)
    wanted = meta["init"]["points_plus_smooth"]  # RANSAC inside, so not to the digit
    assert float(terms["points"] + 0.015 * terms["smoothness"]) == pytest.approx(wanted, rel=0.1)


def test_exam_pass_marks(golden_dir: Path) -> None:
    """Published objective no higher than the stored answer's; default at most half of its camera errors."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        import align as bench
    finally:
        sys.path.pop(0)
    score = bench.scorer(golden_dir / "geo4d")
    for file in sorted((golden_dir / "geo4d").glob("exam_seed*.json")):
        z, meta = bench.load_file(file.with_suffix(".safetensors")), json.loads(file.read_text())
        seen = bench.exam_observations(score, z, meta)
        old = score.accuracy(z, meta, score.load_solution(z, "upstream"))
        size = (meta["config"]["H"], meta["config"]["W"])
        answer = bench.solution(bench.timed_solve(seen, meta["config"]["N"], size, "published")[0])
        assert score.objective(z, meta, answer)["total"] <= 1.001 * meta["upstream_total"]
        new = score.accuracy(z, meta, bench.solution(bench.timed_solve(seen, meta["config"]["N"], size, "default")[0]))
        for name in ("ATE_rmse", "RPE_trans_rmse", "RPE_rot_deg_rmse"):
            assert new[name] <= 0.5 * old[name], name
        assert new["AbsRel_LAD"] <= 0.75 * old["AbsRel_LAD"]
        assert abs(new["focal_err_pct"]) < 1
