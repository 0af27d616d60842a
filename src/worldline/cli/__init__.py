"""The command line: one sub-command per verb, each in its own module, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NamedTuple

from worldline.cli.console import note, result


class Command(NamedTuple):
    """Where a sub-command lives: `module.arguments` is its dataclass and `module.run` takes one."""

    module: str
    summary: str


COMMANDS = {
    "reconstruct": Command("reconstruct", "video in, 4D scene out: points, scene flow and cameras in one world"),
    "generate": Command("generate", "picture in, moving points out: where every pixel goes"),
    "synthesize": Command("synthesize", "tracks or scene in, video along a camera path out"),
    "view": Command("view", "look at a scene in the browser"),
    "info": Command("info", "what a stored scene holds"),
    "systems": Command("systems", "the systems: what they do, their weights and licences"),
    "models": Command("models", "list, download, verify weights"),
    "render-synthetic": Command("synthetic", "render a moving scene with exact truth"),
    "data": Command("data", "datasets into one format: convert, check, stats, view, synthesize, mix, curate"),
    "train": Command("train", "train an embedded system on synthetic scenes"),
    "evaluate": Command("evaluate", "score predictions against truth under named protocols"),
    "bench": Command("bench", "run the fixed benchmark suites"),
    "demo": Command("demo", "render a clip with known truth, reconstruct it, say how accurate it is"),
}


def help_text() -> str:
    """The page that `worldline --help` prints."""
    rows = "\n".join(f"  {name:<18}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: worldline COMMAND [OPTIONS]\n\n"
        "Turns a video, or a single picture, into a 4D scene.\n\n"
        f"commands:\n{rows}\n\n"
        "`worldline COMMAND --help` explains one. First steps:\n"
        "  worldline reconstruct VIDEO -o OUT && worldline view OUT"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command and return its exit code: 0 done, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        result(help_text())
        return 0
    if words[0] == "--version":
        from worldline import __version__

        result(f"worldline {__version__}")
        return 0
    if words[0] not in COMMANDS:
        note(f"worldline: there is no command '{words[0]}'; `worldline --help` lists them.")
        return 2
    module = importlib.import_module(f"worldline.cli.{COMMANDS[words[0]].module}")
    try:
        return _call(module, words[0], words[1:])
    except KeyboardInterrupt as stop:
        note(f"worldline: interrupted. {stop}".rstrip())
        return 130
    except (ValueError, OSError) as error:
        note(f"worldline: {_one_line(error)}")
        return 2


def _call(module: Any, name: str, words: list[str]) -> int:
    import tyro

    arguments = module.arguments
    if isinstance(arguments, dict):
        if not words or words[0] not in arguments:
            return _group_help(name, arguments, words)
        name, arguments, words = f"{name} {words[0]}", arguments[words[0]], words[1:]
    parsed = tyro.cli(arguments, args=words, prog=f"worldline {name}")
    return module.run(parsed)


def _group_help(name: str, arguments: dict[str, Any], words: list[str]) -> int:
    rows = "\n".join(f"  {sub:<12}{(kind.__doc__ or '').strip().splitlines()[0]}" for sub, kind in arguments.items())
    if words and words[0] in ("-h", "--help"):
        result(f"usage: worldline {name} COMMAND [OPTIONS]\n\ncommands:\n{rows}")
        return 0
    note(f"worldline: `worldline {name}` needs one of: {', '.join(arguments)}.")
    return 2


def _one_line(error: BaseException) -> str:
    """The error as one sentence: what the system says about a file in the order people read it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}."
    return " ".join(str(error).split()) or type(error).__name__
