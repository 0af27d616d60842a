"""`worldline view`: look at a scene in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from worldline.cli.console import note, result

if TYPE_CHECKING:
    from worldline.viewer.studio import Studio


@dataclass(frozen=True, kw_only=True)
class View:
    """Look at a scene in the browser: points over time, motion, cameras. Ctrl-C ends it."""

    scene: Annotated[Path, tyro.conf.Positional]
    """Folder written by `worldline reconstruct`, or tracks by `worldline generate`."""
    port: int = 8080
    """Port on this machine; the next free one is used when it is taken."""
    open: bool = True
    """Open the page in the default browser."""
    play: bool = True
    """Start playing at once."""


arguments = View


def run(args: View) -> int:
    """Serve the viewer until Ctrl-C."""
    from worldline.viewer.studio import view

    with view(args.scene, args.port, playing=args.play) as studio:
        watch(studio, args.open)
    return 0


def watch(studio: Studio, browser: bool) -> None:
    """Say where the viewer is, open a browser if asked to, and wait for Ctrl-C."""
    result(studio.url)
    note("Open this address in a browser; Ctrl-C ends the viewer.")
    if browser:
        import webbrowser

        webbrowser.open(studio.url)
    try:
        studio.wait()
    except KeyboardInterrupt:
        note("")
