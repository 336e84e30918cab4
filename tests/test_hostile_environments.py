"""Commands where something usual is missing: home, terminal, locale, open streams, a folder that can be written.

Each is a command in a process of its own; `data check` stands for those that read and print, in both scripts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from glmtune.data.cache import get_cache_dir
from glmtune.doctor.machine_facts import MachineFacts
from glmtune.utils import user_folders
from glmtune.utils.file_access import set_file_limit
from glmtune.utils.user_folders import find_home, find_user_cache

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="users, umask and closed streams of POSIX")
SOURCE = str(Path(__file__).resolve().parent.parent / "src")


@pytest.fixture
def rows(tmp_path):
    """A file of rows in a folder whose name has a space and Chinese characters."""
    folder = tmp_path / "行 rows"
    folder.mkdir()
    path = folder / "训练 rows.jsonl"
    lines = [{"content": f"类型#裙{i}", "summary": "一条裙子 🎀"} for i in range(20)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def _run(words, variables=None, without=(), **options):
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= {"PYTHONPATH": SOURCE, **(variables or {})}
    return subprocess.run(
        [sys.executable, "-m", "glmtune", *map(str, words)],
        env=environment,
        capture_output=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("variables", "without"),
    [
        ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ("LANG",)),
        ({"TERM": "dumb"}, ()),
        ({}, ("TERM", "COLUMNS", "LINES", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR")),
        ({"HOME": "/proc/no-home", "XDG_CACHE_HOME": "/proc/no-cache"}, ("GLMTUNE_CACHE",)),
        ({"TMPDIR": "/nonexistent/tmp", "TEMP": "Z:\\none", "TMP": "Z:\\none"}, ()),
    ],
    ids=["ascii locale", "dumb terminal", "bare environment", "home that is not there", "no temporary folder"],
)
def test_a_command_works_where_something_is_missing(variables, without, rows):
    done = _run(["data", "check", rows], variables, without, cwd=rows.parent)
    assert done.returncode == 0, done.stderr
    assert b"No problems in 20 rows." in done.stdout
    assert b"Traceback" not in done.stderr + done.stdout


@POSIX
@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| head -n 1", "2>&1 | true"])
def test_a_command_works_with_closed_streams(redirection, rows):
    script = f'"$0" -m glmtune data check "$1" {redirection}'
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run(["sh", "-c", script, sys.executable, str(rows)], env=environment, capture_output=True)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert "|" in redirection or done.returncode == 0


@POSIX
def test_a_folder_that_is_read_only_is_named(rows):
    """/proc is one for root too."""
    done = _run(["data", "check", rows, "--fix", "/proc/repaired.jsonl"], cwd="/proc")
    assert done.returncode == 1
    assert b"Error: /proc" in done.stderr
    assert b"Traceback" not in done.stderr


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name_or_home_has_a_cache():
    """`docker run --user 12345`: the user is in no list, and its home is unknown."""
    script = (
        "import os, tempfile\n"
        "from glmtune.utils.user_folders import find_home, find_user_cache\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "status = find_user_cache().stat()\n"
        "print(find_home(), status.st_uid, oct(status.st_mode)[-3:])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # one that others may enter, unlike pytest's own
        os.chmod(folder, 0o777)
        environment |= {"PYTHONPATH": SOURCE, "TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["None", "54321", "700"], done.stderr


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A user without a home folder, and a folder of temporary files."""
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "GLMTUNE_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    user_folders._make_temporary_cache.cache_clear()
    yield tmp_path
    user_folders._make_temporary_cache.cache_clear()


def test_without_a_home_caches_are_in_a_folder_of_their_own(no_home):
    assert find_home() is None
    assert find_user_cache().parent == no_home
    assert get_cache_dir() == find_user_cache() / "glmtune" / "data"
    if sys.platform != "win32":
        assert find_user_cache().stat().st_mode & 0o777 == 0o700
    set_file_limit([no_home])  # lists the caches that may be read


@POSIX
def test_a_cache_that_somebody_else_made_is_not_used(no_home):
    (no_home / "elsewhere").mkdir()
    (no_home / f"glmtune-cache-{os.getuid()}").symlink_to(no_home / "elsewhere")
    assert find_user_cache().parent == no_home
    assert find_user_cache() != no_home / f"glmtune-cache-{os.getuid()}"


@POSIX
def test_libraries_get_a_home_that_is_said(no_home, glmtune_command, monkeypatch):
    monkeypatch.setenv("HOME", "set, so that it is restored")
    monkeypatch.delenv("HOME")
    result = glmtune_command("--version")
    assert result.code == 0
    assert result.err.startswith("This user has no home folder (HOME is not set): caches are in ")
    assert Path(os.environ["HOME"]).parent == no_home


def test_the_doctor_prints_json_without_a_home(no_home, glmtune_command, monkeypatch):
    monkeypatch.setattr("glmtune.doctor.gather.gather_facts", lambda *_: MachineFacts())
    assert "facts" in json.loads(glmtune_command("doctor", "--json").out)
