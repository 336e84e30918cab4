"""Files to conversations to ids: formats, lines, limits."""

from __future__ import annotations

import json

import pytest

import glmtune
from glmtune.data.batches import PadRight
from glmtune.data.encoding import Limits, encode_conversations
from glmtune.data.sources import Conversation, read_source
from glmtune.errors import ConfigError, DataError
from glmtune.families import IGNORE, get_family
from tiny import FAMILIES


def _write(path, text, encoding="utf-8"):
    path.write_text(text, encoding)
    return path


def _lines(path, *rows):
    return _write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")


def test_columns_are_recognised(tmp_path):
    adgen = read_source(_lines(tmp_path / "a.json", {"content": "类型#裙", "summary": "好裙子"}))
    assert adgen.layout == "content/summary"
    assert [m["content"] for m in adgen.conversations[0].messages] == ["类型#裙", "好裙子"]

    row = {"prompt": "二", "response": "贰", "history": [["一", "壹"]]}
    chat = read_source(_lines(tmp_path / "b.jsonl", row)).conversations[0].messages
    assert [(m["role"], m["content"], m.get("loss", True)) for m in chat] == [
        ("user", "一", True),
        ("assistant", "壹", False),
        ("user", "二", True),
        ("assistant", "贰", True),
    ]

    row = {"instruction": "翻译", "input": "hello", "output": "你好", "system": "你是译者"}
    alpaca = read_source(_lines(tmp_path / "c.json", row, {**row, "input": ""})).conversations
    assert [m["role"] for m in alpaca[0].messages] == ["system", "user", "assistant"]
    assert alpaca[0].messages[1]["content"] == "翻译\nhello"
    assert alpaca[1].messages[1]["content"] == "翻译"


def test_other_columns_can_be_named(tmp_path):
    path = _lines(tmp_path / "a.json", {"q": "问题", "a": "答案"})
    with pytest.raises(DataError, match=r"a\.json:1: no known columns \(this row has 'q', 'a'\)"):
        read_source(path)
    found = read_source(path, {"prompt": "q", "response": "a"})
    assert (found.layout, found.conversations[0].messages[1]["content"]) == ("q/a", "答案")
    with pytest.raises(ConfigError, match=r"no role 'promt'.\nDid you mean prompt"):
        read_source(path, {"promt": "q"})


def test_arrays_and_lines_know_their_line(tmp_path):
    rows = [{"content": "一", "summary": "壹"}, {"content": "二", "summary": "贰"}]
    array = _write(tmp_path / "a.json", "\ufeff" + json.dumps(rows, ensure_ascii=False, indent=2))
    assert [c.where for c in read_source(array).conversations] == [f"{array}:2", f"{array}:6"]
    lines = _write(tmp_path / "b.json", '\n{"content": "一", "summary": "壹"}\r\n\n{"content": "二", "summary": "贰"}')
    assert [c.where for c in read_source(lines).conversations] == [f"{lines}:2", f"{lines}:4"]


def test_a_broken_line_is_named_and_the_others_are_kept(tmp_path):
    good = '{"content": "一", "summary": "壹"}'
    path = _write(tmp_path / "a.json", f"{good}\n{good[:-5]}\n{good}\n[1]\n")
    found = read_source(path)
    assert [c.where for c in found.conversations] == [f"{path}:1", f"{path}:3"]
    assert len(found.broken) == 2
    assert found.broken[0].startswith(f"{path}:2: broken JSON")
    assert found.broken[1] == f"{path}:4: not a JSON object but a list"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ('{"content": 1\n', "no usable rows. The first:"),
        ('[{"content": "a", "summary": "b"},\n {"content": }]', r"a\.json:2: broken JSON"),
        ('[{"content": "a", "summary": "b"}', "broken JSON"),
        ('[{"content": "a", "summary": "b"} {"content": "a"}]', "broken JSON"),
        ("[]", "no usable rows"),
        ('{"content": "a"}\n', r"a\.json:1: no known columns"),
        ('{"content": "a", "summary": "b"}\n{"content": "a"}\n', r"a\.json:2: no column 'summary'"),
        ('{"content": "a", "summary": 5}\n', r"a\.json:1: column 'summary' must be text, not int"),
        ('{"prompt": "a", "response": "b", "history": [["x"]]}\n', r"a\.json:1: entry 1 of 'history'"),
        ('{"prompt": "a", "response": "b", "history": "x"}\n', r"a\.json:1: column 'history' must be a list"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_bad_files_say_where(tmp_path, text, message):
    path = _write(tmp_path / "a.json", text)
    with pytest.raises(DataError, match=message) as caught:
        read_source(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_source(tmp_path / "none.json")
    with pytest.raises(DataError, match="a folder"):
        read_source(tmp_path)
    path = tmp_path / "gbk.json"
    path.write_bytes('{"content": "a", "summary": "b"}\n{"content": "上衣"}'.encode("gbk"))
    with pytest.raises(DataError, match=r"gbk\.json:2: not UTF-8"):
        read_source(path)


def _long() -> Conversation:
    messages = [{"role": "system", "content": "说得短。"}]
    for i in range(4):
        messages += [{"role": "user", "content": f"第{i}问" * 3}, {"role": "assistant", "content": f"第{i}答" * 3}]
    return Conversation(messages, "rows.json:7")


@pytest.mark.parametrize("name", FAMILIES)
def test_old_turns_go_first_and_the_frame_stays(name, tiny):
    tokenizer, family = glmtune.load_tokenizer(tiny(name)), get_family(name)
    conversation = _long()
    *context, answer = conversation.messages
    whole = family.encode_prompt(context, tokenizer)
    newest = family.encode_prompt([context[0], context[-1]], tokenizer)
    limits = Limits(len(newest) + 1, 1000)
    (row,), cuts = encode_conversations([conversation], family, tokenizer, limits)
    assert row.input_ids == newest + family.encode_answer(answer, tokenizer)
    assert (cuts.turns_dropped, cuts.prompts_cut, cuts.tokens_cut) == (1, 0, len(whole) - len(newest))


@pytest.mark.parametrize("name", FAMILIES)
def test_then_the_start_of_the_newest_question(name, tiny):
    tokenizer, family = glmtune.load_tokenizer(tiny(name)), get_family(name)
    messages = [{"role": "user", "content": "".join(chr(0x4E00 + i) for i in range(80)) + "尾巴"}]
    conversation = Conversation([*messages, {"role": "assistant", "content": "好"}], "rows.json:1")
    whole = family.encode_prompt(messages, tokenizer)
    limit = len(whole) - 30
    (row,), cuts = encode_conversations([conversation], family, tokenizer, Limits(limit, 1000))
    prompt = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE]
    assert limit - 4 < len(prompt) <= limit  # a character may be several byte tokens
    tail = tokenizer.decode(prompt, skip_special_tokens=True)
    assert "尾巴" in tail
    frame = family.encode_prompt([{"role": "user", "content": ""}], tokenizer)
    assert prompt[:1] == frame[:1] or name == "chatglm"
    assert prompt[-1] == frame[-1]
    assert cuts.prompts_cut == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_answer_keeps_its_end_token(name, tiny):
    tokenizer, family = glmtune.load_tokenizer(tiny(name)), get_family(name)
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "很长的回答" * 20}]
    (row,), cuts = encode_conversations([Conversation(messages, "x:1")], family, tokenizer, Limits(500, 10))
    targets = [label for label in row.labels if label != IGNORE]
    assert len(targets) == 10
    assert targets[-1] == family.stop_ids(tokenizer)[0]
    assert targets[:9] == family.encode_answer(messages[-1], tokenizer)[:9]
    assert cuts.answers_cut == 1


def test_a_limit_below_the_frame_is_an_error_with_the_row(tiny):
    tokenizer, family = glmtune.load_tokenizer(tiny("chatglm2")), get_family("chatglm2")
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    with pytest.raises(DataError, match=r"x\.json:3: the prompt's frame alone"):
        encode_conversations([Conversation(messages, "x.json:3")], family, tokenizer, Limits(4, 10))


def test_batches_hold_what_the_loss_needs():
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORE, IGNORE, 7, 8], "row": 3},
        {"input_ids": [5, 9], "labels": [IGNORE, 9], "row": 4},
    ]
    batch = PadRight(0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["logits_to_keep"].tolist() == [0, 1, 2]
    assert batch["targets"].tolist() == [[IGNORE, 7, 8], [9, IGNORE, IGNORE]]
    assert batch["rows"].tolist() == [3, 4]
