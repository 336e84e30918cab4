"""Read the facts of this machine. Every probe gives a value, whatever is missing or broken."""

from __future__ import annotations

import locale
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from glmtune.doctor.environment import (
    find_duplicates,
    find_leftovers,
    find_shadows,
    find_stale_locks,
    list_folders,
    read_variables,
)
from glmtune.doctor.machine_facts import CompilerFacts, DriverFacts, HubFacts, MachineFacts, TorchFacts, WorkFacts
from glmtune.doctor.probe_runner import run_probe
from glmtune.doctor.requirements import find_unmet
from glmtune.download.listing import MODELSCOPE
from glmtune.utils.installation import name_pip
from glmtune.utils.operating_system import find_shell, has_long_paths, is_superuser, read_open_file_limit
from glmtune.utils.optional_packages import is_installed

_COMMAND_TIMEOUT_S = 15.0
_HUB_TIMEOUT_S = 8.0
_NVIDIA = "0x10de"
_PACKAGE_MANAGERS = ("apt-get", "dnf", "yum", "zypper", "pacman", "apk")


def gather_facts(model: str = "", config: str = "", device: str = "", trials: bool = True) -> MachineFacts:
    """Read everything.

    Args:
        model: folder or hub id; empty for none.
        config: file of a run; empty for none.
        device: `cpu` or `cuda` for the trials; empty: a GPU if there is one.
        trials: compute something on the device.
    """
    probe = run_probe({"model": model, "config": config, "device": device, "trials": trials})
    probe.setdefault("torch", TorchFacts())
    work: WorkFacts = probe.setdefault("work", WorkFacts(model, config))
    variables = read_variables(os.environ)
    is_container = _is_container()
    memory, available = _read_memory()
    folders = list_folders(work, bool(probe["torch"].gpus))
    return MachineFacts(
        system=platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
        python_bits=64 if sys.maxsize > 2**32 else 32,
        pip=name_pip(),
        shell=find_shell(),
        package_manager=next((name for name in _PACKAGE_MANAGERS if shutil.which(name)), ""),
        is_root=is_superuser(),
        in_container=is_container,
        is_wsl="microsoft" in platform.release().lower(),
        is_rosetta=_is_rosetta(),
        memory_bytes=memory,
        available_bytes=available,
        memory_limit_bytes=_read_memory_limit(memory),
        shm_bytes=_read_free_shm(),
        cpus=os.cpu_count() or 1,
        cpu_quota=_read_cpu_quota(),
        open_files=read_open_file_limit(),
        time_s=time.time(),
        build_time_s=_read_build_time(),
        encodings=_read_encodings(),
        environment=variables,
        driver=_read_driver(),
        compilers=_read_compilers(),
        duplicates=find_duplicates(),
        leftovers=find_leftovers(),
        unmet=find_unmet(),
        shadows=find_shadows(),
        folders=folders,
        locks=find_stale_locks(),
        has_long_paths=has_long_paths(),
        longest_path=max((len(folder.path) for folder in folders), default=0),
        hub=_ask_hub(work, variables),
        has_modelscope=is_installed("modelscope"),
        has_socks=is_installed("socksio"),
        **probe,
    )


def _run(*command: str) -> tuple[int, str]:
    """Exit code and output of a command; -1 if it is not there or does not end."""
    path = shutil.which(command[0])
    if path is None:
        return -1, ""
    try:
        result = subprocess.run(
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return -1, ""
    return result.returncode, result.stdout.decode("utf-8", "replace").strip()


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _is_container() -> bool:
    return (
        os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv") or "KUBERNETES_SERVICE_HOST" in os.environ
    )


def _is_rosetta() -> bool:
    if platform.system() != "Darwin" or platform.machine() != "x86_64":
        return False
    return _run("sysctl", "-n", "sysctl.proc_translated")[1] == "1"


def _read_memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _read_memory_limit(memory: int) -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read_text(path)
        if text.isdigit() and int(text) < memory:
            return int(text)
    return None


def _read_cpu_quota() -> float | None:
    words = _read_text("/sys/fs/cgroup/cpu.max").split()
    if not words:
        words = [
            _read_text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            _read_text("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
        ]
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def _read_free_shm() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def _read_build_time() -> float:
    import glmtune

    try:
        return os.path.getmtime(str(glmtune.__file__))
    except OSError:
        return 0.0


def _read_encodings() -> dict[str, str]:
    return {"locale": locale.getpreferredencoding(False), "stdout": getattr(sys.stdout, "encoding", None) or "utf-8"}


def _read_driver() -> DriverFacts:
    code, output = _run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    has_files = platform.system() != "Linux" or any(
        os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl")
    )
    if code == 0 and output:
        rows = [line.rsplit(", ", 1) for line in output.splitlines() if ", " in line]
        if rows:
            return DriverFacts(rows[0][1], "", tuple(name for name, _ in rows), has_files, _list_gpu_processes())
    match = re.search(r"Module\s+([\d.]+)", _read_text("/proc/driver/nvidia/version"))
    error = output.splitlines()[0][:200] if output else ""
    version = match[1] if match and "mismatch" not in output else ""
    return DriverFacts(version, error, _list_pci_cards(), has_files)


def _list_gpu_processes() -> tuple[str, ...]:
    code, output = _run("nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader")
    return tuple(output.splitlines()) if code == 0 else ()


def _list_pci_cards() -> tuple[str, ...]:
    """NVIDIA's cards that the system knows without their driver."""
    if platform.system() == "Windows":
        query = "(Get-CimInstance Win32_VideoController).Name"
        return tuple(
            line for line in _run("powershell", "-NoProfile", "-Command", query)[1].splitlines() if "NVIDIA" in line
        )
    cards = []
    for folder in sorted(Path("/sys/bus/pci/devices").glob("*")):
        is_display = _read_text(f"{folder}/class").startswith("0x03")
        if is_display and _read_text(f"{folder}/vendor") == _NVIDIA:
            cards.append(f"PCI {folder.name}")
    return tuple(cards)


def _read_compilers() -> CompilerFacts:
    import sysconfig

    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = os.path.join(home, "bin", "nvcc") if home else "nvcc"
    match = re.search(
        r"release ([\d.]+)", _run(nvcc, "--version")[1] or _run("/usr/local/cuda/bin/nvcc", "--version")[1]
    )
    return CompilerFacts(
        triton=_read_version(("triton", "triton-windows")),
        deepspeed=_read_version(("deepspeed",)),
        c_compiler=_find_program((os.environ.get("CC", ""), "gcc", "clang", "cl")),
        cpp_compiler=_find_program((os.environ.get("CXX", ""), "g++", "c++", "clang++", "cl")),
        nvcc=match[1] if match else "",
        ninja=bool(shutil.which("ninja")) or is_installed("ninja"),
        has_python_headers=os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
    )


def _find_program(names: Iterable[str]) -> str:
    return next((path for name in names if name and (path := shutil.which(name))), "")


def _read_version(names: Iterable[str]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _ask_hub(work: WorkFacts, variables: dict[str, str]) -> HubFacts:
    """Ask the hub for a page, where the model has to come from there."""
    if not work.is_hub_id:
        return HubFacts()
    from email.utils import parsedate_to_datetime

    import httpx

    address = MODELSCOPE if work.hub == "modelscope" else variables.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        answer = httpx.head(address, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # of the network, of a proxy's address, of certificates
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return HubFacts(address, reason)
    try:
        skew = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        skew = 0.0
    return HubFacts(address, clock_skew_s=round(skew, 1))
