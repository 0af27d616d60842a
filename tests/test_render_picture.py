"""The demo picture and the colours in it say what they claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small_scenes import ball_scene
from worldline.geometry.pointmap import scene_depth
from worldline.render.colors import colormap, depth_colors, depth_range, motion_colors, motion_scale, to_uint8
from worldline.render.picture import GAP, LABEL_HEIGHT, PictureConfig, contact_picture, save_png

CONFIG = PictureConfig(columns=3, panel_width=90)


@pytest.fixture(scope="module")
def scene():  # noqa: ANN201
    return ball_scene(5)


def panel(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """One frame of the picture, 60x90."""
    top, left = GAP + row * (60 + LABEL_HEIGHT) + LABEL_HEIGHT, GAP + column * (90 + GAP)
    return image[top : top + 60, left : left + 90]


def test_rows_are_frames_depth_and_motion(scene) -> None:  # noqa: ANN001
    image = contact_picture(scene, config=CONFIG)
    side = 3 * (60 + LABEL_HEIGHT) - LABEL_HEIGHT
    assert image.shape == (3 * (60 + LABEL_HEIGHT) + 2 * GAP, 3 * (90 + GAP) + side + 2 * GAP, 3)
    for column, frame in enumerate((0, 2, 4)):
        assert np.array_equal(panel(image, 0, column), scene.video.frames[frame].numpy())
        depth = scene_depth(scene)[frame].numpy()
        light = panel(image, 1, column).astype(int).sum(-1)
        seen = scene.valid[frame].numpy()
        assert np.corrcoef(light[seen], 1 / depth[seen])[0, 1] > 0.95  # near is light
        assert (panel(image, 1, column)[~seen] == 64).all()
        moving = scene.scene_flow[min(frame, 3)].norm(dim=-1).numpy() > 0
        motion, known = panel(image, 2, column), scene.flow_valid[min(frame, 3)].numpy()
        assert (motion[moving & known][:, 0] > motion[moving & known][:, 2] + 100).all()  # to the right is red
        assert (motion[~moving & known] == 255).all()


def test_truth_adds_rows_and_relative_scale_does_not_matter(scene) -> None:  # noqa: ANN001
    cameras = replace(scene.cameras, cam2world=scene.cameras.cam2world.clone())
    cameras.cam2world[:, :3, 3] *= 7
    scaled = replace(scene, points=scene.points * 7, scene_flow=scene.scene_flow * 7, cameras=cameras, scale="relative")
    image, plain = contact_picture(scaled, scene, CONFIG), contact_picture(scaled, config=CONFIG)
    assert image.shape[0] - plain.shape[0] == 2 * (60 + LABEL_HEIGHT)
    for column in range(3):
        for ours, theirs in ((1, 2), (3, 4)):
            assert np.abs(panel(image, ours, column).astype(int) - panel(image, theirs, column)).max() <= 3


def test_cameras_are_where_they_are_from_above(scene) -> None:  # noqa: ANN001
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[:, 0, 3] = torch.linspace(-2, 2, 5)
    moved = replace(scene, cameras=replace(scene.cameras, cam2world=poses))
    image = contact_picture(moved, config=CONFIG)[GAP + LABEL_HEIGHT :, 3 * (90 + GAP) + GAP :].astype(int)
    blue = (image[..., 2] > image[..., 0] + 90) & (image[..., 2] > 150)
    red = (image[..., 0] > image[..., 2] + 90) & (image[..., 0] > 150) & (np.arange(len(image))[:, None] > 150)
    assert np.median(blue.nonzero()[1]) < np.median(red.nonzero()[1])  # first camera left, last right
    assert np.median(blue.nonzero()[0]) > len(image) * 0.7  # below what they look at


def test_scene_without_motion_one_frame_and_doubt(scene) -> None:  # noqa: ANN001
    still = replace(scene, scene_flow=None, flow_valid=None)
    assert contact_picture(still, config=CONFIG).shape[0] == 2 * (60 + LABEL_HEIGHT) + 2 * GAP
    assert contact_picture(scene.select(slice(0, 1)), config=CONFIG).size
    nothing = replace(scene, valid=torch.zeros_like(scene.valid), flow_valid=torch.zeros_like(scene.valid))
    assert contact_picture(nothing, config=CONFIG).size
    doubtful = replace(scene, provenance=replace(scene.provenance, unreliable=("scene_flow",)))
    assert not np.array_equal(contact_picture(doubtful, config=CONFIG), contact_picture(scene, config=CONFIG))
    with pytest.raises(ValueError, match="needs cameras"):
        contact_picture(replace(scene, cameras=None))


def test_saved_picture_reads_back(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8).numpy()
    save_png(tmp_path / "a" / "b.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "b.png")), image)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]


def test_depth_colours_rise_in_lightness() -> None:
    for palette in ("depth", "confidence"):
        rgb = colormap(torch.linspace(0, 1, 200), palette)  # type: ignore[arg-type]
        assert (torch.tensor([0.2126, 0.7152, 0.0722]) * rgb).sum(-1).diff().min() > 0
    assert torch.equal(colormap(torch.tensor([-1.0, torch.nan])), colormap(torch.zeros(2)))


def test_depth_range_is_robust_and_invalid_is_grey() -> None:
    depth = torch.linspace(1, 10, 10_000)
    depth[:20], depth[-20:] = 1e-3, 1e6
    near, far = depth_range(depth, torch.ones(10_000, dtype=torch.bool))
    assert 0.9 < near < 1.3 and 9 < far < 11
    valid = torch.zeros(10_000, dtype=torch.bool)
    assert (depth_colors(depth, valid, depth_range(depth, valid)) == 0.25).all()


def test_motion_colours() -> None:
    flow = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0], [0, 0, 1], [0.5, 0, 0]])
    rgb = motion_colors(flow, torch.ones(7, dtype=torch.bool), 1.0)
    assert rgb[0].argmax() == 0 and rgb[1].argmin() == 0  # right red, left its opposite
    assert (rgb[4] == 1).all() and rgb[5].max() < 0.8  # still is white, going away is dark
    assert rgb[0].min() < rgb[6].min() < 1  # faster is stronger
    assert len({tuple(color) for color in to_uint8(rgb).tolist()}) == 7
    assert motion_scale(flow * 0, torch.ones(7, dtype=torch.bool), 0.3) == pytest.approx(0.3)
    assert motion_scale(flow, torch.zeros(7, dtype=torch.bool), 0.3) == pytest.approx(0.3)
