"""Printed commands can be pasted into the shell at hand, and what is printed fits the code page of the terminal."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import glmtune
from glmtune.utils import shell_words
from glmtune.utils.shell_words import (
    add_variables,
    assign_variable,
    join_commands,
    join_words,
    quote_program,
    quote_word,
)

SOURCE = Path(glmtune.__file__).resolve().parent
WORDS = [
    *(
        "plain",
        "a b",
        "中文 模型",
        "C:\\Users\\张 三\\runs",
        "C:\\",
        "C:\\a b\\",
        "",
        "it's",
        'say "hi"',
        "a&b",
        "100%",
    ),
    *(
        "$HOME",
        "`date`",
        "a;b",
        "(1)",
        "data.columns={'a': 'b'}",
        '{"a": [1, 2]}',
        "~",
        "a,b",
        "@x",
        "x|y>z",
        '\\"',
        "‘’",
    ),
    *("--set", "training.max_steps=100", "torch>=2.6", "!x", "^", "*", "‘’", "100%", '"&"(x) ^'),
]


def split_as_windows_does(line: str) -> list[str]:
    """A command line as C programs split it, Python's `main` too:
    https://learn.microsoft.com/cpp/c-language/parsing-c-command-line-arguments"""
    words, word, quoted, i = [], None, False, 0
    while i < len(line):
        backslashes = len(line[i:]) - len(line[i:].lstrip("\\"))
        after = line[i + backslashes : i + backslashes + 1]
        if backslashes and after == '"':
            word = (word or "") + "\\" * (backslashes // 2)
            i += backslashes
            if backslashes % 2:
                word, i = word + '"', i + 1
            continue
        if backslashes:
            word, i = (word or "") + "\\" * backslashes, i + backslashes
            continue
        if line[i] == '"':
            quoted, word = not quoted, word or ""
        elif line[i] == " " and not quoted:
            words, word = words + ([] if word is None else [word]), None
        else:
            word = (word or "") + line[i]
        i += 1
    return words + ([] if word is None else [word])


def read_cmd(line: str) -> str:
    """What cmd passes on: outside of quotes, ^ makes the next character a plain one, and operators end the command."""
    passed, quoted, i = "", False, 0
    while i < len(line):
        if line[i] == "^" and not quoted:
            i += 1
        else:
            assert quoted or line[i] not in "&|<>()"
            quoted ^= line[i] == '"'
        passed, i = passed + line[i], i + 1
    return passed


def read_powershell(line: str) -> list[str]:
    """What PowerShell makes of words in single or double quotes or none, before it starts the program."""
    words = []
    for single, double, plain in re.findall(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|([^ ]+)", line):
        assert not set("$`") & set(double), "a variable would be put in"
        words.append(re.sub("(['‘’‚‛])\\1", r"\1", single) if single else double or plain)
    return words


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_cmd(word):
    assert split_as_windows_does(read_cmd(quote_word(word, "cmd"))) == [word]


@pytest.mark.parametrize("word", [word for word in WORDS if word])
def test_a_word_of_powershell(word, monkeypatch):
    """Version 7 passes a word on as it is; Windows PowerShell puts it in quotes and does not escape those inside."""
    monkeypatch.setenv("POWERSHELL_DISTRIBUTION_CHANNEL", "MSI:Windows 10")
    quoted = quote_word(word, "powershell")
    if '"' in word:
        assert read_powershell(quoted) == [word]
    monkeypatch.delenv("POWERSHELL_DISTRIBUTION_CHANNEL")
    (passed,) = read_powershell(quote_word(word, "powershell"))
    line = f'"{passed}"' if " " in passed or not passed else passed
    if not (passed.endswith("\\") and " " not in passed):
        assert split_as_windows_does(line) == [word]


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs sh")
def test_words_of_sh():
    line = f"{join_words([sys.executable, '-c', 'import sys; print(sys.argv[1:])', *WORDS], 'sh')}"
    result = subprocess.run(["sh", "-c", line], capture_output=True, encoding="utf-8", check=True)
    assert ast.literal_eval(result.stdout) == WORDS


def test_lines_of_each_shell():
    assert join_commands(["a", "b"], "sh") == join_commands(["a", "b"], "cmd") == "a && b"
    assert join_commands(["a", "b"], "powershell") == "a; b"
    assert assign_variable("A", "1 2", "sh") == "export A='1 2'"
    assert assign_variable("A", "1", "cmd") == 'set "A=1"'
    assert assign_variable("A", "1 2", "cmd") == 'set "A=1 2"'
    assert assign_variable("A", "1", "powershell") == '$env:A = "1"'
    assert assign_variable("A", "$x", "powershell") == "$env:A = '$x'"
    assert add_variables({"A": "0,1"}, "glmtune train", "sh") == "A=0,1 glmtune train"
    assert add_variables({"A": "0,1"}, "glmtune train", "cmd") == 'set "A=0,1" && glmtune train'
    assert add_variables({"A": "0,1"}, "glmtune train", "powershell") == '$env:A = "0,1"; glmtune train'
    assert add_variables({}, "glmtune train", "cmd") == "glmtune train"
    program = "C:\\Program Files\\python.exe"
    assert quote_program(program, "powershell") == f'& "{program}"'
    assert quote_program(program, "cmd") == f'"{program}"'


def test_advice_is_in_the_shell_at_hand(monkeypatch, tmp_path):
    from glmtune.migrate.replacement import ReplacementCommand

    command = ReplacementCommand("x.sh", "x.py", ["chat", "runs\\第 1 次"], [], {"CUDA_VISIBLE_DEVICES": "0"})
    assert command.text == "CUDA_VISIBLE_DEVICES=0 glmtune chat 'runs\\第 1 次'"
    monkeypatch.setattr(shell_words, "find_shell", lambda: "powershell")
    assert command.text == '$env:CUDA_VISIBLE_DEVICES = "0"; glmtune chat "runs\\第 1 次"'


def test_no_other_module_quotes_words():
    """`shlex` reads and writes the language of POSIX shells: it may read scripts, not make advice."""
    writers = {"migrate/shell.py", "utils/shell_words.py"}  # the first writes scripts for itself to read
    found = {}
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_shlex = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "shlex"
            if is_shlex and node.attr in ("quote", "join") and place not in writers:
                found[place] = f"{node.lineno}: shlex.{node.attr}"
    assert found == {}


PRINTED = "模型 ✓ – … → ├─┤ 😀 é"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", PRINTED),
        ("cp936", "模型 + – … → ├─┤ ? é"),
        ("cp1252", "?? + – … -> +-+ ? é"),
        ("cp437", "?? + - ... -> ├─┤ ? é"),
        ("ascii", "?? + - ... -> +-+ ? ?"),
    ],
)
def test_a_terminal_of_any_code_page(encoding, text):
    """Tables and messages are printed in what the encoding has, and no character ends the command."""
    code = f"""
import sys
from glmtune.utils.streams import prepare_streams
prepare_streams()
from rich.table import Table
from glmtune.utils.console import get_console, print_message
print_message({PRINTED!r})
table = Table()
table.add_column("a")
table.add_row("1")
get_console().print(table)
print({PRINTED!r}, file=sys.stderr)
"""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    lines = result.stdout.decode(encoding).splitlines()
    assert lines[0] == text
    assert lines[1].strip() == ("┏━━━┓" if encoding == "utf-8" else "+---+")
    assert b"?" not in b"".join(result.stdout.splitlines()[1:])
    assert result.stderr


def test_the_spinner_is_in_the_encoding_of_the_terminal(monkeypatch):
    from rich.console import Console

    from glmtune.utils.console import show_status, use_console

    for encoding, spinner in {"utf-8": "dots", "cp936": "line"}.items():
        console = Console(quiet=True)
        monkeypatch.setattr(type(console), "encoding", encoding)
        with use_console(console), show_status("loading") as status:
            assert status.renderable.name == spinner
