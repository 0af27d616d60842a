"""TrajScene-60K as released: a video, a caption, pickled tracks of the first frame's pixels in camera axes."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import torch

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import make, to


def video(path: Path, frames: np.ndarray) -> None:
    with av.open(str(packing.folder(path)), "w") as file:
        stream = file.add_stream("libx264", rate=24, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode(None))


def write(root: Path, torch_tensors: bool = True) -> list[Expected]:
    truth = make(size=(48, 64))  # the smallest that a video of it is worth looking at
    frames = len(truth.depth)
    solid = truth.depth[0] > 0
    local = (to(truth.world2cam, truth.tracks) * solid[..., None]).reshape(frames, -1, 3).astype(np.float32)
    content = {
        "coords": local,
        "colors": truth.rgb[0].reshape(-1, 3).astype(np.float32),
        "vis": truth.visible.reshape(frames, -1),
    }
    if torch_tensors:
        content = {key: torch.from_numpy(value) for key, value in content.items()}
    base = root / "0-50"
    packing.folder(base / "000001_dt3d_pred.pkl").write_bytes(pickle.dumps(content))
    packing.text(base / "000001.txt", ["A ball rolls past a wall."])
    video(base / "000001.mp4", truth.rgb)
    return [
        Expected(
            truth=truth,
            name="0-50/000001",
            reason="after the first frame points are where a track falls, up to half a pixel beside the pixel's middle",
            depth_step=lambda z: 0.04 * z,
            flow_step=lambda z: 0.02 * z,
            flow_known=np.ones_like(truth.depth, bool),
            flow_at_least=True,
            partial=True,
            outliers=0.05,
            rgb_step=8,
            cameras=False,
            scale="relative",
            settings={"caption": "A ball rolls past a wall.", "reference": 0},
            damage=("**/*.pkl", "**/*.mp4"),
        )
    ]
