"""A job as it runs: the best evaluation, the time left, one stream for all windows of a browser."""

from __future__ import annotations

import json
import os
import time

import pytest
import yaml

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune.config import RunConfig, config_to_dict
from glmtune.run_dir import RunDir
from glmtune.training.best_metric import FAULTS, QUALITY, find_best_step
from glmtune.webui.app import make_context
from glmtune.webui.jobs import Job
from glmtune.webui.training_view import describe_charts, make_curves, read_training

ENTRIES = [
    {"step": 1, "loss": 3.0, "learning_rate": 1e-4, "grad_norm": 1.0},
    {"step": 2, "eval_loss": 2.0, "eval_rouge_1": 10.0, "eval_empty": 3.0, "eval_reward": 0.1, "eval_margin": 0.5},
    {"step": 4, "eval_loss": 1.5, "eval_rouge_1": 30.0, "eval_empty": 1.0, "eval_reward": 0.9, "eval_margin": 0.1},
    {"step": 6, "eval_loss": 1.8, "eval_rouge_1": 20.0, "eval_empty": 2.0, "eval_reward": 0.5, "eval_margin": 0.1},
]


@pytest.fixture
def context(tmp_path):
    return make_context([tmp_path], "en")


def make_run(context, name="r", **training) -> RunDir:
    run = RunDir(context.roots[0] / name)
    run.root.mkdir()
    run.config.write_text(yaml.safe_dump({"model": "base", "data": "rows.json", "training": training}))
    for entry in ENTRIES:
        run.append_metrics(entry)
    return run


def add_job(context, run: RunDir, state="finished", owner="me", id="j1") -> Job:
    context.jobs._write(Job(id, "train", ["train"], str(run.root), owner, state, 1.0, 1.0, 2.0))
    return context.jobs.get(id)


@pytest.mark.parametrize(
    ("training", "stage", "best"),
    [
        ({}, "sft", ("loss", 4)),
        ({"metric_for_best_model": "eval_rouge_1"}, "sft", ("rouge_1", 4)),
        ({"metric_for_best_model": "rouge_1", "greater_is_better": False}, "sft", ("rouge_1", 2)),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, "sft", ("loss", 2)),
        ({"metric_for_best_model": "empty"}, "sft", ("empty", 4)),
        ({"metric_for_best_model": "margin"}, "dpo", ("margin", 2)),
        ({}, "grpo", ("reward", 4)),
        ({"metric_for_best_model": "exact_match"}, "sft", ("exact_match", None)),
    ],
)
def test_the_best_checkpoint_is_that_of_the_runs_metric(training, stage, best):
    assert find_best_step(ENTRIES, {"training": training, "stage": stage}) == best


@pytest.mark.parametrize("metric", ["loss", *QUALITY, *FAULTS])
def test_the_direction_is_the_trainers(metric, tmp_path):
    """Where two evaluations differ, the page marks the one that transformers would keep."""
    import torch

    from glmtune.training.arguments import make_arguments

    config = RunConfig(training={"metric_for_best_model": metric, "use_cpu": True, "report_to": "none"})
    config.generate.rows = 2
    arguments = make_arguments(config, RunDir(tmp_path), torch.float32)
    entries = [{"step": step, f"eval_{metric}": value} for step, value in ((1, 1.0), (2, 2.0))]
    assert find_best_step(entries, config_to_dict(config))[1] == (2 if arguments.greater_is_better else 1)


def test_the_best_metrics_curve_is_drawn_and_named(context):
    run = make_run(context, metric_for_best_model="rouge_1")
    view = read_training(add_job(context, run))
    curves = make_curves(view.entries, view.config)
    assert (curves["best"], curves["metric"]) == (4, "eval_rouge_1")
    assert curves["curves"]["eval_rouge_1"] == [[2, 4, 6], [10.0, 30.0, 20.0]]
    assert {"loss", "eval_loss", "learning_rate", "grad_norm"} <= set(curves["curves"])
    charts = describe_charts("en", view.config)
    assert sum("eval_rouge_1" in group["names"] for group in charts["groups"]) == 1
    assert charts["labels"]["eval_rouge_1"] == "ROUGE-1 (evaluation)"
    assert "eval_rouge_1" not in describe_charts("en")["labels"]


def test_the_time_left_counts_down_between_two_reports_of_the_training(context):
    run = make_run(context)
    run.write_progress("training", step=6, max_steps=40, eta_seconds=75.0)
    job = add_job(context, run)
    assert read_training(job).eta == "0:01:15"
    past = time.time() - 30
    os.utime(run.progress, (past, past))
    assert read_training(job).eta == "0:00:45"
    os.utime(run.progress, (past - 600, past - 600))
    assert read_training(job).eta == "0:00:00"


def test_one_stream_has_the_messages_of_several_jobs_and_ends_with_them(context):
    add_job(context, make_run(context, "a"), id="a")
    add_job(context, make_run(context, "b"), id="b", state="failed")
    page = PageClient(context)
    answer = page.get("/jobs/live?id=a&id=b&id=gone&id=../x")
    assert answer.headers["content-type"].startswith("text/event-stream")
    messages = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    ends = {message["job"]: message["data"]["state"] for message in messages if message["kind"] == "end"}
    assert ends == {"a": "finished", "b": "failed", "gone": "", "../x": ""}
    assert {message["kind"] for message in messages if message["job"] == "a"} == {"part", "curves", "progress", "end"}


def test_a_job_of_another_browser_is_stopped_after_a_question_that_says_so(context, monkeypatch):
    monkeypatch.setattr(type(context.jobs), "_start", lambda self, job: None)  # it stays in the queue
    page, other = PageClient(context), PageClient(context)
    context.roots[0].joinpath("rows.json").write_text("[]")
    context.roots[0].joinpath("base").mkdir()
    answer = page.post("/train/start", {"model.path": "base", "data.train": "rows.json", "method": "lora"})
    place = answer.headers["HX-Redirect"].partition("#")[0]
    assert "Another browser started this." not in page.get(place).text
    assert "Another browser started this." in other.get(place).text
    id = context.jobs.list()[0].id
    assert other.post(f"/jobs/{id}/stop").status_code == 200
    assert context.jobs.get(id).state == "stopped"
