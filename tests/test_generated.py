"""Scores of replies while training: logged, shown, and good for choosing the best checkpoint."""

from __future__ import annotations

import json

import pytest

from glmtune.run_dir import RunDir
from tiny import FAMILIES

FAST = ("training.logging_steps=1", "training.eval_strategy=steps", "training.eval_steps=2", "training.save_steps=2")


@pytest.fixture
def train(glmtune_command, tiny, adgen_file, tmp_path):
    """`train(family, "key=value", ...)`: a run and what the command printed."""

    def run(family, *settings, output="run"):
        data = adgen_file(16)
        result = glmtune_command(
            *("train", "--model", tiny(family), "--data", data, "--output", tmp_path / output),
            *("--eval-data", adgen_file(6, "dev.json", seed=4)),
            *(part for setting in (*FAST, *settings) for part in ("--set", setting)),
        )
        return RunDir(tmp_path / output), result

    return run


@pytest.mark.parametrize(
    ("family", "method"), [*((family, "lora") for family in FAMILIES), ("chatglm", "ptuning"), ("chatglm3", "full")]
)
def test_scores_are_logged_with_the_loss(train, family, method):
    settings = ("generate.rows=4", "generate.max_new_tokens=5", "training.max_steps=4", f"method={method}")
    run, result = train(family, *settings, "ptuning.num_virtual_tokens=4", "training.gradient_checkpointing=true")
    assert result.code == 0, result.err
    evaluated = [entry for entry in run.read_metrics() if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 4]
    for entry in evaluated:
        assert {"eval_rouge_1", "eval_rouge_l", "eval_bleu4_characters", "eval_truncated"} <= entry.keys()
    assert "ROUGE-L" in result.out
    samples = [json.loads(line) for line in run.samples.read_text("utf-8").splitlines()]
    assert [sample["step"] for sample in samples] == [2, 2, 2, 4, 4, 4]
    assert [sample["prompt"] for sample in samples[:3]] == [sample["prompt"] for sample in samples[3:]]
    assert all(sample["reference"] and "completion" in sample for sample in samples)


def test_generating_changes_nothing_in_the_training(train):
    settings = ("training.max_steps=4", "lora.dropout=0.1", "training.learning_rate=1e-2")
    plain, _ = train("chatglm3", *settings, output="plain")
    scored, _ = train("chatglm3", *settings, "generate.rows=3", "generate.max_new_tokens=5", output="scored")
    losses = [[entry["loss"] for entry in run.read_metrics() if "loss" in entry] for run in (plain, scored)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_best_checkpoint_by_a_score(train, monkeypatch):
    """A score that falls after the first evaluation: its checkpoint is the best, for more is better."""
    from glmtune.evaluation import scoring as sampled

    given = iter([30.0, 20.0, 10.0])

    def score(model, tokenizer, family, questions, **limits):
        value = next(given)
        return [{"rouge_l": value} for _ in questions]

    monkeypatch.setattr(sampled, "score_questions", score)
    best = ("training.load_best_model_at_end=true", "training.metric_for_best_model=rouge_l")
    run, result = train("chatglm3", "generate.rows=2", "training.max_steps=6", *best)
    assert result.code == 0, result.err
    state = json.loads((run.last_checkpoint() / "trainer_state.json").read_text("utf-8"))
    assert (state["best_metric"], state["best_global_step"]) == (30.0, 2)


def test_without_evaluation_rows_it_is_an_error(glmtune_command, tiny, adgen_file, tmp_path):
    result = glmtune_command(
        *("train", "--model", tiny("chatglm3"), "--data", adgen_file(4), "--output", tmp_path / "run"),
        *("--set", "data.eval_fraction=0", "--set", "generate.rows=2"),
    )
    assert result.code == 1
    assert "generate.rows needs evaluation rows" in result.err


def test_a_score_that_nobody_takes_cannot_choose_the_best(train):
    run, result = train("chatglm3", "training.metric_for_best_model=rouge_l", "training.load_best_model_at_end=true")
    assert result.code == 1
    assert "training.metric_for_best_model rouge_l is a score of replies" in result.err
    assert not run.root.exists()
