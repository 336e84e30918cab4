"""Files written by earlier releases are read: runs, adapters, exports, encoded rows, results of evaluations.

tests/saved/VERSION holds what `glmtune` of that version wrote, from tiny random checkpoints, and the logits that it
computed. It wrote them below /data/saved, a folder that is no longer there, as after a move.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import glmtune

SAVED = Path(__file__).resolve().parent / "saved"
VERSIONS = sorted(path.name for path in SAVED.iterdir())


@pytest.fixture(params=VERSIONS)
def saved(request, tmp_path) -> Path:
    """A copy of a version's files: commands write into run folders."""
    folder = tmp_path / "saved"
    shutil.copytree(SAVED / request.param, folder)
    return folder


def expect(saved: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a prompt (1, T), and the first 16 logits after it."""
    values = json.loads((saved / "expected.json").read_text("utf-8"))[name]
    return torch.tensor([values["input_ids"]]), torch.tensor(values["logits"])


def last_logits(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids).logits[0, -1, :16]


@pytest.mark.parametrize(("run", "base"), [("lora-run", "base-chatglm3"), ("ptuning-run", "base-chatglm")])
def test_adapter_gives_the_same_logits(saved, run, base):
    input_ids, logits = expect(saved, run)
    tuned = glmtune.load_model(saved / base, adapter=saved / run)
    torch.testing.assert_close(last_logits(tuned, input_ids), logits, atol=1e-4, rtol=0)
    plain = last_logits(glmtune.load_model(saved / base), input_ids)
    assert (plain - logits).abs().max() > 1e-3


def test_packed_export_gives_the_same_logits(saved):
    input_ids, logits = expect(saved, "exported-official")
    torch.testing.assert_close(
        last_logits(glmtune.load_model(saved / "exported-official"), input_ids), logits, atol=1e-4, rtol=0
    )


def test_stopped_run_is_resumed_to_the_same_adapter(saved, glmtune_command):
    run = saved / "lora-run"
    before = load_file(run / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    config = run / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("/data/saved", str(saved)), encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    (run / "summary.json").write_text(json.dumps(summary | {"state": "running"}), encoding="utf-8")  # as after a kill
    result = glmtune_command("train", "--resume", "--output", run)
    assert result.code == 0, result.err
    assert "checkpoint-2" in result.out
    after = load_file(run / "adapter" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=1e-4, msg=name)


def test_cached_rows_of_other_reading_rules_are_left_alone(saved, glmtune_command, monkeypatch, tmp_path):
    """Rows are read by other rules since 0.1.0: they are encoded again, beside the entries of 0.1.0."""
    cache = saved / "cache"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("rows.arrow")}
    monkeypatch.setenv("GLMTUNE_CACHE", str(cache))
    result = glmtune_command(
        *("train", "--model", saved / "base-chatglm3", "--data", saved / "train.json"),
        *("--output", tmp_path / "run", "--set", "training.max_steps=1"),
    )
    assert result.code == 0, result.err
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("rows.arrow")}
    assert len(after) > len(before)
    assert before.items() < after.items()


def test_encoded_rows_are_trained_on(saved, glmtune_command, tmp_path):
    result = glmtune_command(
        *("train", "--model", saved / "base-chatglm3", "--data", saved / "encoded"),
        *("--output", tmp_path / "run", "--set", "training.max_steps=1", "--set", "data.eval_fraction=0"),
    )
    assert result.code == 0, result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["data"]["train_rows"] == 12


@pytest.mark.parametrize("folder", ["lora-run", "lora-run/eval/dev", "comparison", "forgetting"])
def test_report_is_made(saved, glmtune_command, folder):
    result = glmtune_command("report", saved / folder)
    assert result.code == 0, result.err
    page = (saved / folder / "report.html").read_text("utf-8")
    assert "chatglm3" in page
    assert "</html>" in page


def test_finished_evaluation_is_reused(saved, glmtune_command):
    results = saved / "lora-run" / "eval" / "dev"
    replies = (results / "predictions.jsonl").read_bytes()
    command = ("eval", saved / "lora-run", "--base", saved / "base-chatglm3", "--data", saved / "dev.json")
    result = glmtune_command(*command, "--max-new-tokens", 8, "--output", results)
    assert result.code == 0, result.err
    assert (results / "predictions.jsonl").read_bytes() == replies
    other = glmtune_command(*command, "--max-new-tokens", 9, "--output", results)
    assert other.code == 1
