"""Findings about memory, disks, folders, network, clock, locale and environment."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from glmtune.doctor.diagnosis import ERROR, NOTE, WARNING, Diagnosis, describe_work
from glmtune.doctor.machine_facts import FolderFacts, MachineFacts
from glmtune.doctor.platform_commands import (
    add_comment,
    install_package,
    join_commands,
    quote_word,
    run_as_root,
    set_variable,
    unset_variable,
)
from glmtune.download.listing import HUGGINGFACE_MIRROR, name_on_huggingface, name_on_modelscope
from glmtune.utils.console import format_bytes

_LEAST_FREE = 2**30
_LEAST_SHM = 2**30
_LEAST_FILES = 1000
_LEAST_OPEN_FILES = 1024
_MAX_SKEW_S = 300.0
_WINDOWS_PATH = 200
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


def find_system_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    """The machine around torch."""
    yield from _find_memory_problems(facts)
    for folder in facts.folders:
        yield from _find_folder_problems(facts, folder)
    yield from _find_path_problems(facts)
    yield from _find_network_problems(facts)
    yield from _find_clock_problems(facts)
    yield from _find_locale_problems(facts)
    yield from _find_environment_problems(facts)


def _find_memory_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    limit = facts.memory_limit_bytes
    memory = min(facts.memory_bytes, limit) if limit else facts.memory_bytes
    where = "this container may use" if limit and limit < facts.memory_bytes else "the machine has"
    on_cpu = facts.work.use_cpu or not facts.torch.gpus
    need = facts.work.model_bytes
    if need and on_cpu and need * 1.2 > memory:
        yield Diagnosis(
            "too-little-memory",
            ERROR,
            f"{where} {format_bytes(memory)} of memory",
            f"The weights of {facts.work.model} alone take {format_bytes(need)} on the CPU",
            "Quantise while loading: --set model.quantization=packed4, or use a machine with more memory",
        )
    elif facts.available_bytes < 2**30:
        yield Diagnosis(
            "memory-in-use",
            WARNING,
            f"{format_bytes(facts.available_bytes)} of {format_bytes(memory)} of memory are free",
            f"Importing torch and transformers takes about 1 GiB; {describe_work(facts)} may be killed",
            "End other programs: ps aux --sort=-rss | head" if facts.system == "Linux" else "End other programs",
        )
    if (
        facts.shm_bytes is not None
        and facts.shm_bytes < _LEAST_SHM
        and (facts.work.workers or len(facts.torch.gpus) > 1)
    ):
        yield Diagnosis(
            "small-shm",
            ERROR,
            f"/dev/shm has {format_bytes(facts.shm_bytes)}",
            "Processes that load data, and NCCL between GPUs, exchange tensors there: bus errors",
            "Start the container with: docker run --shm-size=8g …"
            if facts.in_container
            else run_as_root(facts, "mount -o remount,size=8G /dev/shm"),
        )
    quota = facts.cpu_quota
    if quota and facts.torch.threads > 2 * quota and on_cpu:
        yield Diagnosis(
            "cpu-quota",
            WARNING,
            f"torch uses {facts.torch.threads} threads, and this container may use {quota:g} CPUs",
            "Threads wait for each other: several times slower than with as many threads as CPUs",
            set_variable(facts, "OMP_NUM_THREADS", str(max(int(quota), 1))),
        )
    elif (
        on_cpu and facts.torch.version and facts.cpus >= 4 and facts.torch.threads * 4 <= min(facts.cpus, quota or 1e9)
    ):
        yield Diagnosis(
            "few-threads",
            WARNING,
            f"torch uses {facts.torch.threads} of {facts.cpus} CPUs",
            "OMP_NUM_THREADS or an affinity limits it; training on the CPU is slower by that",
            set_variable(facts, "OMP_NUM_THREADS", str(facts.cpus)),
        )
    if facts.work.plan:
        what, _, change = facts.work.plan.partition("\n")
        fix = f"Add: {change}" if change else "Use a smaller model or a larger GPU"
        yield Diagnosis("does-not-fit", ERROR, what.rstrip("."), f"{describe_work(facts)} would run out of memory", fix)


def _find_folder_problems(facts: MachineFacts, folder: FolderFacts) -> Iterator[Diagnosis]:
    variable = set_variable(facts, folder.variable, "D:\\glmtune" if facts.system == "Windows" else "/path/with/space")
    elsewhere = f"choose another: {variable}" if folder.variable else "choose another with --output"
    if not folder.writable:
        fix = f"{elsewhere[0].upper()}{elsewhere[1:]}"
        if folder.owner and facts.system != "Windows":
            fix = run_as_root(facts, f"chown -R $(id -un) {quote_word(facts, folder.path)}")
        owner = f" (it belongs to {folder.owner})" if folder.owner else ""
        yield Diagnosis(
            "not-writable",
            ERROR,
            f"{folder.path} cannot be written to{owner}",
            f"It is {folder.purpose}",
            fix,
        )
        return
    need = facts.work.model_bytes if folder.variable == "HF_HOME" and facts.work.is_hub_id else 0
    if folder.free_bytes < max(_LEAST_FREE, need):
        needed = f"; {facts.work.model} takes {format_bytes(need)}" if need else ""
        yield Diagnosis(
            "disk-full",
            ERROR if need or folder.free_bytes < 100 * 2**20 else WARNING,
            f"{format_bytes(folder.free_bytes)} are free in {folder.path}",
            f"It is {folder.purpose}{needed}",
            f"Free some space, or {elsewhere}",
        )
    elif folder.free_files is not None and folder.free_files < _LEAST_FILES:
        yield Diagnosis(
            "no-inodes",
            ERROR,
            f"{folder.free_files} more files can be made in {folder.path}: its inodes are used up",
            f"It is {folder.purpose}; writing fails with `No space left on device` while df shows free space",
            f"Remove folders of many small files there (df -i), or {elsewhere}",
        )
    if not folder.executable and folder.variable in ("TMPDIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
        yield Diagnosis(
            "noexec",
            WARNING,
            f"{folder.path} is mounted noexec",
            f"It is {folder.purpose}: what is compiled there cannot be loaded (`failed to map segment`)",
            f"{elsewhere[0].upper()}{elsewhere[1:]}",
        )


def _find_path_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.system == "Windows" and not facts.has_long_paths and facts.longest_path > _WINDOWS_PATH - 60:
        yield Diagnosis(
            "long-paths",
            WARNING,
            "Windows limits paths to 260 characters here",
            "Files in the cache of a hub have longer ones: `No such file or directory` while downloading",
            "As administrator: reg add HKLM\\SYSTEM\\CurrentControlSet\\Control\\FileSystem /v LongPathsEnabled /t "
            "REG_DWORD /d 1 /f",
        )


def _find_network_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    variables, work = facts.environment, facts.work
    endpoint = variables.get("HF_ENDPOINT", "")
    if endpoint and not re.fullmatch(r"https?://[^\s/]+(/[^\s]*)?", endpoint):
        yield Diagnosis(
            "endpoint",
            ERROR,
            f"HF_ENDPOINT is {endpoint!r}, which is no address",
            "Nothing can be downloaded from Hugging Face or a mirror of it",
            set_variable(facts, "HF_ENDPOINT", HUGGINGFACE_MIRROR),
        )
    for name in _PROXIES:
        value = variables.get(name, "")
        if value and not re.fullmatch(r"(https?|socks[45]h?)://[^\s/]+/?", value):
            yield Diagnosis(
                "proxy",
                ERROR,
                f"{name} is not the address of a proxy",
                "Every download fails: it has to begin with http:// (also for HTTPS_PROXY) and end with a port",
                set_variable(facts, name, "http://" + re.sub(r"^(\w+:/+|/+)", "", value)),
            )
        elif value.startswith("socks") and not facts.has_socks:
            yield Diagnosis(
                "socks",
                ERROR,
                f"{name} is a SOCKS proxy, for which a package is missing",
                "Every download fails with `socksio package is not installed`",
                install_package(facts, "httpx[socks]"),
            )
    proxy = next((name for name in _PROXIES if variables.get(name)), "")
    exceptions = f"{variables.get('NO_PROXY', '')},{variables.get('no_proxy', '')}"
    if proxy and not any(host in exceptions for host in ("localhost", "127.0.0.1", "*")):
        yield Diagnosis(
            "no-proxy",
            WARNING,
            f"{proxy} is set, and NO_PROXY does not name localhost",
            "glmtune ui, and clients of glmtune serve, would reach this machine through the proxy, and fail",
            set_variable(facts, "NO_PROXY", "localhost,127.0.0.1"),
        )
    if work.is_hub_id and (variables.get("HF_HUB_OFFLINE") == "1" or variables.get("TRANSFORMERS_OFFLINE") == "1"):
        name = "HF_HUB_OFFLINE" if variables.get("HF_HUB_OFFLINE") == "1" else "TRANSFORMERS_OFFLINE"
        yield Diagnosis(
            "offline",
            ERROR,
            f"{name} forbids downloads",
            f"{work.model} is not on this machine",
            unset_variable(facts, name),
        )
    elif work.is_hub_id and work.hub == "modelscope" and not facts.has_modelscope:
        yield Diagnosis(
            "no-modelscope",
            ERROR,
            "ModelScope's client is not installed",
            f"{work.model} is on ModelScope, and not on this machine",
            add_comment(facts, f"glmtune fetch {work.model} --hub modelscope", "needs no client; then use the folder"),
        )
    elif facts.hub.error and work.is_hub_id:
        mirror = set_variable(facts, "HF_ENDPOINT", HUGGINGFACE_MIRROR)
        fix = add_comment(facts, mirror, f"or: glmtune fetch {name_on_modelscope(work.model)} --hub modelscope")
        if work.hub == "modelscope":
            fix = f"glmtune fetch {name_on_huggingface(work.model)}"
        yield Diagnosis(
            "hub-unreachable",
            ERROR,
            f"{facts.hub.address} cannot be reached ({facts.hub.error})",
            f"{work.model} is not on this machine",
            fix,
        )


def _find_clock_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    commands = {
        "Linux": run_as_root(facts, "timedatectl set-ntp true"),
        "Darwin": run_as_root(facts, "sntp -sS time.apple.com"),
        "Windows": "w32tm /resync",
    }
    behind = facts.time_s < facts.build_time_s - 86400
    if behind or abs(facts.hub.clock_skew_s) > _MAX_SKEW_S:
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime(facts.time_s))
        off = "is before the day on which glmtune was installed"
        if not behind:
            minutes = abs(facts.hub.clock_skew_s) / 60
            off = f"is {minutes:,.0f} minutes {'ahead of' if facts.hub.clock_skew_s > 0 else 'behind'} the hub's"
        yield Diagnosis(
            "clock",
            ERROR,
            f"the clock says {date} UTC, which {off}",
            "Certificates of servers count as not yet valid or expired: downloads fail",
            commands.get(facts.system, "Set the clock"),
        )


def _find_locale_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    names = {name: re.sub(r"[^a-z0-9]", "", encoding.lower()) for name, encoding in facts.encodings.items()}
    if all(encoding in ("utf8", "cp65001") for encoding in names.values()):
        return
    wrong = next(name for name, encoding in names.items() if encoding not in ("utf8", "cp65001"))
    encoding = facts.encodings[wrong]
    chinese = names[wrong] in ("gbk", "gb2312", "gb18030", "cp936", "big5", "cp950")
    if facts.system == "Windows":
        fix = set_variable(facts, "PYTHONUTF8", "1")
    else:
        language = set_variable(facts, "LANG", "en_US.UTF-8" if facts.system == "Darwin" else "C.UTF-8")
        overrides = [unset_variable(facts, "LC_ALL")] if facts.environment.get("LC_ALL") else []
        fix = join_commands(facts, *overrides, language)
    yield Diagnosis(
        "encoding",
        NOTE if chinese else WARNING,
        f"the encoding of the {'terminal' if wrong == 'stdout' else 'locale'} is {encoding}, not UTF-8",
        "Emoji are printed as `?`" if chinese else "Chinese replies are printed as `?`, and read as damaged text",
        fix,
    )


def _find_environment_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    variables = facts.environment
    launchers = [name for name in _LAUNCHER_VARIABLES if name in variables]
    if launchers and "TORCHELASTIC_RUN_ID" not in variables and "SLURM_JOB_ID" not in variables:
        yield Diagnosis(
            "launcher-variables",
            ERROR if variables.get("WORLD_SIZE", "1") != "1" else WARNING,
            f"{', '.join(f'{name}={variables[name]}' for name in launchers)} is set in this shell",
            "A training takes itself for one of several processes, and waits for the others without end",
            join_commands(facts, *(unset_variable(facts, name) for name in launchers)),
        )
    if variables.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield Diagnosis(
            "launch-blocking",
            WARNING,
            "CUDA_LAUNCH_BLOCKING is set",
            "Every kernel is waited for: training and replies are several times slower; it is for debugging",
            unset_variable(facts, "CUDA_LAUNCH_BLOCKING"),
        )
    if (
        facts.open_files is not None
        and facts.open_files < _LEAST_OPEN_FILES
        and (facts.work.workers or facts.system == "Linux")
    ):
        yield Diagnosis(
            "open-files",
            WARNING,
            f"a process may open {facts.open_files} files",
            "Processes that load data, and a server with many clients, fail with `Too many open files`",
            "ulimit -n 65536",
        )
