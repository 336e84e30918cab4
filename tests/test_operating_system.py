"""Windows, macOS and Linux: what differs is in one module, and each branch of it does what it says.

Other systems are simulated: `sys.platform` is another, and modules, functions and signals that they lack are gone.
"""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import time
import types
from functools import cache
from pathlib import Path

import psutil
import pytest

from glmtune.utils import operating_system
from glmtune.utils.io import open_atomic, slugify, write_text
from glmtune.utils.operating_system import (
    claim_address,
    count_oom_kills,
    find_name_problem,
    find_shell,
    get_open_flags,
    get_temporary_variable,
    has_long_paths,
    link_file,
    list_hangup_signals,
    list_stop_signals,
    make_detached_options,
    make_portable_name,
    name_crash,
    read_cpu_name,
    read_file_system,
    read_free_memory,
    read_open_file_limit,
    read_peak_rss,
    read_resident_bytes,
    rename_new,
    send_to_children,
    stop_detached,
)

SOURCE = Path(operating_system.__file__).resolve().parent.parent
FILES = sorted(SOURCE.rglob("*.py"))
OWN = SOURCE / "utils" / "operating_system.py"
POSIX_MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog")
WINDOWS_MODULES = ("winreg", "msvcrt", "_winapi", "nt")
# Of `os`: what Windows lacks or does in another way, and what POSIX lacks.
OS_NAMES = (
    *(
        "killpg",
        "setsid",
        "getpgid",
        "getsid",
        "getpgrp",
        "setpgid",
        "fork",
        "forkpty",
        "openpty",
        "wait",
        "waitpid",
        "wait3",
    ),
    *("getuid", "geteuid", "getgid", "getegid", "setuid", "setgid", "getgroups", "chown", "lchown", "fchmod", "chroot"),
    *("sysconf", "confstr", "statvfs", "fstatvfs", "uname", "getloadavg", "nice", "sched_getaffinity", "link"),
    *("symlink", "mkfifo", "mknod", "pipe2", "sendfile", "pread", "pwrite", "set_blocking", "replace", "rename"),
    *(
        "O_NOFOLLOW",
        "O_BINARY",
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_NONBLOCK",
        "startfile",
        "name",
        "ctermid",
        "register_at_fork",
    ),
)
SIGNAL_NAMES = ("signal", "Signals", "getsignal", "raise_signal", "SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN")
ARGUMENTS = ("start_new_session", "preexec_fn", "creationflags", "startupinfo", "pass_fds", "process_group")
SYSTEM_NAMES = {"sys": ("platform", "getwindowsversion"), "platform": ("system", "win32_ver", "mac_ver", "release")}
METHODS = ("symlink_to", "hardlink_to", "link_to", "add_signal_handler", "owner")
# The facts of a machine are read there, and told by name.
READS_FACTS = {SOURCE / "doctor" / "gather.py"}


def find_system_names(tree: ast.AST, reads_facts: bool = False) -> list[str]:
    """What only some systems have, each with its line."""
    found = []

    def add(node: ast.AST, name: str) -> None:
        found.append(f"{node.lineno}: {name}")

    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in POSIX_MODULES + WINDOWS_MODULES:
                    add(node, f"import {name}")
            if isinstance(node, ast.ImportFrom) and node.module in ("os", "signal", "sys", "platform"):
                add(node, f"from {node.module} import: use the module's name")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            if owner == "os" and name in OS_NAMES:
                add(node, f"os.{name}")
            if owner == "signal" and name not in SIGNAL_NAMES:
                add(node, f"signal.{name}")
            if owner == "socket" and name in ("AF_UNIX", "SO_REUSEADDR", "SO_REUSEPORT", "SO_EXCLUSIVEADDRUSE"):
                add(node, f"socket.{name}")
            if name in SYSTEM_NAMES.get(owner, ()) and not reads_facts:
                add(node, f"{owner}.{name}")
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                is_path_method = node.func.attr in METHODS or (
                    node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords
                )
                if is_path_method:
                    add(node, f".{node.func.attr}()")
            for keyword in node.keywords:
                if keyword.arg in ARGUMENTS:
                    add(node, f"{keyword.arg}=")
            is_attribute_test = isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
            if is_attribute_test and isinstance(node.args[0], ast.Name) and node.args[0].id in ("os", "signal"):
                add(node, ast.unparse(node))
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and not reads_facts and node.value.startswith(("/proc/", "/sys/", "/etc/")):
            add(node, node.value)
    return found


@cache
def parse_file(path):
    return ast.parse(path.read_text("utf-8"))


def collect_findings(find, files=FILES):
    found = {path.relative_to(SOURCE): find(parse_file(path), path) for path in files}
    return {str(path): lines for path, lines in found.items() if lines}


def test_what_differs_between_systems_is_in_one_module():
    others = [path for path in FILES if path != OWN]
    assert collect_findings(lambda tree, path: find_system_names(tree, path in READS_FACTS), others) == {}


@pytest.mark.parametrize(
    "line",
    [
        *("import fcntl", "import resource as r", "from termios import ECHO", "import pwd, json", "import winreg"),
        *("os.killpg(1, 2)", "os.fork()", "os.replace(a, b)", "x = os.name", "os.symlink(a, b)", "os.O_NOFOLLOW"),
        *("signal.SIGKILL", "signal.SIGUSR1", "signal.pause()", "sys.platform == 'win32'", "platform.system()"),
        *("subprocess.Popen(x, start_new_session=True)", "path.symlink_to(x)", "path.replace(other)", "p.rename(q)"),
        *("open('/proc/meminfo')", "hasattr(os, 'fork')", "socket.AF_UNIX", "loop.add_signal_handler(2, f)"),
        "from os import killpg",
    ],
)
def test_a_name_of_one_system_is_seen(line):
    """The check above must be able to fail."""
    assert find_system_names(ast.parse(line)) != []


def test_plain_code_is_no_name_of_one_system():
    code = "text.replace('a', 'b'); signal.signal(signal.SIGINT, f); dataclasses.replace(x, a=1); os.path.join(a)"
    assert find_system_names(ast.parse(code)) == []


# Text


def find_unclear_text(tree: ast.AST) -> list[str]:
    """Text files and programs that are read in the encoding of the locale, or written with the system's line ends."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        given = {keyword.arg for keyword in node.keywords}
        texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        modes = [
            each.value.value for each in node.keywords if each.arg == "mode" and isinstance(each.value, ast.Constant)
        ]
        line = f"{node.lineno}: {ast.unparse(node)}"
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
            if texts and "." in texts[0]:
                continue  # a file's name: of importlib.metadata
            encoded = "encoding" in given or any(text.startswith(("utf-8", "ascii")) for text in texts[-1:])
            if not encoded or (name == "write_text" and "newline" not in given):
                found.append(line)
        elif name in ("open", "fdopen", "NamedTemporaryFile") and owner not in ("os", "webbrowser", "tarfile"):
            is_method = isinstance(node.func, ast.Attribute) and owner not in ("gzip", "bz2", "lzma", "io", "codecs")
            if is_method and node.args and not isinstance(node.args[0], ast.Constant):
                continue  # a member of an archive
            mode = next((text for text in [*modes, *texts[::-1]] if set(text) <= set("rwaxbt+")), "r")
            if "b" in mode or (owner in ("gzip", "bz2", "lzma") and "t" not in mode):
                continue
            if "encoding" not in given or (set(mode) & set("wax") and "newline" not in given):
                found.append(line)
        elif name in ("run", "Popen", "check_output", "check_call", "call", "create_subprocess_exec"):
            found += [line] if given & {"text", "universal_newlines"} and "encoding" not in given else []
    return found


def test_text_is_utf8_with_plain_ends_of_lines_everywhere():
    assert collect_findings(lambda tree, _: find_unclear_text(tree)) == {}


@pytest.mark.parametrize(
    "line",
    [
        *("open(p)", "open(p, 'w', encoding='utf-8')", "p.open('a', encoding='utf-8')", "p.open()", "p.read_text()"),
        *("p.write_text(t, encoding='utf-8')", "gzip.open(p, 'rt')", "subprocess.run(c, text=True)"),
        "open(p, mode='x', newline='')",
    ],
)
def test_unclear_text_is_seen(line):
    assert find_unclear_text(ast.parse(line)) != []


@pytest.mark.parametrize("line", ["open(p, 'rb')", "p.open('w', encoding='utf-8', newline='')", "gzip.open(p)"])
def test_clear_text_is_not_reported(line):
    assert find_unclear_text(ast.parse(line)) == []


def test_files_have_plain_ends_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")  # which text files would take on Windows
    write_text(tmp_path / "a.txt", "一\n二\n")
    assert (tmp_path / "a.txt").read_bytes() == "一\n二\n".encode()


# Simulated systems


@pytest.fixture
def windows(monkeypatch):
    """This process as it would be on Windows, as far as `operating_system` can see."""
    become(monkeypatch, "win32", gone=("killpg", "setsid", "getuid", "geteuid", "statvfs", "fork", "getpgid"))


@pytest.fixture
def macos(monkeypatch):
    become(monkeypatch, "darwin", gone=())


def become(monkeypatch, name: str, gone: tuple[str, ...]) -> None:
    monkeypatch.setattr(sys, "platform", name)
    monkeypatch.setattr(operating_system, "_PROC", Path("/nowhere"))
    monkeypatch.setattr(operating_system, "_CGROUP", Path("/nowhere"))
    for each in gone:
        monkeypatch.delattr(os, each)
    if name == "win32":
        for module in ("fcntl", "resource", "termios", "pwd"):
            monkeypatch.setitem(sys.modules, module, None)


def test_stop_signals(windows, monkeypatch):
    assert list_stop_signals() == (signal.SIGINT, signal.SIGTERM)  # this Python has no SIGBREAK
    assert list_hangup_signals() == "SIGBREAK"
    monkeypatch.setattr(sys, "platform", "linux")
    assert list_stop_signals() == (signal.SIGINT, signal.SIGTERM)
    assert list_hangup_signals() == "SIGHUP,SIGQUIT"


class FakeProcess:
    """A process of `psutil` with two children, one of which ended meanwhile."""

    def __init__(self, pid, ended=False, children=()):
        self.pid, self.ended, self._children, self.was_terminated = pid, ended, children, False

    def children(self, recursive=False):
        assert recursive
        return list(self._children)

    def terminate(self):
        if self.ended:
            raise psutil.NoSuchProcess(self.pid)
        self.was_terminated = True


def test_a_detached_process_on_windows(windows, monkeypatch):
    """There are no groups and no signals: the tree is terminated, the command before the process that waits for it."""
    options = make_detached_options()
    assert options == {"creationflags": 0x200 | 0x08000000}
    children = (FakeProcess(2), FakeProcess(3, ended=True))
    first = FakeProcess(1, children=children)
    monkeypatch.setattr(psutil, "Process", lambda pid=None: first)
    stop_detached(1)
    assert [process.was_terminated for process in (first, *children)] == [True, True, False]
    send_to_children(signal.SIGINT)  # the console has done it: psutil would refuse this signal


@pytest.mark.skipif(os.name == "nt", reason="sessions of POSIX")
@pytest.mark.parametrize("interrupt", [False, True])
def test_a_detached_process_on_posix(interrupt):
    code = "import subprocess, sys; print(1, flush=True); sys.exit(subprocess.call(['sleep', '60']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **make_detached_options())
    assert process.stdout.read(1) == b"1"
    assert os.getsid(process.pid) == process.pid
    stop_detached(process.pid, interrupt=interrupt)
    assert process.wait(10) != 0
    process.stdout.close()
    stop_detached(process.pid)  # gone: nothing to do


def test_the_end_of_a_process_has_a_name(monkeypatch):
    assert name_crash(-9) == "SIGKILL"
    assert name_crash(-77) == "signal 77"
    assert name_crash(3) is None
    assert name_crash(0) is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert name_crash(0xC0000005) == name_crash(0xC0000005 - 2**32) == "STATUS_ACCESS_VIOLATION (0xC0000005)"
    assert name_crash(0xC0001234) == "an exception (0xC0001234)"
    assert name_crash(1) is None
    assert name_crash(15) is None


@pytest.mark.parametrize("system", ["win32", "linux"])
def test_a_file_that_is_open_elsewhere_is_replaced_later(tmp_path, monkeypatch, system):
    """Windows refuses while a reader or a virus scanner has the file open."""
    become(monkeypatch, system, ())
    tries = []

    def refuse_twice(source, target, replace=os.replace):
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_twice)
    if system == "linux":  # there it is no question of time
        with pytest.raises(PermissionError):
            write_text(tmp_path / "a.json", "{}")
        assert len(tries) == 1
        return
    write_text(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text("utf-8") == "{}"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_file_that_stays_open_is_an_error(tmp_path, windows, monkeypatch):
    monkeypatch.setattr(operating_system, "_REPLACE_SECONDS", 0.05)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Access is denied")))
    start = time.monotonic()
    with pytest.raises(PermissionError), open_atomic(tmp_path / "a") as temporary:
        temporary.write_bytes(b"1")
    assert time.monotonic() - start >= 0.05
    assert list(tmp_path.iterdir()) == []


def test_a_new_name_is_never_over_another_file(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    with pytest.raises(FileExistsError):  # a file system without hard links
        rename_new(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"old"
    rename_new(tmp_path / "new", tmp_path / "free")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "old"]
    become(monkeypatch, "win32", ())
    renamed = []
    monkeypatch.setattr(os, "rename", lambda *paths: renamed.append(paths))
    rename_new(tmp_path / "free", tmp_path / "other")
    assert renamed == [(tmp_path / "free", tmp_path / "other")]


def test_a_link_becomes_a_copy_where_links_are_refused(tmp_path, monkeypatch):
    """WinError 1314: a required privilege is not held; hard links fail between drives."""
    (tmp_path / "weights").write_bytes(b"1234")
    link_file(tmp_path / "weights", tmp_path / "symbolic")
    assert (tmp_path / "symbolic").is_symlink()
    monkeypatch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(OSError(22, "privilege")))
    link_file(tmp_path / "weights", tmp_path / "hard")
    assert (tmp_path / "hard").samefile(tmp_path / "weights")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(NotImplementedError))
    link_file(tmp_path / "weights", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"1234"
    assert not (tmp_path / "copy").samefile(tmp_path / "weights")


def test_bytes_are_written_as_they_are(monkeypatch):
    """`os.write` to a file that was opened without O_BINARY would write CR LF for LF: a key, a Parquet file."""
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    monkeypatch.delattr(os, "O_NOFOLLOW")
    assert get_open_flags() == 0x8000


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        *(("con", "_con"), ("NUL.jsonl", "_NUL.jsonl"), ("com1.tar.gz", "_com1.tar.gz"), ("LPT²", "_LPT²")),
        *(("rows.", "rows"), ("rows. .", "rows"), ("console", "console"), ("com10", "com10"), ("中文", "中文")),
    ],
)
def test_names_that_windows_keeps_for_devices(name, portable):
    assert make_portable_name(name) == portable
    if " " not in name:
        assert slugify(name, "x") == portable  # also elsewhere: a folder of results is taken to another machine


def test_names_that_windows_forbids(monkeypatch):
    assert find_name_problem("a:b") == ""
    become(monkeypatch, "win32", ())
    assert "':'" in find_name_problem("a:b")
    assert find_name_problem("aux.json")
    assert find_name_problem("模型-1.json") == ""


def test_memory_without_proc(monkeypatch, macos):
    assert 2**20 < read_resident_bytes() < read_free_memory() + 2**40
    assert read_free_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.3)
    usage = types.SimpleNamespace(ru_maxrss=5_000_000)
    fake = types.SimpleNamespace(getrusage=lambda _: usage, RUSAGE_SELF=0)
    monkeypatch.setitem(sys.modules, "resource", fake)
    assert read_peak_rss() == 5_000_000  # bytes on macOS
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert read_peak_rss() == 5_000_000 * 1024
    assert count_oom_kills() == 0
    assert read_cpu_name()


def test_memory_of_windows(monkeypatch, windows):
    memory = types.SimpleNamespace(rss=3 * 2**20, peak_wset=7 * 2**20)
    monkeypatch.setattr(psutil, "Process", lambda: types.SimpleNamespace(memory_info=lambda: memory))
    assert read_peak_rss() == 7 * 2**20
    assert read_resident_bytes() == 3 * 2**20
    assert read_open_file_limit() is None


def test_memory_of_a_container(tmp_path, monkeypatch):
    for name, text in {
        "memory.max": "3000\n",
        "memory.current": "2500\n",
        "memory.stat": "file 1\ninactive_file 400\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    monkeypatch.setattr(operating_system, "_CGROUP", tmp_path)
    assert read_free_memory() == 900
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8", newline="\n")
    assert read_free_memory() > 2**20


def test_limits_of_windows(windows, tmp_path, monkeypatch):
    assert operating_system.is_superuser() is False
    assert read_file_system(tmp_path) == (None, True)
    assert operating_system.find_other_owner(tmp_path) == ""
    assert get_temporary_variable() == "TEMP"
    assert has_long_paths() is False  # no registry: the usual setting
    registry = types.SimpleNamespace(
        HKEY_LOCAL_MACHINE=1,
        OpenKey=lambda *_: socket.socket(),  # any context manager
        QueryValueEx=lambda key, name: (1, 4) if name == "LongPathsEnabled" else None,
    )
    monkeypatch.setitem(sys.modules, "winreg", registry)
    assert has_long_paths() is True


def test_the_shell_at_hand(monkeypatch):
    assert find_shell() == "sh"
    become(monkeypatch, "win32", ())
    for name in ("PROMPT", "MSYSTEM"):
        monkeypatch.delenv(name, raising=False)
    assert find_shell() == "powershell"
    monkeypatch.setenv("PROMPT", "$P$G")
    assert find_shell() == "cmd"
    monkeypatch.setenv("MSYSTEM", "MINGW64")  # Git Bash
    assert find_shell() == "sh"


def test_two_servers_never_share_a_port_of_windows(windows, monkeypatch):
    options = []
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    claim_address(types.SimpleNamespace(setsockopt=lambda *values: options.append(values[1:])))
    assert options == [(-5, 1)]


def test_every_module_is_imported_where_posix_is_missing():
    """In a process whose modules of glmtune find no `fcntl` and the like, and `os` without what Windows lacks."""
    code = """
import builtins, os, pkgutil, signal, sys
import asyncio, multiprocessing.managers, multiprocessing.pool
import torch, transformers, peft, psutil, filelock, pyarrow, matplotlib, typer, rich, accelerate, uvicorn, fastapi
real = builtins.__import__
def find(name, globals=None, *rest, **named):
    if str((globals or {}).get("__name__", "")).startswith("glmtune") and name.split(".")[0] in BLOCKED:
        raise ImportError(name)
    return real(name, globals, *rest, **named)
builtins.__import__ = find
for name in NAMES:
    if hasattr(os, name):
        delattr(os, name)
sys.platform = "win32"
import glmtune
failed = {}
for module in pkgutil.walk_packages(glmtune.__path__, "glmtune."):
    if module.name != "glmtune.__main__":
        try:
            real(module.name)
        except Exception as error:
            failed[module.name] = f"{type(error).__name__}: {error}"
print(failed, len(sys.modules))
assert not failed, failed
"""
    gone = ("killpg", "setsid", "getuid", "geteuid", "statvfs", "getpgid", "O_NOFOLLOW", "symlink", "link")
    start = f"BLOCKED, NAMES = {POSIX_MODULES!r}, {gone!r}\n"
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stdout + result.stderr
