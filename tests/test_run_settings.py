"""Settings of a run that are checked, or honoured, before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from glmtune.config import DataConfig, GenerateConfig, RunConfig, load_config
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass
from glmtune.errors import ConfigError
from glmtune.evaluation.metrics import score_pair
from glmtune.evaluation.scoring import score_tools
from glmtune.families import ToolCall, detect_family
from glmtune.migrate import require_translation
from glmtune.models.tokenizers import load_tokenizer
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments
from glmtune.training.best_metric import FAULTS, QUALITY
from glmtune.training.generated import make_generated_scores
from glmtune.training.plan.workload import _draw_batches
from glmtune.training.samplers import EpochSampler
from glmtune.training.training_data import _split_rows


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


def test_a_score_of_tool_calls_needs_a_row_that_calls_one(tiny, tmp_path):
    folder = tiny("chatglm3")
    family, tokenizer = detect_family(folder), load_tokenizer(folder)
    user = {"role": "user", "content": "问"}
    answer = family.encode([user, {"role": "assistant", "content": "答"}], tokenizer)
    call = family.encode([user, {"role": "tool", "name": "f", "parameters": {"a": 1}}], tokenizer)
    arguments = make(tmp_path, metric_for_best_model="tool_name")

    def make_scores(*rows):
        blocks = SimpleNamespace(blocks=[[number] for number in range(len(rows))], rows=rows)
        generate = GenerateConfig(rows=4)
        data = SimpleNamespace(eval=blocks)
        return make_generated_scores(generate, data, family, tokenizer, arguments, lambda *_, **__: [])

    assert make_scores(answer, call).count == 2
    with pytest.raises(ConfigError, match="no answer among the 1 sampled evaluation row calls a tool"):
        make_scores(answer)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_number_of_evaluation_rows(count):
    conversations = np.repeat(np.arange(10), 2)  # two rows of each
    train, held_out = _split_rows(conversations, DataConfig(eval_rows=count, eval_fraction=0), seed=1)
    assert len(set(conversations[held_out])) == count
    assert not set(conversations[train]) & set(conversations[held_out])
    assert len(train) + len(held_out) == 20


def test_evaluation_rows_that_leave_nothing_or_are_given_twice():
    with pytest.raises(ConfigError, match=r"data.eval_rows is 10; there are 10 conversations"):
        _split_rows(np.arange(10), DataConfig(eval_rows=10), seed=1)
    config = load_config(None, ["model=m", "data=d", "data.eval=e", "data.eval_rows=3"])
    with pytest.raises(ConfigError, match="both name evaluation rows"):
        check_config(config)


@pytest.mark.parametrize(
    ("size", "expected"), [("0.1", (0.1, None)), ("500", (0, 500)), ("500.0", (0, 500)), ("0", (0, None))]
)
def test_val_size_of_llama_factory(size, expected, tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(
        f"stage: sft\nmodel_name_or_path: m\ndataset: d\ntemplate: chatglm3\nfinetuning_type: lora\n"
        f"val_size: {size}\neval_strategy: steps\neval_steps: 5\noutput_dir: o\n",
        "utf-8",
    )
    translation = require_translation([str(path)])
    config = build_dataclass(RunConfig, translation.tree, "test")
    check_config(config)
    assert (config.data.eval_fraction, config.data.eval_rows) == expected
    assert config.training["eval_strategy"] == ("no" if size == "0" else "steps")


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
