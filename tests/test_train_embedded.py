"""`tools/train_embedded.py`: one command, in chunks, for every checkpoint that is embedded; each within its budget."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import checkpoint_size
from checkpoint_size import MIB
from worldline import api
from worldline.flow import learned
from worldline.flow.network import FlowNetwork
from worldline.systems.geo4d.system import MINI_CHECKPOINT as GEO4D
from worldline.systems.more4d.system import MINI_CHECKPOINT as MORE4D
from worldline.systems.motioncrafter.system import MINI_CHECKPOINT as MOTIONCRAFTER
from worldline.systems.optical_flow import recipes

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "train_embedded.py"
FILES = {
    "flow-mini": learned.EMBEDDED,
    "motioncrafter-mini": MOTIONCRAFTER,
    "geo4d-mini": GEO4D,
    "more4d-mini": MORE4D,
}


@pytest.fixture()
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_embedded", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_all_that_is_embedded_in_order(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def train(name: str, out: Path, **options: Any) -> Path | None:
        asked.append((name, options))
        assert out == tmp_path / name
        return out / "mini.safetensors" if len(asked) < 3 else None

    monkeypatch.setattr(api, "train", train)
    assert script.main(["--out", str(tmp_path), "--minutes", "9", "--device", "cpu", "--fraction", "2"]) == 3
    assert [name for name, _ in asked] == ["flow-mini", "motioncrafter-mini", "geo4d-mini"]  # the last is not finished
    assert all(options["resume"] and options["fraction"] == 2 for _, options in asked)
    left = [options["minutes"] for _, options in asked]
    assert 8.9 < left[-1] <= left[1] <= left[0] <= 9
    asked.clear()
    assert script.main(["--out", str(tmp_path), "--only", "more4d-mini"]) == 0
    assert asked[0][1]["minutes"] is None
    assert set(FILES) == set(script.EMBEDDED) and all(path.is_file() for path in FILES.values())


def test_it_stops_when_the_minutes_are_over(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "train", lambda *args, **options: pytest.fail("there was no time left"))
    assert script.main(["--out", str(tmp_path), "--minutes", "0"]) == script.LEFT_OVER


def test_checkpoints_fit_where_they_are_carried(tmp_path: Path) -> None:
    """60 MiB in files of at most 16: here the files and the flow; each system's recipe in the tests of the system."""
    written = checkpoint_size.sizes(tmp_path, dict(FlowNetwork(recipes.mini().networks).named_parameters()))
    assert sum(written) < 60 * MIB and max(written) < 16 * MIB
    sizes = {name: path.stat().st_size for name, path in FILES.items()}
    assert sizes["motioncrafter-mini"] <= 16e6 and sizes["geo4d-mini"] <= 16e6 and sizes["more4d-mini"] <= 24e6
    assert max(sizes.values()) < 16 * MIB
