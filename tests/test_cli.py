"""The command line as a person meets it."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys

import pytest

from worldline.cli import COMMANDS, main


def test_help_is_quick() -> None:
    """Half a second of CPU: nothing heavy is imported before a command is chosen."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run([sys.executable, "-m", "worldline", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "reconstruct" in answer.stdout
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_arguments_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"worldline.cli.{COMMANDS[name].module}")
    assert callable(module.run)
    calls = [[name, "--help"]]
    if isinstance(module.arguments, dict):
        calls += [[name, sub, "--help"] for sub in module.arguments]
    for words in calls:
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        assert code in (0, None)
        assert capsys.readouterr().out.strip()


def test_an_unknown_command_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recontruct"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_wrong_option_is_refused_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["info", "nowhere", "--colour", "red"])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
