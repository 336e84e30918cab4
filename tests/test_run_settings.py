"""Settings of a run that are checked, or honoured, before anything is loaded."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import ConfigError
from glmtune.evaluation.metrics import score_pair
from glmtune.evaluation.scoring import score_tools
from glmtune.families import ToolCall
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments
from glmtune.training.best_metric import FAULTS, QUALITY
from glmtune.training.plan.workload import _draw_batches
from glmtune.training.samplers import EpochSampler


def make(tmp_path, **training):
    config = RunConfig()
    config.generate.rows = training.pop("rows", 2)
    config.training = {**config.training, **training}
    return make_arguments(config, RunDir(tmp_path / "run"), torch.float32)


@pytest.mark.parametrize(
    ("metric", "hint"), [("rogue_l", "rouge_l"), ("eval_rouge_I", "rouge_l"), ("accuracy", "Known: "), (3, "Known: ")]
)
def test_an_unknown_metric_of_the_best_checkpoint_is_found_first(metric, hint, tmp_path):
    with pytest.raises(ConfigError, match="metric") as caught:
        make(tmp_path, metric_for_best_model=metric)
    assert "training.metric_for_best_model" in caught.value.message
    assert hint in caught.value.hint or metric == 3


def test_a_misspelt_metric_ends_a_command_before_the_base_is_read(glmtune_command, tiny, adgen_file, tmp_path):
    result = glmtune_command(
        *("train", "--model", tiny("chatglm2"), "--data", adgen_file(4), "--output", tmp_path / "run"),
        *("--set", "generate.rows=2", "--set", "training.metric_for_best_model=rogue_l"),
    )
    assert result.code == 1
    assert "there is no metric" in result.err
    assert "Did you mean rouge_l?" in result.err
    assert "rows" not in result.out  # nothing was encoded
    assert not (tmp_path / "run").exists()


def test_every_score_of_replies_is_known():
    call = ToolCall("f", {"a": 1})
    names = {*score_pair("你好吗", "你好啊"), *score_tools([call], [call])}
    assert names == {*QUALITY, *FAULTS, "length_ratio"}


def test_less_of_a_fault_is_better(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    assert make(tmp_path, metric_for_best_model="truncated", **best).greater_is_better is False
    assert make(tmp_path, metric_for_best_model="eval_rouge_l", **best).greater_is_better is True
    assert make(tmp_path, metric_for_best_model="empty", greater_is_better=True, **best).greater_is_better is True


class Blocks:
    lengths = (5, 9, 3, 7, 4, 8)


@pytest.mark.parametrize(("seeds", "expected"), [({"seed": 1}, 1), ({"seed": 1, "data_seed": 7}, 7)])
def test_a_plan_draws_the_batches_of_the_training(seeds, expected, tmp_path):
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=2, **seeds)
    batches = list(_draw_batches(Blocks(), arguments, 1, 3))
    assert [number for batch in batches for number in batch] == list(EpochSampler(Blocks.lengths, expected, None))


def test_a_plan_of_rows_in_their_order(tmp_path):
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=2, train_sampling_strategy="sequential")
    assert list(_draw_batches(Blocks(), arguments, 1, 4)) == [[0, 1], [2, 3], [4, 5], [0, 1]]
