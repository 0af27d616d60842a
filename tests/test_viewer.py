"""The viewer: the right points at the right time, and a page that a browser really draws and plays."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small_scenes import ball_scene, ball_tracks
from worldline.io.store import open_scene, save
from worldline.viewer.frames import TRAIL, Look, frames_of

EVERYTHING = Look(max_points=10**9, max_lines=10**9)


@pytest.fixture(scope="module")
def scene():  # noqa: ANN201
    return ball_scene(6)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------ frames


def test_points_are_the_valid_ones_where_they_are(scene) -> None:  # noqa: ANN001
    frames = frames_of(scene)
    cloud = frames.cloud(3, EVERYTHING)
    world = cloud.points * frames.unit + frames.centre
    order = np.lexsort(world.round(3).T)
    expected, colors = scene.points[3][scene.valid[3]].numpy(), scene.video.frames[3][scene.valid[3]].numpy()
    wanted = np.lexsort(expected.round(3).T)
    assert len(world) == scene.valid[3].sum()
    assert np.allclose(np.sort(world, 0), np.sort(expected, 0), atol=1e-4)
    assert np.array_equal(np.sort(cloud.colors, 0), np.sort(colors, 0))
    assert (cloud.colors[order] == colors[wanted]).all(-1).mean() > 0.99


def test_viewer_coordinates_do_not_depend_on_scale_or_place(scene) -> None:  # noqa: ANN001
    poses = scene.cameras.cam2world.double().clone()
    poses[:, :3, 3] = poses[:, :3, 3] * 500 + torch.tensor([1e3, -2e3, 5e3])
    moved = replace(scene, points=scene.points * 500 + torch.tensor([1e3, -2e3, 5e3]),
                    scene_flow=scene.scene_flow * 500, cameras=replace(scene.cameras, cam2world=poses,
                    intrinsics=scene.cameras.intrinsics.double()))  # fmt: skip
    a, b = frames_of(scene), frames_of(moved)
    for look in (EVERYTHING, replace(EVERYTHING, color_by="motion"), replace(EVERYTHING, color_by="depth")):
        assert np.allclose(a.cloud(2, look).points, b.cloud(2, look).points, atol=1e-3)
        assert np.abs(a.cloud(2, look).colors.astype(int) - b.cloud(2, look).colors).max() <= 2
    assert np.abs(a.cloud(0, EVERYTHING).points).max() < 30


def test_stored_scene_shows_the_same_and_reads_only_what_it_shows(scene, tmp_path: Path) -> None:  # noqa: ANN001
    save(scene, tmp_path / "s")
    stored = open_scene(tmp_path / "s")
    a, b = frames_of(scene), frames_of(stored)
    for color_by in ("image", "depth", "motion", "confidence"):
        look = Look(color_by=color_by, max_points=500, hide_edges=True)  # type: ignore[arg-type]
        assert np.array_equal(a.cloud(1, look).colors, b.cloud(1, look).colors)
        assert np.array_equal(a.cloud(1, look).points, b.cloud(1, look).points)
    assert np.array_equal(a.lines(1, Look()).points, b.lines(1, Look()).points)
    touched: list[tuple[str, int]] = []
    real = stored.read
    stored.read = lambda name, frame: touched.append((name, frame)) or real(name, frame)  # type: ignore[method-assign, func-returns-value]
    b.cloud(4, Look())
    assert set(touched) == {("points", 4), ("valid", 4), ("rgb", 4)}


def test_limits_thresholds_and_edges(scene) -> None:  # noqa: ANN001
    frames = frames_of(scene)
    few, fewer = frames.cloud(0, Look(max_points=300)), frames.cloud(0, Look(max_points=100))
    assert len(few.points) == 300 and np.array_equal(few.points[:100], fewer.points)
    sure = frames.cloud(0, replace(EVERYTHING, min_confidence=0.5))
    assert len(sure.points) == int((scene.valid[0] & (scene.confidence[0] >= 0.5)).sum())
    ball = torch.tensor([-0.7, 0.4, 4.0])
    kept = frames.cloud(0, replace(EVERYTHING, hide_edges=True)).points * frames.unit + frames.centre
    distance = (scene.points[0] - ball).norm(dim=-1)
    assert len(kept) < scene.valid[0].sum()
    assert (np.linalg.norm(kept - ball.numpy(), axis=-1) < 0.61).sum() < (distance < 0.61).sum()


def test_motion_lines_are_the_scene_flow(scene) -> None:  # noqa: ANN001
    frames = frames_of(scene)
    lines = frames.lines(2, EVERYTHING)
    moving = (scene.scene_flow[2].norm(dim=-1) > 0) & scene.valid[2]
    assert len(lines.points) == moving.sum()
    steps = (lines.points[:, 1] - lines.points[:, 0]) * frames.unit
    assert np.allclose(steps, [0.15, 0, 0], atol=1e-5)
    assert len(frames.lines(5, EVERYTHING).points) == 0  # the last frame goes nowhere
    assert len(frames_of(replace(scene, scene_flow=None, flow_valid=None)).lines(2, EVERYTHING).points) == 0


def test_scene_without_cameras_or_anything_valid(scene) -> None:  # noqa: ANN001
    bare = frames_of(replace(scene, cameras=None))
    assert len(bare.cloud(0, replace(EVERYTHING, color_by="depth")).points) == scene.valid[0].sum()
    none = torch.zeros_like(scene.valid)
    empty = frames_of(replace(scene, valid=none, flow_valid=none))
    assert len(empty.cloud(0, EVERYTHING).points) == 0
    holes = scene.points.clone()
    holes[:, :10] = torch.nan
    assert np.isfinite(frames_of(replace(scene, points=holes)).cloud(0, EVERYTHING).points).all()


def test_tracks_and_their_trails(tmp_path: Path) -> None:
    tracks = ball_tracks(12)
    tracks.visible[5, :30] = False
    save(tracks, tmp_path / "t")
    for frames in (frames_of(tracks), frames_of(open_scene(tmp_path / "t"))):
        cloud = frames.cloud(5, EVERYTHING)
        assert len(cloud.points) == tracks.visible[5].numel()
        world = cloud.points * frames.unit + frames.centre
        assert np.allclose(np.sort(world, 0), np.sort(tracks.points[5].reshape(-1, 3).numpy(), 0), atol=1e-4)
        assert cloud.colors.mean() < frames.cloud(4, EVERYTHING).colors.mean()  # hidden ones are dimmed
        lines = frames.lines(10, EVERYTHING)
        moving = int((tracks.points[10] - tracks.points[2]).norm(dim=-1).gt(0).sum())
        assert len(lines.points) == TRAIL * moving
        assert np.allclose((lines.points[:, 1] - lines.points[:, 0]) * frames.unit, [0.15, 0, 0], atol=1e-5)
        assert len(frames.lines(0, EVERYTHING).points) == 0


# ------------------------------------------------------------------------------------------------------------ server

viser = pytest.importorskip("viser", reason="viser is not installed (extra: view)")


@contextmanager
def studio(item: object, **options: object) -> Iterator[object]:
    from worldline.viewer.studio import view

    with view(item, free_port(), **options) as running:  # type: ignore[arg-type]
        wait_for(lambda: running.shown >= 0, "the first frame to be drawn", 20)
        yield running


def test_server_listens_on_this_machine_only_and_loads_nothing_from_outside(scene) -> None:  # noqa: ANN001
    with studio(scene) as running:
        assert running.url.startswith("http://127.0.0.1:")
        page = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=10)
        page.request("GET", "/")
        text = page.getresponse().read().decode()
        page.close()
        assert 'src="http' not in text and 'href="http' not in text
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])), timeout=2)


def test_times_are_sent_once_and_then_shown_or_hidden(scene) -> None:  # noqa: ANN001
    with studio(scene) as running:
        for index in (3, 0, 3, 5):
            running.show(index)
            wait_for(lambda index=index: running.shown == index, f"frame {index}", 20)
        clouds = running._clouds
        assert set(clouds) >= {0, 3, 5}
        assert [index for index, (handle, _) in clouds.items() if handle.visible] == [5]
        with pytest.raises(ValueError, match="frames 0 to 5, not 6"):
            running.show(6)


def test_point_budget_forgets_the_oldest(scene, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    monkeypatch.setattr("worldline.viewer.studio.POINT_BUDGET", int(2.5 * scene.valid[0].sum()))
    monkeypatch.setattr("worldline.viewer.studio.AHEAD", 1)
    with studio(scene) as running:
        for index in range(6):
            running.show(index)
            wait_for(lambda index=index: running.shown == index, f"frame {index}", 20)
        wait_for(lambda: set(running._clouds) == {5, 0}, "the next time to be sent ahead", 20)
        assert running._clouds[5][0].visible and not running._clouds[0][0].visible


def test_playing_goes_round(scene) -> None:  # noqa: ANN001
    with studio(scene.select(slice(0, 3)), playing=True) as running:
        seen: set[int] = set()
        wait_for(lambda: seen.add(running.shown) or seen == {0, 1, 2}, "all three frames", 20)  # type: ignore[func-returns-value]


def test_doubtful_motion_is_hidden_at_first(scene) -> None:  # noqa: ANN001
    with studio(scene) as running:
        assert running._lines is not None
    doubtful = replace(scene, provenance=replace(scene.provenance, unreliable=("scene_flow",)))
    with studio(doubtful) as running:
        assert running._lines is None


def test_damage_ends_the_viewer_with_a_sentence(scene, tmp_path: Path) -> None:  # noqa: ANN001
    save(scene, tmp_path / "s")
    next((tmp_path / "s" / "rgb").glob("c.3.*")).unlink()
    with studio(tmp_path / "s") as running:
        running.show(3)
        with pytest.raises(ValueError, match="frame 3 of rgb is missing"):
            running.wait()


def test_bad_input(tmp_path: Path) -> None:
    from worldline.viewer.studio import view

    with pytest.raises(FileNotFoundError, match="does not exist"):
        view(tmp_path / "none")
    with pytest.raises(ValueError, match="between 0 and 65535"):
        view(tmp_path, 70000)


def test_command_ends_cleanly_on_interrupt(scene, tmp_path: Path) -> None:  # noqa: ANN001
    save(scene, tmp_path / "s")
    program = "import sys; from worldline.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["view", str(tmp_path / "s"), "--port", str(free_port()), "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    # A runner in the background ignores Ctrl-C and hands that on; the command under test must not inherit it.
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    run = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, env=environment, preexec_fn=listen)  # fmt: skip
    try:
        assert run.stdout is not None
        assert run.stdout.readline().startswith("http://127.0.0.1:")
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    assert out == "" and "Traceback" not in errors


# ----------------------------------------------------------------------------------------------------------- browser


class Browser:
    """A page in headless Chromium, driven through its debugging protocol."""

    def __init__(self, url: str, folder: Path) -> None:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if program is None:
            pytest.skip("no Chromium on this machine (apt-get install chromium)")
        port = free_port()
        options = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--window-size=1280,800",
            "--no-first-run",
            "--disable-background-networking",
            f"--remote-debugging-port={port}",
            f"--user-data-dir={folder}",
        ]
        self._process = subprocess.Popen([program, *options, url], stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            self._socket, self._count = self._attach(port), 0
        except BaseException:
            self.close()
            raise

    def _attach(self, port: int):  # noqa: ANN202
        from websockets.sync.client import connect

        end = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/json")
                pages = [page for page in json.loads(connection.getresponse().read()) if page["type"] == "page"]
                return connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None)
            except (OSError, IndexError, ValueError):
                assert time.monotonic() < end, "Chromium did not start"
                time.sleep(0.2)

    def _ask(self, method: str, **parameters: object) -> dict:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._count:
                return answer["result"]

    def screenshot(self) -> np.ndarray:
        data = b64decode(self._ask("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)

    def click(self, label: str) -> bool:
        script = f"[...document.querySelectorAll('button')].filter(b => b.textContent.trim() == '{label}')" \
                 ".map(b => b.click()).length"  # fmt: skip
        return bool(self._ask("Runtime.evaluate", expression=script)["result"]["value"])

    def requests(self) -> list[str]:
        script = "JSON.stringify(performance.getEntriesByType('resource').map(e => e.name))"
        return json.loads(self._ask("Runtime.evaluate", expression=script)["result"]["value"])

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def ball_columns(picture: np.ndarray) -> np.ndarray:
    """Columns left of the panel where the orange ball is seen."""
    area = picture[:, :900]
    red = (area[..., 0] > 120) & (area[..., 1] < 0.45 * area[..., 0]) & (area[..., 2] < 0.4 * area[..., 0])
    return red.nonzero()[1]


def test_browser_draws_and_plays(scene, tmp_path: Path) -> None:  # noqa: ANN001
    with studio(replace(scene, scene_flow=None, flow_valid=None)) as running:
        running._wish.cameras = False  # what is seen are points, not the picture in the camera
        running.show(1)
        running.show(0)
        wait_for(lambda: len(running._clouds) >= 5, "the next times to be sent ahead", 20)
        browser = Browser(running.url, tmp_path)
        try:
            wait_for(lambda: len(ball_columns(browser.screenshot())) > 1000, "the ball to be drawn")
            first = np.median(ball_columns(browser.screenshot()))
            running.show(5)
            wait_for(lambda: np.median(ball_columns(browser.screenshot())) > first + 20, "the ball to move right")
            before = running.shown
            assert browser.click("Play"), "there is no Play button"
            wait_for(lambda: running.shown != before, "the page's Play button to start playing")
            seen = [len(ball_columns(browser.screenshot())) for _ in range(5)]
            assert min(seen) > 1000, f"the points vanish while playing: {seen}"
            assert all(url.startswith((running.url, "blob:", "data:")) for url in browser.requests())
            if os.environ.get("WORLDLINE_SCREENSHOT"):
                Image.fromarray(browser.screenshot().astype(np.uint8)).save(os.environ["WORLDLINE_SCREENSHOT"])
        finally:
            browser.close()
