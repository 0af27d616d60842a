"""Reading a stored scene one frame at a time, and nothing that was not asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline.io.layout import Layout, cameras_from_json, provenance_from_json, read_metadata
from worldline.scene import Scene4D, Tracks4D, Video


class StoredScene:
    """A scene on disk, read one frame at a time.

    Attributes:
        kind: "scene" (Scene4D) or "tracks" (Tracks4D).
        size: (H, W).
        timestamps: [T] seconds.
        cameras: all of them, or None.
        scale: "metric" or "relative".
        provenance: how it was made.
        fields: names of the arrays; further truth of synthetic clips as "extras/NAME".
    """

    def __init__(self, path: str | Path) -> None:
        """Read the metadata only.

        Raises:
            FileNotFoundError: there is nothing.
            ValueError: it is not a scene, or damaged.
        """
        import zarr

        self._layout = Layout(path)
        self._path = Path(path)
        self.metadata = read_metadata(self._layout, path)
        self.kind: str = self.metadata["kind"]
        self.size: tuple[int, int] = (self.metadata["height"], self.metadata["width"])
        self.timestamps = torch.tensor(self.metadata["timestamps"], dtype=torch.float64)
        self.cameras = cameras_from_json(self.metadata["cameras"], self.size)
        self.scale = self.metadata["scale"]
        self.provenance = provenance_from_json(self.metadata["provenance"])
        self.fields = tuple(self.metadata["arrays"])
        self._arrays: dict[str, Any] = {}
        self._zarr_open = zarr.open_array

    def __len__(self) -> int:
        return len(self.timestamps)

    def read(self, name: str, frame: int) -> np.ndarray:
        """One frame of one array, by its name in `fields`; touches one file.

        Raises:
            KeyError: the scene has no such array.
            IndexError: it has no such frame.
            ValueError: the chunk is missing or damaged.
        """
        shape = self.metadata["arrays"][name]["shape"]
        if not 0 <= frame < shape[0]:
            raise IndexError(f"{self._path} has frames 0 to {len(self) - 1}, not {frame}.")
        file = self._layout.chunk(name, frame, len(shape))
        if not file.is_file():
            raise ValueError(f"{self._path} is damaged: frame {frame} of {name} is missing ({file}).")
        try:
            return np.asarray(self._array(name)[frame])
        except Exception as error:  # what a codec raises on garbage is not for us to list; all of it means damage
            raise ValueError(f"{self._path} is damaged: frame {frame} of {name} cannot be read ({file}).") from error

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            array = self._zarr_open(str(self._layout.root / name), mode="r")
            entry = self.metadata["arrays"][name]
            if list(array.shape) != entry["shape"] or str(array.dtype) != entry["dtype"]:
                raise ValueError("zarr.json and scene.json disagree")
            self._arrays[name] = array
        return self._arrays[name]

    def frame(self, index: int) -> Scene4D:
        """The scene of one frame (T = 1)."""
        return self.scene(slice(index, index + 1))

    def scene(self, frames: slice | None = None) -> Scene4D:
        """The scene of the chosen frames, in the same world; only their chunks are read.

        Raises:
            ValueError: it holds tracks, the range holds no frame, or a chunk is missing or damaged.
        """
        if self.kind != "scene":
            raise ValueError(f"{self._path} holds tracks, not a scene; read it with tracks().")
        chosen = self._chosen(frames)
        stack = {name: torch.from_numpy(self._stack(name, chosen)) for name in self.fields}
        return Scene4D(
            video=Video(frames=stack["rgb"], timestamps=self.timestamps[chosen]),
            points=stack["points"],
            valid=stack["valid"],
            cameras=None if self.cameras is None else self.cameras.select(chosen),
            scene_flow=stack.get("scene_flow"),
            flow_valid=stack.get("flow_valid"),
            confidence=stack.get("confidence"),
            scale=self.scale,
            provenance=self.provenance,
            extras={n.removeprefix("extras/"): v for n, v in stack.items() if n.startswith("extras/")},
        )

    def tracks(self, frames: slice | None = None) -> Tracks4D:
        """The tracks at the chosen times.

        Raises:
            ValueError: it holds a scene, the range holds no frame, or a chunk is missing or damaged.
        """
        if self.kind != "tracks":
            raise ValueError(f"{self._path} holds a scene, not tracks; read it with scene().")
        chosen = self._chosen(frames)
        return Tracks4D(
            points=torch.from_numpy(self._stack("points", chosen)),
            visible=torch.from_numpy(self._stack("visible", chosen)),
            reference=self.metadata["reference"],
            colors=torch.from_numpy(self.read("colors", 0)).float() / 255,
            timestamps=self.timestamps[chosen],
            cameras=None if self.cameras is None else self.cameras.select(chosen),
            scale=self.scale,
            provenance=self.provenance,
        )

    def _chosen(self, frames: slice | None) -> list[int]:
        chosen = list(range(len(self)))[frames or slice(None)]
        if not chosen:
            raise ValueError(f"The frame range {frames} lies outside {self._path}, which has {len(self)} frames.")
        return chosen

    def _stack(self, name: str, chosen: list[int]) -> np.ndarray:
        entry = self.metadata["arrays"][name]
        stack = np.empty((len(chosen), *entry["shape"][1:]), entry["dtype"])
        for row, frame in enumerate(chosen):
            stack[row] = self.read(name, frame)
        return stack
