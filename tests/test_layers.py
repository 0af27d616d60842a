"""Design guards: imports go downward only, rooms are named after concepts, the network and devices stay at the edge."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "worldline"
LAYER = {
    "scene": 0,
    **dict.fromkeys(("geometry", "diffusion", "flow", "io"), 1),
    **dict.fromkeys(("windows", "align", "render", "data", "training"), 2),
    **dict.fromkeys(("systems", "evaluation"), 3),
    **dict.fromkeys(("api", "pictures", "scale", "viewer"), 4),
    "cli": 5,
}
SIBLINGS_MAY_MEET = {4, 5}
FILES = sorted(path for path in SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_downward(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    assert here in LAYER, f"{here} is no room of the house; add it to docs/architecture.md and here"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "worldline" or len(parts) < 2 or parts[1] not in LAYER or parts[1] == here:
            continue
        there = parts[1]
        siblings = LAYER[there] == LAYER[here] and LAYER[here] in SIBLINGS_MAY_MEET
        assert LAYER[there] < LAYER[here] or siblings, f"{here} imports {there}"


def test_systems_do_not_know_each_other() -> None:
    for path in FILES:
        parts = path.relative_to(SOURCE).parts
        if parts[0] != "systems" or len(parts) < 3:
            continue
        for name in imported(ast.parse(path.read_text())):
            pieces = name.split(".")
            if pieces[:2] == ["worldline", "systems"] and len(pieces) > 2:
                assert pieces[2] in (parts[1], "system", "offload", "flow_input"), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_house_style(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in {"utils", "helpers", "misc", "common"}, "name the room after its concept"
    assert text.count("\n") <= 450, "more than one room"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno <= 60, f"{node.name} does not fit on a screen"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert room(path) == "cli", "only the command line prints"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)


HTTP = {"huggingface_hub", "requests", "httpx", "httpx2", "urllib.request", "urllib3", "http.client"}
BUCKETS = {"fsspec", "s3fs", "gcsfs", "boto3", "adlfs"}
MAY_REACH = {
    "io/weights.py": HTTP,  # weights of the hub
    "io/storage.py": {"fsspec"},  # clip stores at a URL that the user names
    "data/curate/endpoint.py": HTTP,  # a language model at the address that the user names
}


def test_only_these_reach_the_network() -> None:
    for path in FILES:
        allowed = MAY_REACH.get(path.relative_to(SOURCE).as_posix(), set())
        names = imported(ast.parse(path.read_text()))
        found = {name for name in names if {name, name.split(".")[0]} & (HTTP | BUCKETS)}
        outside = {name for name in found if not {name, name.split(".")[0]} & allowed}
        assert not outside, f"{path}: {outside}"


def test_no_torchvision_anywhere() -> None:
    forbidden = {"torchvision", "torchaudio", "timm", "lpips", "evo"}
    for path in FILES:
        assert not {name.split(".")[0] for name in imported(ast.parse(path.read_text()))} & forbidden, path


def test_devices_are_chosen_at_the_edge() -> None:
    for path in FILES:
        if room(path) not in ("cli", "api", "scale"):
            assert "cuda.is_available" not in path.read_text(), f"{path} picks a device"
