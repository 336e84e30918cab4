"""`glmtune compare`: one base in memory, adapters switched in place, differences that are no chance."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from report_folders import comparison as made_up_comparison
from report_folders import forgetting as made_up_forgetting
from rich.console import Console

from glmtune.config import LoraConfig, PTuningConfig
from glmtune.errors import ConfigError, DataError, RunError
from glmtune.evaluation import model_switcher as staging
from glmtune.evaluation.candidates import list_names, open_candidates
from glmtune.evaluation.comparison import (
    compare_models,
    compare_pairs,
    default_compare_output,
    list_changed_rows,
    read_entries,
    select_common_rows,
)
from glmtune.evaluation.eval_folder import EvalFolder, read_predictions
from glmtune.evaluation.model_switcher import ModelSwitcher
from glmtune.evaluation.results import ComparisonResult, ForgettingResult
from glmtune.evaluation.statistics import compare_by_bootstrap
from glmtune.evaluation.terminal_tables import format_stars, print_comparison, print_forgetting
from glmtune.generation.reply import Sampling
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.lora import Lora
from glmtune.methods.ptuning import PTuning
from glmtune.methods.tuned_model import load_model, load_with_adapter
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.utils.console import use_console
from glmtune.utils.io import parse_dataclass


@pytest.fixture
def adapter(tiny, tmp_path):
    """`adapter(family, name, method, **options)`: a random adapter of a tiny base."""

    def make(family, name="one", method="lora", *, seed=1, scale=0.3, **options):
        found = inspect_checkpoint(tiny(family))
        torch.manual_seed(seed)
        tuner = (
            PTuning(PTuningConfig(num_virtual_tokens=3, dropout=0.0, **options))
            if method == "ptuning"
            else Lora(LoraConfig(rank=4, dropout=0.0, **options), found.family)
        )
        model = tuner.prepare(load_base(found))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
        tuner.write(model, tmp_path / name, BaseInfo(str(tiny(family)), found.fingerprint, family))
        return tmp_path / name

    return make


@pytest.fixture
def train(glmtune_command, tiny, tmp_path):
    """`train(family, data, "key=value", output=...)`: a finished run."""

    def run(family, data, *settings, output="run"):
        fast = ("training.gradient_accumulation_steps=1", "data.eval_fraction=0", "training.max_steps=1", *settings)
        result = glmtune_command(
            *("train", "--model", tiny(family), "--data", data, "--output", tmp_path / output),
            *(part for setting in fast for part in ("--set", setting)),
        )
        assert result.code == 0, result.err
        return tmp_path / output

    return run


@pytest.fixture
def run_compare(glmtune_command, tmp_path, monkeypatch):
    """`run_compare(data, *targets_and_options)`: the command's result and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(data, *more, output="out", forget=()):
        options = forget or ("--no-forget",)
        result = glmtune_command(
            *("compare", *more, "--data", data, "--output", tmp_path / output, "--max-new-tokens", 5, *options)
        )
        path = tmp_path / output / "comparison.json"
        return result, json.loads(path.read_text("utf-8")) if path.is_file() else None

    return run


def _logits(model):
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def _entries(targets, data, **options):
    return read_entries(open_candidates([str(t) for t in targets]), str(data), **options)


# Switching in place


def _loads(monkeypatch):
    """The folders that are loaded from now on."""
    loaded = []

    def load(base, *args, **kwargs):
        loaded.append(base.folder)
        return load_with_adapter(base, *args, **kwargs)

    monkeypatch.setattr(staging, "load_with_adapter", load)
    return loaded


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_switching_in_place_is_loading_anew_bit_for_bit(adapter, tiny, family, monkeypatch):
    """LoRA of several kinds (trained biases, DoRA, a whole head) and prefixes, in an order in which anything that one
    of them left behind would show in the next, and the base in between."""
    targets = [
        tiny(family),
        adapter(family, "plain"),
        adapter(family, "biases", seed=2, bias="all", dora=True, modules_to_save=["lm_head"]),
        tiny(family),
        adapter(family, "prefix", "ptuning", seed=3),
        adapter(family, "other", seed=4),
        adapter(family, "network", "ptuning", seed=5, prefix_projection=True),
        tiny(family),
    ]
    apart = [_logits(load_model(target)) for target in targets]
    loaded = _loads(monkeypatch)
    stage = ModelSwitcher()
    for candidate, expected in zip(open_candidates([str(t) for t in targets]), apart, strict=True):
        opened, info = stage.load(candidate)
        assert torch.equal(_logits(opened.model), expected), candidate.name
        assert info.adapter_digest == candidate.adapter_digest
    assert loaded == [tiny(family)]
    assert len({tuple(logits.flatten().tolist()) for logits in apart}) == 6  # three of the eight are the base


def test_every_base_is_loaded_once_and_never_two(adapter, tiny, adgen_file, tmp_path, monkeypatch):
    """Adapters of two bases in turn: all of the first base go first."""
    targets = [tiny("chatglm3"), tiny("glm4"), adapter("chatglm3", "a"), adapter("glm4", "b")]
    loaded, order = _loads(monkeypatch), []
    real = ModelSwitcher.load
    monkeypatch.setattr(ModelSwitcher, "load", lambda self, each: (order.append(each.name), real(self, each))[1])
    result = compare_models(_entries(targets, adgen_file(3)), tmp_path / "out", Sampling(3))
    assert loaded == [tiny("chatglm3"), tiny("glm4")]
    names = [each.model.name for each in result.models]
    assert order == [names[0], names[2], names[1], names[3]]
    assert [each.model.family for each in result.models] == ["chatglm3", "glm4", "chatglm3", "glm4"]


# The command


def test_a_comparison_holds_scores_differences_and_changed_rows(run_compare, adapter, tiny, adgen_file, tmp_path):
    data = adgen_file(6, "dev.json")
    targets = (tiny("chatglm3"), adapter("chatglm3"), adapter("chatglm3", "prefix", "ptuning"))
    result, found = run_compare(data, *targets)
    assert result.code == 0, result.err
    assert set(found) == {
        *("kind", "data", "models", "pairs", "changed", "forgetting", "command", "finished_at"),
    }
    assert found["kind"] == "comparison"
    assert found["data"]["rows"] == 6
    names = [tiny("chatglm3").name, "one", "prefix"]
    assert [model["model"]["name"] for model in found["models"]] == names
    folders = [tmp_path / "out" / f"{i}-{name}" for i, name in enumerate(names)]
    for folder, model in zip(folders, found["models"], strict=True):
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        assert {key: metrics[key] for key in model} == model
    records = [read_predictions(folder) for folder in folders]
    assert records[0] != records[1] != records[2]
    by_name = {(pair["score"], pair["b"]): pair for pair in found["pairs"]}
    for b in (1, 2):
        scores = [[record["scores"]["bleu4_characters"] for record in records[i]] for i in (0, b)]
        pair = by_name["bleu4_characters", b]
        assert pair["a"] == 0
        assert pair["difference"] == asdict(compare_by_bootstrap(*scores))
    assert found["forgetting"] == [None, None, None]
    row = found["changed"][0]
    assert set(row) == {"row", "where", "prompt", "reference", "replies", "scores"}
    assert row["replies"] == [models[row["row"]]["prediction"] for models in records]
    assert "ROUGE-L" in result.out
    assert (tmp_path / "out" / "report.html").is_file()
    assert found["command"].startswith("glmtune compare ")


def test_the_replies_are_those_of_an_evaluation_of_its_own(
    run_compare, adapter, tiny, adgen_file, glmtune_command, tmp_path
):
    data, folder = adgen_file(5), adapter("chatglm2", "prefix", "ptuning")
    run_compare(data, tiny("chatglm2"), folder, adapter("chatglm2"))
    for i, target in enumerate((tiny("chatglm2"), folder)):
        options = ("--max-new-tokens", 5, "--output", tmp_path / f"alone-{i}")
        assert glmtune_command("eval", target, "--data", data, *options).code == 0
        name = target.name
        assert (tmp_path / "out" / f"{i}-{name}" / "predictions.jsonl").read_bytes() == (
            tmp_path / f"alone-{i}" / "predictions.jsonl"
        ).read_bytes()


def test_a_killed_comparison_goes_on_and_a_finished_one_is_read(
    run_compare, adapter, tiny, adgen_file, monkeypatch, tmp_path
):
    data, one = adgen_file(6), adapter("chatglm3")
    targets = (tiny("chatglm3"), one, "--batch-size", 2)
    _, whole = run_compare(data, *targets, output="whole")
    real, count = EvalFolder.add, 0

    def add(self, records, seconds):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        real(self, records, seconds)

    monkeypatch.setattr(EvalFolder, "add", add)
    killed, _ = run_compare(data, *targets)
    assert killed.code == 130
    assert "give the same command again" in killed.err
    monkeypatch.setattr(EvalFolder, "add", real)
    resumed, found = run_compare(data, *targets)
    assert "evaluated before" in resumed.err
    assert "2 of 6 rows are answered already" in resumed.err
    assert (found["pairs"], found["changed"]) == (whole["pairs"], whole["changed"])
    monkeypatch.setattr(EvalFolder, "add", add)  # would raise
    count = 4
    again, found = run_compare(data, *targets)
    assert again.code == 0, again.err
    assert found["pairs"] == whole["pairs"]
    assert found["models"][0].keys() == whole["models"][0].keys()


def test_an_evaluation_of_the_run_is_taken_over(run_compare, train, tiny, adgen_file, glmtune_command, tmp_path):
    data = adgen_file(4)
    run = train("chatglm3", data)
    assert glmtune_command("eval", run, "--data", data, "--max-new-tokens", 5).code == 0
    result, found = run_compare(data, tiny("chatglm3"), run)
    assert result.code == 0, result.err
    assert f"{run / 'eval' / 'train'}: evaluated before; its replies are reused." in result.err
    assert found["models"][1]["command"].startswith("glmtune eval ")
    assert (tmp_path / "out" / "1-run" / "predictions.jsonl").is_file()
    other, found = run_compare(data, tiny("chatglm3"), run, "--limit", 2, output="other")
    assert "are reused" not in other.err
    assert found["data"]["rows"] == 2


def test_forgetting_is_part_of_a_comparison(run_compare, adapter, tiny, adgen_file):
    targets = (tiny("chatglm3"), adapter("chatglm3", scale=1.0), tiny("chatglm3"), tiny("glm4"))
    result, found = run_compare(
        adgen_file(3), *targets, "--set", "data.max_target_length=5", forget=("--forget-limit", 5)
    )
    assert result.code == 0, result.err  # a comparison is no gate
    first, second, same, other = found["forgetting"]
    assert first is None  # the baseline
    assert same is None  # it is the baseline
    assert other is None  # reads other ids
    assert second["items"] == 5
    assert second["kl"] > 0
    assert second["tuned"]["name"] == "one"
    assert f"Forgetting, one: {second['verdict'].upper()}" in result.out


def test_a_prefix_is_the_runs_own_and_the_other_rules_the_first_runs(train, tiny, adgen_file, tmp_path):
    data = adgen_file(4)
    first = train("chatglm3", data, "data.max_source_length=40", "data.prefix=类型", output="first")
    second = train("chatglm3", data, "data.max_source_length=24", "data.prefix=问", output="second")
    candidates = open_candidates([str(each) for each in (tiny("chatglm3"), first, second)])
    with (tmp_path / "messages").open("w") as stream, use_console(Console(file=stream, soft_wrap=True)):
        entries = read_entries(candidates, str(data))
    assert [entry.data.rules.max_source_length for entry in entries] == [40, 40, 40]
    assert [entry.data.rules.prefix for entry in entries] == ["", "类型", "问"]
    question = entries[0].data.rows[0].prompt[0]["content"]
    assert entries[2].data.rows[0].prompt[0]["content"] == f"问{question}"
    assert "data settings of first; second had others" in (tmp_path / "messages").read_text()


def test_where_a_comparison_goes(train, tiny, adapter, adgen_file):
    data = adgen_file(3)
    run, one = train("chatglm3", data), adapter("chatglm3")
    with_run = default_compare_output(_entries([tiny("chatglm3"), run], data), Sampling(5))
    assert with_run.parent == run / "eval"
    assert with_run.name.startswith("compare-train-")
    plain = [_entries([tiny("chatglm3"), one], data), _entries([one, tiny("chatglm3")], data)]
    first, second = (default_compare_output(entries, Sampling(5)) for entries in plain)
    assert first.parts[0] == "evals"
    assert first != second
    assert default_compare_output(_entries([tiny("chatglm3"), one], data), Sampling(5)) == first
    assert default_compare_output(plain[0], Sampling(6)) != first


def test_a_bare_base_is_held_as_its_adapter_holds_it(train, tiny, adgen_file):
    run = train("chatglm3", adgen_file(3), "model.quantization=packed8", "method=ptuning")
    held = open_candidates([str(tiny("chatglm3")), str(run)])
    assert [each.target.quantization for each in held] == ["packed8", "packed8"]
    assert held[0].base_key == held[1].base_key
    asked = open_candidates([str(tiny("chatglm3")), str(run)], quantization="packed4")
    assert [each.target.quantization for each in asked] == ["packed4", "packed4"]


# Numbers


def _records(scores, name="rouge_l"):
    return [
        {"row": i, "where": f"f:{i}", "prompt": [], "reference": "r", "prediction": f"{s}", "scores": {name: s}}
        for i, s in enumerate(scores)
    ]


def test_a_real_gain_is_significant_and_noise_is_not():
    torch.manual_seed(0)
    base = (50 + 10 * torch.randn(200)).tolist()
    noise = (50 + 10 * torch.randn(200)).tolist()
    better, same = compare_pairs(
        [_records(base), _records([s + 5 + n / 25 for s, n in zip(base, noise, strict=True)]), _records(noise)]
    )
    assert better.difference.p < 0.001
    assert better.difference.wins == 200
    assert same.difference.p > 0.05
    assert (format_stars(0.0009), format_stars(0.005), format_stars(0.03), format_stars(0.05)) == ("***", "**", "*", "")


def test_scores_that_some_rows_lack_are_paired_where_both_have_them():
    one, other = _records([10.0, 20.0, 30.0]), _records([20.0, 20.0, 20.0])
    one[0]["scores"]["tool_name"] = other[0]["scores"]["tool_name"] = 100.0
    one[1]["scores"]["tool_name"] = 0.0
    one[2]["scores"]["only_here"] = 0.0
    found = {pair.score: pair.difference for pair in compare_pairs([one, other])}
    assert set(found) == {"rouge_l", "tool_name"}
    assert (found["tool_name"].ties, found["tool_name"].wins) == (1, 0)
    assert [getattr(found["rouge_l"], key) for key in ("wins", "losses", "ties")] == [1, 1, 1]


def test_rows_that_changed_most_come_first():
    models = [_records([10.0, 20.0, 30.0, 40.0]), _records([11.0, 20.0, 0.0, 45.0]), _records([10.0, 20.0, 30.0, 90.0])]
    assert [row.row for row in list_changed_rows(models)] == [3, 2, 0]  # row 1 has one reply
    assert [row.row for row in list_changed_rows(models, limit=1)] == [3]


def test_rows_that_one_model_lacks_are_left_out():
    one, other = _records([1.0, 2.0, 3.0]), _records([1.0, 2.0, 3.0])[1:]
    assert [[record["row"] for record in records] for records in select_common_rows([one, other])] == [[1, 2], [1, 2]]


def test_the_table_tells_better_from_worse(tmp_path):
    console = Console(file=(tmp_path / "out").open("w"), width=200, soft_wrap=True)
    compared = made_up_comparison()
    compared["changed"][0]["replies"][0] = "长" * 120 + "尾"
    with use_console(console):
        print_comparison(parse_dataclass(ComparisonResult, compared))
    probed = made_up_forgetting("fail")
    probed["accuracy"]["by_category"] = {"code": {"base": 0.91, "tuned": 0.55}}
    with use_console(console):
        print_forgetting(parse_dataclass(ForgettingResult, probed))
    console.file.close()
    out = (tmp_path / "out").read_text()
    assert "25.08 +5.08 ***  2/1/0" in out
    assert "尾" in out  # long texts are wrapped, not cut
    assert '<script>alert("x")</script>' in out
    assert "Forgetting, ads: FAIL" in out
    assert "81.2%" in out
    assert "55%" in out
    assert "nats per token from the base" in out


def test_names_are_short_and_different(tmp_path):
    for folder in ("x/model-a", "y/model-a", "z/b"):
        (tmp_path / folder).mkdir(parents=True)
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (run / "config.yaml").write_text("model: m\ndata: d\n")
    folders = [tmp_path / each for each in ("x/model-a", "y/model-a", "z/b")]
    assert list_names([*map(str, folders), "org/name"]) == ["x/model-a", "y/model-a", "b", "org/name"]
    assert list_names([str(folders[2]), str(folders[2])]) == ["z/b", "z/b (2)"]
    assert list_names([str(run), str(run / "checkpoints" / "checkpoint-5")]) == ["run", "run/checkpoint-5"]
    assert list_names([str(run / "adapter")]) == ["run"]


# Bad input


def test_one_model_is_no_comparison(run_compare, tiny, adgen_file):
    result, found = run_compare(adgen_file(2), tiny("chatglm3"))
    assert result.code == 1
    assert "one model was given" in result.err
    assert found is None


def test_different_generations_are_compared_and_it_is_said(run_compare, tiny, adgen_file):
    result, found = run_compare(adgen_file(3), tiny("chatglm3"), tiny("chatglm"))
    assert result.code == 0, result.err
    assert "Different generations (" in result.err
    assert "the same rows, each in its own prompt" in result.err
    assert found["data"]["rows"] == 3
    assert {model["model"]["family"] for model in found["models"]} == {"chatglm", "chatglm3"}


def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(tiny, train, adapter, adgen_file, monkeypatch):
    loaded = _loads(monkeypatch)
    data = adgen_file(3)
    run = train("chatglm3", data)
    (run / "adapter" / "adapter_config.json").unlink()
    (run / "adapter" / "glmtune.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        _entries([tiny("chatglm3"), run], data)
    with pytest.raises(RunError, match="was trained on a base with fingerprint"):
        open_candidates([str(tiny("glm4")), str(adapter("chatglm3"))], base=str(tiny("glm4")))
    empty = data.with_name("empty.json")
    empty.write_text("")
    with pytest.raises(DataError):
        _entries([tiny("chatglm3"), tiny("glm4")], empty)
    with pytest.raises(ConfigError, match="no such setting"):
        open_candidates([str(tiny("glm4"))], overrides=["lora.rank=3"])
    assert loaded == []


def test_rows_that_no_two_models_share(tiny, adgen_file, tmp_path):
    """Cut under one tokenizer and kept under another: nothing is left to compare."""
    entries = _entries([tiny("chatglm3"), tiny("glm4")], adgen_file(4))
    entries[0].data.rows[2:] = []
    entries[1].data.rows[:2] = []
    with pytest.raises(DataError, match="no row is left that all models can answer"):
        compare_models(entries, tmp_path / "out", Sampling(2))


def test_a_folder_with_another_comparison_is_refused(run_compare, tiny, adapter, adgen_file):
    targets = tiny("chatglm3"), adapter("chatglm3")
    run_compare(adgen_file(3), *targets)
    result, _ = run_compare(adgen_file(4, "other.json"), *targets)
    assert result.code == 1
    assert "Choose another --output" in result.err
