"""`worldline view`: look at a scene in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from worldline.cli.console import note, result


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
        result(studio.url)
        note("Open this address in a browser; Ctrl-C ends the viewer.")
        if args.open:
            import webbrowser

            webbrowser.open(studio.url)
        try:
            studio.wait()
        except KeyboardInterrupt:
            note("")
    return 0
