"""Run the process that imports torch, and read what it reports, also where it crashes or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from glmtune.doctor.machine_facts import BitsandbytesFacts, GpuFacts, TorchFacts, TrialFacts, WorkFacts
from glmtune.doctor.probe_process import MARK
from glmtune.utils.operating_system import name_crash

_TIMEOUT_S = 240.0
# The child finds modules where this process does: a file in the current folder hides one in both or in none.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from glmtune.doctor.probe_process import main; main(json.loads(sys.argv[2]))"
)


def run_probe(request: dict[str, Any], timeout_s: float = _TIMEOUT_S, start: str = _START) -> dict[str, Any]:
    """Collect what needs torch, as fields of `MachineFacts`.

    Args:
        request: see `probe_process.main`.
        timeout_s: after which the process is killed.
        start: what it runs.

    Returns:
        `torch`, `import_errors`, `bitsandbytes`, `work`, `trials` as far as they became known; `probe_error` where the
        process ended before it was done.
    """
    command = [sys.executable, "-c", start, json.dumps(sys.path), json.dumps(request)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    ending = ""
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        ending = f"no answer within {timeout_s:.0f} s"
    return _read_reports(
        output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"), process.returncode, ending
    )


def _read_reports(output: str, errors: str, code: int, ending: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"trials": (), "import_errors": {}}
    stage = "its start"
    for line in output.splitlines():
        if not line.startswith(MARK):
            continue
        ((key, value),) = json.loads(line.removeprefix(MARK)).items()
        if key == "stage":
            stage = value
        elif key == "torch":
            gpus = tuple(GpuFacts(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in value["gpus"])
            facts["torch"] = TorchFacts(**value | {"gpus": gpus, "archs": tuple(value["archs"])})
        elif key == "bitsandbytes":
            libraries = {"libraries": tuple(value["libraries"])} if value else {}
            facts["bitsandbytes"] = BitsandbytesFacts(**value | libraries) if value else None
        elif key == "work":
            facts["work"] = WorkFacts(**value)
        elif key == "trial":
            facts["trials"] += (TrialFacts(**value),)
        else:
            facts[key] |= value
    if stage and not (code == 0 and not ending):
        facts["probe_error"] = f"{ending or _describe_exit(code, errors)} in {stage}"
    return facts


def _describe_exit(code: int, errors: str) -> str:
    if crash := name_crash(code):
        return crash
    lines = errors.strip().splitlines()
    return f"{lines[-1][:200]}" if lines else f"exit code {code}"
