"""What is wrong with a machine, and commands for its platform."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from glmtune.doctor.machine_facts import MachineFacts

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Diagnosis:
    """A finding."""

    code: str
    """For programs and tests: `no-kernel-image`."""
    severity: str
    """error: it will not work; warning: it may not, or is slow; note: good to know."""
    what: str
    why: str
    """Why it matters for this model and config."""
    fix: str
    """The command that fixes it, or what to do where none does."""


def install(facts: MachineFacts, *words: str) -> str:
    """A command of pip for the Python that runs glmtune."""
    return f"{facts.pip} install {' '.join(_quote(facts, word) for word in words)}"


def set_variable(facts: MachineFacts, name: str, value: str) -> str:
    """The line that sets an environment variable in the user's shell."""
    if facts.shell == "cmd":
        return f"set {name}={value}"
    if facts.shell == "powershell":
        return f'$env:{name} = "{value}"'
    return f"export {name}={shlex.quote(value)}"


def unset_variable(facts: MachineFacts, name: str) -> str:
    """The line that removes an environment variable in the user's shell."""
    if facts.shell == "cmd":
        return f"set {name}="
    return f"Remove-Item Env:{name}" if facts.shell == "powershell" else f"unset {name}"


def remove_folder(facts: MachineFacts, path: str) -> str:
    """The command that removes a file or folder."""
    if facts.shell == "cmd":
        return f'rmdir /s /q "{path}"'
    return f'Remove-Item -Recurse "{path}"' if facts.shell == "powershell" else f"rm -r {shlex.quote(path)}"


def describe_work(facts: MachineFacts) -> str:
    """The model and config that were given, as the subject of a sentence; `A run` without any."""
    work = facts.work
    return " with ".join(part for part in (work.config, work.model if work.model != work.config else "") if part) or (
        "A run"
    )


def _quote(facts: MachineFacts, word: str) -> str:
    if facts.system == "Windows":
        return f'"{word}"' if any(mark in word for mark in " <>&|^[]") else word
    return shlex.quote(word)
