"""The loss curve: one JSON line per report, opened by a line that says how to repeat the run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """Revision of the checkout this package runs from, "+" appended when it has changes; None outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Curve:
    """Appends to a JSONL file; reopening it for a resumed run drops what lies after the checkpoint."""

    def __init__(self, path: Path, header: dict, *, resume_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = read(path) if path.exists() else []
        kept = [line for line in kept if "step" in line and line["step"] <= resume_step]
        first = {"run": header, "git_revision": git_revision()}
        path.write_text("".join(json.dumps(line) + "\n" for line in [first, *kept]))

    def add(self, line: dict) -> None:
        """Append one report."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict]:
    """All whole lines of a curve (a killed run may leave a torn last one)."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
