"""`glmtune eval`: every trained turn answered under training's prompts, scored, and never done twice."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from importlib.resources import as_file, files

import pytest
from filelock import FileLock

from glmtune.config import DataConfig, load_config
from glmtune.data.sources import open_source
from glmtune.errors import DataError
from glmtune.evaluation import evaluate as evaluation
from glmtune.evaluation.dataset import read_eval_data
from glmtune.evaluation.eval_folder import EvalFolder, read_predictions
from glmtune.evaluation.evaluate import summarize_records
from glmtune.evaluation.metrics import measure_variety, score_pair
from glmtune.evaluation.model_info import load_target
from glmtune.evaluation.results import EvaluationResult
from glmtune.evaluation.scoring import score_questions, score_reply
from glmtune.evaluation.statistics import compare_by_bootstrap, summarize_scores
from glmtune.families import detect_family
from glmtune.generation import batched
from glmtune.generation.batched import GeneratedReply
from glmtune.generation.load import load_for_generation
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.models.tokenizers import load_tokenizer
from glmtune.run_dir import RunDir
from glmtune.training.generated import GeneratedScores, sample_questions
from glmtune.training.training_data import prepare_data
from tiny import FAMILIES


@pytest.fixture
def rows_file(tmp_path):
    """`rows_file([{...}, ...])`: a JSON-lines file."""

    def write(rows, name="dev.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.fixture
def run_eval(glmtune_command, tiny, tmp_path):
    """`run_eval(data, *options, target=..., output=...)`: the command's result and its folder."""

    def run(data, *options, target=None, output="out", tokens=6):
        folder = tmp_path / output
        target = tiny("chatglm3") if target is None else target
        more = ("--max-new-tokens", tokens, *options)
        return glmtune_command("eval", target, "--data", data, "--output", folder, *more), folder

    return run


@pytest.fixture
def train(glmtune_command, tiny, tmp_path):
    """`train(family, data, "key=value", ...)`: a finished run."""

    def run(family, data, *settings, output="run", eval_data=None):
        fast = ("training.logging_steps=1", "training.gradient_accumulation_steps=1", "lora.dropout=0", *settings)
        more = ("--eval-data", eval_data) if eval_data else ()
        model = tiny(family) if family in FAMILIES else family
        result = glmtune_command(
            *("train", "--model", model, "--data", data, "--output", tmp_path / output, *more),
            *(part for setting in fast for part in ("--set", setting)),
        )
        assert result.code == 0, result.err
        return RunDir(tmp_path / output)

    return run


def _chat(*turns, **more):
    """`_chat("question", "answer", ...)` as a row of messages."""
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)], **more}


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def _data(path, opened, **config):
    return read_eval_data(str(path), DataConfig(**config), opened.family, opened.tokenizer)


# The folder


def test_the_folder_holds_replies_in_the_order_of_the_data_and_their_scores(run_eval, adgen_file, tiny):
    data = adgen_file(9, "dev.json")
    result, folder = run_eval(data, "--batch-size", 4)
    assert result.code == 0, result.err
    records, metrics = read_predictions(folder), _metrics(folder)
    assert [record["where"] for record in records] == [f"{data}:{line}" for line in range(1, 10)]
    assert [record["row"] for record in records] == list(range(9))

    answers = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    opened = load_for_generation(str(tiny("chatglm3")))
    for record, answer in zip(records, answers, strict=True):
        assert record["prompt"] == [{"role": "user", "content": answer["content"]}]
        assert record["reference"] == answer["summary"]
        reply = generate_reply(opened.model, opened.tokenizer, opened.family, record["prompt"], sampling=Sampling(6))
        assert record["prediction"] == reply.content
        cut = record["stop"] == "length"
        assert record["scores"] == score_pair(record["prediction"], answer["summary"], truncated=cut)
        assert record["prompt_tokens"] == len(opened.family.encode_prompt(record["prompt"], opened.tokenizer))

    assert metrics["scores"] == {
        n: asdict(s) for n, s in summarize_scores([r["scores"] for r in records]).scores.items()
    }
    assert metrics["variety"] == measure_variety(record["prediction"] for record in records)
    assert metrics["data"]["rows"] == 9
    assert metrics["data"]["digest"].startswith(open_source(data).compute_digest()[:16])
    assert metrics["model"]["family"] == "chatglm3"
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["sampling"]["max_new_tokens"] == 6
    assert "--batch-size 4" in metrics["command"]
    lines = (folder / "generated_predictions.txt").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"labels": record["reference"], "predict": record["prediction"]} for record in records
    ]
    assert not (folder / "predictions.partial.jsonl").exists()
    assert "BLEU-4, characters (as ChatGLM's tables)" in result.out
    assert f"{metrics['scores']['rouge_l']['mean']:.2f}" in result.out


def test_batch_size_changes_nothing(run_eval, adgen_file):
    data = adgen_file(7)
    _, one = run_eval(data, "--batch-size", 1, output="one")
    _, many = run_eval(data, "--batch-size", 5, output="many")
    assert (one / "predictions.jsonl").read_bytes() == (many / "predictions.jsonl").read_bytes()
    assert _metrics(one)["scores"] == _metrics(many)["scores"]
    assert _metrics(one)["loss"] == pytest.approx(_metrics(many)["loss"], abs=1e-6)


def test_limit_takes_the_first_conversations(run_eval, adgen_file):
    data = adgen_file(8)
    _, some = run_eval(data, "--limit", 3, output="some")
    _, all = run_eval(data, output="all")
    assert read_predictions(some) == read_predictions(all)[:3]
    assert _metrics(some)["loss_tokens"] < _metrics(all)["loss_tokens"]


# Killed and started again


def _killed_after(monkeypatch, batches):
    """Ctrl-C once so many batches are kept."""
    real, count = EvalFolder.add, 0

    def add(self, records, seconds):
        nonlocal count
        if count == batches:
            raise KeyboardInterrupt
        count += 1
        real(self, records, seconds)

    monkeypatch.setattr(EvalFolder, "add", add)


@pytest.mark.parametrize("sampled", [(), ("--temperature", 0.9, "--seed", 3)], ids=["greedy", "sampled"])
def test_a_killed_evaluation_goes_on_and_ends_the_same(run_eval, adgen_file, monkeypatch, sampled):
    data = adgen_file(10)
    _, whole = run_eval(data, "--batch-size", 3, *sampled, output="whole")
    with monkeypatch.context() as patch:
        _killed_after(patch, 2)
        assert run_eval(data, "--batch-size", 3, *sampled)[0].code == 130

    answered = []
    real = batched._generate_batch

    def counted(model, tokenizer, family, prompts, *args):
        answered.extend(prompts)
        return real(model, tokenizer, family, prompts, *args)

    monkeypatch.setattr(batched, "_generate_batch", counted)
    result, folder = run_eval(data, "--batch-size", 3, *sampled)
    assert result.code == 0, result.err
    assert len(answered) == 4, "six rows were answered before"
    assert "6 of 10 rows are answered already" in result.err
    assert (folder / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert _metrics(folder)["scores"] == _metrics(whole)["scores"]


def test_a_line_cut_short_by_the_kill_is_done_again(run_eval, adgen_file, monkeypatch):
    data = adgen_file(10)
    _, whole = run_eval(data, "--batch-size", 3, output="whole")
    with monkeypatch.context() as patch:
        _killed_after(patch, 2)
        assert run_eval(data, "--batch-size", 3)[0].code == 130
    partial = whole.parent / "out" / "predictions.partial.jsonl"
    written = partial.read_bytes()
    partial.write_bytes(written[:-40])
    result, folder = run_eval(data, "--batch-size", 3)
    assert "3 of 10 rows are answered already" in result.err
    assert (folder / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_a_folder_that_another_process_fills_or_none_can_be_made_in(run_eval, adgen_file, tmp_path):
    data = adgen_file(2)
    (tmp_path / "busy").mkdir()
    with FileLock(tmp_path / "busy" / ".lock"):
        result, _ = run_eval(data, output="busy")
    assert result.code == 1
    assert "another process is evaluating" in result.err
    (tmp_path / "file").write_text("")
    result, _ = run_eval(data, output="file")
    assert result.code == 1
    assert f"{tmp_path / 'file'}: a file, not a folder" in result.err


def test_a_finished_evaluation_is_read_not_repeated(run_eval, adgen_file, monkeypatch):
    data = adgen_file(4)
    first, _ = run_eval(data)
    monkeypatch.setattr(batched, "_generate_batch", None)
    again, _ = run_eval(data)
    assert again.code == 0, again.err
    assert again.out == first.out
    assert "evaluated before" in again.err


def test_the_default_folder_of_a_model_is_found_again(glmtune_command, tiny, adgen_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = adgen_file(6, "my.dev.json")
    command = ("eval", tiny("chatglm2"), "--data", data, "--max-new-tokens", 4, "--batch-size", 2)
    with monkeypatch.context() as patch:
        _killed_after(patch, 1)
        stopped = glmtune_command(*command)
        assert stopped.code == 130
        assert "give the same command again" in stopped.err
    (killed,) = (tmp_path / "evals").iterdir()
    assert killed.name.startswith("chatglm2-safetensors-my.dev-")
    assert glmtune_command(*command).code == 0
    assert list((tmp_path / "evals").iterdir()) == [killed]
    assert len(read_predictions(killed)) == 6
    shutil.rmtree(killed)


def test_replies_to_other_data_are_refused_by_name(run_eval, adgen_file):
    first, second = adgen_file(4, "first.json"), adgen_file(4, "second.json", seed=9)
    run_eval(first)
    result, folder = run_eval(second)
    assert result.code == 1
    assert f"{folder / 'predictions.jsonl'}: replies to {first}, not to {second}." in result.err
    assert len(result.err.strip().splitlines()[-2:]) == 2
    assert "Traceback" not in result.err


@pytest.mark.parametrize("killed", [False, True])
def test_other_settings_are_refused(run_eval, adgen_file, monkeypatch, killed, tiny):
    data = adgen_file(4)
    if killed:
        with monkeypatch.context() as patch:
            _killed_after(patch, 1)
            assert run_eval(data, "--batch-size", 2)[0].code == 130
    else:
        run_eval(data)
    result, _ = run_eval(data, tokens=7)
    assert result.code == 1
    assert '"max_new_tokens": 6' in result.err
    assert run_eval(data, target=tiny("chatglm2"))[0].code == 1


def test_the_same_rows_under_another_name_are_the_same_data(run_eval, adgen_file, tmp_path):
    data = adgen_file(3)
    run_eval(data)
    copy = shutil.copy(data, tmp_path / "copy.json")
    assert "evaluated before" in run_eval(copy)[0].err


# Which rows, which prompts


def test_every_trained_turn_is_a_row_with_the_data_s_own_history(run_eval, rows_file, tiny):
    talk = _chat("一", "二", "三", "四", "五", "六")
    talk["conversations"][3]["loss"] = False
    data = rows_file([_chat("甲", "乙"), talk])
    _, folder = run_eval(data)
    records = read_predictions(folder)
    assert [(r["row"], r["reference"], len(r["prompt"])) for r in records] == [(0, "乙", 1), (1, "二", 1), (2, "六", 5)]
    assert records[2]["prompt"][1]["content"] == "二", "not what the model said there"
    family, tokenizer = detect_family(tiny("chatglm3")), load_tokenizer(tiny("chatglm3"))
    assert [r["prompt_tokens"] for r in records] == [len(family.encode_prompt(r["prompt"], tokenizer)) for r in records]
    assert records[2]["where"] == f"{data}:2"
    _, last = run_eval(data, "--set", "data.train_on=last", output="last")
    assert [record["reference"] for record in read_predictions(last)] == ["乙", "六"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_cut_as_in_training(family, rows_file, tiny):
    opened = load_for_generation(str(tiny(family)))
    long = "很长的问题" * 40
    data = _data(
        rows_file([_chat("旧问题" * 20, "旧答案" * 20, "新问题", "答案"), _chat(long, "答案")]),
        opened,
        max_source_length=64,
        prefix="请答：",
    )
    config = load_config(None, [f"data.train={data.path}", "data.max_source_length=64", "data.prefix=请答："])
    config.data.eval_fraction, config.data.packing, config.data.train_on = 0, False, "last"
    rows = prepare_data(config, opened.family, opened.tokenizer)
    trained = [list(rows.train.rows[i].input_ids) for i in range(2)]
    by_turn = {row.row: row for row in data.rows}
    for turn, whole in ((1, trained[0]), (2, trained[1])):
        prompt = by_turn[turn].prompt_ids
        assert len(prompt) <= 64
        assert whole[: len(prompt)] == prompt
        answer = opened.family.encode_answer({"role": "assistant", "content": "答案"}, opened.tokenizer)
        assert whole[len(prompt) :] == answer
    assert data.counts.turns_dropped == 1
    assert data.counts.prompts_cut >= 1
    assert by_turn[1].prompt[0]["content"].startswith("请答：")


def test_a_run_brings_its_own_settings_and_takes_others(train, run_eval, rows_file, adgen_file, glmtune_command):
    run = train("chatglm3", adgen_file(8), "training.max_steps=2", "data.prefix=写：", "data.max_target_length=9")
    data = rows_file([{"content": "类型#上衣", "summary": "好看的上衣"}] * 2)
    result = glmtune_command("eval", run.root, "--data", data)
    assert result.code == 0, result.err
    folder = run.root / "eval" / "dev"
    assert _metrics(folder)["sampling"]["max_new_tokens"] == 9
    assert _metrics(folder)["model"]["adapter"] == str(run.adapter)
    (record, _) = read_predictions(folder)
    assert record["prompt"][0]["content"] == "写：类型#上衣"
    _, folder = run_eval(data, target=run.adapter, output="adapter", tokens=9)
    assert [r["prediction"] for r in read_predictions(folder)] == [record["prediction"]] * 2
    _, folder = run_eval(data, "--set", "data.prefix=", target=run.root, output="bare")
    assert read_predictions(folder)[0]["prompt"][0]["content"] == "类型#上衣"
    for wrong in ("lora.rank=3", "data.train=x", "data.colums={}"):
        result, _ = run_eval(data, "--set", wrong)
        assert result.code == 1
        assert "an evaluation has no such setting" in result.err


def test_other_columns_and_a_config_beside_the_model(run_eval, rows_file, tmp_path, monkeypatch, tiny):
    data = rows_file([{"frage": "类型#上衣", "antwort": "上衣"}])
    assert run_eval(data)[0].code == 1
    shutil.copytree(tiny("chatglm3"), tmp_path / "models" / "base")
    (tmp_path / "models" / "config.yaml").write_text("data: {prefix: 'wrong'}\n")
    result, folder = run_eval(
        data, "--set", "data.columns={prompt: frage, response: antwort}", target=tmp_path / "models" / "base"
    )
    assert result.code == 0, result.err
    assert read_predictions(folder)[0]["prompt"][0]["content"] == "类型#上衣"


def test_references_are_what_training_sees(run_eval, rows_file, tiny, glmtune_command):
    """Cut by the limits, and in the tokenizer's spelling: the model cannot write any other."""
    data = rows_file([_chat("问", "好，很好！"), _chat("问", "长" * 40)])
    result, folder = run_eval(data, "--set", "data.max_target_length=12", target=tiny("chatglm"))
    first, second = read_predictions(folder)
    assert first["reference"] == "好,很好!"
    assert second["reference"] == "长" * len(second["reference"])
    assert 0 < len(second["reference"]) < 12
    assert "1 references their end" in result.out
    _, folder = run_eval(data, target=tiny("chatglm3"), output="other")
    assert [record["reference"] for record in read_predictions(folder)] == ["好，很好！", "长" * 40]


# The loss


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3"])
def test_the_loss_is_training_s_own_evaluation(family, train, run_eval, rows_file, adgen_file):
    talks = [_chat("类型#上衣", "上衣好看", "颜色", "白色" * n) for n in range(1, 5)]
    data = rows_file([*talks, _chat("问" * 90, "长" * 90)])
    limits = ("data.max_source_length=48", "data.max_target_length=40", "training.max_steps=3")
    rate = "training.learning_rate=1e-2"
    run = train(family, adgen_file(8), *limits, rate, eval_data=data)
    eval_loss = json.loads(run.summary.read_text("utf-8"))["eval_loss"]
    result, folder = run_eval(data, "--batch-size", 2, target=run.root)
    assert result.code == 0, result.err
    assert _metrics(folder)["loss"] == pytest.approx(eval_loss, abs=2e-5)
    assert f"{_metrics(folder)['loss']:.4f}" in result.out


# Bad input


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "plain words\nmore words\n", "plain text, without answers"),
        ("a.jsonl", json.dumps(_chat("问", "")) + "\n", "no answers to compare with"),
        ("a.jsonl", '{"content": "问", "summary": ""}\n', "no answers to compare with"),
        ("a.jsonl", '{"content": "问"}\n', "no known columns"),
        ("a.jsonl", "", "empty"),
    ],
)
def test_data_without_answers_is_an_error_of_a_line(run_eval, tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    result, folder = run_eval(path)
    assert result.code == 1
    assert said in result.err
    assert str(path) in result.err
    assert len(result.err.strip().splitlines()) <= 2
    assert not folder.exists()


def test_encoded_rows_are_refused(run_eval, adgen_file, glmtune_command, tiny, tmp_path):
    glmtune_command("data", "tokenize", adgen_file(4), "--model", tiny("chatglm3"), "--output", tmp_path / "encoded")
    result, _ = run_eval(tmp_path / "encoded")
    assert result.code == 1
    assert "contains encoded rows" in result.err


def test_rows_too_long_for_the_limits(run_eval, rows_file):
    data = rows_file([_chat("问题" * 90, "答"), _chat("问", "答")])
    drop = ("--set", "data.overlength=drop", "--set", "data.max_source_length=16")
    result, folder = run_eval(data, *drop)
    assert result.code == 0, result.err
    assert [record["row"] for record in read_predictions(folder)] == [1]
    assert _metrics(folder)["data"]["counts"]["rows_dropped"] == 1
    nothing, _ = run_eval(rows_file([_chat("问题" * 90, "答")], "long.jsonl"), *drop, output="long")
    assert nothing.code == 1
    assert "no row is left" in nothing.err


def test_one_row_of_punctuation(run_eval, rows_file):
    result, folder = run_eval(rows_file([_chat("？！", "。……！")]))
    assert result.code == 0, result.err
    scores = _metrics(folder)["scores"]
    assert scores["rouge_l"]["rows"] == 1
    assert scores["rouge_l"]["low"] == scores["rouge_l"]["mean"] == scores["rouge_l"]["high"]


def _replies(monkeypatch, texts):
    """Let the model write `texts`, whatever it is asked, all of them cut at the limit."""

    def fake(model, tokenizer, family, prompts, sampling, **options):
        replies = [GeneratedReply(i, [5] * 7, texts[i % len(texts)], "length") for i in range(len(prompts))]
        options["on_done"](replies)
        return replies

    monkeypatch.setattr(evaluation, "generate_batched", fake)


def test_lone_surrogates_and_odd_characters_are_written(run_eval, adgen_file, monkeypatch):
    _replies(monkeypatch, ["坏\ud83d字", "好\U0001f600字\u2028行\x00", "\ud83d\ude00"])
    result, folder = run_eval(adgen_file(3))
    assert result.code == 0, result.err
    predictions = [record["prediction"] for record in read_predictions(folder)]
    assert predictions == ["坏\ufffd字", "好\U0001f600字\u2028行\x00", "\U0001f600"]
    assert len((folder / "predictions.jsonl").read_text("utf-8").splitlines()) >= 3


def test_empty_and_endless_replies_are_counted_and_shown(run_eval, adgen_file, monkeypatch):
    _replies(monkeypatch, ["", "好看好看好看好看好看", "一二三四五"])
    result, folder = run_eval(adgen_file(3))
    assert result.code == 0, result.err
    assert _metrics(folder)["counts"] == {"empty": 1, "truncated": 3, "repeated_tail": 1}
    assert "1 of 3 replies are empty and score 0." in result.out
    assert "3 of 3 replies did not end within 6 tokens." in result.out
    assert "1 of 3 replies end in a loop." in result.out


def test_out_of_memory_in_a_batch_changes_nothing(run_eval, adgen_file, monkeypatch):
    data = adgen_file(6)
    _, whole = run_eval(data, output="whole")
    real = batched._generate_batch

    def small(model, tokenizer, family, prompts, *args):
        if len(prompts) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(model, tokenizer, family, prompts, *args)

    monkeypatch.setattr(batched, "_generate_batch", small)
    result, folder = run_eval(data)
    assert result.code == 0, result.err
    assert result.err.count("Out of memory with 6 rows in a batch") == 1
    assert (folder / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


# Tools

TOOLS = [{"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}]


def _tool_rows():
    call = {"role": "tool", "name": "weather", "parameters": {"city": "北京", "days": 2}, "observation": "晴"}
    messages = [{"role": "user", "content": "北京天气"}, call, {"role": "assistant", "content": "北京晴"}]
    return [{"tools": TOOLS, "conversations": messages}]


@pytest.mark.parametrize("family", ["chatglm3", "glm4"])
def test_calls_are_rows_with_scores_of_their_own(family, rows_file, tiny):
    opened = load_for_generation(str(tiny(family)))
    data = _data(rows_file(_tool_rows()), opened)
    call, answer = data.rows
    assert call.reference.startswith("weather\n")
    assert (call.calls[0].name, call.calls[0].arguments) == ("weather", {"city": "北京", "days": 2})
    assert answer.calls == []
    assert answer.prompt[1]["observation"] == "晴"

    def scored(row, text):
        return score_reply(GeneratedReply(0, [], text, "stop"), row.reference, row.calls, opened.family, tools=True)

    prediction, right = scored(call, call.reference)
    assert prediction == call.reference
    assert right["tool_name"] == right["tool_arguments"] == right["exact_match"] == 100
    _, other = scored(call, call.reference.replace("北京", "上海"))
    assert (other["tool_name"], other["tool_arguments"], other["tool_argument_keys"]) == (100, 0, 50)
    assert scored(call, call.reference[:-3])[1]["tool_parse_failure"] == 100
    assert scored(call, "北京晴")[1]["tool_decision"] == 0
    _, spoken = scored(answer, "北京晴")
    assert (spoken["tool_decision"], spoken["exact_match"]) == (100, 100)
    assert "tool_name" not in spoken


def test_tool_scores_reach_the_metrics_and_rows_without_tools_have_none(run_eval, rows_file):
    data = rows_file([*_tool_rows(), _chat("你好", "你好！")])
    result, folder = run_eval(data, tokens=3)
    assert result.code == 0, result.err
    scores = _metrics(folder)["scores"]
    assert scores["tool_decision"]["rows"] == 2
    assert scores["rouge_l"]["rows"] == 3
    assert "calls a tool when it should" in result.out
    assert read_predictions(folder)[0]["tools"] == TOOLS


def test_tools_for_a_generation_without_them_are_an_error_with_their_line(rows_file, tiny):
    opened = load_for_generation(str(tiny("chatglm2")))
    path = rows_file(_tool_rows())
    with pytest.raises(DataError, match="has no format for tools") as error:
        _data(path, opened)
    assert f"{path}:1" in str(error.value)


# Better after tuning, and scores while training


def test_a_tuned_model_scores_better_than_its_base(train, run_eval, adgen_file, tmp_path):
    with as_file(files("glmtune.demo") / "base") as packaged:
        base = shutil.copytree(packaged, tmp_path / "base")
    run = train(
        base,
        adgen_file(200),
        *("training.max_steps=20", "training.learning_rate=5e-3", "training.per_device_train_batch_size=4"),
        *("lora.rank=16", "lora.targets=all-linear", "data.max_target_length=96", "data.max_source_length=64"),
    )
    data = adgen_file(16, "dev.json", seed=2)
    before, after = (
        read_predictions(run_eval(data, target=target, output=name, tokens=40)[1])
        for name, target in (("before", base), ("after", run.root))
    )
    for score in ("rouge_l", "bleu4_characters"):
        gain = compare_by_bootstrap(*([record["scores"][score] for record in rows] for rows in (before, after)))
        assert gain.mean > 0
        assert gain.p < 0.01
    losses = [_metrics(tmp_path / name)["loss"] for name in ("before", "after")]
    assert losses[1] < losses[0] - 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_in_training_are_those_of_an_evaluation(family, tiny, adgen_file, tmp_path):
    data = adgen_file(6, "dev.json")
    opened, model = load_target(str(tiny(family)))
    config = load_config(None, [f"data.train={data}", f"data.eval={data}"])
    blocks = prepare_data(config, opened.family, opened.tokenizer).eval
    scorer = GeneratedScores(
        *(blocks, 99, 0, score_questions),
        tokenizer=opened.tokenizer,
        family=opened.family,
        max_new_tokens=8,
        batch_size=4,
    )
    opened.model.config.use_cache = False  # as in training
    opened.model.gradient_checkpointing_enable()
    scores = scorer(opened.model, 0)
    opened.model.config.use_cache = True
    whole = evaluation.evaluate(opened, model, _data(data, opened), tmp_path / "out", Sampling(8))
    assert scores == pytest.approx({name: score.mean for name, score in whole.scores.items()})


def test_the_sample_is_the_same_every_time_and_of_any_size(tiny, adgen_file, rows_file):
    family, tokenizer = detect_family(tiny("chatglm3")), load_tokenizer(tiny("chatglm3"))
    data = adgen_file(20, "dev.json")
    config = load_config(None, [f"data.train={data}", f"data.eval={data}"])
    blocks = prepare_data(config, family, tokenizer).eval
    some = sample_questions(blocks, 5, seed=1)
    assert some == sample_questions(blocks, 5, seed=1)
    assert some != sample_questions(blocks, 5, seed=2)
    assert len(sample_questions(blocks, 99, seed=1)) == 20
    asked = {tuple(row.prompt_ids) for row in read_eval_data(str(data), DataConfig(), family, tokenizer).rows}
    assert {tuple(question.prompt_ids) for question in some} <= asked


def test_summary_of_records_is_what_the_metrics_hold(run_eval, adgen_file):
    _, folder = run_eval(adgen_file(5))
    metrics = _metrics(folder)
    result = EvaluationResult.load(folder / "metrics.json")
    assert result.to_dict() == metrics
    assert result == replace(result, **summarize_records(read_predictions(folder)))
