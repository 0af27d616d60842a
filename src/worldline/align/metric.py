"""Making a scene metric: from one measured distance or a sensor's depth."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldline.align.alignment import Alignment
from worldline.align.config import Priors
from worldline.geometry.pose import Similarity


def metric_factor(alignment: Alignment, priors: Priors) -> Alignment:
    """The same alignment in metres when a prior says how long a metre is; unchanged otherwise.

    Known poses are taken to be metric already and are never rescaled.
    """
    if priors.known_poses() is not None:
        return replace(alignment, scale="metric")
    factor = _factor(alignment, priors)
    if factor is None:
        return alignment
    pose = alignment.cameras.cam2world.clone()
    pose[:, :3, 3] *= factor
    windows = alignment.windows
    scaled = Similarity(
        scale=windows.scale * factor, rotation=windows.rotation, translation=windows.translation * factor
    )
    report = {**alignment.report, "metres_per_unit": factor}
    return replace(
        alignment, cameras=replace(alignment.cameras, cam2world=pose), windows=scaled, scale="metric", report=report
    )


def _factor(alignment: Alignment, priors: Priors) -> float | None:
    known = priors.distance
    if known is not None:
        wanted = {known.frame}
    elif priors.sensor_depth is not None:
        frames = len(alignment.cameras)
        wanted = set(torch.linspace(0, frames - 1, min(frames, 16)).long().tolist())
    else:
        return None
    ratios: list[Tensor] = []
    for n, fields in enumerate(alignment.frames()):
        if n not in wanted:
            continue
        if known is not None:
            ends = [fields.points[round(y), round(x)] for x, y in (known.first, known.second)]
            length = float((ends[0] - ends[1]).norm())
            if length <= 0:
                raise ValueError("The two pixels of the known distance lie on the same point; choose others.")
            return known.metres / length
        sensor = priors.sensor_depth[n].to(fields.depth) if priors.sensor_depth is not None else fields.depth
        usable = fields.valid & torch.isfinite(sensor) & (sensor > 0)
        ratios.append((sensor / fields.depth)[usable][::7])
    every = torch.cat(ratios)
    if len(every) == 0:
        raise ValueError("The sensor depth has no pixel where the reconstruction is valid.")
    return float(every.median())
