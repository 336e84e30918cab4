"""What is wrong with a machine."""

from __future__ import annotations

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
    """The command that fixes it, or a sentence that says what to do where none does."""


def describe_work(facts: MachineFacts) -> str:
    """The model and config that were given, as the subject of a sentence; `A run` without any."""
    work = facts.work
    return " with ".join(part for part in (work.config, work.model if work.model != work.config else "") if part) or (
        "A run"
    )
