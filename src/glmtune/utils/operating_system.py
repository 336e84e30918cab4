"""Where Linux, macOS and Windows differ: processes and signals, files and links, memory, the machine's limits.

No other module names a system, imports what only one of them has (`fcntl`, `resource`, `winreg`), or uses a signal or a
function of `os` that one of them lacks; `tests/test_operating_system.py` looks for it. Imported by every command, so
heavy packages are imported inside functions.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

# Windows' flags of a process and codes of a crash, under the names of winbase.h and ntstatus.h.
_CREATE_NEW_PROCESS_GROUP = 0x00000200
_CREATE_NO_WINDOW = 0x08000000
_CRASHES = {
    0xC0000005: "STATUS_ACCESS_VIOLATION",
    0xC0000017: "STATUS_NO_MEMORY",
    0xC000001D: "STATUS_ILLEGAL_INSTRUCTION",
    0xC00000FD: "STATUS_STACK_OVERFLOW",
    0xC0000135: "STATUS_DLL_NOT_FOUND",
    0xC000013A: "STATUS_CONTROL_C_EXIT",
    0xC0000409: "STATUS_STACK_BUFFER_OVERRUN",
}
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file: devices, whatever follows the first dot.
_DEVICE_NAME = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)
_REPLACE_SECONDS = 3.0
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def is_windows() -> bool:
    """Whether this is Windows itself; WSL is Linux."""
    return sys.platform == "win32"


def is_macos() -> bool:
    """Whether this is macOS."""
    return sys.platform == "darwin"


def is_linux() -> bool:
    """Whether this is Linux."""
    return sys.platform == "linux"


# Processes and signals


def list_stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a command to end in order: Ctrl-C, SIGTERM, and Ctrl-Break on Windows."""
    names = ("SIGINT", "SIGTERM", "SIGBREAK") if is_windows() else ("SIGINT", "SIGTERM")
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


def list_hangup_signals() -> str:
    """The signals after which a launcher ends its processes at once, with commas, as torch's launcher takes them."""
    return "SIGBREAK" if is_windows() else "SIGHUP,SIGQUIT"


def make_detached_options() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a process that lives on when this one, or its terminal, ends."""
    if is_windows():  # a console of its own, that is not shown: closing ours would end it
        return {"creationflags": _CREATE_NEW_PROCESS_GROUP | _CREATE_NO_WINDOW}
    return {"start_new_session": True}


def stop_detached(pid: int, *, interrupt: bool = False) -> None:
    """Ask a process that was started with `make_detached_options`, and those that it started, to end.

    Windows has no signals between consoles: there they are terminated.

    Args:
        pid: of the process.
        interrupt: with Ctrl-C in place of SIGTERM.
    """
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGINT if interrupt else signal.SIGTERM)
        return
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in [*first.children(recursive=True), first]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.terminate()


def send_to_children(number: int) -> None:
    """Send a signal to the processes that this one started. On Windows the console has sent them Ctrl-C already."""
    if is_windows():
        return
    import psutil

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def read_session(pid: int) -> int:
    """The session that a process belongs to: the number of the process that began it; 0 on Windows, which has none.

    Raises:
        ProcessLookupError: it has ended.
        PermissionError: the system does not say.
    """
    if sys.platform == "win32":
        return 0
    return os.getsid(pid)


def name_crash(exit_code: int) -> str | None:
    """What ended a process: `SIGKILL`, or `STATUS_ACCESS_VIOLATION (0xC0000005)` on Windows; None if it ended itself.

    Args:
        exit_code: of `subprocess`; negative: the number of a signal.
    """
    if is_windows():
        status = exit_code & 0xFFFFFFFF  # Python has it with or without a sign
        return f"{_CRASHES.get(status, 'an exception')} (0x{status:08X})" if status >> 28 == 0xC else None
    if exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


# Files


def replace_path(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file or folder, in place of a file of that name.

    Windows refuses that while another program, a virus scanner say, has one of them open: it is tried again for
    three seconds.

    Raises:
        OSError: it is not possible.
    """
    end = time.monotonic() + (_REPLACE_SECONDS if is_windows() else 0)
    wait = 0.01
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= end or os.path.isdir(target):
                raise
            time.sleep(wait)
            wait = min(2 * wait, 0.3)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file to a name that is free; never over another file where the system can say so in one step.

    Raises:
        FileExistsError: there is a file of that name.
        OSError: it is not possible.
    """
    if is_windows():
        os.rename(source, target)  # which fails there if the target exists
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists") from None
        os.replace(source, target)
        return
    source.unlink()


def link_file(source: Path, target: Path) -> None:
    """Make a file appear under another name for a while: by a link, else by a copy.

    Windows allows symbolic links to administrators and in developer mode only; hard links need the same drive.
    """
    for link in (os.symlink, os.link):
        try:
            link(source, target)
            return
        except (OSError, NotImplementedError):
            continue
    shutil.copyfile(source, target)


def get_open_flags() -> int:
    """Flags of `os.open`: links are not followed, and bytes stay as they are (Windows would write CR before LF)."""
    return getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def make_portable_name(name: str) -> str:
    """A file name that Windows takes too: not that of a device (`CON`, `nul.json`), no dot or space at its end.

    Args:
        name: without separators and without the characters that Windows forbids.
    """
    name = name.rstrip(". ")
    return f"_{name}" if _DEVICE_NAME.fullmatch(name) else name


def find_name_problem(name: str) -> str:
    """Why this system cannot have a file of that name, of one part; empty if it can."""
    if not is_windows():
        return ""
    if match := re.search(r'[<>:"|?*\\\x00-\x1f]', name):
        return f"Windows has no file names with {match[0]!r}"
    return "" if name == make_portable_name(name) else "Windows has no file of that name"


def read_file_system(folder: Path) -> tuple[int | None, bool]:
    """How many files can be made (None if the system does not say), and whether libraries in it can be loaded."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            status = os.statvfs(folder)
            return (status.f_favail if status.f_files else None), not status.f_flag & getattr(os, "ST_NOEXEC", 8)
    return None, True


def find_other_owner(path: Path) -> str:
    """The user that a file belongs to, if that is another one; empty where the system does not say."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError, KeyError):
            return path.owner() if path.stat().st_uid != os.getuid() else ""
    return ""


def get_temporary_variable() -> str:
    """The environment variable that chooses the folder of temporary files."""
    return "TEMP" if is_windows() else "TMPDIR"


def has_long_paths() -> bool:
    """Whether paths may be longer than 260 characters."""
    if not is_windows():
        return True
    try:
        import winreg

        with winreg.OpenKey(  # type: ignore[attr-defined, unused-ignore]
            winreg.HKEY_LOCAL_MACHINE,  # type: ignore[attr-defined, unused-ignore]
            r"SYSTEM\CurrentControlSet\Control\FileSystem",
        ) as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])  # type: ignore[attr-defined, unused-ignore]
    except (ImportError, OSError):
        return False


# Memory


def read_peak_rss() -> int | None:
    """Read the peak resident memory of this process in bytes; None if the system does not say.

    On Linux `ru_maxrss` would be wrong: a new process inherits that of the process that started it.
    """
    match = re.search(r"^VmHWM:\s+(\d+)", _read_text(_PROC / "self" / "status"), re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if is_macos() else peak * 1024


def read_resident_bytes() -> int:
    """Bytes of this process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def read_free_memory() -> int:
    """Free bytes of this machine, or of the container around this process."""
    import psutil

    free = int(psutil.virtual_memory().available)
    # Control groups, version 2.
    limit, used = (_read_text(_CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        cached = re.search(r"^inactive_file (\d+)", _read_text(_CGROUP / "memory.stat"), re.MULTILINE)
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(free, 0)


def count_oom_kills() -> int:
    """Processes that Linux has killed for lack of memory since it was started; 0 elsewhere."""
    texts = (_read_text(_PROC / "vmstat"), _read_text(_CGROUP / "memory.events"))
    return sum(int(count) for text in texts for count in re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE))


# The machine


def read_cpu_name() -> str:
    """The processor's name, as far as the system knows it."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read_text(_PROC / "cpuinfo"), re.MULTILINE)
    return names[0].strip() if names else platform.processor() or platform.machine()


def read_open_file_limit() -> int | None:
    """How many files this process may open; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def read_user_number() -> int:
    """The number of this user; 0 on Windows, where users have none."""
    if sys.platform == "win32":
        return 0
    return os.getuid()


def count_idle_processors() -> int:
    """Processors that this process may use and nobody else does, of the last minute's mean; at least one.

    Windows does not say how busy it is: all of them.
    """
    processors, load = os.cpu_count() or 1, 0.0
    if sys.platform == "linux":
        processors = len(os.sched_getaffinity(0))
    if sys.platform != "win32":
        load = os.getloadavg()[0]
    return max(1, round(processors - load))


def is_superuser() -> bool:
    """Whether this process is root's."""
    return sys.platform != "win32" and os.geteuid() == 0


def find_shell() -> str:
    """The shell that commands are typed into: `sh` (that of Linux and macOS, and Git Bash), `cmd` or `powershell`."""
    if not is_windows() or "MSYSTEM" in os.environ:
        return "sh"
    return "cmd" if "PROMPT" in os.environ else "powershell"


def claim_address(listener: socket.socket) -> None:
    """Let a socket have an address that an ended server had a moment ago, and never that of a running one.

    Windows means the opposite by `SO_REUSEADDR`: two servers on one port.
    """
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    if is_windows() and exclusive is not None:
        listener.setsockopt(socket.SOL_SOCKET, exclusive, 1)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
