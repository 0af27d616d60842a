"""The viewer in a browser: points over time, cameras, motion; served on this machine only, with nothing from outside.

One thread does all drawing: it shows the latest time asked for, so that dragging the slider never queues up work. The
points of a time are sent once and then only shown or hidden, as far as the point budget of a browser allows; the next
ones are sent ahead.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from worldline.geometry.pose import matrix_to_quaternion
from worldline.io.store import open_scene
from worldline.render.colors import colormap, to_uint8
from worldline.scene import Scene4D, Tracks4D
from worldline.viewer.frames import Frames, Look, frames_of
from worldline.viewer.keyframes import KeyFrames

MAX_FRUSTA = 40
POINT_BUDGET = 4_000_000  # points a browser keeps at once
AHEAD = 4  # times sent before they are shown
MOUNTING = 0.06  # seconds
FRUSTUM, HIGHLIGHT = 0.1, (255, 196, 0)


@dataclass
class _Wish:
    """What the page asks for; changed by the page's callbacks, read by the drawing thread."""

    time: int = 0
    look: Look = Look()
    playing: bool = False
    fps: float = 10.0
    lines: bool = False
    point_size: float = 1.0
    cameras: bool = True


def view(
    scene: str | Path | Scene4D | Tracks4D, port: int = 8080, host: str = "127.0.0.1", *, playing: bool = False
) -> Studio:
    """Open a scene or tracks, stored or in memory, for looking at in a browser, at the `url` of what is returned.

    Frames of a stored scene are read when they are shown. If the port is taken, the next free one is used.

    Raises:
        FileNotFoundError, ValueError: there is no scene, it is damaged, or viser is not installed.
        OSError: no port can be opened.
    """
    try:
        import viser
    except ModuleNotFoundError as error:
        raise ValueError("The viewer needs viser: pip install 'worldline[view]'.") from error
    if not 0 <= port <= 65535:
        raise ValueError(f"The port must lie between 0 and 65535, got {port}.")
    frames = frames_of(open_scene(scene) if isinstance(scene, (str, Path)) else scene)
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints a box
        server = viser.ViserServer(host=host, port=port, label="Worldline", verbose=False)
    return Studio(server, frames, playing=playing)


class Studio:
    """A running viewer; stop it with `stop`, or use it as a context manager.

    Attributes:
        url: where to point the browser.
        shown: time that was drawn last, -1 before the first.
    """

    def __init__(self, server: Any, frames: Frames, *, playing: bool = False) -> None:
        """Build the page and start drawing."""
        self._server, self._frames = server, frames
        self.url = f"http://{server.get_host()}:{server.get_port()}"
        self.shown = -1
        doubtful = "scene_flow" in frames.provenance.unreliable
        self._wish = _Wish(playing=playing, fps=float(min(max(round(frames.fps), 1), 30)),
                           lines=frames.has_motion and not doubtful)  # fmt: skip
        self._drawn = replace(self._wish)
        self._clouds: dict[int, tuple[Any, int]] = {}
        self._lines: Any = None
        self._point_size = _point_size(frames)
        self._set_stage()
        self._current = self._add_cameras()
        self._build_panel(doubtful)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worldline-viewer", daemon=True)
        self._wake.set()
        self._thread.start()

    def __enter__(self) -> Studio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> None:
        """Block until `stop` is called or drawing fails.

        Raises:
            ValueError: a frame is missing or damaged.
        """
        while not self._ended.wait(0.2):
            pass
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Close the page and free the port."""
        self._ended.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)
        with contextlib.redirect_stdout(io.StringIO()):  # viser says that it stopped
            self._server.stop()

    def show(self, time: int) -> None:
        """Ask for a time.

        Raises:
            ValueError: there is no such time.
        """
        if not 0 <= time < self._frames.count:
            raise ValueError(f"The scene has frames 0 to {self._frames.count - 1}, not {time}.")
        self._slider.value = time

    # ------------------------------------------------------------------------------------------------------- drawing

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while not self._ended.is_set():
                self._wake.wait(max(0.0, due - time.monotonic()) if self._wish.playing else None)
                self._wake.clear()
                if self._wish.playing and time.monotonic() >= due:
                    due = max(due + 1 / self._wish.fps, time.monotonic())
                    self._slider.value = (self._wish.time + 1) % self._frames.count
                if not self._ended.is_set():
                    self._draw(replace(self._wish))
        except Exception as error:  # handed to whoever waits
            self._failure = error
            self._ended.set()

    def _draw(self, wish: _Wish) -> None:
        """Bring the page to what is wished for."""
        if wish.look != self._drawn.look:
            with self._server.atomic():
                for handle, _ in self._clouds.values():
                    handle.remove()
                self._clouds.clear()
        if wish.time not in self._clouds:
            self._send_cloud(wish.time, wish)
            self._server.flush()
            self._ended.wait(MOUNTING)  # a browser needs a moment for new points: until then the old ones stay
        with self._server.atomic():
            for index, (handle, _) in self._clouds.items():
                if handle.visible != (index == wish.time):
                    handle.visible = index == wish.time
                if wish.point_size != self._drawn.point_size:
                    handle.point_size = self._point_size * wish.point_size
            if (wish.time, wish.look, wish.lines) != (self.shown, self._drawn.look, self._drawn.lines):
                self._send_lines(wish)
            if self._current is not None:
                self._highlight(wish)
        self._server.flush()
        self._drawn, self.shown = wish, wish.time
        for index in self._ahead(wish):
            if self._wake.is_set():  # something newer is asked for
                return
            if index not in self._clouds:
                self._send_cloud(index, wish)

    def _ahead(self, wish: _Wish) -> list[int]:
        """The time shown and the next ones, which are sent while there is time."""
        return [(wish.time + step) % self._frames.count for step in range(min(AHEAD + 1, self._frames.count))]

    def _send_cloud(self, index: int, wish: _Wish) -> None:
        """Add the points of one time, and forget the oldest ones beyond the budget."""
        cloud = self._frames.cloud(index, wish.look)
        handle = self._server.scene.add_point_cloud(
            f"/points/{index}", cloud.points, cloud.colors, point_size=self._point_size * wish.point_size,
            point_shape="circle", point_shading="flat", precision="float32", visible=index == wish.time,
        )  # fmt: skip
        self._clouds[index] = (handle, len(cloud.points))
        total = sum(count for _, count in self._clouds.values())
        kept = self._ahead(wish)
        for oldest in [key for key in self._clouds if key not in kept]:
            if total <= POINT_BUDGET:
                return
            handle, count = self._clouds.pop(oldest)
            handle.remove()
            total -= count

    def _send_lines(self, wish: _Wish) -> None:
        if self._lines is not None:
            self._lines.remove()
            self._lines = None
        if not wish.lines:
            return
        lines = self._frames.lines(wish.time, wish.look)
        if len(lines.points):
            self._lines = self._server.scene.add_line_segments(
                "/motion", lines.points, lines.colors, thickness=1.5, thickness_units="screen"
            )

    # ------------------------------------------------------------------------------------------------- stage, cameras

    def _set_stage(self) -> None:
        """Background, up direction, and a first view from behind and above the first camera."""
        server, frames = self._server, self._frames
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="medium")
        server.scene.world_axes.visible = False
        pose = np.eye(4) if frames.cameras is None else frames.cameras.cam2world[0].double().cpu().numpy()
        right_down_forward, eye = pose[:3, :3], frames.place(pose[:3, 3])
        server.scene.set_up_direction(tuple(-right_down_forward[:, 1]))
        server.initial_camera.position = tuple(eye + right_down_forward @ np.array([0.3, -0.6, -1.0]))
        server.initial_camera.look_at = tuple(eye + right_down_forward @ np.array([0.25, 0.2, 3.0]))
        server.initial_camera.up = tuple(-right_down_forward[:, 1])
        server.initial_camera.fov = np.deg2rad(55.0)

    def _add_cameras(self) -> Any:
        """Small frusta coloured by time (blue to red), the path, and the current one with its picture."""
        frames, scene = self._frames, self._server.scene
        if frames.cameras is None:
            return None
        self._all_cameras = scene.add_frame("/cameras", show_axes=False)
        tints = to_uint8(colormap(torch.linspace(0, 1, frames.count), "time")).numpy()
        centres = frames.place(frames.cameras.cam2world[:, :3, 3].double().cpu().numpy()).astype(np.float32)
        for index in sorted(set(np.linspace(0, frames.count - 1, MAX_FRUSTA).round().astype(int).tolist())):
            scene.add_camera_frustum(f"/cameras/{index}", scale=FRUSTUM / 2, color=tuple(tints[index].tolist()),
                                     thickness=1.5, thickness_units="screen", **self._camera(index))  # fmt: skip
        if frames.count > 1:
            ends, colors = (np.stack([values[:-1], values[1:]], axis=1) for values in (centres, tints))
            scene.add_line_segments("/cameras/path", ends, colors, thickness=1.5, thickness_units="screen")
        return scene.add_camera_frustum("/camera", scale=FRUSTUM, color=HIGHLIGHT, thickness=3.0,
                                        thickness_units="screen", image=_small(frames.image(0)),
                                        **self._camera(0))  # fmt: skip

    def _camera(self, index: int) -> dict[str, Any]:
        """Field of view, shape and pose of one camera as viser wants them."""
        cameras = self._frames.cameras
        assert cameras is not None
        pose, (height, width) = cameras.cam2world[index].double().cpu(), cameras.size
        focal_y = float(cameras.intrinsics[index, 1, 1])
        return {
            "fov": 2 * float(np.arctan2(height / 2, focal_y)),
            "aspect": width / height * focal_y / float(cameras.intrinsics[index, 0, 0]),
            "wxyz": tuple(matrix_to_quaternion(pose[:3, :3]).tolist()),
            "position": tuple(self._frames.place(pose[:3, 3].numpy()).tolist()),
        }

    def _highlight(self, wish: _Wish) -> None:
        self._current.visible = self._all_cameras.visible = wish.cameras
        if wish.time != self.shown:
            for name, value in self._camera(wish.time).items():
                setattr(self._current, name, value)
            self._current.image = _small(self._frames.image(wish.time))

    # --------------------------------------------------------------------------------------------------------- panel

    def _build_panel(self, doubtful: bool) -> None:
        """Controls; each only changes the wish."""
        gui, frames = self._server.gui, self._frames
        with gui.add_folder("Time"):
            last = max(1, frames.count - 1)
            self._slider = gui.add_slider("Frame", 0, last, 1, 0, disabled=frames.count == 1)
            self._on(self._slider, lambda value: {"time": min(value, frames.count - 1)})
            play = gui.add_button("Pause" if self._wish.playing else "Play", disabled=frames.count == 1)
            self._on(gui.add_slider("Frames per second", 1, 60, 1, int(self._wish.fps)), lambda v: {"fps": float(v)})
        play.on_click(lambda _: self._toggle(play))
        with gui.add_folder("Points"):
            options = gui.add_dropdown("Colour", frames.colors)
            self._on(options, lambda value: {"look": replace(self._wish.look, color_by=value)})
            size = gui.add_slider("Size", 0.2, 5.0, 0.1, 1.0)
            self._on(size, lambda value: {"point_size": value})
            total = frames.size[0] * frames.size[1]
            if total > 1000:
                limit = gui.add_slider("Most per frame", 1000, total, 1000, min(total, self._wish.look.max_points))
                self._on(limit, lambda value: {"look": replace(self._wish.look, max_points=int(value))})
            if "confidence" in frames.colors:
                least = gui.add_slider("Least confidence", 0.0, 1.0, 0.01, 0.0)
                self._on(least, lambda value: {"look": replace(self._wish.look, min_confidence=value)})
            if "depth" in frames.colors:
                edges = gui.add_checkbox("Hide depth edges", False)
                self._on(edges, lambda value: {"look": replace(self._wish.look, hide_edges=value)})
        with gui.add_folder("Motion and cameras"):
            if frames.has_motion:
                lines = gui.add_checkbox("Motion lines", self._wish.lines)
                self._on(lines, lambda value: {"lines": value})
            if doubtful:
                gui.add_markdown("Scene flow is hidden: it does **not** beat predicting no motion on the validation "
                                 "clips of this system. Look at it with care.")  # fmt: skip
            if frames.cameras is not None:
                self._on(gui.add_checkbox("Cameras", True), lambda value: {"cameras": value})
                gui.add_button("Look through this camera").on_click(lambda event: self._look_through(event.client))
        KeyFrames(frames).build(gui)
        with gui.add_folder("About", expand_by_default=False):
            gui.add_markdown(_about(frames))

    def _on(self, control: Any, change: Any) -> None:
        """Let a control change fields of the wish."""

        def update(_: Any) -> None:
            for name, value in change(control.value).items():
                setattr(self._wish, name, value)
            self._wake.set()

        control.on_update(update)

    def _toggle(self, button: Any) -> None:
        self._wish.playing = not self._wish.playing
        button.label = "Pause" if self._wish.playing else "Play"
        self._wake.set()

    def _look_through(self, client: Any) -> None:
        if client is None or self._frames.cameras is None:
            return
        pose = self._frames.cameras.cam2world[self._wish.time].double().cpu().numpy()
        eye = self._frames.place(pose[:3, 3])
        with client.atomic():
            client.camera.up_direction = -pose[:3, 1]
            client.camera.position = eye
            client.camera.look_at = eye + 3.0 * pose[:3, 2]
            client.camera.fov = self._camera(self._wish.time)["fov"]


def _point_size(frames: Frames) -> float:
    """Distance of neighbouring pixels at the typical depth, in viewer coordinates, a little more to close gaps."""
    focal = frames.size[1] if frames.cameras is None else float(frames.cameras.focal_px[0])
    return 1.3 * 3.0 / max(focal, 1e-6)


def _small(image: np.ndarray, width: int = 256) -> np.ndarray:
    step = max(1, -(-image.shape[1] // width))
    return np.ascontiguousarray(image[::step, ::step])


def _about(frames: Frames) -> str:
    provenance = frames.provenance
    unit = "metres" if frames.scale == "metric" else "no absolute unit"
    rows = {
        "Made by": provenance.system,
        "From": Path(provenance.source).name or "-",
        "Frames": f"{frames.count} of {frames.size[1]}x{frames.size[0]}, {frames.fps:.3g} per second",
        "Scale": f"{frames.scale} ({unit})",
        "Weights": (provenance.weights_sha256 or "-")[:12],
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())
