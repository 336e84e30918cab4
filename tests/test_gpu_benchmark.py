"""benchmarks/gpu.py on the CPU with the tiny shape: every part runs, proofs hold, and what fails is reported."""

from __future__ import annotations

import json
import sys

import pytest

from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))  # last: names of its files are common ones

import gpu
import gpu_cells
import machine
from gpu_results import Setup

SETUP = Setup("cpu", "tiny")
# In a process of its own the memory figures are of that process; here the function alone is of interest.
PARTS = list({(part.function, part.arguments[-1:] == ("old-card",)): part for part in gpu.PARTS}.values())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_runs_and_its_proofs_hold(part, capsys, monkeypatch):
    monkeypatch.setattr(machine, "BUFFER", 2**20)
    monkeypatch.setattr("gpu_figures.measure_read_rate", lambda device: machine.measure_read_rate(device, 2**20, 0.01))
    if part.function == "training_parity":  # the other methods take too long here: test_fake_device.py has them
        prove = gpu_cells.gpu_proofs.prove_training
        monkeypatch.setattr("gpu_proofs.prove_training", lambda *args: args[1] == "lora" and prove(*args))
    gpu_cells.CELLS[part.function](SETUP, *part.arguments)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert results
    assert not [result for result in results if gpu.is_failure(result)]


def test_a_part_that_fails_is_a_line_and_the_next_one_runs(tmp_path, monkeypatch):
    lines = tmp_path / "results.jsonl"
    parts = [gpu.Part("parity", "no_such_cell", 1), gpu.Part("parity", "row_parity", 10**6), gpu.PARTS[0]]
    monkeypatch.setattr(gpu, "PARTS", parts)
    outcomes = {"limits": [{"kind": "proof", "name": "p", "ok": False, "figures": {"device": "x", "error": 0.5}}]}
    real = gpu.run_part

    def run_part(part, *args, **options):
        return iter(outcomes[part.function]) if part.function in outcomes else real(part, *args, **options)

    monkeypatch.setattr(gpu, "run_part", run_part)
    results = gpu.run_parts(parts, 100, "cuda", "tiny", lines)
    assert "invalid choice" in results[0]["error"]
    assert "budget" in results[1]["skipped"]
    assert [json.loads(line) for line in lines.read_text("utf-8").splitlines()] == results
    assert [gpu.is_failure(result) for result in results] == [True, False, True]
    table = gpu.format_report(results, {"date": "", "cpu": "", "cores": 1, "python": "", "versions": {}, "command": ""})
    assert "| ERROR |" in table
    assert "| not run |" in table
    assert "| WRONG | device x, error 0.5 |" in table


def test_peers_that_are_not_installed_are_a_line_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    gpu_cells.CELLS["trl"](SETUP)
    (line,) = capsys.readouterr().out.splitlines()
    assert "trl and datasets cannot be imported" in json.loads(line)["figures"]["note"]


def test_processes_have_the_setting_of_the_allocator(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    (figures,) = [
        r["figures"]
        for r in gpu.run_part(gpu.Part("limits", "software", 1), "cpu", "tiny", 60)
        if r.get("name") == "allocator"
    ]
    assert figures["setting"] == ("expandable_segments:True" if sys.platform == "linux" else "not set")
