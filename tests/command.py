"""The command line, called in this process, so that packages are imported once."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from glmtune.cli import main as cli
from glmtune.run_dir import RunDir

# A process runs one command, this one hundreds: the options of all commands are read once.
typer.main.get_command = functools.cache(typer.main.get_command)


@dataclass
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def make_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Return a function that runs a command: `run("train", "--model", ...)`."""

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["glmtune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "400")
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


def interrupt_run(run: RunDir, step: int, copy: Path) -> RunDir:
    """Copy a run as a kill after checkpoint `step` would have left it."""
    shutil.copytree(run.root, copy)
    left = RunDir(copy)
    for checkpoint in left.checkpoints_newest_first():
        if int(checkpoint.name.rsplit("-", 1)[1]) > step:
            shutil.rmtree(checkpoint)
    for kind in ("adapter", "model"):
        shutil.rmtree(left.result(kind), ignore_errors=True)
    left.summary.write_text(json.dumps(json.loads(left.summary.read_text("utf-8")) | {"state": "running"}), "utf-8")
    return left
