"""Views that are kept while looking around, as a camera path file for `worldline synthesize --path path.json`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from worldline.viewer.frames import Frames

FILE = "path.json"


class KeyFrames:
    """The views kept so far, in the world of the scene.

    Attributes:
        views: key frames as `render.path_files` reads them.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.views: list[dict[str, Any]] = []

    def keep(self, wxyz: np.ndarray, position: np.ndarray) -> None:
        """Add a view: rotation (OpenCV axes) and place in viewer coordinates."""
        world = np.asarray(position, np.float64) * self._frames.unit + self._frames.centre
        rotation = np.asarray(wxyz, np.float64)
        rotation = (rotation / np.linalg.norm(rotation)).tolist()
        self.views.append({"time": len(self.views), "position": world.tolist(), "rotation_wxyz": rotation})

    def text(self) -> str:
        """The path file."""
        return json.dumps({"relative": False, "keyframes": self.views}, indent=1) + "\n"

    def build(self, gui: Any) -> None:
        """Three buttons: keep a view, forget all, save."""
        with gui.add_folder("Camera path", expand_by_default=False):
            keep, forget = gui.add_button("Keep this view"), gui.add_button("Forget all", disabled=True)
            save = gui.add_button(f"Save {FILE}", disabled=True)

        def refresh() -> None:
            forget.disabled = save.disabled = not self.views
            keep.label = f"Keep this view ({len(self.views)} kept)" if self.views else "Keep this view"

        def kept(event: Any) -> None:
            if event.client is not None:
                self.keep(event.client.camera.wxyz, event.client.camera.position)
                refresh()

        def forgotten(_: Any) -> None:
            self.views.clear()
            refresh()

        def saved(event: Any) -> None:
            if event.client is not None:
                event.client.send_file_download(FILE, self.text().encode())

        keep.on_click(kept)
        forget.on_click(forgotten)
        save.on_click(saved)
