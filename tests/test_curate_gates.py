"""Every gate stops what it is for, and lets the rest through; what is written can be read again."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curate_case import CONFIG, SIZE, equal, noise_video, tracked
from worldline.data.curate.config import CurateConfig, GateConfig
from worldline.data.curate.gates import GATES, decide, measure, normalization
from worldline.data.curate.record import read_record, record_error, write_record
from worldline.data.curate.release import PUBLISHED, archive, pack, render, write_clip, write_published
from worldline.data.curate.sheet import HOLE, contact_sheet
from worldline.data.curate.tracked import Tracked
from worldline.io.video import load_video
from worldline.render.splat import splat
from worldline.scene import Video

Spoil = Callable[[Video, Tracked], tuple[Video, Tracked]]


def with_points(clip: Tracked, change: Callable[[torch.Tensor], torch.Tensor]) -> Tracked:
    return replace(clip, tracks=replace(clip.tracks, points=change(clip.tracks.points.clone())))


def set_some(value: float, share: float, start: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """Depth of a share of the points from a time on."""

    def change(points: torch.Tensor) -> torch.Tensor:
        rows = max(1, round(share * SIZE[0]))
        points[start:, :rows, :, 2] = value
        return points

    return change


def shaken(clip: Tracked) -> Tracked:
    assert clip.pixels is not None
    return replace(clip, pixels=clip.pixels + 3)


SPOILED: dict[str, Spoil] = {
    "cut": lambda v, c: (replace(v, frames=torch.cat([v.frames[:3], v.frames[3:] * 0.2])), c),
    "unknown": lambda v, c: (v, replace(c, valid=c.valid & (torch.arange(SIZE[0]) < 10)[:, None])),
    "depth": lambda v, c: (v, with_points(c, set_some(float("nan"), 0.1, start=4))),
    "range": lambda v, c: (v, with_points(c, set_some(500.0, 0.1, start=2))),
    "spread": lambda v, c: (v, with_points(c, set_some(150.0, 0.1))),
    "rescale": lambda v, c: (v, with_points(c, lambda p: p * 0.075)),
    "still": lambda v, c: (v, replace(c, moving=c.moving & False)),
    "motion": lambda v, c: (v, with_points(c, lambda p: p + 40 * (torch.arange(len(p)) == 5)[:, None, None, None])),
    "reprojection": lambda v, c: (v, shaken(c)),
}


def test_a_good_clip_passes_every_gate() -> None:
    video = noise_video()
    verdicts = decide(measure(video, tracked(video), splat, CONFIG.gates), CONFIG.gates)
    assert all(v.passed for v in verdicts), [v for v in verdicts if not v.passed]
    assert [v.gate for v in verdicts if v.published] == ["depth", "range", "spread", "rescale"]


@pytest.mark.parametrize("gate", list(SPOILED))
def test_each_gate_stops_what_it_is_for(gate: str) -> None:
    video, clip = SPOILED[gate](noise_video(), tracked(noise_video()))
    config = replace(GateConfig(), spread=2.0)
    failed = {v.gate for v in decide(measure(video, clip, splat, config), config) if not v.passed}
    assert gate in failed
    assert set(SPOILED) == set(GATES)


def test_scaling_about_the_camera_changes_nothing_for_sound_tracks() -> None:
    numbers = measure(noise_video(), tracked(noise_video()), splat, GateConfig(rescale=(0.3, 0.7, 1.9)))
    assert numbers["changed"] == 0


def test_what_cannot_be_measured_does_not_pass() -> None:
    clip = tracked(noise_video())
    nothing = replace(clip, valid=clip.valid & False)
    failed = [v for v in decide(measure(noise_video(), nothing, splat, GateConfig()), GateConfig()) if not v.passed]
    assert {"unknown", "depth", "spread", "motion"} <= {v.gate for v in failed}
    assert not decide({}, GateConfig())[0].passed


def test_points_that_the_camera_passed_are_no_invalid_depth() -> None:
    clip = tracked(noise_video())
    assert clip.tracks.cameras is not None
    poses = clip.tracks.cameras.cam2world.clone()
    poses[-1, 2, 3] = 10.0  # beyond the wall
    tracks = replace(
        clip.tracks,
        cameras=replace(clip.tracks.cameras, cam2world=poses),
        visible=clip.tracks.visible & (torch.arange(6) < 5)[:, None, None],
    )
    assert measure(noise_video(), replace(clip, tracks=tracks), splat, GateConfig())["invalid"] == 0


def test_a_record_gives_the_tracks_back_within_half_precision(tmp_path: Path) -> None:
    clip = tracked(noise_video())
    rendering = render(clip, splat)
    write_record(tmp_path / "a.npz", clip, rendering.covered, {"caption": "ein Hündchen", "tracker": "exact"})
    found = read_record(tmp_path / "a.npz")
    moved = normalization(clip.tracks).apply(clip.tracks.points)
    again = normalization(clip.tracks).apply(found.tracks.points)
    assert float((moved - again).abs().max()) < 2**-11 * float(moved.abs().max()) + 1e-6
    error = record_error(clip, found)
    assert 0 < error["largest_px"] < 2**-11 * float(moved.abs().max()) * SIZE[1] + 1e-4
    still = ~clip.moving
    assert equal(found.tracks.points[5][still], found.tracks.points[0][still])
    assert float((found.tracks.points - clip.tracks.points).abs().max()) < 1e-3
    for mine, theirs in ((found.tracks.visible, clip.tracks.visible), (found.covered, rendering.covered)):
        assert equal(mine, theirs)
    assert equal(found.moving, clip.moving) and equal(found.valid, clip.valid)
    assert found.tracks.cameras is not None and clip.tracks.cameras is not None
    assert equal(found.tracks.cameras.cam2world, clip.tracks.cameras.cam2world)
    assert found.tracks.scale == "metric" and found.facts["caption"] == "ein Hündchen"
    first = (tmp_path / "a.npz").read_bytes()
    write_record(tmp_path / "a.npz", clip, rendering.covered, {"tracker": "exact", "caption": "ein Hündchen"})
    assert (tmp_path / "a.npz").read_bytes() == first


def test_damaged_records_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="a.npz is damaged"):
        read_record(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", version=np.array(99))
    with pytest.raises(ValueError, match="newer"):
        read_record(tmp_path / "c.npz")


def test_the_published_files_hold_what_the_loaders_expect(tmp_path: Path) -> None:
    video, clip = noise_video(), tracked(noise_video())
    rendering = render(clip, splat)
    write_clip(tmp_path, "000001", video, "A square moves.")
    write_published(tmp_path, "000001", clip, rendering)
    assert {p.name for p in tmp_path.iterdir()} == {f"000001{ending}" for ending in PUBLISHED}
    with (tmp_path / "000001_dt3d_pred.pkl").open("rb") as stream:
        stored = pickle.load(stream)  # our own, just written
    assert {k: tuple(v.shape) for k, v in stored.items()} == {
        "coords": (6, 32 * 48, 3), "colors": (32 * 48, 3), "vis": (6, 32 * 48)
    }  # fmt: skip
    assert equal(stored["coords"].reshape(6, *SIZE, 3), clip.tracks.points) and float(stored["colors"].max()) > 100
    holes = np.load(tmp_path / "000001_mask_render_binary.npy")
    assert equal(torch.from_numpy(holes).bool(), ~rendering.covered)
    assert (tmp_path / "000001.txt").read_text() == "A square moves.\n"
    seen = load_video(tmp_path / "000001_mask_render.mp4")
    assert seen.frames.shape == (6, *SIZE, 3)
    assert float(((seen.frames[..., 0] > 127) == torch.from_numpy(holes).bool()).float().mean()) > 0.97
    assert load_video(tmp_path / "000001_dt3d_render.mp4").frames.shape == (6, *SIZE, 3)


def test_a_rendering_is_the_first_frame_and_its_holes_are_not_black_pixels() -> None:
    clip = tracked(noise_video())
    black = replace(clip, tracks=replace(clip.tracks, colors=clip.tracks.colors * 0))
    assert bool(render(black, splat).covered[0].all())  # upstream takes black for a hole
    rendering = render(clip, splat)
    differs = (rendering.frames[0] != (clip.tracks.colors * 255).round().byte()).any(-1)
    beside = torch.nn.functional.max_pool2d(clip.moving[None].float(), 3, 1, 1)[0] > 0
    assert not bool((differs & ~(beside & ~clip.moving)).any())  # discs of the square reach one pixel beyond it
    assert 0 < float((~rendering.covered[-1]).float().mean()) < 0.2


def test_archives_hold_whole_samples_and_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    names = ["000001", "000003", "000004"]
    for name in names:
        for ending in PUBLISHED:
            (folder / f"{name}{ending}").write_bytes(name.encode())
    first, second = pack(folder, names, tmp_path / "out", 2)
    assert (first.name, second.name) == ("000001-000003.tar.gz", "000004-000004.tar.gz")
    with tarfile.open(first) as tar:
        assert tar.getnames() == [f"{name}{ending}" for name in names[:2] for ending in PUBLISHED]
    content, stamp = first.read_bytes(), first.stat().st_mtime_ns
    assert pack(folder, names, tmp_path / "out", 2) == [first, second] and first.stat().st_mtime_ns == stamp
    assert archive(folder, names[:2], tmp_path / "again").read_bytes() == content
    assert pack(folder, names, tmp_path / "out", 3) == [tmp_path / "out" / "000001-000004.tar.gz"]
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_contact_sheets_show_holes() -> None:
    video, clip = noise_video(), tracked(noise_video())
    rendering = render(clip, splat)
    whole = contact_sheet(video, "a", clip, rendering)
    assert whole.shape[1] == 5 * 224 and whole.shape[0] > 3 * contact_sheet(video, "a").shape[0]
    assert (np.abs(whole.astype(int) - HOLE).max(-1) < 8).sum() > 50


@pytest.mark.parametrize("change", [{"frames": 1}, {"stride": 0}, {"size": (8, 64)}, {"archive_samples": 0}])
def test_impossible_clips_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        CurateConfig(**change)  # type: ignore[arg-type]
