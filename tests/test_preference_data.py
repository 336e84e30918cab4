"""Pairs of answers: shapes of rows that people have, the checks of `glmtune data check`, cuts, preview and packing."""

from __future__ import annotations

import json
import random

import pytest

import glmtune
from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.check_kinds import KINDS, describe_kind
from glmtune.data.check_rows import CheckReport, ModelChecker, RowChecker, scan_sources
from glmtune.data.encoding import EncodingRules
from glmtune.data.pair_checks import MAX_EDITS, MIN_SIMILARITY, PairLengths, count_edits
from glmtune.data.preview import make_preview, render_html, render_text
from glmtune.data.sources import open_source
from glmtune.errors import DataError
from glmtune.training.training_data import prepare_data

QUESTION, BETTER, WORSE = "你好吗", "我很好，谢谢", "走开"
EARLIER, REPLY, SYSTEM = "早", "早上好", "简短"
TOOLS = [{"name": "weather", "parameters": {"type": "object"}}]
CALL = {"name": "weather", "arguments": {"city": "北京"}}


def _user(text):
    return {"role": "user", "content": text}


def _answer(text):
    return {"role": "assistant", "content": text}


def _from(name, text):
    return {"from": name, "value": text}


def _transcript(*turns):
    return "".join(f"\n\n{name}: {text}" for name, text in turns)


HISTORY = [_user(EARLIER), _answer(REPLY)]
HUMAN_TURNS = [("Human", EARLIER), ("Assistant", REPLY), ("Human", QUESTION)]
SHORT = [_user(QUESTION)]
SHAPES = {
    "question and two texts": ({"question": QUESTION, "chosen": BETTER, "rejected": WORSE}, SHORT),
    "with history and system": (
        {"instruction": QUESTION, "system": SYSTEM, "history": [[EARLIER, REPLY]], "chosen": BETTER, "rejected": WORSE},
        [{"role": "system", "content": SYSTEM}, *HISTORY, _user(QUESTION)],
    ),
    "one message as the question": (
        {"prompt": _user(QUESTION), "chosen": _answer(BETTER), "rejected": _answer(WORSE)},
        SHORT,
    ),
    "messages and two texts": (
        {"messages": [*HISTORY, _user(QUESTION)], "chosen": BETTER, "rejected": WORSE},
        [*HISTORY, _user(QUESTION)],
    ),
    "messages that end with the better answer": (
        {"messages": [_user(QUESTION), _answer(BETTER)], "chosen": BETTER, "rejected": WORSE},
        SHORT,
    ),
    "a call is the better answer": (
        {
            "messages": [_user(QUESTION), {"role": "tool_call", "content": json.dumps(CALL)}],
            "tools": TOOLS,
            "rejected_response": WORSE,
        },
        SHORT,
    ),
    "a call in the conversation (ms-swift)": (
        {
            "messages": [
                _user(QUESTION),
                {"role": "tool_call", "content": json.dumps(CALL)},
                {"role": "tool_response", "content": "晴"},
                _answer(BETTER),
            ],
            "tools": json.dumps(TOOLS),
            "rejected_response": WORSE,
        },
        [_user(QUESTION), {"role": "tool", "content": None}],
    ),
    "OpenAI's preference files": (
        {
            "input": {"messages": SHORT, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [_answer(BETTER)],
            "non_preferred_output": [_answer(WORSE)],
        },
        SHORT,
    ),
    "conversations as text (hh-rlhf)": (
        {
            "chosen": _transcript(*HUMAN_TURNS, ("Assistant", BETTER)),
            "rejected": _transcript(*HUMAN_TURNS, ("Assistant", WORSE)),
        },
        [*HISTORY, _user(QUESTION)],
    ),
    "the question as such a text": (
        {
            "prompt": f"{_transcript(*HUMAN_TURNS)}\n\nAssistant:",
            "response": f" {BETTER}",
            "chosen": f" {BETTER}",
            "rejected": f" {WORSE}",
        },
        [*HISTORY, _user(QUESTION)],
    ),
    "role and text (hh_rlhf_cn)": (
        {
            "context": [{"role": "human", "text": QUESTION}],
            "chosen": {"role": "assistant", "text": BETTER},
            "rejected": {"role": "assistant", "text": WORSE},
        },
        SHORT,
    ),
    "response_j and response_k": ({"question": QUESTION, "response_j": BETTER, "response_k": WORSE}, SHORT),
}


def _write(folder, rows, name="pairs.json"):
    path = folder / name
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def _open(folder, rows, **options):
    return open_source(_write(folder, rows), preference="pairs", **options)


def _pair(question=QUESTION, better=BETTER, worse=WORSE):
    return {"prompt": question, "chosen": better, "rejected": worse}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_pairs(shape, tmp_path):
    row, expected = SHAPES[shape]
    (pair,) = _open(tmp_path, [row])
    for side, text in ((pair, BETTER), (pair.rejected, WORSE)):
        *before, answer = side.messages
        assert [(m["role"], m.get("content")) for m in before] == [(m["role"], m["content"]) for m in expected]
        assert not any(m.get("loss", m["role"] in ("assistant", "tool")) for m in before), "only answers are compared"
        if answer["role"] == "tool":
            assert (answer["name"], answer["parameters"]) == (CALL["name"], CALL["arguments"])
        else:
            assert answer["content"] == text
    assert pair.tools == pair.rejected.tools == (TOOLS if "tools" in row else None)


LISTED = {
    "dpo_zh_demo": (
        {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        {
            "conversations": [_from("system", SYSTEM), _from("human", QUESTION)],
            "chosen": _from("gpt", BETTER),
            "rejected": _from("gpt", WORSE),
        },
    ),
    "one more answer": (
        {"formatting": "sharegpt", "columns": {"messages": "turns", "rejected": "bad"}},
        {"turns": [_from("system", SYSTEM), _from("human", QUESTION), _from("gpt", BETTER)], "bad": WORSE},
    ),
    "columns": (
        {"columns": {"prompt": "q", "system": "s", "chosen": "good", "rejected": "bad"}},
        {"q": QUESTION, "s": SYSTEM, "good": BETTER, "bad": WORSE},
    ),
    "a list of answers": (
        {"columns": {"prompt": "q", "system": "s", "response": "answers"}},
        {"q": QUESTION, "s": SYSTEM, "answers": [BETTER, WORSE]},
    ),
    "tags": (
        {
            "formatting": "sharegpt",
            "columns": {"messages": "turns", "chosen": "good", "rejected": "bad", "system": "s"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"},
        },
        {
            "turns": [{"who": "U", "what": QUESTION}],
            "s": SYSTEM,
            "good": {"who": "A", "what": BETTER},
            "bad": {"who": "A", "what": WORSE},
        },
    ),
}


@pytest.mark.parametrize("name", LISTED)
def test_entries_of_llama_factory_with_ranking(name, tmp_path):
    entry, row = LISTED[name]
    _write(tmp_path, [row])
    catalog = _write(tmp_path, {name: {"file_name": "pairs.json", "ranking": True, **entry}}, "dataset_info.json")
    (pair,) = open_source(f"{catalog}:{name}", preference="pairs")
    for side, text in ((pair, BETTER), (pair.rejected, WORSE)):
        found = [(m["role"], m["content"]) for m in side.messages]
        assert found == [("system", SYSTEM), ("user", QUESTION), ("assistant", text)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"chosen": [_user("a"), _answer(BETTER)], "rejected": [_user("b"), _answer(WORSE)]}, "the questions differ"),
        ({"chosen": [*SHORT, _answer("a"), *SHORT, _answer("b")], "rejected": [*SHORT, _answer("a")]}, "start of the"),
        ({"prompt": QUESTION, "win": BETTER, "lose": WORSE}, r"data\.columns\.rejected=COLUMN"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "no known question"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(row, problem, tmp_path):
    with pytest.raises(DataError, match=r"pairs\.json:1: ") as error:
        list(_open(tmp_path, [row]))
    assert problem.replace("\\", "") in f"{error.value.message} {error.value.hint}"


def test_columns_of_other_names(tmp_path):
    source = _open(
        tmp_path, [{"prompt": QUESTION, "win": BETTER, "lose": WORSE}], columns={"chosen": "win", "rejected": "lose"}
    )
    (pair,) = source
    assert (pair.messages[-1]["content"], pair.rejected.messages[-1]["content"]) == (BETTER, WORSE)


def _check(folder, rows, model=None):
    report = CheckReport("characters", keep_all=True)
    checker = RowChecker(report, model)
    sources = [_open(folder, rows)]
    for row in scan_sources(sources):
        checker.check_row(row)
    checker.add_findings_of_all_rows(sources)
    return report


def _list_kinds(report):
    return [(finding.kind, finding.row) for finding in report.findings]


LONG = "今天天气很好，我们一起去公园散步，看看花，喝喝茶，聊聊最近的事情吧。"


def test_problems_of_pairs(tmp_path):
    rows = [
        _pair(better=LONG),
        _pair(better=WORSE, worse=LONG),  # 2 contradicts 1
        _pair(better=LONG),  # 3 is 1 again, and contradicts 2
        _pair("一", LONG, LONG.replace("花", "树")),
        _pair("二", "Good  day", "good day"),
        _pair("三", BETTER, " \n"),
        _pair("四", BETTER, "四"),
        _pair("五", BETTER, BETTER),
        _pair("六", "好", "坏"),  # short answers are not alike because they are short
        _pair("七", LONG, LONG[::-1]),
    ]
    found = _list_kinds(_check(tmp_path, rows))
    assert found == [
        ("contradicting-pair", 2),
        ("duplicate", 3),
        ("contradicting-pair", 3),
        ("similar-answers", 4),
        ("similar-answers", 5),
        ("empty-answer", 6),
        ("answer-is-question", 7),
        ("same-answers", 8),
    ]


def test_problems_of_the_prompt_are_listed_once(tmp_path):
    report = _check(tmp_path, [_pair("{{name}} 好", "<NAME> 好", "{{city}} 坏")])
    messages = [finding.message for finding in report.findings if finding.kind == "placeholder"]
    assert len(messages) == 3
    assert sum(message.startswith("the worse answer: ") for message in messages) == 1


def test_duplicates_differ_in_neither_answer(tmp_path):
    report = _check(tmp_path, [_pair(), _pair(worse="不"), _pair(better="不"), _pair()])
    assert [row for kind, row in _list_kinds(report) if kind == "duplicate"] == [4]


@pytest.mark.parametrize(
    ("longer", "shorter", "finding"),
    [(40, 0, "longer"), (0, 40, "shorter"), (34, 6, "longer"), (22, 18, None), (7, 0, None)],
)
def test_length_bias(longer, shorter, finding):
    lengths = PairLengths()
    for i in range(longer + shorter):
        lengths.add_pair(*((30, 10) if i < longer else (10, 30)))
    problem = lengths.find_bias()
    assert (problem is None) == (finding is None)
    if problem is not None:
        assert f"the better answer is the {finding} one" in problem.message
        assert f"to answer {finding}" in (problem.hint or "")
    assert lengths.as_dict()["better_longer_share"] == pytest.approx(longer / (longer + shorter), abs=1e-4)


def test_kinds_are_described_in_both_languages():
    for kind in (*KINDS, "same-answers", "no-pair"):
        assert describe_kind(kind, "zh") != describe_kind(kind) == describe_kind(kind, "en")


def _compute_plain_distance(first, second):
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        row, above = [i], row
        for j, b in enumerate(second, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def test_edits_are_those_of_the_plain_algorithm():
    generator = random.Random(3)
    found = {True: 0, False: 0}
    for _ in range(300):
        size = generator.choice((0, 5, 60, 120))
        first = "".join(generator.choice("甲乙丙丁戊") for _ in range(size))
        letters = list(first)
        for _ in range(generator.randint(0, 9)):
            place = generator.randint(0, len(letters))
            letters[place : place + generator.randint(0, 2)] = generator.choice(("", "己", "甲乙"))
        second = "".join(letters)
        distance = _compute_plain_distance(first, second)
        limit = int((1 - MIN_SIMILARITY) * max(len(first), len(second)) + 1e-9)
        assert count_edits(first, second) == (distance if distance <= limit else None)
        found[distance <= limit] += 1
    assert min(found.values()) > 30
    assert count_edits("甲" * 100_000, "甲" * 100_000 + "乙" * (MAX_EDITS + 1)) is None


def _make_checker(tiny, family, **limits):
    base = tiny(family)
    rules = EncodingRules(**{"max_source_length": 512, "max_target_length": 512, **limits})
    return ModelChecker(glmtune.detect_family(base), glmtune.load_tokenizer(base), rules)


@pytest.mark.parametrize("family", ["chatglm", "glm4"])
def test_cut_answers_are_named(family, tiny, tmp_path):
    rows = [
        _pair("一", "好" * 60, "坏"),
        _pair("二", "好", "坏" * 60),
        _pair("三", "好" * 60 + "甲", "好" * 60 + "乙乙"),
        _pair(),
    ]
    checker = _make_checker(tiny, family, max_target_length=40)
    report = _check(tmp_path, rows, checker)
    found = [(f.kind, f.row, f.message.rpartition(": ")[2]) for f in report.findings if f.kind != "similar-answers"]
    assert found == [
        ("over-limit", 1, "the end of the better answer is cut"),
        ("over-limit", 2, "the end of the worse answer is cut"),
        ("same-after-cut", 3, "what is left of the two answers is the same"),
    ]
    assert report.training_rows == 8


def test_the_command_checks_and_cleans_pairs(tmp_path, glmtune_command):
    rows = [_pair(better=LONG), _pair(better=WORSE, worse=LONG), _pair("二", BETTER, " "), _pair("三")]
    path, clean = _write(tmp_path, rows), tmp_path / "clean.jsonl"
    result = glmtune_command("data", "check", path, "--set", "stage=dpo", "--fix", clean, "--json")
    assert result.code == 1
    content = json.loads(result.out)
    assert content["pairs"] | {"better_mean": 0, "worse_mean": 0} == {
        **{"pairs": 4, "better_longer": 3, "worse_longer": 1, "same_length": 0, "better_longer_share": 0.75},
        **{"better_mean": 0, "worse_mean": 0},
    }
    assert content["lengths"]["worse_answer"]["max"] == len(LONG)
    assert [json.loads(line) for line in clean.read_text("utf-8").splitlines()] == [rows[0], rows[3]]
    refused = [json.loads(line) for line in (tmp_path / "clean.refused.jsonl").read_text("utf-8").splitlines()]
    assert [row["reasons"][0].partition(":")[0] for row in refused] == ["contradicting-pair", "empty-answer"]
    assert "--stage dpo" in glmtune_command("data", "check", path).out
    printed = glmtune_command("data", "check", path, "--stage", "dpo").out
    assert "contradictions: glmtune data check" in printed
    assert "better answer is longer in 75%" in printed


def test_the_preview_colours_both_answers(tiny, tmp_path):
    checker = _make_checker(tiny, "chatglm3")
    source = _open(tmp_path, [_pair()])
    preview = make_preview(source, next(iter(source)), checker.family, checker.tokenizer, checker.rules)
    styles = [{span.style for span in render_text(row, colours=True).spans} for row in preview.rows]
    assert [("green" in each, "red" in each) for each in styles] == [(True, False), (False, True)]
    page = render_html(preview)
    assert "row 2 of 2 (worse answer)" in page
    assert 'class="row worse"' in page


def test_the_preview_says_that_a_pair_is_left_out(tiny, tmp_path):
    checker = _make_checker(tiny, "chatglm3", max_target_length=20)
    source = _open(tmp_path, [_pair("三", "好" * 60 + "甲", "好" * 60 + "乙乙")])
    preview = make_preview(source, next(iter(source)), checker.family, checker.tokenizer, checker.rules)
    assert "what is left of the two answers is the same" in preview.make_heading()[1]


def test_packing_keeps_pairs_together(tiny, tmp_path, capsys):
    rows = [_pair(f"{QUESTION}{i}", BETTER * (1 + i % 3), WORSE * (1 + i % 4)) for i in range(20)]
    rows.append(_pair("三", "好" * 90 + "甲", "好" * 90 + "乙乙"))  # the same answer after the cut
    config = build_dataclass(
        RunConfig,
        {
            "stage": "dpo",
            "model": {"path": str(tiny("chatglm2"))},
            "data": {"train": str(_write(tmp_path, rows)), "max_target_length": 80, "eval_rows": 4},
        },
        "test",
    )
    family = glmtune.detect_family(config.model.path)
    data = prepare_data(config, family, glmtune.load_tokenizer(config.model.path))
    sizes = []
    for dataset in (data.train, data.eval):
        for block in (dataset[i] for i in range(len(dataset))):
            numbers = [number for number, _ in block]
            assert numbers[::2] == [number - 1 for number in numbers[1::2]], "the worse answer follows the better one"
            assert all(number % 2 == 0 for number in numbers[::2])
            sizes.append(len(numbers))
    assert sum(sizes) == 40
    assert max(sizes) > 2, "several pairs are in one block"
    assert "1 pair dropped: what is left of the two answers is the same" in " ".join(capsys.readouterr().out.split())
