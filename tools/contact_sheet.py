"""Draw a scene as docs/looked_at.md shows them: frame, depth, confidence, and what moves, at some of its times.

python tools/contact_sheet.py SCENE OUT.jpg [--frames 0 16 26]        # by default four, evenly spread

Depth is inverse and logarithmic, red near, blue far; one scale for the whole clip.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

import worldline as wl
from worldline.geometry.pointmap import scene_depth

WIDTH = 240


def main(argv: list[str] | None = None) -> int:
    """Draw one sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, nargs="+")
    options = parser.parse_args(argv)
    scene = wl.load(options.scene)
    chosen = options.frames or np.linspace(0, len(scene) - 1, 4).astype(int).tolist()
    inverse = -scene_depth(scene)[chosen].clamp(min=1e-6).log().numpy()
    far, near = np.percentile(inverse, (2, 98))
    nothing = np.zeros(inverse.shape, np.float32)
    sure = nothing if scene.confidence is None else scene.confidence[chosen].numpy()
    moving = scene.extras["dynamic"][chosen].numpy() if "dynamic" in scene.extras else nothing.astype(bool)
    rows = []
    for k, frame in enumerate(scene.video.rgb()[chosen].flip(-1).numpy()):
        picture = (255 * frame).astype(np.uint8)
        depth = cv2.applyColorMap(
            (255 * np.clip((inverse[k] - far) / (near - far), 0, 1)).astype(np.uint8), cv2.COLORMAP_TURBO
        )
        grey = cv2.cvtColor((255 * sure[k]).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        marked = np.where(moving[k][..., None], picture // 3 + np.array([0, 0, 150], np.uint8), picture)
        rows.append(np.concatenate([picture, depth, grey, marked], axis=1))
    sheet = np.concatenate(rows)
    height = round(sheet.shape[0] * 4 * WIDTH / sheet.shape[1])
    sheet = cv2.resize(sheet, (4 * WIDTH, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(options.out), sheet, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return 0


if __name__ == "__main__":
    sys.exit(main())
