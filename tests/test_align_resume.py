"""An interrupted alignment goes on where it stopped; priors from files mean the same as in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from align_worlds import make_world, observe
from worldline import windows
from worldline.align import solve as solver
from worldline.align.observation import Observation
from worldline.align.prior_files import PriorFiles
from worldline.align.solve import AlignConfig, Priors, solve
from worldline.align.streaming import StreamedWindows
from worldline.geometry.pose import matrix_to_quaternion
from worldline.io.partial import PartialRun
from worldline.scene import Video


def interrupted(seen: list[Observation], frames: int, size: tuple[int, int], shelf: PartialRun, after: str) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == f"align: {after}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(seen, frames, size, progress=stop, shelf=shelf)


@pytest.mark.parametrize("after", ["join windows", "refine"])
def test_an_interrupted_alignment_goes_on(after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(30)
    seen = observe(world, windows.plan(30, 12, 4), noise=0.01)
    seen[1] = replace(seen[1], points=torch.randn(seen[1].points.shape))  # a report with something in it
    whole = solve(seen, 30, world.size)
    interrupted(seen, 30, world.size, PartialRun(tmp_path / "out", {}), after)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(solver, "initialize", never)
    if after == "refine":
        monkeypatch.setattr(solver, "_refine", never)
    resumed = solve(seen, 30, world.size, shelf=PartialRun(tmp_path / "out", {}))
    assert torch.equal(resumed.cameras.cam2world, whole.cameras.cam2world)
    assert torch.equal(resumed.depth, whole.depth) and torch.equal(resumed.kept, whole.kept)
    timed = ("seconds", "cpu_seconds")
    assert {k: v for k, v in resumed.report.items() if k not in timed} == {
        k: v for k, v in whole.report.items() if k not in timed
    }


def test_other_windows_or_priors_find_nothing_to_go_on_with(tmp_path: Path) -> None:
    world = make_world(12)
    seen = observe(world, [range(12)], noise=0.01)
    shelf = PartialRun(tmp_path / "out", {})
    solve(seen, 12, world.size, shelf=shelf)
    before = len(shelf.keys())
    solve(seen, 12, world.size, shelf=shelf)
    assert len(shelf.keys()) == before == 2
    solve(seen, 12, world.size, Priors(static_camera=True), shelf=shelf)
    solve(seen, 12, world.size, config=AlignConfig(seed=1), shelf=shelf)
    solve([replace(seen[0], points=seen[0].points * 2)], 12, world.size, shelf=shelf)
    assert len(shelf.keys()) == before + 6


def write_priors(folder: Path, pose: Tensor, moving: Tensor, depth: Tensor) -> PriorFiles:
    """Every second pose, masks and depth of all frames, at twice the size that is worked at."""
    rows = [
        [n, *pose[n, :3, 3].tolist(), *matrix_to_quaternion(pose[n, :3, :3])[[1, 2, 3, 0]].tolist()]
        for n in range(0, len(pose), 2)
    ]
    np.savetxt(folder / "poses.txt", rows)
    for name, maps in {"masks": moving.byte() * 255, "depth": (depth * 1000).round()}.items():
        (folder / name).mkdir()
        for n, value in enumerate(maps.numpy()):
            big = np.kron(value, np.ones((2, 2))).astype(np.uint16 if name == "depth" else np.uint8)
            cv2.imwrite(str(folder / name / f"{n:03d}.png"), big)
    return PriorFiles(
        intrinsics=(66.0, 66.0, 35.5, 23.5), distortion=(0.1, 0.0, 0.0, 0.0), poses=folder / "poses.txt", zoom=True,
        masks=folder / "masks", depth=folder / "depth", distance=(4.0, 10.5, 4.5, 60.5, 40.5, 2.0),
    )  # fmt: skip


def test_priors_from_files_are_those_of_the_clip(tmp_path: Path) -> None:
    world = make_world(10)
    files = write_priors(tmp_path, world.pose, world.moving, world.depth)
    every = Video(frames=torch.zeros(10, *world.size, 3, dtype=torch.uint8), timestamps=torch.arange(10.0).double())
    clip = every.select(slice(2, 9, 2))
    priors = files.read(clip, (48, 72), slice(2, 9, 2))
    priors.check(4, world.size)
    K = priors.intrinsics
    assert K is not None and torch.allclose(K, torch.tensor([[33, 0, 17.5], [0, 33, 11.5], [0, 0, 1]]).to(K))
    assert priors.poses is not None and torch.allclose(priors.poses, world.pose[2:9:2], atol=1e-9)
    assert priors.moving_mask is not None and torch.equal(priors.moving_mask, world.moving[2:9:2])
    assert priors.sensor_depth is not None
    assert (priors.sensor_depth - world.depth[2:9:2]).abs().max() < 1e-3
    assert priors.distance is not None and priors.distance.frame == 1 and priors.distance.first == (5.0, 2.0)
    assert priors.distortion == (0.1, 0.0, 0.0, 0.0) and not priors.shared_focal
    with pytest.raises(ValueError, match="has no pose for some"):
        replace(files, every_pose=True).read(every, (48, 72), None)
    odd = PriorFiles(poses=files.poses).read(every.select(slice(2, 6)), (48, 72), slice(2, 6))
    known = odd.known_poses()
    assert known is not None and known.tolist() == [True, False, True, False]


def test_one_metric_depth_map_makes_the_scene_metric(tmp_path: Path) -> None:
    world = make_world(6)
    np.save(tmp_path / "first.npy", world.depth[0].numpy())
    clip = Video(frames=torch.zeros(6, *world.size, 3, dtype=torch.uint8), timestamps=torch.arange(6.0).double())
    priors = PriorFiles(depth=tmp_path / "first.npy").read(clip, world.size, None)
    alignment = solve(observe(world, [range(6)]), 6, world.size, priors)
    assert alignment.scale == "metric"
    assert abs(float((alignment.depth / world.depth).median()) - 1) < 0.01


def test_flow_is_made_when_asked_for() -> None:
    frames = torch.randint(0, 255, (3, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = Video(frames=frames, timestamps=torch.arange(3.0).double())
    assert PriorFiles().read(clip, clip.size, None).optical_flow is None
    flow = PriorFiles(flow="dis").read(clip, clip.size, None).optical_flow
    assert flow is not None and flow.shape == (2, 32, 40, 2)


def test_wrong_files_are_one_sentence(tmp_path: Path) -> None:
    clip = Video(frames=torch.zeros(3, 24, 36, 3, dtype=torch.uint8), timestamps=torch.arange(3.0).double())

    def refused(files: PriorFiles, match: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=match):
            files.read(clip, (24, 36), None)

    (tmp_path / "words.txt").write_text("no numbers here\n")
    np.savetxt(tmp_path / "short.txt", np.zeros((2, 3)))
    np.savetxt(tmp_path / "late.txt", np.array([[90, 0, 0, 0, 0, 0, 0, 1.0]]))
    (tmp_path / "few").mkdir()
    np.save(tmp_path / "few" / "0.npy", np.ones((24, 36)))
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((24, 36), np.uint8))
    refused(PriorFiles(poses=tmp_path / "none.txt"), "no file of poses", FileNotFoundError)
    refused(PriorFiles(poses=tmp_path / "words.txt"), "no table of numbers")
    refused(PriorFiles(poses=tmp_path / "short.txt"), "3 columns")
    refused(PriorFiles(poses=tmp_path / "late.txt"), "no pose for any")
    refused(PriorFiles(depth=tmp_path / "few"), "1 maps")
    refused(PriorFiles(depth=tmp_path / "grey.png"), "16-bit")
    refused(PriorFiles(masks=tmp_path / "nothing"), "no file or folder", FileNotFoundError)
    refused(PriorFiles(distance=(7.0, 0.0, 0.0, 5.0, 5.0, 1.0)), "frame 7")
    refused(PriorFiles(distance=(0.0, 0.0, 0.0, 500.0, 5.0, 1.0)), "outside the video")
    refused(PriorFiles(intrinsics=(-1.0, 3.0, 1.0, 1.0)), "positive")


def test_the_command_line_refuses_what_contradicts_itself_or_would_do_nothing(tmp_path: Path) -> None:
    from worldline.cli.reconstruct import Reconstruct, known

    given = Reconstruct(video=tmp_path, out=tmp_path, system="motioncrafter-mini", zoom=True, flow="dis")
    assert known(given) == PriorFiles(zoom=True, flow="dis")
    assert known(Reconstruct(video=tmp_path, out=tmp_path)) is None
    with pytest.raises(ValueError, match="cannot use --zoom;"):
        known(replace(given, system="auto"))
    with pytest.raises(ValueError, match="one of them"):
        known(replace(given, focal=50.0, intrinsics=(50.0, 50.0, 10.0, 10.0)))
    with pytest.raises(ValueError, match="k1 k2"):
        known(replace(given, distortion=(0.1, 0.0, 0.0, 0.0)))


def test_windows_on_disk_give_what_windows_in_memory_give(tmp_path: Path) -> None:
    world = make_world(20, size=(16, 24), focal=22.0)
    seen = observe(world, windows.plan(20, 8, 4), noise=0.01)
    shelf = PartialRun(tmp_path / "out", {})
    for k, o in enumerate(seen):
        shelf.put(f"window-{k}", {"points": o.points, "confidence": o.confidence})

    def fetch(k: int) -> Observation:
        kept = shelf.get(f"window-{k}")
        assert kept is not None
        return Observation(frames=seen[k].frames, **kept)

    stored = StreamedWindows(fetch, len(seen))
    assert len(stored) == len(seen) and stored[-1].frames == seen[-1].frames
    with pytest.raises(IndexError):
        stored[len(seen)]
    one, two = solve(stored, 20, world.size), solve(seen, 20, world.size)
    assert torch.equal(one.cameras.cam2world, two.cameras.cam2world) and torch.equal(one.depth, two.depth)
