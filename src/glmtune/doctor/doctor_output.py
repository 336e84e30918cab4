"""Findings as terminal lines and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from glmtune.doctor.diagnosis import ERROR, NOTE, Diagnosis
from glmtune.doctor.machine_facts import MachineFacts
from glmtune.utils.console import count_noun, format_bytes, print_message

_STYLES = {ERROR: "red", NOTE: ""}


def has_errors(problems: list[Diagnosis]) -> bool:
    """Whether anything will not work."""
    return any(problem.severity == ERROR for problem in problems)


def describe_doctor(facts: MachineFacts, problems: list[Diagnosis], home: str) -> dict[str, Any]:
    """Findings and facts as JSON, to be put into an issue: the home folder is `~` in it.

    Args:
        facts: of the machine.
        problems: from `find_problems`.
        home: path of the user's home folder.
    """
    content = {
        "ok": not has_errors(problems),
        "findings": [dataclasses.asdict(problem) for problem in problems],
        "facts": dataclasses.asdict(facts),
    }
    return _shorten(content, home) if len(home) > 1 else content


def _shorten(value: Any, home: str) -> Any:
    if isinstance(value, str):
        return value.replace(home, "~")
    if isinstance(value, dict):
        return {key: _shorten(item, home) for key, item in value.items()}
    return [_shorten(item, home) for item in value] if isinstance(value, (list, tuple)) else value


def print_doctor(facts: MachineFacts, problems: list[Diagnosis]) -> None:
    """Print what the machine is, what was tried, and every finding with its command."""
    for line in _list_machine_lines(facts):
        print_message(line)
    for problem in problems:
        style = _STYLES.get(problem.severity, "yellow")
        print_message(f"\n{problem.severity.upper()}: {problem.what}.", style)
        print_message(f"  why  {problem.why}.")
        print_message(f"  fix  {problem.fix}")
    counts = [
        count_noun(count, severity)
        for severity in ("error", "warning", "note")
        if (count := sum(problem.severity == severity for problem in problems))
    ]
    style = "red" if has_errors(problems) else "green"
    print_message(f"\n{', '.join(counts) or 'No problem found'}.", style)


def _list_machine_lines(facts: MachineFacts) -> list[str]:
    torch = facts.torch
    build = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}" if torch.hip else "CPU build"
    lines = [
        f"{facts.system} {facts.machine}, Python {facts.python}, {count_noun(facts.cpus, 'CPU')}, "
        f"{format_bytes(facts.memory_bytes)} of memory ({format_bytes(facts.available_bytes)} free)",
        f"torch {torch.version} ({build})" if torch.version else "torch cannot be imported",
    ]
    if facts.driver.version:
        lines.append(f"NVIDIA driver {facts.driver.version}")
    for gpu in torch.gpus:
        capability = "{}.{}".format(*gpu.capability)
        memory = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
        lines.append(f"{gpu.name}, compute capability {capability}, {memory}")
    if torch.mps in ("bf16", "fp16"):
        lines.append(f"Apple GPU (Metal), computes in {torch.mps}")
    for trial in facts.trials:
        result = f"failed: {trial.error}" if trial.error else f"works ({trial.seconds:.1f} s)"
        lines.append(f"Trial of a {trial.name} on {trial.device}: {result}")
    return lines
