"""Repairs of rows by the kind of their findings, and rows that a user changes by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import glmtune
from glmtune.data.check_fix import EDITED, FixWriter, RowFixer, make_fix_plan, scan_fixed_rows
from glmtune.data.check_rows import CheckReport, RowChecker, scan_sources
from glmtune.data.conversation import InvalidRow
from glmtune.data.encoding import EncodingRules
from glmtune.data.preview import make_preview, render_html
from glmtune.data.row_edits import format_row, parse_edited_row
from glmtune.data.row_repairs import REPAIRABLE, parse_literal
from glmtune.data.sources import open_sources
from glmtune.errors import ConfigError, DataError


def _talk(*turns, **others):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **others}


def _share(*turns):
    return {"conversations": [{"from": role, "value": content} for role, content in turns]}


def _pair(question, answer, **others):
    return {"prompt": question, "response": answer, **others}


GOOD = _talk(("user", "一"), ("assistant", "甲"))
ASKED = _talk(("user", "问"), ("assistant", "答"))

# Kind of finding, the row of the file (a text: the line), and the row that a repair makes of it; None: it is refused.
CASES = [
    (
        "replacement-character",
        _talk(("user", "你\ufffd好"), ("assistant", "答")),
        _talk(("user", "你好"), ("assistant", "答")),
    ),
    (
        "mojibake",
        _talk(("user", "问"), ("assistant", "你好世界".encode().decode("latin-1"))),
        _talk(("user", "问"), ("assistant", "你好世界")),
    ),
    (
        "mojibake",
        _talk(("user", "问"), ("assistant", "今天天气真好，世界！".encode("gbk").decode("latin-1"))),
        _talk(("user", "问"), ("assistant", "今天天气真好，世界！")),
    ),
    ("special-token", _talk(("user", "问</s>"), ("assistant", "答<|endoftext|>")), ASKED),
    ("wrong-type", _talk(("user", "几"), ("assistant", 3)), _talk(("user", "几"), ("assistant", "3"))),
    ("unknown-role", _talk(("Human", "问"), ("bot", "答")), ASKED),
    ("unknown-role", _talk(("user", "问"), ("assisstant", "答")), ASKED),
    ("unknown-role", _talk(("user", "问"), ("narrator", "答")), None),
    ("null-content", _talk(("user", "问"), ("assistant", None), ("user", "问"), ("assistant", "答")), ASKED),
    ("null-content", _talk(("user", "问"), ("assistant", None)), None),
    ("empty-answer", _talk(("user", "没"), ("assistant", " "), ("user", "问"), ("assistant", "答")), ASKED),
    ("empty-answer", _talk(("user", "没"), ("assistant", "")), None),
    (
        "empty-question",
        _talk(("system", "系"), ("user", ""), ("assistant", "x"), ("user", "问"), ("assistant", "答")),
        _talk(("system", "系"), ("user", "问"), ("assistant", "答")),
    ),
    (
        "role-order",
        _talk(("user", "问"), ("system", "系"), ("assistant", "答")),
        _talk(("system", "系"), ("user", "问"), ("assistant", "答")),
    ),
    (
        "assistant-first",
        _talk(("system", "系"), ("assistant", "欢迎"), ("user", "问"), ("assistant", "答")),
        _talk(("system", "系"), ("user", "问"), ("assistant", "答")),
    ),
    ("no-final-answer", _talk(("user", "问"), ("assistant", "答"), ("user", "再问")), ASKED),
    (
        "same-role-twice",
        _talk(("user", "一"), ("user", "二"), ("assistant", "答")),
        _talk(("user", "一\n二"), ("assistant", "答")),
    ),
    (
        "broken-json",
        "{'messages': [{'role': 'user', 'content': '问'}, {'role': 'assistant', 'content': '答'},],}",
        ASKED,
    ),
    ("broken-json", '{"messages": [{"role": "user", "content": "问"', None),
]


def _write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _read(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()] if Path(path).exists() else []


def _fix(path, output, *kinds, edits=None, trims=False, preference="refuse"):
    """Write a file anew; the result and the findings of its rows."""
    sources = open_sources(str(path), preference=preference)
    sources[0].edits = edits or {}
    checker = RowChecker(CheckReport("characters", keep_all=True))
    with FixWriter(output) as writer:
        list(scan_fixed_rows(sources, checker, [RowFixer(writer, make_fix_plan(kinds, trims=trims), checker)]))
    return writer.result, checker.report.findings


@pytest.mark.parametrize(("kind", "row", "repaired"), CASES)
def test_a_row_is_repaired_by_the_kind_of_its_finding(tmp_path, kind, row, repaired):
    path = _write(tmp_path / "a.jsonl", GOOD, row)
    before = path.read_bytes()
    result, findings = _fix(path, tmp_path / "new.jsonl", kind)
    assert kind in {finding.kind for finding in findings if finding.row == 2}
    clean = _read(result.clean)
    assert clean[0] == GOOD
    if repaired is None:
        assert (len(clean), result.changed_rows, result.refused_rows) == (1, 0, 1)
        return
    assert len(clean) == 2
    assert clean[1] == repaired
    (change,) = _read(result.changed)
    assert (change["where"], change["repairs"]) == (f"{path}:2", [kind])
    assert change["after"] == clean[1]
    assert change["before"] == row
    assert not any(f.kind == kind for f in _fix(result.clean, tmp_path / "again.jsonl")[1]), "the finding is gone"
    assert path.read_bytes() == before


def test_every_repair_has_a_case():
    assert {kind for kind, _, repaired in CASES if repaired is not None} == set(REPAIRABLE)


def test_sharegpt_names_and_json_text_in_a_table_are_repaired(tmp_path):
    row = _share(("Human", "一"), ("human", "二"), ("chatglm", "答"))
    result, _ = _fix(
        _write(tmp_path / "a.jsonl", _share(("human", "x"), ("gpt", "y")), row), tmp_path / "b.jsonl", "all"
    )
    assert _read(result.clean)[1] == _share(("human", "一\n二"), ("gpt", "答"))
    text = json.dumps(
        [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}, {"role": "user", "content": "?"}]
    )
    table = tmp_path / "t.csv"
    table.write_text('messages\n"' + text.replace('"', '""') + '"\n', encoding="utf-8")
    result, _ = _fix(table, tmp_path / "c.jsonl", "no-final-answer")
    assert json.loads(_read(result.clean)[0]["messages"]) == ASKED["messages"]


def test_history_of_pairs_loses_its_empty_turns(tmp_path):
    row = _pair("问", "答", history=[["一", "甲"], ["", "乙"]])
    result, _ = _fix(_write(tmp_path / "a.jsonl", row), tmp_path / "b.jsonl", "empty-question")
    assert _read(result.clean) == [_pair("问", "答", history=[["一", "甲"]])]


def test_only_kinds_that_were_named_are_repaired(tmp_path):
    row = _talk(("user", "一\ufffd"), ("user", "二"), ("assistant", "答"))
    result, _ = _fix(_write(tmp_path / "a.jsonl", row), tmp_path / "b.jsonl", "same-role-twice")
    assert _read(result.clean) == [_talk(("user", "一\ufffd\n二"), ("assistant", "答"))]
    with pytest.raises(ConfigError, match="no kind of findings with a repair"):
        make_fix_plan(["duplicate"])


def test_rows_that_a_repair_makes_alike_are_written_once(tmp_path):
    path = _write(tmp_path / "a.jsonl", _talk(("user", "问\ufffd"), ("assistant", "答")), ASKED)
    result, findings = _fix(path, tmp_path / "b.jsonl", "replacement-character")
    assert [finding.kind for finding in findings] == ["replacement-character"]
    assert _read(result.clean) == [ASKED]
    assert _read(result.refused)[0]["reasons"] == [f"duplicate: the same as {path}:1"]


def test_both_answers_of_a_pair_are_repaired_alike(tmp_path):
    row = {"prompt": "问\ufffd", "chosen": "好<|endoftext|>", "rejected": "坏", "margin": 2}
    result, _ = _fix(_write(tmp_path / "a.jsonl", row), tmp_path / "b.jsonl", "all", preference="pairs")
    assert _read(result.clean) == [{"prompt": "问", "chosen": "好", "rejected": "坏", "margin": 2}]
    assert result.repairs == {"replacement-character": 1, "special-token": 1}


def test_white_space_at_the_ends_is_removed_on_request(tmp_path):
    result, _ = _fix(_write(tmp_path / "a.jsonl", _pair(" 问\ufeff", "\u200b答\n\n")), tmp_path / "b.jsonl", trims=True)
    assert _read(result.clean) == [_pair("问", "答")]
    assert _read(result.changed)[0]["repairs"] == ["trim"]


def test_edited_rows_stand_in_place_of_those_of_the_file(tmp_path):
    path = _write(tmp_path / "a.jsonl", _pair("一", "甲"), "{broken", _pair("三", "丙"), _pair("四", "丁"))
    edits = {2: _pair("二", "乙"), 3: _pair("三", ""), 4: None}
    sources = open_sources(str(path))
    sources[0].edits = edits
    rows = list(scan_sources(sources))
    assert [getattr(row, "kind", None) for row in rows] == [None, None, None, "left-out"]
    assert isinstance(rows[3], InvalidRow)
    assert rows[1].messages[-1]["content"] == "乙"
    result, findings = _fix(path, tmp_path / "b.jsonl", edits=edits)
    assert [finding.kind for finding in findings] == ["empty-answer", "left-out"]
    assert _read(result.clean) == [_pair("一", "甲"), _pair("二", "乙")]
    assert _read(result.changed) == [
        {"where": f"{path}:2", "repairs": [EDITED], "before": "{broken", "after": _pair("二", "乙")}
    ]
    assert [entry["row"] for entry in _read(result.refused)] == [_pair("三", ""), _pair("四", "丁")]


@pytest.mark.parametrize("text", ["", "{'a': 1}", "[1]", '"x"', '{"a": "\\ud83d"}', "{" * 5000])
def test_what_is_no_row_is_refused(text):
    with pytest.raises(DataError):
        parse_edited_row(text)


def test_a_row_is_edited_as_it_is_written():
    row = {"文": "答\n", "n": [1, None, {"a": True}]}
    assert parse_edited_row(format_row(row)) == row


@pytest.mark.parametrize(
    "line",
    [
        "{'a': open('x')}",
        "{'a': __import__('os')}",
        "{1: 2}",
        "{'a': b'x'}",
        "{'a': 1, 'a': 2}",
        "[1]",
        "(" * 900,
        None,
    ],
)
def test_a_line_that_is_no_literal_is_left_alone(line):
    assert parse_literal(line) is None


def test_the_command_repairs_and_says_so(tmp_path, glmtune_command):
    path = _write(tmp_path / "a.jsonl", GOOD, _talk(("user", "问"), ("bot", "答\ufffd")))
    plain = glmtune_command("data", "check", path)
    assert "--fix a-clean.jsonl --repair all" in plain.out
    fixed = glmtune_command("data", "check", path, "--fix", tmp_path / "b.jsonl", "--repair", "all")
    assert _read(tmp_path / "b.jsonl")[1] == ASKED
    assert "repaired: 1 (unknown-role 1, replacement-character 1)" in fixed.out
    assert "needs --fix" in glmtune_command("data", "check", path, "--repair", "all").err
    wrong = glmtune_command("data", "check", path, "--fix", tmp_path / "c.jsonl", "--repair", "empty-answr")
    assert "empty-answer" in wrong.err
    assert not (tmp_path / "c.jsonl").exists()


@pytest.mark.parametrize(
    ("preference", "row", "shown", "hidden"),
    [
        ("labels", _pair("问", "答", label=False), ("bad answer", 'class="row worse"'), "good answer"),
        ("labels", _pair("问", "答", label=True), ("good answer", 'class="row"'), "bad answer"),
        ("prompts", _pair("问", "答"), ("nothing of the row is trained on", "0 of them trained on"), "</s></span>"),
    ],
)
def test_the_preview_of_labels_and_questions_says_what_is_learnt(tiny, tmp_path, preference, row, shown, hidden):
    (source,) = open_sources(str(_write(tmp_path / "a.jsonl", row)), preference=preference)
    base, rules = tiny("chatglm3"), EncodingRules(max_source_length=512, max_target_length=512)
    family, tokenizer = glmtune.detect_family(base), glmtune.load_tokenizer(base)
    preview = make_preview(source, next(iter(source)), family, tokenizer, rules)
    page = render_html(preview)
    assert all(words in page for words in shown)
    assert hidden not in page.replace("special token</span>", "")
