"""The benchmarks run, and their formulas are right. Nothing is asserted about time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
sys.path.append(str(BENCHMARKS))  # last: names of its files are common ones

import bare_loop  # noqa: E402
import decoding  # noqa: E402
import harness  # noqa: E402
import held_out  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import models  # noqa: E402
import serving  # noqa: E402
import task  # noqa: E402
import training  # noqa: E402

SCRIPTS = ("data.py", "machine.py", "training.py", "memory.py", "decoding.py", "evaluation.py", "serving.py")
TINY = models.SHAPES["tiny"]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


# --- formulae ---


def test_parameters_of_the_shapes_are_those_of_the_models():
    """All matrices of the model as it is built; norms and biases are left out of the formula."""
    for name, shape in models.SHAPES.items():
        if name == "tiny" or shape.layers > 30:
            continue
        with torch.device("meta"):
            built = models.build_model(shape, torch.float32, "meta")
        matrices = sum(p.numel() for p in built.parameters() if p.dim() == 2)
        assert shape.parameters == matrices, name


def test_operations_of_a_forward_pass_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = models.build_model(TINY, torch.float32, "cpu")
    model.set_attn_implementation("eager")  # plain products: the counter does not know the CPU's fused attention
    length = 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(10, 500, (1, length)))
    linears = task.count_token_flops(TINY) * length + 2.0 * TINY.head * length
    # torch counts attention as if it were not causal: every pair.
    pairs = length * length / (length * (length + 1) / 2)
    assert counter.get_total_flops() == pytest.approx(
        linears + pairs * task.count_attention_flops(TINY, length), rel=1e-3
    )


def test_full_training_needs_half_as_much_again_and_a_longer_row_more():
    full, prefix = (task.count_step_flops(TINY, method, task.LoraTask(), 32, 16) for method in ("full", "ptuning"))
    matrices = task.count_token_flops(TINY) * 32 + 2.0 * TINY.head * 16
    assert full - prefix == pytest.approx(matrices)
    assert task.count_sample_flops(TINY, task.LoraTask(), 64, 16) > 2 * task.count_sample_flops(
        TINY, task.LoraTask(), 32, 0
    )


def test_bytes_read_leave_out_the_embedding():
    model = models.build_model(TINY, torch.bfloat16, "cpu")
    every = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert decoding.count_read_bytes(model) == every - 2 * TINY.head
    packed = models.build_model(TINY, torch.bfloat16, "cpu", "packed8")
    assert decoding.count_read_bytes(packed) < decoding.count_read_bytes(model)


def test_runs_are_interleaved_and_a_failed_candidate_is_not_run_again():
    order = []

    def once(name):
        order.append(name)
        if name == "b":
            raise harness.BenchmarkError("cannot be installed: ERROR: no such release")
        return {"seconds": 1.0}

    found = harness.run_interleaved(["a", "b", "c"], 2, once)
    assert order == ["a", "b", "c", "a", "c"]
    assert found["b"] == {"runs": [], "failed": "cannot be installed: ERROR: no such release"}
    assert len(found["a"]["runs"]) == 2


def test_median_and_spread():
    assert harness.format_median([1.0, 2.0, 1.2]) == "1.20 ±42%"
    assert harness.format_median([2.0]) == "2.00"


# --- the bare loop ---


def test_the_bare_loop_computes_the_loss_of_padded_rows():
    """Its attention by row and its picked positions against a plain forward pass of each row."""
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface

    model = models.build_model(TINY, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (9, 5, 12):
        ids = torch.randint(10, 500, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        targets = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss.detach()) * targets
        count += targets
    AttentionInterface.register("by_row", bare_loop.attend_per_row)
    model.set_attn_implementation("by_row")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert float(bare_loop.compute_loss(tuned, bare_loop.pack_batch(rows, "cpu")).detach()) == pytest.approx(
        total / count, rel=1e-5
    )


# --- smoke ---


def test_training_with_a_peer_that_is_not_there(tiny, adgen_file, tmp_path, monkeypatch, capsys):
    """Trainers are processes; what is before and after them is computed in this one."""
    out = tmp_path / "out.json"

    def prepare(command, **_):
        monkeypatch.setattr(sys, "argv", command[1:])
        training.main()

    def measure(script, *arguments, **_):
        if script == "machine.py":
            return {
                "device": "CPU",
                "matmul_flops": {"fp32": 1e11, "bf16": 2e11},
                "read_bytes": 1e10,
                "copy_bytes": 1e10,
            }
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        held_out.main()
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(training, "run_timed", prepare)
    monkeypatch.setattr(training, "run_json", measure)
    given = ["--model", tiny("chatglm3"), "--data", adgen_file(12), "--rows", 8, "--held-out", 4, "--repeats", 1]
    chosen = ["glmtune fp32", "bare fp32", "trl fp32 packed"]
    given += ["--same-order", "--dropout", 0, "--json", out, "--trainers", *chosen]
    monkeypatch.setattr(sys, "argv", ["training.py", *map(str, given)])
    training.main()
    result = json.loads(out.read_text("utf-8"))
    found = result["contenders"]
    assert "not run: no --peers" in found["trl fp32 packed"]["failed"]
    assert "trl fp32 packed: not run" in capsys.readouterr().out
    assert not [found[name]["failed"] for name in chosen[:2] if "failed" in found[name]]
    ours, loop = (found[name]["runs"][0] for name in chosen[:2])
    assert ours["losses"][0] == pytest.approx(loop["losses"][0], rel=1e-4)  # the same batch, before any training
    assert found["bare fp32"]["held_out_loss"] < result["base_held_out_loss"]
    assert str(tmp_path) not in json.dumps({key: result[key] for key in result if key != "contenders"})


def test_decoding_by_both_engines(monkeypatch):
    monkeypatch.setattr(decoding, "measure_read_rate", partial(machine.measure_read_rate, size=2**20))
    monkeypatch.setattr(decoding, "_BANDWIDTH_S", 0.001)
    found = {
        engine: decoding.measure_cell(decoding.Cell(engine, "tiny", "fp32", (1, 2), 4, 3), "cpu")
        for engine in ("glmtune", "transformers")
    }
    for result in found.values():
        assert set(result["batch_sizes"]) == {"1", "2"}
        assert all(timing["first_s"] > 0 for timing in result["batch_sizes"].values())
    assert found["glmtune"]["weight_bytes"] == found["transformers"]["weight_bytes"]


def test_clients_of_the_engine_and_of_single_requests(tiny):
    cells = []
    for name in ("one by one", "batch"):
        found = serving.measure_candidate(name, tiny("chatglm3"), clients=3, requests=7, new=4)
        assert found["tokens_per_s"] > 0
        assert 0 < found["first_p50"] <= found["first_p95"]
        assert 0 < found["between_p50"] <= found["between_p95"]
        cells.append({"name": name, "clients": 3, "runs": [found | {"tokens_per_s": 5.0 * (len(cells) * 5 + 1)}]})
    cells.append({"name": "vllm", "clients": 3, "runs": [{"tokens_per_s": 10.0, "cpu_ms_per_token": 1.0}]})
    cells.append({"name": "serve", "clients": 3, "failed": "no server"})
    text = serving.format_results({**harness.describe_environment("serving.py"), "cells": cells})
    assert "| batch | 3 | 30 | 6.0 |" in text
    assert "| vllm | 3 | 10 | 2.0 |" in text
    assert "| serve | 3 | no server |" in text


def test_a_memory_cell_of_each_method():
    for method, held in (("lora", None), ("ptuning", "packed4"), ("full", None)):
        cell = memory.Cell("tiny", method, held, batch=2, prompt=8, answer=8, checkpointing=method == "full")
        found = memory.measure_cell(cell, "cpu", 2)
        assert found["peak_bytes"] >= found["before_bytes"] > 0
        assert found["loss"] > 1


def test_published_settings_name_shapes_that_exist():
    for cell in memory.list_published_cells("bf16"):
        assert cell.shape in models.SHAPES
        assert cell.prompt + cell.answer <= 768


def test_the_report_compares_trainers():
    turn = {"seconds": 32.0, "losses": [3.0, 2.0], "device_peak_bytes": None}
    turn |= {"process": {"wall_s": 40.0, "peak_bytes": 2**30}}
    found = {
        "glmtune fp32": {"runs": [turn | {"seconds": 16.0}], "held_out_loss": 2.5},
        "trl fp32 packed": {"runs": [turn], "held_out_loss": 2.6},
        "llamafactory fp32": {"runs": [turn | {"seconds": 64.0}], "held_out_loss": None},
    }
    machine = {"device": "CPU", "matmul_flops": {"fp32": 1e11, "bf16": 2e11}, "read_bytes": 1e10, "copy_bytes": 1e10}
    result = {
        **harness.describe_environment("training.py"),
        "machine": machine,
        "contenders": found,
        "flops_per_sample": 1e10,
    }
    result |= {"work": {"rows": 64}, "tokens": 10, "targets": 5, "base_held_out_loss": 3.0}
    text = training.format_report(result)
    assert "| glmtune fp32 | 4.00 | 2.00 x | 2.00 x | 40% |" in text
    assert "| llamafactory fp32 | 1.00 | 0.50 x |" in text


def test_replies_in_batches(tmp_path):
    out = tmp_path / "out.json"  # no ADGEN in its folder: synthetic questions
    given = ["--assets", tmp_path, "--prompts", 4, "--max-new-tokens", 4, "--batch-sizes", 4, "--repeats", 1]
    done = run("evaluation.py", *given, "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text("utf-8"))
    assert result["batch_sizes"]["4"]["runs"][0]["same_replies"] == 4
    assert "synthetic rows" in done.stdout
