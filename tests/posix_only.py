"""Which tests need what Windows does not have, told by their source: no list to keep by hand.

A test is looked at with the fixtures and functions of its file that it uses. Anything else that cannot run on Windows
gets the marker `posix("reason")`.
"""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "pexpect")
OS_NAMES = (
    *("killpg", "setsid", "getpgid", "getsid", "fork", "openpty", "getuid", "geteuid", "setuid", "mkfifo", "umask"),
    *("sched_getaffinity", "sysconf", "statvfs", "uname", "chmod"),
)
SIGNALS = ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT", "SIGALRM", "SIGXFSZ", "SIGPIPE")
PROGRAMS = ("bash", "sh", "/bin/sh", "/bin/bash", "sleep", "g++")
LINKS = ("symlink", "symlink_to")


@cache
def can_make_links() -> bool:
    """Whether this user may make symbolic links: on Windows, administrators and developers."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("target", os.path.join(folder, "link"))
        except (OSError, NotImplementedError):
            return False
    return True


def find_reason(source: str, name: str, *, links: bool) -> str:
    """Why a test cannot run on Windows; empty if nothing speaks against it.

    Args:
        source: of its file.
        name: of the test function.
        links: whether symbolic links can be made.
    """
    functions = {
        node.name: node
        for node in ast.walk(_parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    pending, seen = [name], set()
    while pending:
        current = pending.pop()
        if current in seen or current not in functions:
            continue
        seen.add(current)
        function = functions[current]
        for node in ast.walk(function):
            if reason := _find_use(node, links):
                return reason
            if isinstance(node, ast.Name):
                pending.append(node.id)
        pending += [argument.arg for argument in function.args.args]
    return ""


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _find_use(node: ast.AST, links: bool) -> str:
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if (owner == "os" and node.attr in OS_NAMES) or (owner == "signal" and node.attr in SIGNALS):
            return f"{owner}.{node.attr}"
        if owner in MODULES:
            return owner
        if node.attr == "chmod":
            return "permissions of files"
        if node.attr == "send_signal":
            return "signals to other processes"
        if node.attr in LINKS and not links:
            return "symbolic links, which this user may not make"
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return next((name for name in names if name in MODULES), "")
    if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant):
        return f"the program {node.elts[0].value}" if node.elts[0].value in PROGRAMS and len(node.elts) > 1 else ""
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(("/proc/self", "/dev/"))
    ):
        return node.value
    return ""


def skip_on_windows(items: Iterable) -> None:
    """Skip the tests of a collection that need what Windows does not have, each with its reason."""
    import pytest

    for item in items:
        marker = item.get_closest_marker("posix")
        path = Path(str(item.path))
        reason = marker.args[0] if marker else ""
        if not reason and hasattr(item, "originalname"):
            source = path.read_text(encoding="utf-8")
            reason = find_reason(source, item.originalname or item.name, links=can_make_links())
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"Windows has no {reason}" if not marker else reason))
