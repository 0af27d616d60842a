"""One small file per dataset: its layout and encodings to Scene4D clips. The convention is in `data/clips.py`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from worldline.data.clips import Sequence
from worldline.scene import Scene4D

ADAPTERS = {
    "bedlam": "bedlam",
    "blinkvision": "blinkvision",
    "bonn": "bonn",
    "ddad": "ddad",
    "deepdeform": "deepdeform",
    "driving": "flyingthings",
    "dynamic_replica": "dynamic_replica",
    "flyingthings": "flyingthings",
    "gta_sfm": "gta_sfm",
    "hololens": "hololens",
    "kitti_depth": "kitti_depth",
    "kitti_odometry": "kitti_odometry",
    "kitti_raw": "kitti_raw",
    "kitti_scene_flow": "kitti_scene_flow",
    "kubric": "kubric",
    "matrixcity": "matrixcity",
    "monkaa": "flyingthings",
    "motioncrafter": "motioncrafter",
    "mvs_synth": "mvs_synth",
    "omniworld": "omniworld",
    "point_odyssey": "point_odyssey",
    "scannetpp": "scannetpp",
    "sintel": "sintel",
    "slambook": "slambook",
    "spring": "spring",
    "synthia": "synthia",
    "tapvid3d": "tapvid3d",
    "tartanair": "tartanair",
    "trajscene": "trajscene",
    "tum": "tum",
    "vkitti2": "vkitti2",
}
"""Name of a dataset -> its module here; imported when it is asked for."""

DATASETS = tuple(ADAPTERS)


def adapter(dataset: str) -> ModuleType:
    """The module of a dataset.

    Raises:
        ValueError: the data set is not known.
    """
    if dataset not in ADAPTERS:
        raise ValueError(f"Unknown data set {dataset!r}; choose one of {', '.join(ADAPTERS)}.")
    return import_module(f"worldline.data.adapters.{ADAPTERS[dataset]}")


def convert(dataset: str, root: Path | str) -> Iterator[Scene4D]:
    """Scenes of a data set's folder, one after the other, each whole.

    Raises:
        ValueError: the data set is not known.
    """
    yield from adapter(dataset).convert(Path(root))


def sequences(dataset: str, root: Path | str) -> list[Sequence] | None:
    """What there is to convert, without reading it; None for an adapter that can only convert one after the other.

    Raises:
        ValueError: the data set is not known, or two sequences have one name.
        FileNotFoundError: the folder does not hold it.
    """
    module = adapter(dataset)
    if not hasattr(module, "sequences"):
        return None
    found = list(module.sequences(Path(root)))
    names = [sequence.name for sequence in found]
    if len(set(names)) != len(names):
        raise ValueError(f"Two sequences of {dataset} have one name in {root}; its adapter is wrong.")
    return found
