"""Row shapes that people have, rows with two answers, and what is present in rows and not read."""

from __future__ import annotations

import json

import pytest

from glmtune.data.cache import encode_sources
from glmtune.data.check_rows import CheckReport, RowChecker, scan_sources
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.preview import make_preview, render_text
from glmtune.data.sources import open_source
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, get_family
from glmtune.models.tokenizers import load_tokenizer
from glmtune.training.training_data import print_data_report

RULES = EncodingRules(256, 256)
USER, ANSWER, WORSE = (
    {"role": role, "content": text} for role, text in (("user", "问"), ("assistant", "答"), ("assistant", "错"))
)
HUMAN, GPT, BAD = ({"from": name, "value": text} for name, text in (("human", "问"), ("gpt", "答"), ("gpt", "错")))
TOOLS = [{"type": "function", "function": {"name": "find_tea", "description": "finds-tea", "parameters": {}}}]
PLAIN = "user:问 assistant:答"


@pytest.fixture
def open_rows(tmp_path):
    def open_rows(*rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        return open_source(path, **options)

    return open_rows


def _describe(conversation):
    """The messages in one line; `-` marks those with `loss: false`, `+` those with `loss: true`."""
    parts = []
    for message in conversation.messages:
        mark = {True: "+", False: "-"}.get(message.get("loss"), "")
        text = message.get("content")
        if message["role"] == "tool":
            text = f"{message['name']}({json.dumps(message['parameters'])})={message.get('observation')}"
        parts.append(f"{mark}{message['role']}:{text}")
    return " ".join(parts)


def _render(source, family, tiny, rules=RULES):
    tokenizer = load_tokenizer(str(tiny(family)), "huggingface", family)
    preview = make_preview(source, next(iter(source)), get_family(family), tokenizer, rules)
    return "\n".join(render_text(row, colours=False).plain for row in preview.rows).replace("↵\n", "↵")


# Shapes


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "问", "response": "答", "system": "短"}, f"system:短 {PLAIN}"),
        ({"question": "问", "answer": "答"}, PLAIN),
        ({"instruction": "译", "input": "茶", "answer": "tea"}, "user:译\n茶 assistant:tea"),
        ({"instruction": "译", "context": "茶", "response": "tea"}, "user:译\n茶 assistant:tea"),
        ({"prompt": "问", "completion": "答"}, PLAIN),
        ({"prompt": [USER], "completion": [ANSWER]}, PLAIN),
        ({"instruction": "问", "output": ["答"]}, PLAIN),
        ({"instruction": "问", "output": "答", "system_prompt": "短"}, f"system:短 {PLAIN}"),
        ({"messages": [USER, ANSWER], "system_prompt": "短"}, f"system:短 {PLAIN}"),
        ({"conversation": [{"human": "问", "assistant": "答"}] * 2}, f"{PLAIN} {PLAIN}"),
        ({"conversation": [{"system": "短", "input": "问", "output": "答"}]}, f"system:短 {PLAIN}"),
        (
            {
                "conversation": [
                    {"input": "问", "output": "答", "output_with_loss": False},
                    {"input": "二", "output": "贰"},
                ]
            },
            "user:问 -assistant:答 user:二 assistant:贰",
        ),
        ({"conversation": [HUMAN, GPT]}, PLAIN),
        (
            {
                "meta_instruction": "短\n",
                "chat": {
                    f"turn_{number}": {
                        "Human": f"<|Human|>: 问{number}<eoh>\n",
                        "Commands": "<|Commands|>: None<eoc>\n",
                        "MOSS": f"<|MOSS|>: 答{number}<eom>\n",
                    }
                    for number in (2, 10, 1)
                },
            },
            "system:短 user:问1 assistant:答1 user:问2 assistant:答2 user:问10 assistant:答10",
        ),
        ({"history": [["一", "壹"], ["问", "答"]]}, f"user:一 assistant:壹 {PLAIN}"),
        ({"prompt": "问", "response": "答", "history": ["一", "壹"]}, f"user:一 -assistant:壹 {PLAIN}"),
        ({"prompt": "问", "response": "答", "history": [["一", 1.5]]}, f"user:一 -assistant:1.5 {PLAIN}"),
        ({"prompt": "问", "response": "答", "history": [USER, ANSWER]}, f"user:问 -assistant:答 {PLAIN}"),
        ({"prompt": "问", "response": "答", "history": [HUMAN, GPT]}, f"user:问 -assistant:答 {PLAIN}"),
        ({"prompt": "问", "response": "答", "history": [{"q": "一", "a": "壹"}]}, f"user:一 -assistant:壹 {PLAIN}"),
        (
            {"messages": [{**USER, "content": [{"type": "text", "value": "问"}], "loss_weight": 0.0}, ANSWER]},
            "-user:问 assistant:答",
        ),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ["答", "好"]}]}, "user:问 assistant:答\n好"),
    ],
)
def test_shapes_need_no_setting(open_rows, row, expected):
    (conversation,) = open_rows(row)
    assert _describe(conversation) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "问", "response": "答", "history": ["一", "壹", "二"]}, "column 'history' has 3 texts"),
        (
            {"prompt": "问", "response": "答", "system": "短", "system_prompt": "长"},
            "'system' and 'system_prompt' both",
        ),
        ({"history": [["问", "答"]], "reply": "好"}, "no known columns"),
        ({"conversation": [{"human": "问", "assistant": "答"}, {"human": "二"}]}, "turn 2 of 'conversation' has no"),
        ({"conversation": [{"human": "问", "assistant": None}]}, "turn 1 of 'conversation': assistant must be text"),
        (
            {"chat": {"turn_1": {"Human": "问", "Commands": "<|Commands|>: Search('茶')<eoc>", "MOSS": "答"}}},
            "turn_1 has Commands",
        ),
    ],
)
def test_shapes_that_cannot_be_read_are_named(open_rows, row, message):
    with pytest.raises(DataError, match=rf"rows.jsonl:1: .*{message}"):
        list(open_rows(row))


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"prompt": "instruction", "response": "answer"}, {"instruction": "问", "input": "茶", "answer": "答"}),
        ({"prompt": "q", "response": "r"}, {"q": "问", "input": "茶", "r": "答"}),
        ({"response": "r"}, {"instruction": "问", "input": "茶", "r": "答"}),
        ({"input": "more"}, {"instruction": "问", "more": "茶", "output": "答"}),
    ],
)
@pytest.mark.parametrize("system", ["system", "system_prompt"])
def test_named_columns_keep_the_usual_others(open_rows, columns, row, system):
    source = open_rows({**row, system: "短", "history": [["一", "壹"]], "tools": TOOLS}, columns=columns)
    (conversation,) = source
    assert _describe(conversation) == "system:短 user:一 -assistant:壹 user:问\n茶 assistant:答"
    assert conversation.tools == TOOLS
    assert source.describe_rows() == []


# Tools


def _call(**arguments):
    return {"role": "assistant", "content": json.dumps({"name": "find_tea", "arguments": arguments})}


RESULT = {"role": "observation", "content": "龙井"}
SYSTEM = {"role": "system", "content": "", "tools": TOOLS}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize(
    ("family", "call"),
    [("chatglm3", "find_tea↵ ```python↵tool_call(kind='g')↵```"), ("glm4", 'find_tea↵{"kind": "g"}')],
)
def test_tools_of_a_system_message_are_rendered(open_rows, tiny, tools, family, call):
    row = {"messages": [{**SYSTEM, "tools": tools}, USER, _call(kind="g"), RESULT, ANSWER]}
    text = _render(open_rows(row), family, tiny)
    assert "finds-tea" in text.partition("<|user|>")[0]
    assert text.count("<|system|>") == 1
    assert f"{call}<|observation|>⟧" in text


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "find_tea", "arguments": {"kind": "g"}}',
        '{"name": "find_tea", "arguments": "{\\"kind\\": \\"g\\"}"}',
        'find_tea\n{"kind": "g"}',
        "find_tea\n```python\ntool_call(kind='g')\n```",
    ],
)
def test_a_call_as_text_is_a_call(open_rows, content):
    call = {"role": "assistant", "content": content}
    as_call = 'find_tea({"kind": "g"})'
    (before_result,) = open_rows({"messages": [USER, call, RESULT, ANSWER]})
    assert _describe(before_result) == f"user:问 tool:{as_call}=龙井 assistant:答"
    (at_end,) = open_rows({"messages": [SYSTEM, USER, call]})
    assert _describe(at_end) == f"user:问 tool:{as_call}=None"
    (alone,) = open_rows({"messages": [USER, call]})  # without tools or a result it is an answer in JSON
    assert _describe(alone) == f"user:问 assistant:{content}"


def _function_calls(*numbers):
    calls = [{"name": "f", "arguments": {"n": number}} for number in numbers]
    return {"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0])}


def _observation(value):
    return {"from": "observation", "value": value}


@pytest.mark.parametrize(
    "messages",
    [
        [_function_calls(1, 2), _observation("[10, 20]")],
        [_function_calls(1, 2), _observation("10"), _observation("20")],
        [_function_calls(1), _function_calls(2), _observation("10"), _observation("20")],
        [_function_calls(1), _function_calls(2), _observation('["10", "20"]')],
        [{"from": "gpt", "value": f'{{"name": "f", "arguments": {{"n": {number}}}}}'} for number in (1, 2)]
        + [_observation("10"), _observation("20")],
    ],
)
def test_parallel_calls_become_calls_one_after_the_other(open_rows, tiny, messages):
    source = open_rows({"conversations": [HUMAN, *messages, GPT]})
    assert _describe(next(iter(source))) == 'user:问 tool:f({"n": 1})=10 tool:f({"n": 2})=20 assistant:答'
    calls = '⟦f↵{"n": 1}<|observation|>⟧↵10<|assistant|>⟦f↵{"n": 2}<|observation|>⟧↵20<|assistant|>'
    assert calls in _render(source, "glm4", tiny)


@pytest.mark.parametrize("result", ["雨", "[10]", '{"a": 1, "b": 2}'])
def test_one_result_of_two_calls_is_refused(open_rows, result):
    with pytest.raises(DataError, match=r"rows.jsonl:1: message 3 is the only result of 2 calls"):
        list(open_rows({"conversations": [HUMAN, _function_calls(1, 2), _observation(result), GPT]}))


def test_tools_given_as_text_have_their_name_as_heading(open_rows, tiny):
    row = {"tools": ["teaShop: finds tea.\nParameters: {}"], "conversations": [USER, ANSWER]}
    assert "## teaShop↵↵teaShop: finds tea.↵Parameters: {}↵" in _render(open_rows(row), "glm4", tiny)


# What is trained on


def _read_targets(source, family, tiny, rules=RULES):
    tokenizer = load_tokenizer(str(tiny(family)), "huggingface", family)
    (row,) = encode_conversations(source, get_family(family), tokenizer, rules, EncodingCounts())
    return [i for i, label in enumerate(row.labels) if label != IGNORE_INDEX]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{**USER, "loss": True}, ANSWER], "<|user|>⟦↵问<|assistant|>↵答<|endoftext|>⟧"),
        ([{**USER, "loss": True}, {**ANSWER, "loss": False}], "<|user|>⟦↵问<|assistant|>⟧↵答<|endoftext|>"),
        ([{"role": "system", "content": "短", "loss": True}, USER, ANSWER], "<|system|>⟦↵短<|user|>⟧↵问"),
        ([USER, _call(), {**RESULT, "loss": True}, ANSWER], "<|observation|>↵龙井<|assistant|>↵答"),
        ([USER, ANSWER, {**USER, "loss_weight": 1}, {**ANSWER, "loss_weight": 0}], "⟦↵答<|user|>↵问<|assistant|>⟧↵答"),
    ],
)
def test_loss_true_is_honoured_on_every_role(open_rows, tiny, messages, expected):
    assert expected in _render(open_rows({"conversations": messages}), "glm4", tiny)


def test_loss_true_is_refused_where_it_cannot_be_honoured(open_rows, tiny):
    source = open_rows({"conversations": [{**USER, "loss": True}, ANSWER]})
    for family in ("chatglm", "chatglm2"):
        with pytest.raises(DataError, match=r"rows.jsonl:1: Message 1 \(user\) has loss: true, but ChatGLM"):
            _read_targets(source, family, tiny)
    source = open_rows({"conversations": [USER, ANSWER, {**USER, "loss": True}]})
    with pytest.raises(DataError, match=r"rows.jsonl:1: message 3 has loss: true, but no answer follows"):
        _read_targets(source, "glm4", tiny)
    last_only = EncodingRules(256, 256, train_on="last")
    plain = _read_targets(open_rows({"conversations": [USER, ANSWER]}), "glm4", tiny)
    assert (
        _read_targets(open_rows({"conversations": [{**USER, "loss": True}, ANSWER]}), "glm4", tiny, last_only) == plain
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"loss_weight": 0.5}, "message 2: loss_weight is 0.5"),
        ({"weight": 2}, "message 2: weight is 2"),
        ({"loss": True, "loss_weight": 0}, "message 2: loss_weight and another key contradict"),
        ({"loss_mask": [0, 1]}, "key 'loss_mask' of a message"),
        ({"train": False}, "key 'train' of a message"),
    ],
)
def test_other_weights_are_refused(open_rows, flags, message):
    with pytest.raises(DataError, match=f"rows.jsonl:1: {message}"):
        list(open_rows({"messages": [USER, {**ANSWER, **flags}]}))


# Preference rows

TRANSCRIPT = "\n\nHuman: 早\n\nAssistant: 早上好\n\nHuman: 问\n\nAssistant: "
EARLIER = "user:早 -assistant:早上好"
MORNING = [{"from": "human", "value": "早"}, {"from": "gpt", "value": "早上好"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "问", "chosen": "答", "rejected": "错"}, PLAIN),
        ({"question": "问", "system": "短", "chosen": "答", "rejected": "错"}, f"system:短 {PLAIN}"),
        ({"instruction": "问", "input": "茶", "chosen": "答", "rejected": "错"}, "user:问\n茶 assistant:答"),
        ({"instruction": "问", "input": "", "output": ["答", "错"]}, PLAIN),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}, PLAIN),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, PLAIN),
        ({"prompt": "问", "messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, PLAIN),
        ({"conversations": [*MORNING, HUMAN], "chosen": GPT, "rejected": BAD}, f"{EARLIER} {PLAIN}"),
        ({"conversations": [HUMAN], "chosen": "答", "rejected": "错", "system": "短"}, f"system:短 {PLAIN}"),
        ({"messages": [USER, ANSWER], "rejected_response": "错"}, PLAIN),
        (
            {"query": "问", "response": "答", "rejected_response": "错", "history": [["早", "早上好"]]},
            f"{EARLIER} {PLAIN}",
        ),
        ({"chosen_messages": [USER, ANSWER], "rejected_messages": [USER, WORSE]}, PLAIN),
        ({"chosen": f"{TRANSCRIPT}答", "rejected": f"{TRANSCRIPT}错"}, f"{EARLIER} {PLAIN}"),
        ({"prompt": "问", "completion": "答", "label": True}, PLAIN),
        ({"prompt": [USER], "completion": [ANSWER], "label": True}, PLAIN),
        ({"conversations": [*MORNING, HUMAN, GPT], "kto_tag": True}, f"{EARLIER} {PLAIN}"),
    ],
)
def test_preference_rows(open_rows, row, expected):
    with pytest.raises(DataError, match=r"(?s)rows.jsonl:1: a preference row \(.*data.preference=chosen") as caught:
        list(open_rows(row))
    assert len(str(caught.value).splitlines()) == 2
    source = open_rows(row, preference="chosen")
    assert [_describe(conversation) for conversation in source] == [expected]
    assert source.describe_rows() == []


def test_preference_rows_are_found_behind_other_rows(open_rows):
    with pytest.raises(DataError, match=r"rows.jsonl:2: a preference row"):
        list(open_rows({"instruction": "问", "output": "答"}, {"instruction": "问", "output": ["答", "错"]}))


def test_worse_answers_alone_are_left_out_by_name(open_rows):
    rows = [{"prompt": f"问{i}", "completion": "答", "label": i != 1} for i in range(3)]
    source = open_rows(*rows, preference="chosen")
    assert [c.messages[0]["content"] for c in source] == ["问0", "问2"]
    assert source.describe_rows() == ["1 row with a worse answer left out (data.preference=chosen)"]
    checker = RowChecker(CheckReport("characters", keep_all=True))
    kinds = [[finding.kind for finding in checker.check_row(row)] for row in scan_sources([source])]
    assert (kinds, checker.report.errors) == ([[], ["worse-answer"], []], 0)


def test_other_labels_are_no_preference(open_rows):
    for label in ("positive", 3):
        source = open_rows({"instruction": "问", "output": "答", "label": label})
        assert [_describe(conversation) for conversation in source] == [PLAIN]
        assert source.describe_rows() == ["not used: label (1)"]
    (text,) = open_rows({"text": "从前", "label": True, "id": 1})
    assert text.text == "从前"
    (named,) = open_rows({"content": "问", "label": "true"}, columns={"prompt": "content", "response": "label"})
    assert named.messages[1]["content"] == "true"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "问", "chosen": "", "rejected": "错"}, "a preference row without its better answer"),
        (
            {"prompt": "问", "chosen": ["答", "好"], "rejected": "错"},
            "column 'chosen' must be text or messages, not a list",
        ),
        ({"chosen": "问答", "rejected": "问错"}, "no known question to the better answer"),
        ({"text": "从前", "chosen": "答", "rejected": "错"}, "no known question to the better answer"),
        ({"prompt": "问", "chosen": "答", "rejected": "错", "images": ["a.png"]}, "column 'images' changes"),
    ],
)
def test_preference_rows_that_cannot_be_read_are_named(open_rows, row, message):
    with pytest.raises(DataError, match=f"rows.jsonl:1: {message}"):
        list(open_rows(row, preference="chosen"))


def test_ranking_of_a_dataset_info(tmp_path):
    row = {"ask": "问", "good": "答", "bad": "错"}
    (tmp_path / "a.json").write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    entry = {"file_name": "a.json", "ranking": True, "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"pairs": entry}), encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs: preference rows \(ranking\).*\n.*data.preference=chosen"):
        open_source(f"{tmp_path}:pairs")
    (conversation,) = open_source(f"{tmp_path}:pairs", preference="chosen")
    assert _describe(conversation) == PLAIN


# What is present and not read


def test_unread_keys_are_counted(open_rows):
    source = open_rows(
        {"id": 1, "note": "", "messages": [{**USER, "name": "李"}, {**ANSWER, "name": "王"}]},
        {"id": 2, "messages": [USER, {**ANSWER, "reasoning_content": "想"}], "note": None},
        {"id": 3, "note": "短", "messages": [USER, ANSWER], "tools": [], "system": ""},
    )
    list(source)
    list(source)  # counted anew
    assert source.describe_rows() == ["not used: id (3), note (1); in messages: name (1), reasoning_content (1)"]
    checker = RowChecker(CheckReport("characters", keep_all=True))
    for row in scan_sources([source, source]):
        checker.check_row(row)
    checker.add_unread_keys([source])
    (finding,) = [finding for finding in checker.report.findings if finding.kind == "unread-key"]
    assert (finding.severity, finding.row, finding.where) == ("warning", 1, f"{source.files[0]}:1")
    assert finding.message == source.describe_rows()[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "问", "response": "答", "images": ["a.png"]}, "column 'images' changes what is trained on"),
        ({"messages": [USER, ANSWER], "videos": ["a.mp4"]}, "column 'videos' changes"),
        ({"prompt": "问", "response": "答", "loss": False}, "column 'loss' changes"),
        ({"prompt": "问", "response": "答", "ranking": [1, 2]}, "column 'ranking' changes"),
        ({"messages": [{**USER, "images": ["a.png"]}, ANSWER]}, "key 'images' of a message changes"),
        ({"messages": [{**USER, "tools": TOOLS}, ANSWER]}, "key 'tools' of a message changes"),
        ({"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER]}, "key 'tool_calls' of a message changes"),
        ({"messages": [SYSTEM, USER, ANSWER], "tools": [{"name": "g"}]}, "message 1 lists other tools"),
    ],
)
def test_keys_that_change_what_is_learnt_are_refused(open_rows, row, message):
    with pytest.raises(DataError, match=rf"rows.jsonl:1: {message}"):
        list(open_rows(row))


def test_empty_keys_are_no_keys(open_rows):
    row = {"messages": [{**USER, "tools": None, "images": []}, ANSWER], "images": None, "chosen": "", "label": None}
    source = open_rows(row)
    assert [_describe(conversation) for conversation in source] == [PLAIN]
    assert source.describe_rows() == []


def test_training_and_preview_name_unread_keys(open_rows, tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(str(tiny("glm4")), "huggingface", "glm4")
    for _ in range(2):  # encoded, and from the cache
        source = open_rows({"prompt": "问", "response": "答", "category": "茶"})
        print_data_report(encode_sources([source], get_family("glm4"), tokenizer, RULES))
        assert "rows.jsonl: not used: category (1)" in "".join(capsys.readouterr()).replace("\n", " ").replace(
            "  ", " "
        )
    preview = make_preview(source, next(iter(source)), get_family("glm4"), tokenizer, RULES)
    assert preview.make_heading()[-1] == "not used: category"


def test_check_command(open_rows, glmtune_command):
    source = open_rows({"prompt": "问", "chosen": "答", "rejected": "错", "margin": 2})
    refused = glmtune_command("data", "check", source.files[0])
    assert refused.code == 1
    assert "a preference row (chosen and rejected)" in refused.out
    accepted = glmtune_command("data", "check", source.files[0], "--set", "data.preference=chosen")
    assert accepted.code == 0
    assert "not used: margin (1)" in accepted.out


PAIR = {"instruction": "问", "output": ["答", "错"]}
ORDINARY = {"instruction": "早", "output": "早上好"}
MIXED_NOTE = "2 preference rows, the better answer alone, and 1 row with one answer (data.preference=chosen)"


@pytest.mark.parametrize("rows", [(PAIR, ORDINARY, PAIR), (ORDINARY, PAIR, PAIR)])
def test_ordinary_rows_among_preference_rows_are_used(open_rows, rows):
    source = open_rows(*rows, preference="chosen")
    expected = ["user:早 assistant:早上好" if row is ORDINARY else PLAIN for row in rows]
    for _ in range(2):
        assert [_describe(conversation) for conversation in source] == expected
        assert source.describe_rows() == [MIXED_NOTE]
    with pytest.raises(DataError, match=r"rows.jsonl:[123]: (a preference row|this row is)"):
        list(open_rows(*rows))


@pytest.mark.parametrize("first", [PAIR, ORDINARY])
def test_files_of_preference_rows_and_of_ordinary_rows(first, tmp_path):
    second = ORDINARY if first is PAIR else PAIR
    for name, row in (("a", first), ("b", second)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row), "utf-8")
    assert len(list(open_source(tmp_path, preference="chosen"))) == 2


def test_ordinary_rows_of_two_formats_are_refused_among_preference_rows_too(open_rows):
    other = {"messages": [USER, ANSWER]}
    with pytest.raises(DataError, match=r"rows.jsonl:3: this row is OpenAI messages .*rows.jsonl:2 is instruction"):
        list(open_rows(PAIR, ORDINARY, other, preference="chosen"))
    with pytest.raises(DataError, match=r"rows.jsonl:3: this row is OpenAI messages .*rows.jsonl:1 is instruction"):
        list(open_rows(ORDINARY, PAIR, other, preference="chosen"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "问", "response": "答", "history": [{"role": "user", "content": "早", "id": 3}, ANSWER]}, "id"),
        ({"prompt": "问", "response": "答", "history": [{"human": "早", "assistant": "早上好", "time": "8"}]}, "time"),
        ({"history": [{"human": "问", "assistant": "答", "time": "8"}]}, "time"),
        ({"history": [{"from": "human", "value": "问", "score": 1}, GPT]}, "score"),
    ],
)
def test_keys_in_a_history_that_are_not_read_are_counted(open_rows, row, expected):
    source = open_rows(row, row)
    assert len(list(source)) == 2
    assert source.describe_rows() == [f"not used: in messages: {expected} (2)"]


@pytest.mark.parametrize("key", ["images", "loss_mask"])
def test_keys_in_a_history_that_change_what_is_trained_on_are_refused(open_rows, key):
    turn = {"human": "早", "assistant": "早上好", key: [1]}
    with pytest.raises(DataError, match=f"key '{key}' of a message changes what is trained on"):
        list(open_rows({"prompt": "问", "response": "答", "history": [turn]}))


def test_a_loss_flag_in_a_history_is_kept(open_rows):
    messages = [USER, {**ANSWER, "loss": True}, USER, ANSWER]
    (conversation,) = open_rows({"prompt": "早", "response": "早上好", "history": messages})
    assert _describe(conversation) == "user:问 +assistant:答 user:问 -assistant:答 user:早 assistant:早上好"
