"""One small file per dataset: its layout and encodings to Scene4D clips."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from worldline.scene import Scene4D

DATASETS = ("deepdeform", "flyingthings", "hololens", "kitti_odometry", "slambook", "tartanair", "tum")


def convert(dataset: str, root: Path | str) -> Iterator[Scene4D]:
    """Scenes of a data set's folder, one after the other.

    Raises:
        ValueError: the data set is not known.
    """
    if dataset not in DATASETS:
        raise ValueError(f"Unknown data set {dataset!r}; choose one of {', '.join(DATASETS)}.")
    yield from import_module(f"worldline.data.adapters.{dataset}").convert(Path(root))
