"""Every format and every kind of bad file, through `open_source` and `open_sources`."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import os
import re
import sys
import tracemalloc
import types

import pytest

from glmtune.data import json_rows
from glmtune.data.conversation import RawRow
from glmtune.data.sources import Conversation, InvalidRow, SourceSpec, open_source, open_sources, sample_sources
from glmtune.errors import ConfigError, DataError

ADGEN = {"content": "类型#裙", "summary": "好裙子"}
GOOD = '{"content": "一", "summary": "壹"}'
CALL = {"name": "weather", "arguments": {"city": "北京"}}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def _write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def _lines(path, *rows):
    return _write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


def _one(tmp_path, row, **options):
    (conversation,) = open_source(_lines(tmp_path / "row.jsonl", row), **options)
    return conversation


def _chat(*messages, **around):
    return {"messages": [{"role": role, "content": content} for role, content in messages], **around}


def _sharegpt(*messages, **around):
    return {"conversations": [{"from": role, "value": value} for role, value in messages], **around}


def _said(conversation):
    return [(m["role"], m["content"]) for m in conversation.messages]


def _refused(path, message, error=DataError, **options):
    with pytest.raises(error, match=message) as caught:
        list(open_source(path, **options))
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


# Columns


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        (ADGEN, "content/summary", [("user", "类型#裙"), ("assistant", "好裙子")]),
        ({"context": "q", "target": "a"}, "context/target", [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "response": "a", "history": None}, "prompt/response", [("user", "q"), ("assistant", "a")]),
        (
            {"instruction": "翻译", "input": "hello", "output": "你好", "system": "你是译者", "history": [["1", "2"]]},
            "instruction/input/output",
            [("system", "你是译者"), ("user", "1"), ("assistant", "2"), ("user", "翻译\nhello"), ("assistant", "你好")],
        ),
        (
            {"instruction": "q", "input": "", "output": "a"},
            "instruction/input/output",
            [("user", "q"), ("assistant", "a")],
        ),
    ],
)
def test_columns_are_recognised(tmp_path, row, name, messages):
    source = open_source(_lines(tmp_path / "a.json", row))
    assert source.format == name
    assert [_said(conversation) for conversation in source] == [messages]


def test_earlier_answers_of_a_history_are_not_learnt(tmp_path):
    messages = _one(tmp_path, {"prompt": "二", "response": "贰", "history": [["一", "壹"]]}).messages
    assert [message.get("loss", True) for message in messages] == [True, False, True, True]


def test_plain_text(tmp_path):
    assert _one(tmp_path, {"text": "从前"}) == Conversation([], f"{tmp_path}/row.jsonl:1", text="从前")
    source = open_source(_write(tmp_path / "a.txt", "第一段\r\n\n  第二段 \n"))
    assert source.format == "text"
    assert [(c.text, c.where) for c in source] == [
        ("第一段", f"{tmp_path}/a.txt:1"),
        ("  第二段 ", f"{tmp_path}/a.txt:3"),
    ]


def test_other_columns_can_be_named(tmp_path):
    path = _lines(tmp_path / "a.json", {"q": "问题", "a": "答案", "s": "短"})
    _refused(path, r"a\.json:1: no known columns \(this row has 'q', 'a', 's'\)")
    source = open_source(path, {"prompt": "q", "response": "a", "system": "s"}, format="prompt/response")
    assert (source.format, [_said(c) for c in source]) == (
        "q/a",
        [[("system", "短"), ("user", "问题"), ("assistant", "答案")]],
    )
    assert open_source(path, {"text": "a"}).format == "text"
    _refused(path, r"unknown role 'promt'.\nDid you mean prompt", ConfigError, columns={"promt": "q"})
    _refused(path, r"unknown format 'alpacca'.\nDid you mean alpaca", ConfigError, format="alpacca")
    assert _said(
        _one(tmp_path, {"chat": _chat(("user", "q"), ("assistant", "a"))["messages"]}, columns={"messages": "chat"})
    )


# Messages


def test_chatglm3_conversations(tmp_path):
    tool = {"role": "tool", "name": "weather", "parameters": {"city": "北京"}, "observation": {"t": 3}, "loss": False}
    row = {
        "tools": [{"name": "weather"}],
        "conversations": [
            {"role": "system", "content": "短"},
            {"role": "user", "content": "天气"},
            {"role": "assistant", "content": "我查", "loss": False},
            tool,
            {"role": "assistant", "content": "晴", "loss": True},
        ],
    }
    found = _one(tmp_path, row)
    assert found.messages == row["conversations"]
    assert found.tools == row["tools"]
    assert open_source(tmp_path / "row.jsonl").format == "conversations (role/content)"


def test_sharegpt_calls_and_results_become_one_message(tmp_path):
    calls = json.dumps({**CALL, "arguments": json.dumps(CALL["arguments"])})
    both = json.dumps([CALL, {"name": "time", "arguments": {}}])
    row = _sharegpt(
        ("human", "天气"), ("function_call", calls), ("observation", "晴"), ("gpt", "晴天"),
        ("human", "还有"), ("function_call", both), ("tool", "雨"), ("observation", "九点"), ("gpt", "好"),
        tools=json.dumps(TOOLS), system="短",
    )  # fmt: skip
    found = _one(tmp_path, row)
    assert found.tools == TOOLS
    tools = [m for m in found.messages if m["role"] == "tool"]
    weather = {"role": "tool", "name": "weather", "parameters": {"city": "北京"}}
    assert tools == [
        {**weather, "observation": "晴"},
        {**weather, "observation": "雨"},
        {"role": "tool", "name": "time", "parameters": {}, "observation": "九点"},
    ]
    assert [m["role"] for m in found.messages] == [
        "system",
        "user",
        "tool",
        "assistant",
        "user",
        "tool",
        "tool",
        "assistant",
    ]
    assert open_source(tmp_path / "row.jsonl").format == "ShareGPT (from/value)"
    # The call itself may be what is learnt; a result without a call is an observation.
    assert "observation" not in _one(tmp_path, _sharegpt(("human", "q"), ("function_call", calls))).messages[-1]
    odd = _one(tmp_path, _sharegpt(("human", "q"), ("gpt", "f()"), ("observation", "1"), ("gpt", "a")))
    assert _said(odd)[2] == ("observation", "1")


def test_openai_messages(tmp_path):
    def call(id, name, arguments):
        return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    calls = [call("1", "weather", '{"city": "北京"}'), call("2", "time", "")]
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "天"}, {"type": "text", "text": "气"}]},
            {"role": "assistant", "content": "我查", "tool_calls": calls, "weight": 0},
            {"role": "tool", "tool_call_id": "2", "content": "九点"},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "晴"}]},
            {"role": "assistant", "content": None, "tool_calls": [call("3", "weather", '{"city": "上海"}')]},
            {"role": "tool", "tool_call_id": "3", "content": "雨"},
            {"role": "assistant", "content": "好", "tool_calls": None},
        ],
        "tools": TOOLS,
    }
    found = _one(tmp_path, row)
    assert found.tools == TOOLS
    weather = {"role": "tool", "name": "weather"}
    assert found.messages == [
        {"role": "user", "content": "天气"},
        {"role": "assistant", "content": "我查", "loss": False},
        {**weather, "parameters": {"city": "北京"}, "observation": "晴", "loss": False},
        {"role": "tool", "name": "time", "parameters": {}, "observation": "九点", "loss": False},
        {**weather, "parameters": {"city": "上海"}, "observation": "雨"},
        {"role": "assistant", "content": "好"},
    ]
    assert open_source(tmp_path / "row.jsonl").format == "OpenAI messages"


def test_absent_and_empty_are_the_same(tmp_path):
    row = {"instruction": "q", "output": "a"}
    for nothing in ({}, dict.fromkeys(("input", "history", "system", "tools")), {"input": "", "history": ""}):
        for lists in ({}, {"history": [], "tools": []}, {"history": "[]", "tools": " "}):
            found = _one(tmp_path, {**row, **nothing, **lists})
            assert (_said(found), found.tools) == ([("user", "q"), ("assistant", "a")], None)
    chat = _chat(("user", "q"), ("assistant", "a"))
    for around in ({"system": "", "tools": ""}, {"system": None, "tools": None}, {"functions": []}):
        found = _one(tmp_path, {**chat, **around})
        assert (len(found.messages), found.tools) == (2, None)


def test_openai_functions_are_tools(tmp_path):
    functions = [{"name": "weather", "parameters": {}}]
    row = {
        "messages": [
            {"role": "user", "content": "天气"},
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "晴"},
            {"role": "assistant", "content": "好", "tool_calls": []},
        ],
        "functions": functions,
    }
    found = _one(tmp_path, row)
    assert found.tools == functions
    assert found.messages[1] == {"role": "tool", "name": "weather", "parameters": {}, "observation": "晴"}
    assert _one(tmp_path, {**row, "functions": json.dumps(functions), "tools": None}).tools == functions
    assert _one(tmp_path, {**row, "mine": TOOLS}, columns={"tools": "mine"}).tools == TOOLS  # as the user says
    row["messages"][1]["tool_calls"] = []
    assert _one(tmp_path, row).messages == found.messages


def _calls(*messages):
    """Messages of ChatGLM3's files: calls are names, results begin with `=`, answers with `!`."""

    def message(text):
        if text[0] in "=!":
            return {"role": {"=": "observation", "!": "assistant"}[text[0]], "content": text[1:]}
        return {"role": "tool", "name": text, "parameters": {"n": 1}}

    return {"conversations": [{"role": "user", "content": "q"}, *map(message, messages)]}


@pytest.mark.parametrize(
    ("messages", "read"),
    [
        (["a", "=1", "!x"], [("a", "1"), "!x"]),
        (["a", "=", "!x"], [("a", ""), "!x"]),
        (["a", "b", "=1", "=2", "!x"], [("a", "1"), ("b", "2"), "!x"]),
        (["a", "=1", "b", "=2", "!x"], [("a", "1"), ("b", "2"), "!x"]),
        (["a", "=1", "=2", "!x"], [("a", "1"), "=2", "!x"]),
        (["a", "!x", "=1", "!y"], [("a", None), "!x", "=1", "!y"]),
        (["a", "b", "!x"], [("a", None), ("b", None), "!x"]),
        (["a"], [("a", None)]),
    ],
)
def test_a_result_that_follows_its_call_is_joined_to_it(tmp_path, messages, read):
    found = _one(tmp_path, _calls(*messages)).messages[1:]
    assert [
        (m["name"], m.get("observation")) if m["role"] == "tool" else "=!"[m["role"] == "assistant"] + m["content"]
        for m in found
    ] == read


@pytest.mark.parametrize("messages", [["a", "b", "=1", "!x"], ["a", "b", "=1", "c", "=2", "!x"]])
def test_a_result_must_be_of_one_call(tmp_path, messages):
    path = _lines(tmp_path / "a.json", _calls("!x"), _calls(*messages))
    _refused(path, f"^{path}:2: the call of 'b' has no result before message 5")


def test_a_call_that_is_not_learnt_stays_so_with_its_result(tmp_path):
    row = _calls("a", "=1", "!x")
    row["conversations"][1]["loss"] = False
    call = {"role": "tool", "name": "a", "parameters": {"n": 1}, "observation": "1", "loss": False}
    assert _one(tmp_path, row).messages[1] == call


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"content": "a", "summary": 5}, "wrong-type", "column 'summary' must be text, not a number"),
        ({"content": "a", "summary": None}, "null-content", "column 'summary' is null"),
        ({"content": "a"}, "missing-column", "no column 'summary'"),
        ({"prompt": "a", "response": "b", "history": [["x"]]}, "bad-history", "entry 1 of 'history'"),
        ({"prompt": "a", "response": "b", "history": [["x", True]]}, "bad-history", "entry 1 of 'history'"),
        ({"prompt": "a", "response": "b", "history": "x"}, "bad-history", "column 'history' must be a list"),
        ({"prompt": "a", "response": "b", "system": 1}, "wrong-type", "column 'system' must be text"),
        ({"prompt": "a", "response": "b", "system": []}, "wrong-type", "column 'system' must be text, not a list"),
        ({"prompt": "a", "response": "b", "history": False}, "bad-history", "column 'history' must be a list"),
        ({"prompt": "a", "response": "b", "tools": {}}, "wrong-type", "must be a list of tools, not an object"),
        ({"instruction": "a", "input": 7, "output": "b"}, "wrong-type", "column 'input' must be text, not a number"),
        ({"instruction": "a", "input": 0, "output": "b"}, "wrong-type", "column 'input' must be text, not a number"),
        (_chat(("user", "q"), ("assistant", "a"), system=False), "wrong-type", "'system' must be text, not true or"),
        (_chat(("user", "q"), ("assistant", "a"), tools=0), "wrong-type", "must be a list of tools, not a number"),
        (_chat(("user", "q"), ("assistant", "a"), functions=0), "wrong-type", "'functions' must be a list of tools"),
        (_chat(("user", "q"), ("assistant", "a"), functions=TOOLS, tools=[CALL]), "two-tool-lists", "both list tools"),
        ({"text": 1}, "wrong-type", "column 'text' must be text"),
        ({"messages": []}, "no-messages", "no messages"),
        ({"messages": None}, "null-content", "column 'messages' is null"),
        ({"messages": {"a": 1}}, "wrong-type", "must be a list of messages, not an object"),
        ({"messages": ["hi"]}, "wrong-type", "message 1 must be an object, not text"),
        (_chat(("user", "q")), "no-answer", "no answer of the assistant"),
        (_chat(("user", "q"), ("assistant", None)), "null-content", "message 2 has no content"),
        (_chat(("user", "q"), ("assistant", 1)), "wrong-type", "message 2: content must be text, not a number"),
        (
            _chat(("user", [{"type": "image_url"}]), ("assistant", "a")),
            "wrong-type",
            "message 1: content of type 'image_url'",
        ),
        (_chat(("user", "q"), ("system", "s"), ("assistant", "a")), "role-order", "message 2 is a system message"),
        (_chat(("system", "s"), ("assistant", "a"), system="t"), "role-order", "message 2 is a system message"),
        (_chat(("user", "q"), ("asistant", "a")), "unknown-role", "message 2: unknown role 'asistant'"),
        (_chat(("user", "q"), (None, "a")), "unknown-role", "message 2 has no 'role'"),
        (_sharegpt(("human", "q"), ("robot", "a")), "unknown-role", "message 2: unknown from 'robot'"),
        (_chat(("user", "q"), ("tool", "r"), ("assistant", "a")), "bad-tool-call", "message 2 is the result of a tool"),
        (_chat(("user", "q"), ("assistant", "a"), tools=5), "wrong-type", "column 'tools' must be a list of tools"),
        (_sharegpt(("human", "q"), ("function_call", "f(x)")), "bad-tool-call", "message 2: a tool call must be"),
        (_sharegpt(("human", "q"), ("function_call", '{"arguments": {}}')), "bad-tool-call", "has no name"),
        (
            _sharegpt(("human", "q"), ("function_call", '{"name": "f", "arguments": "[1]"}')),
            "bad-tool-call",
            "the arguments of 'f' are not a JSON object",
        ),
        (
            _sharegpt(("human", "q"), ("function_call", json.dumps(CALL)), ("gpt", "a")),
            "bad-tool-call",
            "the call of 'weather' has no result before message 3",
        ),
        (
            _sharegpt(("human", "q"), ("function_call", json.dumps([CALL, CALL, CALL])), ("tool", "1")),
            "bad-tool-call",
            "message 3 is the only result of 3 calls, and not a list of 3 results",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": "no"}]},
            "wrong-type",
            "message 2: loss must be true or false, not text",
        ),
    ],
)  # fmt: skip
def test_faulty_rows_are_named(tmp_path, row, kind, message):
    """The second of three rows: the first says the format, the third must still be read by a scan."""
    good = next(
        good
        for key, good in {
            "content": ADGEN,
            "prompt": {"prompt": "q", "response": "a"},
            "instruction": {"instruction": "q", "output": "a"},
            "text": {"text": "t"},
            "messages": _chat(("user", "q"), ("assistant", "a")),
            "conversations": _sharegpt(("human", "q"), ("gpt", "a")),
        }.items()
        if key in row
    )
    path = _lines(tmp_path / "a.json", good, row, good)
    _refused(path, rf"^{path}:2: .*{message}")
    found = list(open_source(path).scan_rows())
    assert [isinstance(item, Conversation) for item in found] == [True, False, True]
    assert isinstance(found[1], InvalidRow)
    assert (found[1].kind, found[1].where, found[1].is_skipped) == (kind, f"{path}:2", False)


def test_mixed_formats_are_refused_with_both_lines(tmp_path):
    path = _lines(tmp_path / "a.json", ADGEN, {"prompt": "q", "response": "a"})
    said = _refused(path, rf"^{path}:2: this row is prompt/response \(it has 'prompt', 'response'\)")
    assert f"but {path}:1 is content/summary (it has 'content', 'summary')" in said
    assert [getattr(item, "kind", None) for item in open_source(path).scan_rows()] == [None, "mixed-formats"]
    _lines(tmp_path / "folder" / "a.json", ADGEN)
    _lines(tmp_path / "folder" / "b.jsonl", _sharegpt(("human", "q"), ("gpt", "a")))
    _refused(tmp_path / "folder", r"b\.jsonl:1: this row is ShareGPT .*a\.json:1 is content/summary")


# JSON files


def test_arrays_and_lines_know_their_line(tmp_path):
    rows = [{"content": "一", "summary": "壹"}, {"content": "二", "summary": "贰"}]
    array = _write(tmp_path / "a.json", "\ufeff" + json.dumps(rows, ensure_ascii=False, indent=2).replace("\n", "\r\n"))
    assert [c.where for c in open_source(array)] == [f"{array}:2", f"{array}:6"]
    lines = _write(tmp_path / "b.json", f"\n{GOOD}\r\n\n{GOOD}")
    assert [c.where for c in open_source(lines)] == [f"{lines}:2", f"{lines}:4"]


@pytest.mark.parametrize("block", [1, 61, 1 << 16])
def test_arrays_are_read_in_blocks(tmp_path, monkeypatch, block):
    """Whatever an element holds, and wherever a block ends in it."""
    monkeypatch.setattr("glmtune.data.json_layout._BLOCK", block)
    odd = 'a]}[{"\\ \u2028\x7f\n\t' + "\U0001f600é" * 3
    rows = [{"content": odd * (i % 17), "summary": "x" * (i * 37 % 1001)} for i in range(400)]
    rows.append({"content": "长" * 700_000, "summary": odd})
    path = _write(tmp_path / "a.json", json.dumps(rows))  # \u escapes and surrogate pairs, one line
    assert [(_said(c)[0][1], _said(c)[1][1]) for c in open_source(path)] == [(r["content"], r["summary"]) for r in rows]
    spread = _write(tmp_path / "b.json", json.dumps(rows, ensure_ascii=False, indent=1))
    wheres = [c.where for c in open_source(spread)]
    assert wheres == [f"{spread}:{2 + 4 * i}" for i in range(len(rows))]


@pytest.mark.parametrize("block", [1, 5, 1 << 16])
def test_broken_arrays_are_seen_wherever_they_break(monkeypatch, block):
    """Cut or changed at every character: what the standard library refuses is refused, and nothing else."""
    monkeypatch.setattr("glmtune.data.json_layout._BLOCK", block)
    text = '[{"a": "x\\u00e9\\ud83d\\ude00\\\\"}, {"b": [-1.5e3, true, null]},\n{"c": "]"}] \n'
    variants = [
        text,
        *(text[:i] for i in range(1, len(text))),
        *(text[:i] + "}" + text[i + 1 :] for i in range(1, len(text))),
    ]
    for variant in variants:
        try:
            rows = [row for row in json.loads(variant) if isinstance(row, dict)]
            texts = [json.dumps(row, ensure_ascii=False) for row in rows]  # half a surrogate pair is left out
            expected = [row for row, text in zip(rows, texts, strict=True) if not re.search("[\ud800-\udfff]", text)]
        except ValueError:
            with pytest.raises(DataError, match=r"x\.json:[12]: invalid JSON"):
                list(json_rows.read_json_rows(io.StringIO(variant), "x.json"))
        else:
            found = json_rows.read_json_rows(io.StringIO(variant), "x.json")
            assert [row.values for row in found if isinstance(row, RawRow)] == expected


def test_a_broken_line_is_named_and_the_others_are_kept(tmp_path):
    deep = "[" * 10_000 + "]" * 10_000
    bad = {
        GOOD[:-5]: "invalid JSON",
        "[1]": "not a JSON object but a list",
        "null": "not a JSON object but null",
        '{"content": "a\0b", "summary": "c"}': "invalid JSON (NUL bytes",
        "\0\0\0": "invalid JSON (NUL bytes",
        f'{{"content": {deep}}}': "invalid JSON (nested too deep)",
        f'{{"content": {"[" * 500}{"]" * 500}}}': "invalid JSON (nested too deep)",
        '{"content": "\\ud83d", "summary": "c"}': "invalid JSON (half of a surrogate pair",
        f'{{"content": {"1" * 5000}}}': "invalid JSON (a number with too many digits)",
    }
    path = _write(tmp_path / "a.json", "".join(f"{GOOD}\n{line}\n" for line in bad))
    source = open_source(path)
    for _ in range(2):  # `broken` is filled afresh
        assert [c.where for c in source] == [f"{path}:{2 * i + 1}" for i in range(len(bad))]
        assert len(source.invalid_lines) == len(bad)
    for number, (sentence, problem) in enumerate(zip(source.invalid_lines, bad.values(), strict=True)):
        assert sentence.startswith(f"{path}:{2 * number + 2}: {problem}")
    # In an array too, where the row's end is known.
    half = open_source(_write(tmp_path / "b.json", f'[{GOOD},\n{{"content": "\\ud83d"}},\n{GOOD}]'))
    assert [c.where[-2:] for c in half] == [":1", ":3"]
    assert "half of a surrogate pair" in half.invalid_lines[0]
    kinds = {item.kind for item in source.scan_rows() if isinstance(item, InvalidRow)}
    assert kinds == {"broken-json", "not-an-object"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": empty"),
        (" \n ", ": empty"),
        ('{"content": 1\n', "no usable rows. The first: .*:1: invalid JSON"),
        ('{"content":\n"a",\n"summary": }\n', "no usable rows. The first: .*:1: invalid JSON .*line 3"),
        (f'[{GOOD},\n {{"content": }}]', r":2: invalid JSON"),
        (f'[{GOOD},\n {{"content": "\n"}}]', r":2: invalid JSON"),
        (f"[\n{GOOD}", ":2: invalid JSON \\(the array does not end"),
        (f"[{GOOD} {GOOD}]", ":1: invalid JSON"),
        (f"[{GOOD}]\n{GOOD}", ":2: invalid JSON \\(text after"),
        (f'[{GOOD},\n{GOOD[:-1]}, "x": {"[" * 10000}{"]" * 10000}}}]', ":2: invalid JSON \\(nested too deep"),
        (f'[{GOOD},\n{{"content": "a\0"}}]', ":2: invalid JSON \\(NUL bytes"),
        ("[]", "no usable rows"),
        ("[1, 2]", "no usable rows. The first: .*not a JSON object but a number"),
        ('{"content": "a"}\n', ":1: no known columns"),
        ("[" * 100_000, "invalid JSON"),
    ],
)
def test_bad_json_files_say_where(tmp_path, text, message):
    path = _write(tmp_path / "a.json", text)
    assert str(path) in _refused(path, message)


def test_reading_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for count in (5_000, 20_000):
        row = json.dumps({"content": "问" * 50, "summary": "答" * 100}, ensure_ascii=False)
        source = open_source(_write(tmp_path / f"{count}.json", f"[{', '.join([row] * count)}]"))
        tracemalloc.start()
        assert sum(1 for _ in source) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


@pytest.mark.parametrize("frame", ["{}\n{}\n{}\n", "[\n{},\n{},\n{}\n]"])
def test_a_line_of_megabytes_is_read(tmp_path, frame):
    long = "长话" * 850_000  # 5.1 MB
    row = json.dumps({"content": "一", "summary": long}, ensure_ascii=False)
    path = _write(tmp_path / "a.json", frame.format(GOOD, row, GOOD))
    assert [len(_said(c)[1][1]) for c in open_source(path)] == [1, len(long), 1]
    alone = _write(tmp_path / "b.json", row)
    assert _said(next(iter(open_source(alone))))[1][1] == long


def test_left_out_lines_are_counted_and_the_first_are_kept(tmp_path):
    path = _write(tmp_path / "a.json", f"{GOOD}\n" + "{\n" * 1000)
    source = open_source(path)
    for _ in range(2):
        assert len(list(source)) == 1
        assert (len(source.invalid_lines), source.invalid_line_count) == (20, 1000)
    assert source.invalid_lines[19].startswith(f"{path}:21: ")
    path = _write(tmp_path / "b.json", f"{GOOD}\n" + "{\n" * 3)
    source = open_source(path)
    earlier = iter(source)
    next(earlier)
    list(source)
    list(earlier)  # an older iteration does not count for the newer
    assert (len(source.invalid_lines), source.invalid_line_count) == (3, 3)


# Encodings and containers


def test_gb18030_is_read_and_said(tmp_path):
    rows = [{"content": "类型#上衣", "summary": "联通的好衣服𠮷"}] * 3
    path = _write(tmp_path / "a.json", "\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "gb18030")
    source = open_source(path)
    assert source.notes == [f"{path}: read as GB18030 (it is not UTF-8)"]
    assert [_said(c)[1][1] for c in source] == ["联通的好衣服𠮷"] * 3
    assert open_source(_lines(tmp_path / "b.json", ADGEN)).notes == []


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(GOOD.encode() * 2 + b'\n{"content": "\xff"}')
    _refused(path, rf"{path}:2: not UTF-8 text, unlike the lines before")
    # Two Chinese characters are valid GB18030 as well: damaged UTF-8 must not become other words.
    path.write_bytes('{"content": "中文", "summary": "中文"}\n{"content": "中文'.encode()[:-1] + b'"}')
    _refused(path, rf"{path}:2: not UTF-8 text")
    path.write_bytes(b'{"content": "a",\n"summary": "\xc9\xcf\xd2\xc2 \xff"}')
    _refused(path, rf"{path}:2: neither UTF-8 nor GB18030")
    path.write_bytes(GOOD.encode("latin-1", "replace") + '\n{"content": "Été à la mode, voilà"}'.encode("latin-1"))
    _refused(path, rf"{path}:2: neither UTF-8 nor GB18030")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_csv(tmp_path, encoding):
    text = 'instruction,input,output\r\n翻译,"a\r\n""b""",好\r\n\r\n"坏",少\r\n问,,答\r\n'
    path = _write(tmp_path / "a.csv", text, encoding)
    source = open_source(path)
    assert [(c.where, _said(c)) for c in source] == [
        (f"{path}:2", [("user", '翻译\na\r\n"b"'), ("assistant", "好")]),
        (f"{path}:6", [("user", "问"), ("assistant", "答")]),
    ]
    assert source.invalid_lines == [f"{path}:5: invalid CSV (2 fields, the header has 3)"]


def test_csv_cells_hold_lists_as_json(tmp_path):
    path = _write(tmp_path / "a.csv", 'prompt,response,history\nq,a,"[[""x"", ""y""]]"\nq,a,\nq,"a" b,\n')
    source = open_source(path)
    assert [len(c.messages) for c in source] == [4, 2]
    assert source.invalid_lines[0].startswith(f"{path}:4: invalid CSV")
    chat = _write(
        tmp_path / "b.csv",
        f"messages\n{json.dumps(json.dumps(_chat(('user', 'q'), ('assistant', 'a'))['messages']))}\n".replace(
            '\\"', '""'
        ),
    )
    assert [_said(c) for c in open_source(chat)] == [[("user", "q"), ("assistant", "a")]]
    _refused(_write(tmp_path / "c.csv", "content,summary\n"), "no usable rows")


def _csv(path, count, **changed):
    """A CSV file of so many lines, the header among them; `_5="..."` changes line 5."""
    lines = ["content,summary", *(f"问{n},答{n}" for n in range(2, count + 1))]
    for name, line in changed.items():
        lines[int(name[1:]) - 1] = line
    return _write(path, "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"_5": 'x,"y'}, ":5: lines 5 to 505: a quotation mark is opened and never closed."),
        ({"_405": 'x,"y'}, ":405: lines 405 to 505: a quotation mark is opened and never closed."),
        ({"_505": 'x,"y'}, ":505: a quotation mark is opened and never closed."),
        # The next one closes it, and what stands behind that does not fit.
        ({"_405": 'x,"y', "_409": 'x,"y"'}, r":405: lines 405 to 409: invalid CSV \(',' expected after '\"'\)."),
        ({"_405": 'x,"y', "_409": 'x",y'}, r":405: lines 405 to 409: invalid CSV \(3 fields, the header has 2\)."),
        ({"_405": 'x,"\0', "_409": 'x"'}, ":405: lines 405 to 409: NUL bytes"),
    ],
)
def test_a_stray_quotation_mark_does_not_swallow_the_lines_after_it(tmp_path, lines, said):
    path = _csv(tmp_path / "a.csv", 505, **lines)
    assert said.partition(" ")[0].strip(":") in _refused(path, f"^{path}{said}")


def test_csv_cells_of_many_lines_are_whole(tmp_path):
    path = _csv(tmp_path / "a.csv", 50, _5='x,"y', _6="", _7='""z"""', _9='"""",b')
    found = {c.where: _said(c) for c in open_source(path)}
    assert found[f"{path}:5"] == [("user", "x"), ("assistant", 'y\n\n"z"')]
    assert found[f"{path}:9"] == [("user", '"'), ("assistant", "b")]
    assert len(found) == 47


def _parquet(path, rows, **options):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, **options), path)
    return path


def test_parquet(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    chat = [
        {"role": "user", "content": "q"},
        call,
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    path = _parquet(tmp_path / "a.parquet", [{"messages": chat}] * 600)
    found = list(open_source(path))
    assert len(found) == 600
    assert found[-1].where == f"{path}:row 600"
    assert found[0].messages[1] == {"role": "tool", "name": "f", "parameters": {}, "observation": "r"}

    zipped = tmp_path / "b.parquet.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert len(list(open_source(zipped))) == 600

    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    _refused(path, rf"{path}: not a valid parquet file")
    damaged = bytearray(whole)
    damaged[4:400] = bytes(396)
    path.write_bytes(damaged)
    _refused(path, rf"^{path}:row 1: a damaged parquet file")

    _parquet(tmp_path / "p" / "1.parquet", [ADGEN])
    other = _parquet(tmp_path / "p" / "2.parquet", [{"content": "a", "summary": 5}])
    _refused(tmp_path / "p", rf"{other}: column 'summary' is int64, but string in .*1\.parquet")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_gzip(tmp_path, name):
    text = "content,summary\n一,壹\n" if name == "a.csv" else GOOD
    packed = gzip.compress(text.encode() * 1)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(packed)
    assert [c.where.rpartition(":")[0] for c in open_source(path)] == [str(path)]
    path.write_bytes(packed[:-12])
    _refused(path, rf"^{path}: a damaged gzip file \(")
    path.write_bytes(b"no gzip")
    _refused(path, rf"^{path}: a damaged gzip file \(")


def test_a_file_that_changes_meanwhile(tmp_path):
    path = _lines(tmp_path / "a.json", *[ADGEN] * 5000)
    source = open_source(path)
    rows = iter(source)
    next(rows)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(GOOD)
    with pytest.raises(DataError, match=rf"^{path}: the file changed while it was being read"):
        list(rows)
    with pytest.raises(DataError, match="changed"):
        source.compute_digest()
    assert len(list(open_source(path))) == 5001


# What may be named


def test_folders_globs_and_what_is_not_there(tmp_path):
    _lines(tmp_path / "d" / "b.jsonl", ADGEN)
    _lines(tmp_path / "d" / "sub" / "a.json", ADGEN, ADGEN)
    _lines(tmp_path / "d" / ".hidden" / "c.json", {"no": 1})
    _write(tmp_path / "d" / "README.md", "#")
    _write(tmp_path / "d" / "dataset_info.json", "{}")
    (tmp_path / "d" / "sub" / "loop").symlink_to(tmp_path / "d")
    source = open_source(tmp_path / "d")
    assert [path.name for path in source.files] == ["b.jsonl", "a.json"]
    assert len(list(source)) == 3
    assert [path.name for path in open_source(f"{tmp_path}/d/**/*.json*").files] == ["b.jsonl", "a.json"]
    assert [path.name for path in open_source(f"{tmp_path}/d/*.jsonl").files] == ["b.jsonl"]

    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", rf"^{tmp_path}/empty: no data files in this folder")
    _refused(f"{tmp_path}/*.csv", r"\*\.csv: matches no file")
    _refused(tmp_path / "none.json", "none.json: no such file")
    _refused(_write(tmp_path / "a.xlsx", "x"), "a.xlsx: not a supported type of data file")
    (tmp_path / "self.json").symlink_to(tmp_path / "self.json")
    _refused(tmp_path / "self.json", "self.json: cannot be read")


def _catalog(folder, **entries):
    return _write(folder / "dataset_info.json", json.dumps(entries))


def test_entries_of_a_dataset_info(tmp_path, monkeypatch):
    data = tmp_path / "data"
    _lines(data / "rows" / "a.json", *[{"q": "问", "more": "多", "a": "答", "h": [["x", "y"]]}] * 6)
    _lines(data / "chat.json", {"talk": [{"who": "U", "say": "q"}, {"who": "A", "say": "a"}], "sys": "s"})
    _lines(data / "text.json", {"text": "t"})
    catalog = _catalog(
        data,
        pairs={
            "file_name": "rows/a.json",
            "columns": {"prompt": "q", "query": "more", "response": "a", "history": "h"},
            "num_samples": 4,
            "split": "train",
        },
        chat={
            "file_name": "chat.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "system": "sys"},
            "tags": {"role_tag": "who", "content_tag": "say", "user_tag": "U", "assistant_tag": "A"},
        },
        text={"file_name": "text.json", "columns": {"prompt": "text"}},
        gone={"file_name": "gone.json"},
        dpo={"file_name": "chat.json", "ranking": True},
        image={"file_name": "chat.json", "columns": {"images": "i"}},
        odd={"file_name": "chat.json", "formatting": "sharegtp"},
        nothing={"filename": "chat.json"},
    )
    deep = tmp_path / "work" / "deep"
    deep.mkdir(parents=True)
    for place in (tmp_path, data, data / "rows"):  # beside, and above
        monkeypatch.chdir(place)
        source = open_source("pairs")
        assert (source.name, source.format, source.spec.num_samples) == ("pairs", "q/more/a", 4)
        assert [m["content"] for m in next(iter(source)).messages] == ["x", "y", "问\n多", "答"]
    monkeypatch.chdir(deep)
    assert _said(next(iter(open_source(f"{data}:chat")))) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    assert len(list(sample_sources([open_source(f"{catalog}:pairs")]))) == 4
    assert next(iter(open_source("text"))).text == "t"
    _refused("pears", "no such entry in .*dataset_info.json.\nDid you mean pairs")
    _refused(f"{data}:pears", "no entry 'pears'.\nDid you mean pairs")
    _refused("gone", "gone.json: no such file")
    _refused("dpo", "ranking")
    _refused("image", "column role 'images' is not supported")
    _refused("odd", "unknown formatting 'sharegtp'.\nDid you mean sharegpt")
    _refused("nothing", "nothing: unknown key filename.\nDid you mean file_name", ConfigError)
    _write(catalog, "{\n,")
    _refused("pairs", rf"{catalog}:2: not valid JSON")
    catalog.unlink()
    catalog.mkdir()
    _refused(f"{catalog}:pairs", "a folder, not a dataset_info.json")
    _refused("pairs", "pairs: no such file, and no dataset_info.json")


@pytest.mark.parametrize(
    ("keys", "said", "error"),
    [
        ({"colums": {"prompt": "content"}}, "unknown key colums.\nDid you mean columns", ConfigError),
        ({"num_sample": 5}, "unknown key num_sample.\nDid you mean num_samples", ConfigError),
        ({"num_samples": True}, "num_samples must be a whole number", DataError),
        ({"script_url": "make"}, "script_url is a program that makes the rows", DataError),
        ({"cloud_file_name": "s3://a.json"}, "cloud_file_name is in a cloud store", DataError),
        ({"hf_hub_url": "a/b", "folder": "part"}, "folder, a part of a hub data set", DataError),
        ({"split": "train[:10]"}, "split 'train\\[:10\\]' is for hub data", DataError),
        ({"file_name": None}, "has neither file_name", DataError),
        ({"file_name": None, "om_hub_url": "a/b"}, "has neither .*\nom_hub_url is not supported", DataError),
    ],
)
def test_keys_of_an_entry_are_never_passed_over(tmp_path, keys, said, error):
    _lines(tmp_path / "a.json", ADGEN)
    catalog = _catalog(tmp_path, ads={"file_name": "a.json", **keys})
    _refused(f"{catalog}:ads", f"^{catalog}: ads: {said}", error)


def test_keys_that_change_nothing_are_known(tmp_path):
    _lines(tmp_path / "a.json", ADGEN)
    harmless = {
        "om_hub_url": "a/b",
        "file_sha1": "12",
        "ranking": False,
        "script_url": None,
        "folder": "",
        "subset": "",
    }
    catalog = _catalog(tmp_path, ads={"file_name": "a.json", "split": "train", **harmless})
    assert open_source(f"{catalog}:ads").compute_digest() == open_source(tmp_path / "a.json").compute_digest()


def test_a_dataset_info_itself_is_no_data(tmp_path):
    catalog = _catalog(tmp_path, **{f"set{i}": {"file_name": "a.json"} for i in range(10)})
    listed = ", ".join(f"set{i}" for i in range(8))
    said = f"a list of data sets, not rows.\nGive one of them as {catalog}:NAME. It has {listed} and 2 more.$"
    _refused(catalog, f"^{catalog}: {said}")
    _refused(_catalog(tmp_path, one={}, two={}), "NAME. It has one, two.$")
    _refused(_catalog(tmp_path), "NAME. It is empty.$")


def test_encoded_rows_are_given_alone(tmp_path):
    encoded = tmp_path / "d" / "encoded"
    _write(encoded / "rows.arrow", "x")
    _write(encoded / "dataset.json", "{}")
    _lines(tmp_path / "d" / "a.json", ADGEN)
    for entry in (encoded, tmp_path / "d", f"{encoded}/*.json", encoded / "dataset.json"):
        with pytest.raises(DataError) as caught:
            open_sources([str(tmp_path / "d" / "a.json"), str(entry)])
        assert str(caught.value) == f"{encoded}: holds encoded rows; such a folder must be given alone, not in a list."
    (encoded / "rows.arrow").rename(tmp_path / "other")
    _lines(encoded / "dataset.json", ADGEN)  # a name that any file may have
    assert len(list(open_source(tmp_path / "d"))) == 2


def test_hub_data(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if split == "dev":
            raise ValueError('Unknown split "dev".\nmore')
        return [ADGEN] * 3

    class MsDataset:
        @staticmethod
        def load(name, subset_name, split):
            asked.append((name, subset_name, split))
            return types.SimpleNamespace(to_hf_dataset=lambda: [ADGEN])

    for name, members in {
        "datasets": {"load_dataset": load_dataset},
        "modelscope.msdatasets": {"MsDataset": MsDataset},
    }.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))
    monkeypatch.setitem(sys.modules, "modelscope", types.ModuleType("modelscope"))
    monkeypatch.chdir(tmp_path)
    source = open_source("org/name")
    assert [c.where for c in source] == [f"org/name:row {i}" for i in (1, 2, 3)]
    assert (source.files, len(source.compute_digest())) == ([], 64)
    assert len(list(open_source(SourceSpec("org/name", split="test", subset="x", hub="modelscope")))) == 1
    _catalog(tmp_path, both={"hf_hub_url": "a/b", "ms_hub_url": "c/d", "subset": "s"}, ms={"ms_hub_url": "c/d"})
    open_source("both")
    open_source("ms")
    assert list(dict.fromkeys(asked)) == [
        ("org/name", None, "train"),
        ("org/name", "x", "test"),
        ("a/b", "s", "train"),
        ("c/d", None, "train"),
    ]
    with pytest.raises(DataError, match=r'cannot be downloaded from huggingface \(Unknown split "dev"\)'):
        open_source(SourceSpec("org/name", split="dev"))
    _refused("org/name.json", "org/name.json: no such file")


def test_hub_data_without_the_client(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] in ("datasets", "modelscope"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    _refused("org/name", r"datasets, which is not installed.\n.*\[hub\]", ConfigError)
    with pytest.raises(ConfigError, match="modelscope"):
        open_source(SourceSpec("org/name", hub="modelscope"))


# Several sources


def test_lists_of_sources(tmp_path):
    path = str(_lines(tmp_path / "a.json", {"q": "1", "a": "2"}))
    first, second = open_sources(
        [{"path": path, "columns": {"prompt": "q"}, "weight": 2}, path], {"prompt": "a", "response": "a"}
    )
    assert (_said(next(iter(first)))[0][1], _said(next(iter(second)))[0][1], first.spec.weight) == ("1", "2", 2.0)
    for entry, message in [
        ({"path": path, "wieght": 2}, r"unknown key wieght.\nDid you mean weight"),
        ({"weight": 2}, "data entry 1 has no path"),
        (5, "data entry 1 must be a path or keys"),
        ({"path": path, "weight": 0}, "weight is 0.0; it must be above 0"),
        ({"path": path, "num_samples": 0}, "num_samples is 0"),
        ({"path": path, "hub": "github"}, "hub cannot be 'github'"),
        ({"path": path, "tags": {"rol_tag": "x"}}, "unknown tag 'rol_tag'.\nDid you mean role_tag"),
        ({"path": path, "split": "dev", "columns": {"prompt": "q", "response": "a"}}, "split is for hub data"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_sources([entry])
    with pytest.raises(ConfigError, match="empty"):
        open_sources([])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 40), ({"weight": 0.5}, 20), ({"weight": 2.0}, 80), ({"weight": 1.25}, 50), ({"num_samples": 7}, 7),
        ({"num_samples": 100}, 100), ({"num_samples": 10, "weight": 1.5}, 15), ({"weight": 0.001}, 1),
    ],
)  # fmt: skip
def test_weights_and_samples(tmp_path, options, expected):
    path = _lines(tmp_path / "a.json", *[{"content": str(i), "summary": "x"} for i in range(40)])

    def drawn(seed):
        return [_said(c)[0][1] for c in sample_sources([open_source(SourceSpec(str(path), **options), seed=seed)])]

    rows = drawn(1)
    assert len(rows) == expected
    assert {rows.count(row) for row in rows} <= {expected // 40, expected // 40 + 1}
    assert rows == drawn(1)
    if expected % 40 and expected > 5:
        assert rows != drawn(2)


def test_a_row_has_its_number_in_every_pass(tmp_path):
    def numbers(*specs, seed=1):
        entries = [
            {"path": str(_lines(tmp_path / f"{i}.json", *rows)), **options} for i, (rows, options) in enumerate(specs)
        ]
        return [(c.number, _said(c)[0][1]) for c in sample_sources(open_sources(entries, seed=seed))]

    def rows(letter, count):
        return [{"content": f"{letter}{i}", "summary": "x"} for i in range(count)]

    plain = numbers((rows("a", 3), {}), (rows("b", 2), {}))
    assert plain == [(0, "a0"), (1, "a1"), (2, "a2"), (3, "b0"), (4, "b1")]
    twice = numbers((rows("a", 3), {"weight": 2}), (rows("b", 2), {"weight": 2}))
    assert twice == [*plain[:3] * 2, *plain[3:] * 2]
    for options in ({"weight": 0.5}, {"num_samples": 3}, {"num_samples": 25}, {"weight": 1.7}):
        found = numbers((rows("a", 10), options), (rows("b", 10), options), (rows("c", 2), {}))
        assert {text: number for number, text in found} == {text: number for number, text in dict.fromkeys(found)}
        assert all(number == "abc".index(text[0]) * 10 + int(text[1:]) for number, text in found)
    # A line that is left out has no number.
    path = _write(tmp_path / "bad.json", f"{GOOD}\n{{\n{GOOD}\n")
    assert [c.number for c in open_source(path)] == [0, 1]
    assert [c.number for c in sample_sources(open_sources([str(path), str(path)]))] == [0, 1, 2, 3]


def test_digests_follow_content_and_settings(tmp_path):
    path = _lines(tmp_path / "a.json", {**ADGEN, "prompt": "p"})
    digest = open_source(path).compute_digest()
    assert open_source(_lines(tmp_path / "other.json", {**ADGEN, "prompt": "p"})).compute_digest() == digest
    specs = [
        SourceSpec(str(path), **o)
        for o in ({"columns": {"prompt": "prompt", "response": "summary"}}, {"num_samples": 1}, {"weight": 2.0})
    ]
    others = {open_source(spec).compute_digest() for spec in specs}
    others.add(open_source(_lines(tmp_path / "b.json", ADGEN, ADGEN)).compute_digest())
    assert len(others - {digest}) == 4
    # The seed decides something only where rows are drawn.
    assert [open_source(spec, seed=1).compute_digest() in others for spec in specs] == [True, False, False]
    assert open_source(path, seed=1).compute_digest() == digest


# Published files


@pytest.mark.parametrize(
    ("parts", "name", "rows"),
    [
        (("adgen", "train.json"), "content/summary", 900),
        (("alpaca_zh_demo.json",), "instruction/input/output", 300),
        (("glaive_toolcall_zh_demo.json",), "ShareGPT (from/value)", 100),
    ],
)
def test_published_files(asset, parts, name, rows):
    source = open_source(asset("data", *parts))
    found = list(source)
    assert (source.format, len(found), source.invalid_lines, source.notes) == (name, rows, [], [])
    calls = [message for c in found for message in c.messages if message["role"] == "tool"]
    assert bool(calls) == ("glaive" in parts[0])
    assert all(isinstance(call["parameters"], dict) and call["observation"] for call in calls)


def test_folders_that_may_not_be_opened_are_errors(tmp_path, monkeypatch):
    _lines(tmp_path / "d" / "a.json", ADGEN)
    closed = tmp_path / "d" / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    _refused(tmp_path / "d", "closed: cannot be read .Permission denied")
