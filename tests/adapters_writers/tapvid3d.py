"""TAPVid-3D: an npz with jpegs (fixed-length bytes, or Python objects), tracks in camera coordinates, visibility."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default, to


def jpeg(image: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(image).save(stream, "jpeg", quality=95, subsampling=0)
        return stream.getvalue()


def write(root: Path, objects: bool = True, extrinsics: bool = True) -> list[Expected]:
    truth = default()
    frames, solid = len(truth.depth), (truth.depth[0] > 0).ravel()
    points, visible = truth.tracks.reshape(frames, -1, 3)[:, solid], truth.visible.reshape(frames, -1)[:, solid]
    local = to(truth.world2cam, points)
    arrays = {
        "images_jpeg_bytes": np.array([jpeg(image) for image in truth.rgb], dtype=object if objects else None),
        "tracks_XYZ": local.astype(np.float32),
        "visibility": visible,
        "queries_xyt": np.zeros((solid.sum(), 3), np.float32),
        "fx_fy_cx_cy": np.array([truth.k[0, 0], truth.k[1, 1], truth.k[0, 2], truth.k[1, 2]]),
    }
    if extrinsics:
        arrays["extrinsics_w2c"] = truth.world2cam
    np.savez(packing.folder(root / "pstudio" / "basketball_0_1.npz"), **arrays)
    return [
        Expected(
            truth=truth,
            name="pstudio/basketball_0_1",
            reason="a track is up to half a pixel beside the middle of its pixel: 1/60 of the depth, more on the floor",
            depth_step=lambda z: 0.08 * z,
            flow_step=lambda z: 0.02 * z,
            flow_known=np.ones_like(truth.depth, bool),
            flow_at_least=True,
            partial=True,
            outliers=0.03,
            rgb_step=6,
            cameras=extrinsics,
            tracks=(points if extrinsics else local, visible),
            damage=("**/*.npz",),
        )
    ]
