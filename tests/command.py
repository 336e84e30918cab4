"""The command line, called in this process: imports are paid for once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from glmtune.cli.main import main as cli


@dataclass
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("train", "--model", ...)`."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["glmtune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "400")
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
