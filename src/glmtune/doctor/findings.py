"""All findings of a machine: pure functions of its facts."""

from __future__ import annotations

from collections.abc import Iterator

from glmtune.doctor.device_findings import find_device_problems
from glmtune.doctor.diagnosis import ERROR, NOTE, WARNING, Diagnosis, describe_work
from glmtune.doctor.library_findings import find_library_problems
from glmtune.doctor.machine_facts import MachineFacts
from glmtune.doctor.platform_commands import install_package, quote_word
from glmtune.doctor.system_findings import find_system_problems

_ORDER = (ERROR, WARNING, NOTE)

# Findings that explain why a trial fails.
_CAUSES = {
    "no-kernel-image",
    "gpu-does-not-start",
    "bitsandbytes-library",
    "bitsandbytes-import",
    "bitsandbytes-override",
    "gpu-in-use",
    "torch-import",
    "torch-crash",
    "wrong-versions",
    "shadowed-module",
    "broken-library",
}


def find_problems(facts: MachineFacts) -> list[Diagnosis]:
    """Everything that is wrong, errors first; empty on a healthy machine."""
    problems = [
        *_find_work_problems(facts),
        *find_device_problems(facts),
        *find_library_problems(facts),
        *find_system_problems(facts),
    ]
    problems += _find_trial_problems(facts, {problem.code for problem in problems})
    return sorted(problems, key=lambda problem: _ORDER.index(problem.severity))


def _find_work_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    work = facts.work
    if work.config_error:
        what = f"{work.config}: {work.config_error}"
        yield Diagnosis("config", ERROR, what, "glmtune train refuses it", "Correct the file: docs/config.md")
    if work.model_error:
        fix = f"glmtune verify {quote_word(facts, work.model)}"
        if work.model_error.endswith("no such folder"):
            fix = "Give the folder of a model, a run, or a hub id such as THUDM/chatglm3-6b"
        yield Diagnosis("model", ERROR, work.model_error, f"{describe_work(facts)} cannot be loaded", fix)


def _find_trial_problems(facts: MachineFacts, codes: set[str]) -> Iterator[Diagnosis]:
    for trial in facts.trials:
        if not trial.error or codes & _CAUSES:
            continue
        uses = {"nf4 product": ("nf4",), "packed4 product": ("packed4", "packed8")}.get(trial.name)
        needed = uses is None or facts.work.quantization in uses
        fix = install_package(facts, "-U", "bitsandbytes>=0.50") if trial.name == "nf4 product" else ""
        yield Diagnosis(
            "trial",
            ERROR if needed else WARNING,
            f"a {trial.name} on {trial.device} failed: {trial.error}",
            f"{describe_work(facts)} does the same" if needed else f"{trial.name.split()[0]} would not work here",
            fix
            or "Run again with --device cpu: if that works, the fault is in driver, torch or card; report it with "
            "the output of glmtune doctor --json",
        )
