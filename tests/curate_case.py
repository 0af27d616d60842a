"""Tiny clips to curate, a cheap tracker with exact tracks, and a language model on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.data.curate.config import CurateConfig
from worldline.data.curate.tracked import Tracked, resized
from worldline.geometry import camera, pointmap
from worldline.io.video import write_video
from worldline.scene import Cameras, Provenance, Tracks4D, Video

FRAMES, SIZE = 6, (32, 48)
CONFIG = CurateConfig(frames=FRAMES, size=SIZE)
STEP, SHIFT = 0.06, 0.02  # of the square and of the camera, per frame


def film(path: Path, seed: int, frames: int = FRAMES) -> Path:
    """A clip of a drifting texture."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 16, generator=g)
    texture = torch.nn.functional.interpolate(coarse, size=(48, 96), mode="bilinear")[0].movedim(0, -1)
    video = torch.stack([texture[:, t : t + 64] for t in range(frames)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, Video(frames=video, timestamps=torch.arange(frames, dtype=torch.float64) / 12))
    return path


def tracked(video: Video, size: tuple[int, int] = SIZE, squares: int = 1) -> Tracked:
    """A wall 4 away, squares 2 away that move to the right, a camera that moves to the right; exact."""
    frames, (height, width) = len(video), size
    k = camera.intrinsics_from_focal(0.9 * width, size).double()
    depth, moving = torch.full(size, 4.0), torch.zeros(size, dtype=torch.bool)
    for i in range(squares):
        left = width * (1 + 2 * i) // (2 * squares + 1)
        moving[height // 3 : 2 * height // 3, left : left + width // (2 * squares + 2)] = True
    depth[moving] = 2.0
    start = pointmap.from_depth(depth, k.float())
    points = start.expand(frames, *size, 3).clone()
    points[:, moving, 0] += STEP * torch.arange(frames)[:, None]
    cam2world = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    cam2world[:, 0, 3] = SHIFT * torch.arange(frames)
    uv = camera.project(pointmap.to_camera(points.double(), cam2world), k.expand(frames, 3, 3))
    inside = ((uv >= -0.5) & (uv < torch.tensor([width, height]) - 0.5)).all(-1)
    return Tracked(
        tracks=Tracks4D(
            points=points,
            visible=inside,
            reference=0,
            colors=resized(video.frames[:1], size)[0],
            timestamps=video.timestamps,
            cameras=Cameras(intrinsics=k.expand(frames, 3, 3).clone(), cam2world=cam2world, size=size),
            scale="metric",
            provenance=Provenance(system="exact"),
        ),
        valid=torch.ones(size, dtype=torch.bool),
        moving=moving,
        pixels=torch.where(inside[..., None], uv, torch.nan).float(),
    )


class Counting:
    """The exact tracker, told how often it was asked."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, video: Video, size: tuple[int, int]) -> Tracked:
        self.names.append(name)
        return tracked(video, size)


def noise_video(size: tuple[int, int] = (48, 64), frames: int = FRAMES) -> Video:
    g = torch.Generator().manual_seed(1)
    still = torch.rand(1, *size, 3, generator=g).expand(frames, *size, 3)
    return Video(frames=still.clone(), timestamps=torch.arange(frames, dtype=torch.float64) / 12)


Answer = Callable[[dict[str, Any], dict[str, str], int], tuple[int, Any, dict[str, str]]]


def said(text: str) -> tuple[int, Any, dict[str, str]]:
    """What the API answers."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def agreeable(question: dict[str, Any], headers: dict[str, str], number: int) -> tuple[int, Any, dict[str, str]]:
    """Describes pictures; says that things in a description can be counted."""
    if isinstance(question["messages"][0]["content"], list):
        return said("<think>pictures</think> Two dogs run over a lawn.")
    return said('1. dogs\n{"countable": true, "entities": ["dog", "dog"], "camera_moves": false, "reason": "dogs run"}')


@contextmanager
def server(answer: Answer = agreeable) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, what was asked so far) of a server that speaks the API."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "seer"}]}, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "body": body, "key": self.headers.get("Authorization")})
            self.reply(*answer(body, dict(self.headers), len(asked)))

        def reply(self, status: int, content: Any, headers: dict[str, str]) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", asked
    finally:
        http.shutdown()
        http.server_close()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but cached stages and the report's settings."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "stages.partial" not in p.parts
    }


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))
