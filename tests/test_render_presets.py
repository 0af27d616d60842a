"""The eleven presets and path files: where they start, what they look at, and what files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from worldline.geometry.pose import inverse, matrix_to_quaternion, rotation_angle_deg, se3_exp
from worldline.render.path_files import load_path
from worldline.render.presets import PRESETS, preset_path

CENTER = torch.tensor([0.4, -0.2, 4.0])
START = se3_exp(torch.tensor([0.3, -0.2, 0.5, 0.1, 0.4, -0.2], dtype=torch.float64))


def test_there_are_eleven() -> None:
    assert len(PRESETS) == 11


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_starts_at_the_input_view_and_is_rigid(name: str) -> None:
    path = preset_path(name, START, CENTER, 16)
    assert torch.allclose(path[0], START, atol=1e-9)
    rotation = path[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(16, dtype=torch.float64))
    local = inverse(START) @ path
    if name == "static":
        assert torch.allclose(local, torch.eye(4, dtype=torch.float64), atol=1e-9)
    else:
        assert float((local - local[:1]).abs().max()) > 0.05
    steps = (path[1:, :3, 3] - path[:-1, :3, 3]).norm(dim=-1)
    assert float(steps.max()) < 0.1 * 4.0 + 0.2  # no jumps
    assert torch.allclose(preset_path(name, START, CENTER, 1)[0], START, atol=1e-9)


def test_what_the_presets_do() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    around = [preset_path(name, eye, CENTER, 8) for name in ("surrounding", "anti-surrounding")]
    assert float(around[0][4, 0, 3]) * float(around[1][4, 0, 3]) < 0  # to different sides
    for path in around:
        turned = rotation_angle_deg(path[0, :3, :3], path[7, :3, :3])
        assert float(turned) == pytest.approx(45 * 7 / 8, abs=1e-6)
    roll = preset_path("camera_rotate", eye, CENTER, 8)
    assert float(rotation_angle_deg(roll[0, :3, :3], roll[4, :3, :3])) == pytest.approx(30, abs=1e-6)
    assert float(preset_path("x_moving", eye, CENTER, 8)[1, 0, 3]) > 0
    assert float(preset_path("y_moving", eye, CENTER, 8)[1, 1, 3]) > 0
    old = preset_path("circle_rotating", eye, CENTER, 8, as_published=True)
    assert float(old[0, 0, 3]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="choose one of static"):
        preset_path("teleport", eye, CENTER, 8)
    with pytest.raises(ValueError, match="centre ahead"):
        preset_path("static", eye, torch.zeros(3), 8)


def test_key_frames_are_interpolated(tmp_path: Path) -> None:
    file = tmp_path / "path.json"
    turned = se3_exp(torch.tensor([0.0, 0, 0, 0, 0.6, 0], dtype=torch.float64))
    frames = [
        {"time": 0, "position": [0, 0, 0]},
        {"time": 1, "cam2world": turned.tolist()},
        {"time": 3, "position": [2, 0, 0], "look_at": [2, 0, 5]},
    ]
    file.write_text(json.dumps({"keyframes": frames}))
    path = load_path(file).poses(7, START)
    local = inverse(START) @ path
    assert torch.allclose(local[0], torch.eye(4, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(local[2], turned, atol=1e-9)
    assert float(rotation_angle_deg(local[1, :3, :3], turned[:3, :3])) == pytest.approx(
        torch.rad2deg(torch.tensor(0.3))
    )
    assert local[-1, :3, 3].tolist() == pytest.approx([2, 0, 0])
    file.write_text(json.dumps({"keyframes": [{"position": [0, 0]}]}))
    with pytest.raises(ValueError, match="Key frame 0 .* 'position' with 3"):
        load_path(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_path(file)
    with pytest.raises(FileNotFoundError):
        load_path(tmp_path / "none.json")


def test_tum_colmap_and_nerfstudio_files_mean_the_same(tmp_path: Path) -> None:
    poses = torch.stack([se3_exp(0.3 * i * torch.ones(6, dtype=torch.float64)) for i in range(1, 4)])
    tum, colmap, nerf = [], ["# comment"], []
    for i, pose in enumerate(poses):
        w, x, y, z = matrix_to_quaternion(pose[:3, :3]).tolist()
        tum.append(" ".join(str(v) for v in (float(i), *pose[:3, 3].tolist(), x, y, z, w)))
        back = inverse(pose)
        quaternion = matrix_to_quaternion(back[:3, :3]).tolist()
        numbers = " ".join(str(v) for v in (*quaternion, *back[:3, 3].tolist()))
        colmap += [f"{i + 1} {numbers} 1 frame{i}.png", "1.0 2.0 3"]
        opengl = pose * torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
        nerf.append({"camera_to_world": opengl.flatten().tolist()})
    texts = {"a.txt": "\n".join(tum), "images.txt": "\n".join(colmap), "n.json": json.dumps({"camera_path": nerf})}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        found = load_path(tmp_path / name)
        assert torch.allclose(found.cam2world, poses, atol=1e-9), name
        assert torch.allclose(found.poses(3, START), poses, atol=1e-9)  # in the world, not from the input view
    (tmp_path / "a.txt").write_text("0 1 2 3")
    with pytest.raises(ValueError, match="Line 1"):
        load_path(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("\n".join(reversed(tum)))
    with pytest.raises(ValueError, match="must increase"):
        load_path(tmp_path / "a.txt")
