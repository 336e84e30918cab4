"""What the benchmarks share: contenders that take turns in processes of their own, medians, tables, the small print.

Imports nothing heavy: the process that holds a sitting together must not compete with what it measures.
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

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
PACKAGES = ("glmtune", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
MIB = 2**20


class Failed(Exception):
    """A contender's process ended with an error; the message is the last that it said."""


def parser(doc: str | None, json_help: str = "write every single figure here") -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--json", type=Path, help=json_help)
    made.add_argument("--repeats", type=int, default=3, help="how often each contender has its turn (default 3)")
    made.add_argument("--prefix", default="", help="a command in front of each contender's, `taskset -c 0,1` say")
    return made


def add_assets(made: argparse.ArgumentParser) -> None:
    """The folder of what this repository may not hold."""
    default = Path(os.environ.get("GLMTUNE_ASSETS") or REPOSITORY.parent / "shared")
    made.add_argument("--assets", type=Path, default=default, help="published tokenizers and ADGEN rows")


def in_turn(contenders: Sequence[str], repeats: int, run: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """A B C A B C ...: what disturbs a machine for a while then disturbs all of them.

    Returns:
        Per contender its runs, or the reason why it has none. One that fails is not tried again.
    """
    found: dict[str, Any] = {name: {"runs": []} for name in contenders}
    for number in range(repeats):
        for name in contenders:
            if "failed" in found[name]:
                continue
            say(f"{name}, {number + 1} of {repeats}")
            try:
                found[name]["runs"].append(run(name))
            except Failed as error:
                found[name]["failed"] = str(error)
                say(f"{name}: {error}")
    return found


def run_timed(
    command: Sequence[str | Path], *, prefix: str = "", cwd: Path | None = None, env: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Run a command in a process of its own.

    Returns:
        What `timed.py` says of it, and its stdout.

    Raises:
        Failed: it ended with an error; with the last line of its stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        whole = [*shlex.split(prefix), sys.executable, str(HERE / "timed.py"), str(report), *map(str, command)]
        done = subprocess.run(whole, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
        if done.returncode:
            raise Failed(_last_words(done.stderr or done.stdout) or f"exit status {done.returncode}")
        return json.loads(report.read_text("utf-8")), done.stdout


def run_json(script: str, *arguments: object, prefix: str = "", **options: Any) -> dict[str, Any]:
    """Run a script of this folder whose last line of stdout is a JSON object; its peak memory is added.

    Raises:
        Failed: it ended with an error.
    """
    took, printed = run_timed([sys.executable, HERE / script, *map(str, arguments)], prefix=prefix, **options)
    return {"process": took, **json.loads(printed.splitlines()[-1])}


def source_path() -> str:
    """`PYTHONPATH` for children: this checkout first."""
    return os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]))


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def middle(values: Iterable[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Largest less smallest, as a share of the median."""
    return (max(values) - min(values)) / middle(values) if middle(values) else 0.0


def with_spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the spread where there is more than one value."""
    return f"{middle(values):{form}}" + (f" ±{spread(values) / 2:.0%}" if len(values) > 1 else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table: text to the left, the other columns to the right."""
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def circumstances(name: str) -> dict[str, Any]:
    """When, where and with what: the keys are those of the JSON file."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{name}", *_without_paths(sys.argv[1:])]),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_mib": memory_mib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
    }


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Places on this machine are nobody else's affair; only the last part of each is kept."""
    return [os.path.join("...", os.path.basename(a)) if os.path.isabs(a) else a for a in arguments]


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are there."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name() -> str:
    """The model, and family and model number where a virtual machine leaves the name vague."""
    try:
        pairs = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family')}, model {facts.get('model')})"


def memory_mib() -> int | None:
    """The machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    except (ValueError, OSError, AttributeError):
        return None


def small_print(result: dict[str, Any]) -> list[str]:
    """The lines under a table: machine, versions, command, and what the machine was measured to do."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['date']}, {result['cpu']}, {result['cores']} cores; Python {result['python']}, {versions}.",
        f"`{result['command']}`",
    ]
    if result.get("machine"):
        lines.insert(1, limits_line(result["machine"]))
    return lines


def limits_line(machine: dict[str, Any]) -> str:
    """The measured limits in words."""
    matmul = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine["matmul_flops"].items())
    read, copy = (machine[key] / 1e9 for key in ("read_bytes", "copy_bytes"))
    return f"{machine['device']}: 2048-cube matmul {matmul}; reading {read:,.1f} GB/s, copying {copy:,.1f} GB/s."


def finish(result: dict[str, Any], path: Path | None, report: Callable[[dict[str, Any]], str]) -> None:
    """Write the figures and print the table."""
    if path:
        path.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(report(result))


def say(text: str) -> None:
    """On stderr, so that stdout is the table alone."""
    print(f"... {text}", file=sys.stderr, flush=True)
