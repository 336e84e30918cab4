"""The demo's last lines: commands for the user's own rows, that work where the user is."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from glmtune.demo.next_steps import DEFAULT_MODEL, ROWS_NAME, find_model, find_rows, format_next_steps
from glmtune.demo.run_demo import count_free_threads
from glmtune.run_dir import RunDir
from glmtune.training.run import TrainingResult
from glmtune.utils import installation
from glmtune.utils.shell_words import join_words, quote_program


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder whose name needs quotes, where the user is."""
    folder = tmp_path / "my data 数据"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def test_what_lies_in_the_folder_is_in_the_commands_and_they_run(here, tiny, glmtune_command, monkeypatch):
    shutil.copytree(tiny("chatglm3"), here / "the model")
    _write_rows(here / "my rows.jsonl", [{"content": "类型#裙", "summary": "一条裙子"}] * 4)
    (here / "package.json").write_text('{"name": "page", "version": "1"}')
    (here / "notes.csv").write_text("a,b\n1,2\n")
    (here / "broken.json").write_text("{")
    monkeypatch.setattr("glmtune.demo.next_steps.name_program", lambda: "glmtune")
    check, plan, train = format_next_steps(here)
    assert check == "glmtune data check 'my rows.jsonl'"
    assert train == "glmtune train --model './the model' --data 'my rows.jsonl' --output runs/mine"
    assert glmtune_command(*shlex.split(check)[1:]).code == 0
    assert glmtune_command(*shlex.split(plan)[1:]).code == 0
    trained = glmtune_command(*shlex.split(train)[1:], "--set", "training.max_steps=1")
    assert trained.code == 0, trained.err


def test_an_empty_folder_gets_a_placeholder_and_a_hub_id(here):
    for line, words in zip(format_next_steps(here), ("data check", "plan", "train"), strict=True):
        assert words in line
        assert ROWS_NAME in line
    assert DEFAULT_MODEL in line


def test_the_newest_rows_are_taken(here):
    for age, name in enumerate(("new.json", "old.json")):
        _write_rows(here / name, [{"instruction": "hi", "output": "there"}])
        os.utime(here / name, (1e9 - age, 1e9 - age))
    assert find_rows(here) == "new.json"


def test_a_folder_that_cannot_be_listed_has_nothing(tmp_path):
    assert find_rows(tmp_path / "absent") is None
    assert find_model(tmp_path / "absent") is None


def _make_script(folder, name="glmtune"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (f"{name}.exe" if sys.platform == "win32" else name)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_the_program_is_named_as_the_shell_here_finds_it(here, monkeypatch):
    script = _make_script(here / ".venv" / "bin")
    monkeypatch.setattr(sys, "executable", str(here / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(script.parent))
    assert installation.name_program() == "glmtune"
    # As after `make demo`, whose environment is not active in the user's shell.
    monkeypatch.setenv("PATH", "")
    assert installation.name_program() == str(script.relative_to(here))
    # Another glmtune is on PATH: the one that runs is named.
    other = _make_script(here / "other")
    monkeypatch.setenv("PATH", str(other.parent))
    assert installation.name_program() == str(script.relative_to(here))
    monkeypatch.chdir(here / "other")
    assert installation.name_program() == quote_program(str(script))
    script.unlink()
    assert installation.name_program() == f"{quote_program(sys.executable)} -m glmtune"


def test_a_folder_that_cannot_be_written_is_named_with_another(here, glmtune_command, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system", "glmtune-demo/base")

    monkeypatch.setattr("glmtune.demo.run_demo.shutil.copytree", refuse)
    result = glmtune_command("demo")
    assert result.code == 1
    assert "glmtune-demo: the demo's files cannot be written (Read-only file system)." in result.err
    assert "demo --output " in result.err


@pytest.mark.parametrize(
    ("processors", "load", "threads"), [(1, 0.0, 1), (2, 0.1, 2), (2, 11.0, 1), (64, 3.0, 4), (8, 6.2, 2)]
)
def test_the_demo_takes_the_processors_that_are_idle(processors, load, threads, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert count_free_threads() == threads


def test_a_demo_that_is_stopped_says_how_to_go_on(here, glmtune_command, monkeypatch):
    monkeypatch.setattr(
        "glmtune.demo.run_demo.train",
        lambda config: TrainingResult(RunDir("glmtune-demo/run"), here, is_finished=False, step=114, summary={}),
    )
    result = glmtune_command("demo")
    assert result.code == 1
    assert "The demo was stopped at step 114." in result.err
    assert f"train --resume --output {join_words([str(Path('glmtune-demo') / 'run')])}" in result.err
    assert "3/4" not in result.out
