"""Virtual KITTI 2: centimetre depth, 16-bit scene flow over +-10 m, world-to-camera text tables with a header line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters_writers import packing
from adapters_writers.expected import Expected
from adapters_writers.truth import default, to


def write(root: Path, frame: str = "from camera t to camera t+1") -> list[Expected]:
    truth = default()
    folder = root / "Scene01" / "clone"
    intrinsic, extrinsic = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 r1,2 r1,3 t1 ..."]
    high, wide = truth.depth.shape[1:]
    for t, pose in enumerate(truth.world2cam):
        for camera in (0, 1):  # the second camera's lines must not be taken
            other = np.eye(4) if camera == 0 else np.diag([1, 1, 1, 2.0])
            k = [truth.k[0, 0], truth.k[1, 1], truth.k[0, 2], truth.k[1, 2]]
            intrinsic.append(f"{t} {camera} {packing.numbers(k)}")
            extrinsic.append(f"{t} {camera} {packing.numbers(pose @ other)}")
        frames = folder / "frames"
        packing.jpg(frames / f"rgb/Camera_0/rgb_{t:05d}.jpg", truth.rgb[t])
        depth = np.where(truth.depth[t] > 0, truth.depth[t] * 100, 65535)
        packing.png(frames / f"depth/Camera_0/depth_{t:05d}.png", packing.whole(depth))
        if t == len(truth.depth) - 1:
            continue
        moved = {
            "from camera t to camera t+1": truth.ahead[t] - truth.local[t],
            "in camera t, without camera motion": to(truth.world2cam[t], truth.points[t] + truth.flow[t])
            - truth.local[t],
            "in the world": truth.flow[t],
        }[frame]
        moved = moved * (truth.depth[t] > 0)[..., None]
        packing.png(
            frames / f"forwardSceneFlow/Camera_0/sceneFlow_{t:05d}.png", packing.whole((moved / 10 + 1) / 2 * 65535)
        )
        flow = (truth.optical[t] / np.array([wide - 1, high - 1]) + 1) / 2 * 65535
        known = (truth.depth[t] > 0)[..., None]
        stored = np.concatenate([flow * known, known * 65535], -1)
        packing.png(frames / f"forwardFlow/Camera_0/flow_{t:05d}.png", packing.whole(stored))
    packing.text(folder / "intrinsic.txt", intrinsic)
    packing.text(folder / "extrinsic.txt", extrinsic)
    return [
        Expected(
            truth=truth,
            name="Scene01/clone/Camera_0",
            reason="depth is rounded to centimetres, flow to 0.3 mm per axis; the colours are a jpeg's",
            depth_step=lambda z: 0.005 + 0 * z,
            flow_step=lambda z: 0.001 + 0 * z,
            rgb_step=6,
            settings={"scene_flow_frame.chosen": frame},
            damage=("**/depth_00001.png", "**/sceneFlow_00001.png", "**/rgb_00002.jpg", "**/flow_00000.png"),
        )
    ]
