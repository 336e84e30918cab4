"""Preference tuning of an adapter that was trained before, and the benchmark of what it learns."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import BatchFeature, TrainingArguments

from conftest import REPOSITORY
from glmtune.preference import answer_logps, reference_cache

sys.path.append(str(REPOSITORY / "benchmarks"))  # last: names of its files are common ones

import preference as preference_benchmark
import preference_learning

QUESTION, BETTER, WORSE = "介绍一下这件衣服", "这是一件好看的衣服。", "不知道。"


def _train(command, base, data, output, *options):
    settings = ["training.report_to=none", "training.logging_steps=1", "data.packing=false", "data.eval_fraction=0"]
    settings += ["training.lr_scheduler_type=constant", "training.learning_rate=1e-2", *options]
    result = command(
        *("train", "--model", base, "--data", data, "--output", output),
        *[word for setting in settings for word in ("--set", setting)],
    )
    assert result.code == 0, result.err
    lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def test_dpo_continues_an_adapter_and_compares_with_it(tiny, tmp_path, glmtune_command):
    """The reference is the adapter as it was, also of a resumed run; dropout is off."""
    base = tiny("chatglm3")
    rows = [{"prompt": f"{QUESTION}{n}", "chosen": BETTER, "rejected": WORSE} for n in range(8)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    answers = [{"prompt": row["prompt"], "response": BETTER} for row in rows]
    (tmp_path / "answers.json").write_text(json.dumps(answers), "utf-8")
    _train(glmtune_command, base, tmp_path / "answers.json", tmp_path / "sft", "training.max_steps=2")

    options = ["stage=dpo", f"adapter={tmp_path / 'sft'}", "training.save_steps=1"]
    steps = {}
    for name, count in (("whole", 3), ("resumed", 1)):
        limit = f"training.max_steps={count}"
        steps[name] = _train(glmtune_command, base, tmp_path / "pairs.json", tmp_path / name, *options, limit)
    resumed = glmtune_command("train", "--resume", "--output", tmp_path / "resumed", "--set", "training.max_steps=3")
    assert resumed.code == 0, resumed.err

    first = steps["whole"][0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["accuracy"], first["margin"]) == (0.5, 0)
    assert steps["whole"][-1]["margin"] > 0.01
    weights = {
        name: load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("sft", "whole", "resumed")
    }
    assert all(torch.equal(weights["whole"][key], weights["resumed"][key]) for key in weights["whole"])
    assert any(not torch.equal(weights["whole"][key], weights["sft"][key]) for key in weights["whole"])
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text("utf-8"))
    assert 0 < summary["reference_seconds"] < 60


@pytest.mark.parametrize("is_evaluation", [False, True])
def test_the_reference_takes_batches_of_the_size_that_is_planned(is_evaluation, monkeypatch):
    """A pass over training rows in batches of an evaluation could need more memory than a training step."""
    sizes = []

    class Blocks(list):
        rows = range(8)

    def collate(blocks):
        sizes.append(len(blocks))
        return BatchFeature({"rows": torch.tensor([row for block in blocks for row in block])})

    zeros = (torch.zeros(0), torch.zeros(0))
    monkeypatch.setattr(answer_logps, "step_loss", lambda model, batch: torch.zeros(len(batch["rows"])))
    monkeypatch.setattr(answer_logps, "sum_by_row", lambda losses_N, batch: (losses_N.double(), *zeros))
    arguments = TrainingArguments(
        report_to="none", use_cpu=True, per_device_train_batch_size=2, per_device_eval_batch_size=4
    )
    blocks = Blocks([[0, 1], [2, 3], [4, 5], [6, 7]])
    answer_logps.compute_answer_logps(torch.nn.Linear(1, 1), blocks, collate, arguments, is_evaluation)
    assert sizes == ([4] if is_evaluation else [2, 2])


def test_the_learning_benchmark_prefers_what_it_says():
    text = "这条裙子很好看，适合夏天。面料柔软。"
    short, polite = (preference_learning.PREFERENCES[name] for name in ("short", "polite"))
    (pair,) = preference_learning.make_pairs([{"content": "类型#裙", "summary": text}], short)
    assert pair == {"prompt": "类型#裙", "chosen": "这条裙子很好看。", "rejected": text}
    assert [short.wins(*replies) for replies in ((pair["chosen"], text), (text, "短"), ("", text), (text, text))] == [
        *(1, 0, 0, 0.5)
    ]
    assert [polite.wins(*replies) for replies in ((polite.better(text), text), (text, text), (text, "您好"))] == [
        *(1, 0.5, 0)
    ]


def test_the_report_of_the_learning_benchmark():
    entry = {"accuracy": [0.5, 1.0], "win_rate": 0.9, "seconds": 61.2, "forgetting": {"verdict": "pass", "kl": 0.02}}
    result = {**preference_benchmark.describe_environment("preference_learning.py"), "runs": {"short": entry}}
    assert "| short | 50% | 100% | 90% | 61 | pass | 0.020 |" in preference_learning.format_report(result)


def test_the_report_of_the_benchmark_compares_with_trl():
    runs = [
        {"seconds": seconds, "losses": [0.7, 0.6], "process": {"wall_s": 40.0, "peak_bytes": 2**30}}
        for seconds in (8.0, 16.0)
    ]
    candidates = {
        "glmtune": {"runs": runs[:1]},
        "trl": {"runs": runs[1:]},
        "trl precomputed": {"runs": [], "failed": "no"},
    }
    environment = preference_benchmark.describe_environment("preference.py")
    text = preference_benchmark.format_report({**environment, "work": {"rows": 32}, "candidates": candidates})
    assert "| glmtune | 4.00 | 2.00 x | 40.0 | 1,024 | 0.7000 | 0.6500 |" in text
    assert "trl precomputed: no" in text


def test_reference_log_probabilities_are_kept_beside_the_cache(tiny, tmp_path, glmtune_command, monkeypatch):
    """Another beta on the same rows reads them; another base, other rows and a damaged file do not."""
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    computed = []
    original = answer_logps.step_loss

    def count(model, batch, **options):
        computed.append(len(batch["rows"]))
        return original(model, batch, **options)

    monkeypatch.setattr(answer_logps, "step_loss", count)
    rows = [{"prompt": f"{QUESTION}{n}", "chosen": BETTER, "rejected": WORSE} for n in range(8)]
    for name, part in (("pairs", rows), ("other", rows[:6])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part), "utf-8")

    def train(output, *settings, base="chatglm3", data="pairs"):
        computed.clear()
        options = ["stage=dpo", "training.max_steps=1", "data.eval_fraction=0", "training.eval_strategy=no", *settings]
        steps = _train(glmtune_command, tiny(base), tmp_path / f"{data}.json", tmp_path / output, *options)
        return steps[0]["loss"], bool(computed)

    first, was_computed = train("first", "preference.beta=0.3")
    assert was_computed
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert train("second", "preference.beta=0.1") == (pytest.approx(math.log(2), abs=1e-6), False)
    assert train("third", data="other")[1]
    assert train("fourth", base="chatglm2")[1]
    assert train("fifth", "model.precision=bf16")[1]
    # The same base and precision, whose weights this method loads in fp32: products round differently.
    assert train("full", "model.precision=bf16", "method=full") == (pytest.approx(math.log(2), abs=1e-6), True)
    for file in (tmp_path / "cache").rglob("reference-*.npy"):
        file.write_bytes(file.read_bytes()[:-9])
    assert train("sixth") == (pytest.approx(math.log(2), abs=1e-6), True)


def test_reference_log_probabilities_are_those_of_the_adapter_that_is_named(tiny, tmp_path, glmtune_command):
    """Also by the path that other trainers give a checkpoint, at which nothing is."""
    rows = [{"prompt": f"{QUESTION}{n}", "chosen": BETTER, "rejected": WORSE} for n in range(4)]
    answers = [{"prompt": row["prompt"], "response": BETTER} for row in rows]
    for name, part in (("pairs", rows), ("answers", answers)):
        (tmp_path / f"{name}.json").write_text(json.dumps(part), "utf-8")
    for name, seed in (("one", 1), ("other", 2)):
        options = ["training.max_steps=1", "training.save_steps=1", f"training.seed={seed}"]
        _train(glmtune_command, tiny("chatglm3"), tmp_path / "answers.json", tmp_path / name, *options)
        options = ["stage=dpo", "training.max_steps=1", f"adapter={tmp_path / name / 'checkpoint-1'}"]
        (step,) = _train(glmtune_command, tiny("chatglm3"), tmp_path / "pairs.json", tmp_path / f"dpo-{name}", *options)
        assert step["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_cache_that_cannot_be_used_costs_time_only(tmp_path):
    path = tmp_path / ("x" * 300)  # a name for which every call of the system fails
    reference_cache.save_reference(path, torch.zeros(3, dtype=torch.float64))
    assert reference_cache.load_reference(path, 3) is None
    path = tmp_path / "new" / "reference.npy"
    reference_cache.save_reference(path, torch.arange(3, dtype=torch.float64))
    assert reference_cache.load_reference(path, 3).tolist() == [0, 1, 2]
    assert reference_cache.load_reference(path, 4) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]
