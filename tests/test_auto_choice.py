"""What "auto" runs where, with machines and caches that are made up: CI has no GPU and no published weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import worldline as wl
from worldline.align.observation import Observation
from worldline.api import choice, reconstruction
from worldline.api.choice import EMBEDDED, Choice, Machine, Published, choose
from worldline.io.ledger import accept
from worldline.scene import Provenance, Scene4D, Video
from worldline.systems.motioncrafter import pretrained
from worldline.systems.registry import card
from worldline.systems.system import Loading, Options

GIB = 1 << 30
READY = Published(name="motioncrafter", needs_bytes=10 * GIB)
LARGE = Machine(device="cuda", memory_bytes=24 * GIB)


def test_the_published_network_runs_where_it_can_and_may() -> None:
    found = choose(LARGE, [READY])
    assert found.system == "motioncrafter" and "licences are accepted" in found.reason


@pytest.mark.parametrize(
    ("machine", "published", "said"),
    [
        (Machine(device="cpu"), READY, "this runs on cpu"),
        (Machine(device="mps"), READY, "this runs on mps"),
        (replace(LARGE, memory_bytes=6 * GIB), READY, "has 6 GiB of memory, it needs 10"),
        (LARGE, replace(READY, licences=("Stable Video Diffusion",)), "(Stable Video Diffusion) is not accepted"),
        (LARGE, replace(READY, missing=("owner/name",)), "owner/name is not on this machine"),
    ],
)
def test_else_the_embedded_one_runs_and_the_reason_is_given(machine: Machine, published: Published, said: str) -> None:
    found = choose(machine, [published])
    assert found.system == EMBEDDED and said in found.reason


def test_the_second_best_published_network_is_taken_where_the_best_is_not_here() -> None:
    found = choose(LARGE, [replace(READY, missing=("owner/name",)), replace(READY, name="other")])
    assert found.system == "other"
    assert choose(LARGE, []).system == EMBEDDED


def test_what_this_machine_has_is_read_from_the_ledger_and_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLDLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(choice.hub, "find", lambda weights: None if "crafter" in weights.repo.lower() else tmp_path)
    (found,) = choice.published_networks()
    assert found.licences == ("MotionCrafter", "Stable Video Diffusion") and found.missing == (pretrained.REPO,)
    accept(pretrained.LICENCE)
    assert choice.published_networks()[0].licences == ("Stable Video Diffusion",)
    assert choice.published_networks(accept_license=True)[0].licences == ()


def test_weights_of_the_users_own_are_for_the_embedded_network() -> None:
    found = reconstruction.network_of("auto", Loading(device=torch.device("cuda"), weights="mine.safetensors"))
    assert found.system == EMBEDDED and "weights given" in found.reason
    assert reconstruction.network_of("geo4d", Loading(device=torch.device("cpu"))).system == "geo4d"


class FakePublished:
    """A network with a GPU's name: it says that everything is a wall, once per window of three frames."""

    weights_sha256, parameters = "0" * 64, 1

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def observe(self, video: Video, options: Options) -> Iterator[Observation]:
        self.sizes.append(video.size)
        rows, columns = torch.meshgrid(*(torch.linspace(-0.5, 0.5, side) for side in video.size), indexing="ij")
        wall = torch.stack([columns, rows * video.size[0] / video.size[1], torch.ones_like(rows)], -1) * 2
        for start in range(0, len(video) - 2, 2):
            points = wall.expand(3, *wall.shape).clone()
            yield Observation(
                frames=(start, start + 1, start + 2), points=points, confidence=torch.ones(3, *video.size)
            )

    def reconstruct(self, video: Video, options: Options) -> Scene4D:
        points = torch.ones(*video.frames.shape)
        return Scene4D(video=video, points=points, valid=points[..., 0] > 0, provenance=Provenance(system="published"))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> FakePublished:
    """The choice falls on the published network, which is a fake on the CPU."""
    fake = FakePublished()
    monkeypatch.setattr(
        reconstruction, "network_of", lambda name, loading: Choice(system="motioncrafter", reason="gpu")
    )
    published = replace(card("motioncrafter"), load=lambda loading: fake)
    monkeypatch.setattr(reconstruction, "of_kind", lambda name, kind: published)
    return fake


def video(size: tuple[int, int] = (72, 96)) -> Video:
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(1, 3, size[0] // 6, size[1] // 6 + 4, generator=generator)
    large = torch.nn.functional.interpolate(wide, (size[0], size[1] + 24), mode="bicubic").clamp(0, 1)
    frames = torch.stack([large[0, :, :, 2 * t : 2 * t + size[1]] for t in range(5)]).permute(0, 2, 3, 1)
    return Video(frames=(frames * 255).byte(), timestamps=torch.arange(5).double())


def test_auto_on_a_gpu_is_the_published_network_refined_by_parallax(on_a_gpu: FakePublished) -> None:
    scene = wl.reconstruct(video(), size=(48, 64))
    made: dict[str, Any] = dict(scene.provenance.report)
    assert scene.provenance.system == "parallax+motioncrafter" and scene.provenance.weights_sha256 == "0" * 64
    assert made["auto"] == {"network": "motioncrafter", "reason": "gpu"}
    assert scene.size == (48, 64) and on_a_gpu.sizes == [(72, 96)], "the network sees what it was made for"


def test_the_refinement_can_be_switched_off(on_a_gpu: FakePublished) -> None:
    scene = wl.reconstruct(video(), refine="none")
    assert scene.provenance.system == "published" and scene.provenance.report["auto"]["network"] == "motioncrafter"
