"""The truth of synthetic clips is exact: points, depth, flow, tracks, visibility and normals tell one story."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from worldline.data.synthetic import RenderConfig, SyntheticBatch, render_batch, render_clip, sample_scene
from worldline.data.synthetic import clip as clips
from worldline.data.synthetic.pack import pack
from worldline.data.synthetic.raycast import Steps, cast, closest_hit
from worldline.data.synthetic.shapes import FAR
from worldline.geometry import camera, pointmap, pose

SIZE = (40, 60)
FRAMES = 3
CASES = [(11, "rigid"), (12, "articulated"), (13, "deforming"), (14, "both"), (16, "occlusion")]
cases = pytest.mark.parametrize(("seed", "category"), CASES)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _batch(seed: int, category: str, reference: int = 0) -> SyntheticBatch:
    config = RenderConfig(tracks=True, reference=reference)
    return render_batch([seed], frames=FRAMES, size=SIZE, category=category, config=config)


def _pixels(batch: SyntheticBatch, points: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Image position and z-depth of world points [..., 3] in the camera of frame t, in float64."""
    in_camera = pose.transform(pose.inverse(batch.cam2world[0, t].double()), points.double())
    return camera.project(in_camera, batch.intrinsics[0, t].double()), in_camera[..., 2]


def _sampled(values: Tensor, uv: Tensor) -> Tensor:
    """Bilinear sample of an image [H, W, C] at pixel positions [N, 2]."""
    height, width = values.shape[:2]
    grid = uv / torch.tensor([width - 1, height - 1]) * 2 - 1
    image = values.permute(2, 0, 1)[None].double()
    return torch.nn.functional.grid_sample(image, grid[None, None], align_corners=True)[0, :, 0].T


def _interior(labels: Tensor, reach: int = 1) -> Tensor:
    """Pixels [H, W] whose neighbourhood has one label."""
    window = 2 * reach + 1
    padded = torch.nn.functional.pad(labels[None, None].float(), (reach,) * 4, mode="replicate")
    patches = padded.unfold(2, window, 1).unfold(3, window, 1)[0, 0].flatten(2)
    return (patches == labels[..., None].float()).all(-1)


def _scene_size(batch: SyntheticBatch) -> float:
    points = batch.points[batch.valid]
    return float((points - points.mean(0)).norm(dim=-1).mean())


@cases
def test_points_project_to_their_pixels_and_have_their_depth(seed: int, category: str) -> None:
    batch = _batch(seed, category)
    for t in range(FRAMES):
        uv, z = _pixels(batch, batch.points[0, t], t)
        valid = batch.valid[0, t]
        grid = camera.pixel_grid(SIZE, dtype=torch.float64)
        assert float((uv - grid)[valid].abs().max()) < 1e-3
        torch.testing.assert_close(z[valid].float(), batch.depth[0, t][valid], rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.cam2world[0, 0], torch.eye(4))
    assert torch.equal(batch.valid, ~batch.sky)


@cases
def test_flow_lands_on_the_same_object_point(seed: int, category: str) -> None:
    """X(t) + V(t), cast again through its place in the image at t + 1, hits the same point of the same primitive."""
    spec = sample_scene(seed, frames=FRAMES, category=category)
    tables = pack([spec], SIZE, torch.device("cpu"))
    steps = Steps.plain()
    for t in range(FRAMES - 1):
        batch = _batch(seed, category, reference=t)
        visible = batch.visible[0, t + 1]
        moved = batch.points[0, t] + batch.scene_flow[0, t]
        uv, z = _pixels(batch, moved, t + 1)
        rays = camera.unproject(uv, torch.ones_like(z), batch.intrinsics[0, t + 1].double())
        x, y = (rays[..., i].float()[None, None].nan_to_num() for i in (0, 1))
        now, later = tables.frames(t, t + 1), tables.frames(t + 1, t + 2)
        depth, slot_later = closest_hit(steps, later, x, y, cull=False)
        depth, slot_later = depth[0, 0], slot_later[0, 0]
        here, own = _slots(steps, now)
        assert float(visible.float().sum()) > 0.2 * float(batch.valid[0, t].sum())

        # Warped depth agrees with the target's depth.
        relative = ((z - depth).abs() / z)[visible]
        assert float(relative.max()) < 1e-3
        # Same primitive, same object coordinates, in metres of its pose at t + 1.
        same = (slot_later == own)[visible].double().mean()
        assert float(same) > 0.999
        both = visible & (slot_later == own)
        first = _object_points(tables, t, own, here, batch.depth[0, t])
        second = _object_points(tables, t + 1, own, (x[0, 0], y[0, 0]), depth)
        scale = _object_scale(tables, t + 1, own)
        error = (first - second).norm(dim=-1) * scale
        assert float(error[both].quantile(0.999)) < 1e-4 * _scene_size(batch)


def _slots(steps: Steps, tables: object) -> tuple[tuple[Tensor, Tensor], Tensor]:
    from worldline.data.synthetic.raycast import image_coordinates

    x, y = image_coordinates(tables, SIZE)
    _, slot = closest_hit(steps, tables, x, y, cull=False)
    return (x[0, 0].expand(SIZE), y[0, 0].expand(SIZE)), slot[0, 0]


def _object_points(tables, t: int, slot: Tensor, xy: tuple[Tensor, Tensor], depth: Tensor) -> Tensor:
    m = tables.to_object[:, :, 0, t, 0, 0].double().reshape(-1, 3, 4)[slot.long()]
    p = torch.stack([xy[0] * depth, xy[1] * depth, depth], -1).double()
    return (m[..., :3] @ p[..., None])[..., 0] + m[..., 3]


def _object_scale(tables, t: int, slot: Tensor) -> Tensor:
    """Metres per unit of object coordinates, at most."""
    m = tables.to_object[:, :, 0, t, 0, 0].double().reshape(-1, 3, 4)[..., :3]
    return (1 / torch.linalg.svdvals(m)[..., -1].clamp_min(1e-9))[slot.long()]


def test_warped_depth_agrees_with_the_rendered_depth_map() -> None:
    """The same against the stored images: inverse depth interpolates exactly on the flat parts of one object."""
    close, count = 0.0, 0
    for (seed, category), t in product(CASES, range(FRAMES - 1)):
        batch = _batch(seed, category, reference=t)
        uv, z = _pixels(batch, batch.points[0, t] + batch.scene_flow[0, t], t + 1)
        inverse = torch.where(batch.valid[0, t + 1], 1 / batch.depth[0, t + 1].clamp_min(1e-6), torch.nan)
        inner = _interior(batch.object_id[0, t + 1]) & _flat(batch.normals[0, t + 1])
        chosen = batch.visible[0, t + 1] & (_sampled(inner[..., None].double(), uv.reshape(-1, 2)).view(SIZE) == 1)
        found = 1 / _sampled(inverse[..., None], uv.reshape(-1, 2)).view(SIZE)
        close += float((((found - z) / z).abs()[chosen] < 1e-3).sum())
        count += int(chosen.sum())
    assert count > 3000 and close / count > 0.99


def _flat(normals: Tensor, cosine: float = 0.99999) -> Tensor:
    """Pixels [H, W] whose 3x3 neighbours have nearly the same normal."""
    padded = torch.nn.functional.pad(normals.permute(2, 0, 1)[None], (1,) * 4, mode="replicate")
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)[0].flatten(3)  # [3, H, W, 9]
    return ((patches * normals.permute(2, 0, 1)[..., None]).sum(0) > cosine).all(-1)


@cases
def test_tracks_continue_the_flow_and_visibility_agrees_with_the_depth_maps(seed: int, category: str) -> None:
    batch = _batch(seed, category)
    assert batch.tracks is not None and batch.visible is not None
    valid = batch.valid[0, 0]
    torch.testing.assert_close(batch.tracks[0, 0], batch.points[0, 0])
    step = (batch.tracks[0, 1] - batch.tracks[0, 0])[valid]
    torch.testing.assert_close(step, batch.scene_flow[0, 0][valid], rtol=1e-4, atol=1e-4)
    assert torch.equal(batch.visible[0, 0], valid)

    wrong, count = 0, 0
    for t in range(1, FRAMES):
        uv, z = _pixels(batch, batch.tracks[0, t], t)
        nearest = uv.round().nan_to_num(-1e6).long()
        inside = valid & (z > 0) & (nearest >= 0).all(-1) & (nearest < torch.tensor([SIZE[1], SIZE[0]])).all(-1)
        assert not bool((batch.visible[0, t] & ~inside & valid).any())
        depth = torch.where(batch.sky[0, t], 1e4, batch.depth[0, t])
        padded = torch.nn.functional.pad(depth[None, None], (1,) * 4, mode="replicate")[0, 0]
        around = padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)[nearest[inside][:, 1], nearest[inside][:, 0]]
        seen, z = batch.visible[0, t][inside], z[inside].float()
        wrong += int((seen & (around.max(-1).values < z * 0.999)).sum())  # seen through everything around it
        wrong += int((~seen & (around.min(-1).values > z * 1.02)).sum())  # hidden by nothing
        count += int(inside.sum())
    assert count > 500 and wrong / count < 1e-2


@cases
def test_normals_agree_with_differences_of_points(seed: int, category: str) -> None:
    batch = _batch(seed, category)
    points, inner = batch.points[0, 0].double(), _interior(batch.object_id[0, 0])
    inner = inner & _flat(batch.normals[0, 0], 0.99) & batch.valid[0, 0]
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    measured = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)  # towards the camera
    given = batch.normals[0, 0, 1:-1, 1:-1].double()
    cosine = (measured * given).sum(-1)[inner[1:-1, 1:-1]]
    assert len(cosine) > 200
    assert float(cosine.median()) > 0.9995 and float(cosine.quantile(0.05)) > 0.995
    lengths = batch.normals.norm(dim=-1)[batch.valid]
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-4, rtol=0)
    towards = (batch.normals[0, 0] * batch.points[0, 0]).sum(-1)[batch.valid[0, 0]]
    assert float((towards < 1e-3).float().mean()) > 0.999  # what is seen faces the first camera, at the origin


def test_paint_and_light_stay_on_a_still_world() -> None:
    """With nothing but the camera moving, colour follows the points; without the true motion it does not."""
    moved, unmoved = [], []
    for seed in (30, 31, 33):
        config = RenderConfig(tracks=True)
        batch = render_batch([seed], frames=6, size=(72, 108), category="camera_only", config=config)
        uv, _ = _pixels(batch, batch.tracks[0, 5], 5)
        seen = batch.visible[0, 5] & _interior(batch.object_id[0, 0])
        there = _sampled(batch.rgb[0, 5], uv.reshape(-1, 2)).view(72, 108, 3)
        moved.append((there - batch.rgb[0, 0]).abs().mean(-1)[seen].mean())
        unmoved.append((batch.rgb[0, 5] - batch.rgb[0, 0]).abs().mean(-1)[seen].mean())
    assert float(sum(moved)) < 0.5 * float(sum(unmoved))
    assert float(max(moved)) < 0.02


def test_scenes_padded_into_one_batch_render_like_single_ones() -> None:
    """The GPU renders many scenes at once with unused slots; values agree to rounding."""
    specs = [
        s for s in (sample_scene(seed, frames=2, category="both") for seed in range(40)) if s.stage.kind == "ground"
    ][:3]
    together = cast(Steps.plain(), pack(specs, SIZE, torch.device("cpu")), SIZE, shadows=True)
    for b, spec in enumerate(specs):
        alone = cast(Steps.plain(), pack([spec], SIZE, torch.device("cpu")), SIZE, shadows=True)
        same = together.object_id[b] == alone.object_id[0]
        assert float(same.float().mean()) > 0.9995
        assert float((together.depth[b] - alone.depth[0]).abs()[same].max()) < 1e-3
        assert float((together.rgb[b] - alone.rgb[0]).abs()[same].mean()) < 1e-4


@pytest.mark.slow
def test_compiled_and_eager_agree() -> None:
    eager = render_batch([5, 6, 7], frames=2, size=SIZE)
    fused = render_batch([5, 6, 7], frames=2, size=SIZE, config=RenderConfig(compile=True))
    same = eager.object_id == fused.object_id
    assert float(same.float().mean()) > 0.9995
    assert float((eager.depth - fused.depth).abs()[same].max()) < 1e-2
    assert float((eager.rgb - fused.rgb).abs()[same].mean()) < 1e-3


@pytest.mark.gpu
def test_gpu_and_cpu_agree() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    cpu = render_batch(list(range(8)), frames=2, size=SIZE)
    gpu = render_batch(list(range(8)), frames=2, size=SIZE, device="cuda").to("cpu")
    same = cpu.object_id == gpu.object_id
    assert float(same.float().mean()) > 0.9995
    assert float((cpu.points - gpu.points).norm(dim=-1)[same].max()) < 1e-2


def test_a_clip_is_a_metric_scene_with_its_truth() -> None:
    scene = render_clip(3, frames=3, size=SIZE, category="both")
    assert scene.scale == "metric" and scene.provenance.system == "truth"
    assert scene.flow_valid is not None and not bool(scene.flow_valid[-1].any())
    assert set(scene.extras) == {"sky", "object_id", "dynamic", "normals", "tracks", "visible_from_reference"}
    assert str(scene.provenance.settings["caption"]).endswith(".")
    assert scene.cameras is not None
    depth = pointmap.depth_of(scene.points, scene.cameras.cam2world)
    assert float(depth[scene.valid].min()) > 0.05


def test_surfaces_store_far_nowhere() -> None:
    batch = _batch(14, "both")
    assert float(batch.depth.max()) < FAR and bool(torch.isfinite(batch.points).all())
    assert replace(clips.RenderConfig(), tracks=True).tracks
