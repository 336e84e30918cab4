"""Shared by the benchmarks: interleaved runs in separate processes, medians, tables and their footers.

Imports nothing heavy: the process that starts the others must not compete with what it measures.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
PACKAGES = ("glmtune", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
MIB = 2**20


class BenchmarkError(Exception):
    """A measured process ended with an error; the message is its last line of output."""


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each candidate (default 3)")
    parser.add_argument("--prefix", default="", help="a command before each candidate's, for example `taskset -c 0,1`")
    return parser


def add_assets_option(parser: argparse.ArgumentParser) -> None:
    """The folder of files that this repository does not contain."""
    default = Path(os.environ.get("GLMTUNE_ASSETS") or REPOSITORY.parent / "shared")
    parser.add_argument("--assets", type=Path, default=default, help="published tokenizers and ADGEN rows")


def run_interleaved(names: Sequence[str], repeats: int, run: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Run A B C A B C ...: what slows the machine for a while then slows all candidates.

    Args:
        names: of the candidates.
        repeats: runs of each.
        run: measures a candidate once.

    Returns:
        Per candidate its `runs`, or why it `failed`. One that fails is not run again.
    """
    results: dict[str, Any] = {name: {"runs": []} for name in names}
    for number in range(repeats):
        for name in names:
            if "failed" in results[name]:
                continue
            print_progress(f"{name}, {number + 1} of {repeats}")
            try:
                results[name]["runs"].append(run(name))
            except BenchmarkError as error:
                results[name]["failed"] = str(error)
                print_progress(f"{name}: {error}")
    return results


def run_timed(
    command: Sequence[str | Path], *, prefix: str = "", cwd: Path | None = None, env: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Run a command in a process of its own.

    Returns:
        What `time_command.py` measured, and its standard output.

    Raises:
        BenchmarkError: it ended with an error; with the last line of its standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        timer = [sys.executable, str(FOLDER / "time_command.py"), str(report)]
        full_command = [*shlex.split(prefix), *timer, *map(str, command)]
        process = subprocess.run(
            full_command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True
        )
        if process.returncode:
            lines = [line.strip() for line in (process.stderr or process.stdout).splitlines() if line.strip()]
            raise BenchmarkError(lines[-1][:300] if lines else f"exit status {process.returncode}")
        return json.loads(report.read_text("utf-8")), process.stdout


def run_json(script: str, *arguments: object, prefix: str = "", **options: Any) -> dict[str, Any]:
    """Run a script of this folder whose last line of output is a JSON object; `process` is added to it.

    Raises:
        BenchmarkError: it ended with an error.
    """
    usage, output = run_timed([sys.executable, FOLDER / script, *map(str, arguments)], prefix=prefix, **options)
    return {"process": usage, **json.loads(output.splitlines()[-1])}


def make_pythonpath() -> str:
    """`PYTHONPATH` for other processes: this checkout first."""
    return os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]))


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def format_median(values: Sequence[float], form: str = ".2f") -> str:
    """The median and, of several values, half the distance from the least to the largest, relative to the median."""
    center = median(values)
    spread = (max(values) - min(values)) / center if center else 0.0
    return f"{center:{form}}" + (f" ±{spread / 2:.0%}" if len(values) > 1 else "")


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table: the first column to the left, the others to the right."""
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def describe_environment(script: str) -> dict[str, Any]:
    """Date, command, machine and versions, by their keys in the JSON file.

    The folders of absolute paths are left out of the command: they mean nothing on another machine.
    """
    arguments = [os.path.join("...", os.path.basename(a)) if os.path.isabs(a) else a for a in sys.argv[1:]]
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{script}", *arguments]),
        "cpu": read_cpu_name(),
        "cores": os.cpu_count(),
        "memory_mib": read_memory_mib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": find_versions(PACKAGES),
    }


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def read_cpu_name() -> str:
    """The model's name, with family and model number: the name of a virtual machine's CPU is often vague."""
    try:
        pairs = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def read_memory_mib() -> int | None:
    """The machine's memory in MiB; None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    except (ValueError, OSError, AttributeError):
        return None


def format_footer(result: dict[str, Any]) -> list[str]:
    """Lines under a table: machine, measured limits, versions, command."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['date']}, {result['cpu']}, {result['cores']} cores; Python {result['python']}, {versions}.",
        f"`{result['command']}`",
    ]
    if result.get("machine"):
        machine = result["machine"]
        matmul = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine["matmul_flops"].items())
        read, copy = (machine[key] / 1e9 for key in ("read_bytes", "copy_bytes"))
        limits = f"{machine['device']}: 2048-cube matmul {matmul}; reading {read:,.1f} GB/s, copying {copy:,.1f} GB/s."
        lines.insert(1, limits)
    return lines


def report_result(result: dict[str, Any], path: Path | None, report: Callable[[dict[str, Any]], str]) -> None:
    """Write the figures to a file, if one is given, and print the table."""
    if path:
        path.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(report(result))


def print_progress(text: str) -> None:
    """Print to standard error: standard output is the table alone."""
    print(f"... {text}", file=sys.stderr, flush=True)
