"""Reconstruct a video, ask where things are, how they move and where the camera was, and save the scene.

    python examples/01_reconstruct.py [VIDEO]

Without a video, a synthetic clip is rendered first, so that this runs anywhere.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import worldline as wl


def main(folder: Path, video: str | None = None) -> Path:
    if video is None:
        from worldline.data.synthetic import render_clip
        from worldline.io.video import write_video

        video = str(folder / "clip.mp4")
        write_video(video, render_clip(1_234_567_890, frames=10, size=(72, 120), category="both").video)
    scene = wl.reconstruct(video)
    path = folder / "scene"
    wl.save(scene, path)

    frames, (height, width) = len(scene), scene.size
    x, y, z = scene.points[0, height // 2, width // 2].tolist()
    print(f"{frames} frames of {width}x{height}; the middle pixel of the first is at ({x:.2f}, {y:.2f}, {z:.2f})")
    print(f"focal length {scene.cameras.focal_px[0]:.0f} px; the camera ends at {scene.cameras.cam2world[-1, :3, 3]}")
    speed = scene.scene_flow[scene.flow_valid].norm(dim=-1)
    print(f"{scene.flow_valid.float().mean():.0%} of pixels have a motion, the fastest {speed.max():.3f} per frame")
    for warning in scene.provenance.report.get("warnings", []):
        print("note:", warning)
    return path


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()), *sys.argv[1:2])
