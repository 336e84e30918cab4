"""Conversations to ids: what is trained, what the limits cut, what the cache keeps."""

from __future__ import annotations

import json

import pytest

import glmtune
from glmtune.data.cache import encode_sources, hash_tokenizer, open_encoded_data
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.sources import open_sources, sample_sources
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, get_family
from tiny import FAMILIES

ROOMY = EncodingRules(1000, 1000)
TURNS = [
    {"role": "system", "content": "说得短。"},
    {"role": "user", "content": "上衣好吗？"},
    {"role": "assistant", "content": "上衣好。"},
    {"role": "user", "content": "裙子呢？"},
    {"role": "assistant", "content": "裙子也好。"},
]
TOOLS = [{"name": "find", "description": "找", "parameters": {"type": "object", "properties": {}}}]


@pytest.fixture
def load(tiny):
    return lambda name: (glmtune.load_tokenizer(tiny(name)), get_family(name))


def _encode(messages, family, tokenizer, rules=ROOMY, tools=None, text=None):
    counts = EncodingCounts()
    conversation = Conversation(messages, "rows.json:7", tools=tools, text=text)
    return list(encode_conversations([conversation], family, tokenizer, rules, counts)), counts


def _trained(row, tokenizer):
    """The stretches that are learnt, as text, the special tokens that end them included."""
    stretches, current = [], []
    for label in [*row.labels, IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            current.append(label)
        elif current:
            stretches.append(tokenizer.decode(current).strip())
            current = []
    return stretches


# --- what is trained ---


def test_every_answer_is_learnt_with_its_end(load):
    expected = {
        "chatglm": [["上衣好。<eop>"], ["裙子也好。<eop>"]],
        "chatglm2": [["上衣好。</s>", "裙子也好。</s>"]],
        "chatglm3": [["上衣好。<|user|>", "裙子也好。</s>"]],
        "glm4": [["上衣好。<|user|>", "裙子也好。<|endoftext|>"]],
    }
    for name in FAMILIES:
        tokenizer, family = load(name)
        rows, counts = _encode(TURNS, family, tokenizer)
        assert [_trained(row, tokenizer) for row in rows] == expected[name]
        assert counts.rows == len(rows)
        assert counts.targets == sum(label != IGNORE_INDEX for row in rows for label in row.labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_last_answer_on_request(name, load):
    tokenizer, family = load(name)
    rows, _ = _encode(TURNS, family, tokenizer, EncodingRules(1000, 1000, train_on="last"))
    (row,) = rows
    (learnt,) = _trained(row, tokenizer)
    assert learnt.startswith("裙子也好。")


def test_chatglm2_keeps_the_official_prompt_and_labels_ends_beside_it(load):
    """The history has no end tokens when the model is asked, so it has none in training; the labels carry them."""
    tokenizer, family = load("chatglm2")
    (row,), _ = _encode(TURNS, family, tokenizer)
    prompt = family.encode_prompt(TURNS[:-1], tokenizer)
    assert row.input_ids[: len(prompt)] == prompt
    assert 2 not in row.input_ids[:-1]
    changed = [(i, label) for i, label in enumerate(row.labels) if label not in (IGNORE_INDEX, row.input_ids[i])]
    assert [label for _, label in changed] == [2]
    position = changed[0][0]
    assert tokenizer.decode(row.input_ids[:position]).endswith("答：上衣好。")
    assert tokenizer.decode(row.input_ids[position:]).startswith("\n\n[Round 2]")


def test_chatglm_rows_say_how_long_their_context_is(load):
    tokenizer, family = load("chatglm")
    rows, _ = _encode(TURNS, family, tokenizer)
    for row in rows:
        assert tokenizer.convert_ids_to_tokens(row.input_ids[row.context]) == "<sop>"
    (text,), _ = _encode([], family, tokenizer, text="白色上衣")
    assert text.context == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_flags_and_answers_without_any(name, load):
    tokenizer, family = load(name)
    flagged = [{**m, "loss": False} if i == 2 else m for i, m in enumerate(TURNS)]
    rows, _ = _encode(flagged, family, tokenizer)
    assert len(rows) == 1
    assert len(_trained(rows[0], tokenizer)) == 1
    silent = [{**m, "loss": False} for m in TURNS]
    with pytest.raises(DataError, match=r"rows\.json:7: nothing to train on"):
        _encode(silent, family, tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_follows_the_last_answer_is_left_out(name, load):
    tokenizer, family = load(name)
    longer = [*TURNS, {"role": "user", "content": "谢谢"}]
    assert _encode(longer, family, tokenizer)[0] == _encode(TURNS, family, tokenizer)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_stands_before_the_first_question(name, load):
    tokenizer, family = load(name)
    rows, _ = _encode(TURNS, family, tokenizer, EncodingRules(1000, 1000, prefix="请回答 "))
    shown = tokenizer.decode(rows[-1].input_ids)
    assert shown.count("请回答 ") == 1
    assert "请回答 上衣好吗" in shown


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_text_is_learnt_whole_and_in_pieces(name, load):
    tokenizer, family = load(name)
    text = "白色上衣红色裙子。" * 12
    (whole,), _ = _encode([], family, tokenizer, text=text)
    assert tokenizer.decode([i for i in whole.labels if i != IGNORE_INDEX], skip_special_tokens=True).strip() == text
    pieces, counts = _encode([], family, tokenizer, EncodingRules(20, 12), text=text)
    assert len(pieces) > 2
    assert all(len(piece.input_ids) <= 32 for piece in pieces)
    joined = [label for piece in pieces for label in piece.labels if label != IGNORE_INDEX]
    assert joined == [label for label in whole.labels if label != IGNORE_INDEX]
    assert counts.tokens_cut == 0


# --- tools ---


@pytest.mark.parametrize(("name", "call"), [("chatglm3", "tool_call(q='裙', n=2)"), ("glm4", '{"q": "裙", "n": 2}')])
def test_tool_calls_are_learnt_and_their_results_are_not(name, call, load):
    tokenizer, family = load(name)
    messages = [
        {"role": "user", "content": "找裙"},
        {"role": "tool", "name": "find", "parameters": {"q": "裙", "n": 2}, "observation": {"found": 1}},
        {"role": "assistant", "content": "有。"},
    ]
    (row,), _ = _encode(messages, family, tokenizer, tools=TOOLS)
    first, second = _trained(row, tokenizer)
    assert "find" in first
    assert call in first
    assert first.endswith("<|observation|>")
    assert second.startswith("有。")
    shown = tokenizer.decode(row.input_ids)
    assert '{"found": 1}' in shown
    assert '"description": "找"' in shown
    written = first.removesuffix("<|observation|>").lstrip()
    reply = family.parse_reply(written.replace("find \n", "find\n"))
    assert [(c.name, c.arguments) for c in reply.tool_calls] == [("find", {"q": "裙", "n": 2})]


def test_glm4_announces_tools_in_the_published_words(load):
    tokenizer, family = load("glm4")
    own = family.encode_prompt(TURNS[:2], tokenizer, [{"type": "function", "function": TOOLS[0]}])
    shown = tokenizer.decode(own)
    assert shown.startswith('[gMASK]<sop><|system|>\n说得短。\n\n# 可用工具\n\n## find\n\n{\n    "name"')
    assert shown.count("在调用上述函数时，请使用 Json 格式表示调用的参数。") == 1
    assert "你是一个名为 ChatGLM 的人工智能助手" in tokenizer.decode(family.encode_prompt(TURNS[1:2], tokenizer, TOOLS))


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("tool_call(城市='北京', 天数=3)", {"城市": "北京", "天数": 3}),
        ('tool_call(a=\'it\\\'s "so"\', b="x\\ny")', {"a": 'it\'s "so"', "b": "x\ny"}),
        ("tool_call(a={'b': [1, {'c': None}]}, d=-1.5, e=True)", {"a": {"b": [1, {"c": None}]}, "d": -1.5, "e": True}),
        ("tool_call()", {}),
        (
            "tool_call(from='北京', start-date='1 日, 2 日', ｎ=1)",
            {"from": "北京", "start-date": "1 日, 2 日", "ｎ": 1},
        ),
        ("tool_call(\n    a='''two\nlines''',\n)", {"a": "two\nlines"}),
    ],
)
def test_chatglm3_calls_are_read(body, arguments):
    reply = get_family("chatglm3").parse_reply(f"find\n```python\n{body}\n```")
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("find", arguments)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatglm3", "find\n```python\ntool_call(a=open('x'))\n```"),
        ("chatglm3", "find\n```python\ntool_call(a=1\n```"),
        ("chatglm3", "find\n```python\ntool_call('x')\n```"),
        ("chatglm3", "find\n```python\ntool_call(**{'a': 1})\n```"),
        ("chatglm3", "find\n```python\ntool_call(a=1); import os\n```"),
        ("chatglm3", "find\n```python\ntool_call(a=1)"),
        ("chatglm3", f"find\n```python\ntool_call(a={'[' * 5000}1{']' * 5000})\n```"),
        ("glm4", 'find\n{"a": 1'),
        ("glm4", "find\n[1, 2]"),
    ],
)
def test_malformed_calls_are_text_with_the_reason(name, text):
    reply = get_family(name).parse_reply(text)
    assert reply.tool_calls == []
    assert reply.content == text.strip()
    assert reply.problem


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
@pytest.mark.parametrize("text", ["第一行\n第二行", 'Here is the JSON you asked for:\n{"a": 1}'])
def test_ordinary_answers_of_several_lines_are_no_calls(name, text):
    reply = get_family(name).parse_reply(text)
    assert (reply.content, reply.tool_calls, reply.problem) == (text, [], "")


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_a_call_and_its_result_in_two_messages_give_one_observation(name, load):
    tokenizer, family = load(name)
    call = {"role": "tool", "name": "find", "parameters": {}}
    apart = [TURNS[1], call, {"role": "observation", "content": "RES"}, TURNS[2]]
    joined = [TURNS[1], {**call, "observation": "RES"}, TURNS[2]]
    assert family.encode(apart, tokenizer) == family.encode(joined, tokenizer)


def test_repeated_rows_stay_on_one_side_of_the_split(load, adgen_file, glmtune_command, tiny, tmp_path):
    from glmtune.config import DataConfig
    from glmtune.training.training_data import _split_rows

    path = adgen_file(40)
    tokenizer, family = load("chatglm3")
    encoded = encode_sources(open_sources([{"path": str(path), "weight": 2}]), family, tokenizer, ROOMY)
    assert len(encoded.rows) == 80
    train, held = _split_rows(encoded.rows.conversations, DataConfig(eval_fraction=0.2), seed=1)
    sides = [{encoded.rows[int(i)].where for i in part} for part in (train, held)]
    assert len(sides[1]) == 8
    assert not sides[0] & sides[1]


def test_an_encoded_folder_keeps_its_rules_and_says_so(load, adgen_file, glmtune_command, tiny, tmp_path):
    base, folder = tiny("chatglm3"), tmp_path / "enc"
    tokenize = ("data", "tokenize", adgen_file(8), "--model", base, "--output", folder, "--set", "data.prefix=写：")
    assert glmtune_command(*tokenize).code == 0
    train = ("train", "--model", base, "--data", folder, "--set", "training.max_steps=2", "--output")
    refused = glmtune_command(*train, tmp_path / "a")
    assert refused.code == 1
    assert "prefix='写：'" in refused.err
    assert glmtune_command(*train, tmp_path / "b", "--set", "data.prefix=写：").code == 0


def test_a_padded_call_does_not_change_the_tokenizers_identity(load):
    tokenizer, _ = load("chatglm3")
    before = hash_tokenizer(tokenizer)
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=3)
    assert hash_tokenizer(tokenizer) == before


def test_a_cache_that_cannot_be_written_is_an_error(load, adgen_file, tmp_path, monkeypatch):
    tokenizer, family = load("chatglm3")
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="GLMTUNE_CACHE"):
        encode_sources(_sources(adgen_file(4)), family, tokenizer, ROOMY)


def test_a_renamed_file_is_found_in_the_cache_under_its_new_name(load, adgen_file):
    tokenizer, family = load("chatglm3")
    path = adgen_file(4)
    first = encode_sources(_sources(path), family, tokenizer, ROOMY)
    renamed = path.rename(path.with_name("renamed.json"))
    second = encode_sources(_sources(renamed), family, tokenizer, ROOMY)
    assert second.rows.path == first.rows.path
    assert [source["name"] for source in second.info.sources] == [str(renamed)]


# --- limits ---


@pytest.mark.parametrize("name", FAMILIES)
def test_old_turns_go_first_and_the_frame_stays(name, load):
    tokenizer, family = load(name)
    newest = [TURNS[0], *TURNS[3:]]
    wanted = family.encode(newest, tokenizer)
    rules = EncodingRules(wanted.prompt_length + 1, 1000, train_on="last")
    (row,), counts = _encode(TURNS, family, tokenizer, rules)
    assert (row.input_ids, row.labels) == (wanted.input_ids, wanted.labels)
    assert (counts.turns_dropped, counts.prompts_cut) == (1, 0)
    assert counts.tokens_cut == len(family.encode(TURNS, tokenizer).input_ids) - len(wanted.input_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_then_the_start_of_the_newest_question(name, load):
    tokenizer, family = load(name)
    question = "".join(chr(0x4E00 + i) for i in range(80)) + "尾巴"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "好"}]
    whole = family.encode(messages, tokenizer)
    limit = whole.prompt_length - 30
    (row,), counts = _encode(messages, family, tokenizer, EncodingRules(limit, 1000))
    prompt = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE_INDEX]
    assert limit - 4 < len(prompt) <= limit  # a character may be several byte tokens
    assert "尾巴" in tokenizer.decode(prompt)
    empty = family.encode([{"role": "user", "content": ""}, messages[1]], tokenizer)
    assert prompt[-1] == empty.input_ids[empty.prompt_length - 1]
    assert counts.prompts_cut == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_answer_keeps_its_end_token(name, load):
    tokenizer, family = load(name)
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "很长的回答" * 20}]
    (row,), counts = _encode(messages, family, tokenizer, EncodingRules(500, 10))
    targets = [label for label in row.labels if label != IGNORE_INDEX]
    assert len(targets) == 10
    assert targets[-1] == row.input_ids[-1] == family.get_stop_ids(tokenizer)[0]
    assert targets[:9] == family.encode_answer(messages[-1], tokenizer)[:9]
    assert counts.answers_cut == 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("question", "answer"), [(40, 40), (200, 10), (10, 200), (200, 200)])
def test_one_limit_for_both_is_kept_and_used(name, question, answer, load):
    tokenizer, family = load(name)
    messages = [{"role": "user", "content": "上" * question}, {"role": "assistant", "content": "衣" * answer}]
    (row,), _ = _encode(messages, family, tokenizer, EncodingRules(0, 0, max_length=200))
    whole = family.encode(messages, tokenizer)
    assert len(row.input_ids) <= 200
    assert len(row.input_ids) > min(len(whole.input_ids), 200) - 8
    assert row.input_ids[-1] == whole.input_ids[-1]
    prompt = sum(label == IGNORE_INDEX for label in row.labels)
    assert prompt >= min(whole.prompt_length, 90)


def test_rows_over_the_limits_can_be_dropped_or_refused(load):
    tokenizer, family = load("chatglm3")
    rows, counts = _encode(TURNS, family, tokenizer, EncodingRules(20, 1000, overlength="drop"))
    assert rows == []
    assert counts.rows_dropped == 1
    with pytest.raises(DataError, match=r"rows\.json:7: \d+ tokens of prompt and \d+ of answer, more than 20 and 1000"):
        _encode(TURNS, family, tokenizer, EncodingRules(20, 1000, overlength="error"))


def test_what_cannot_be_cut_to_fit_is_dropped_and_counted(load):
    tokenizer, family = load("chatglm2")
    rows, counts = _encode(TURNS[1:3], family, tokenizer, EncodingRules(4, 10))
    assert (rows, counts.rows_dropped) == ([], 1)


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_a_cut_tool_call_keeps_its_end_token(name, load):
    tokenizer, family = load(name)
    call = {"role": "tool", "name": "find", "parameters": {"q": "很长" * 200}, "observation": "x" * 300}
    (row,), counts = _encode([TURNS[1], call], family, tokenizer, EncodingRules(500, 40), tools=TOOLS)
    targets = [label for label in row.labels if label != IGNORE_INDEX]
    assert len(targets) == 40
    assert tokenizer.decode(targets[-1:]) == "<|observation|>"
    assert row.input_ids[-40:] == targets
    assert counts.answers_cut == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_survives_every_cut(name, load):
    tokenizer, family = load(name)
    rules = EncodingRules(family.encode(TURNS[3:], tokenizer).prompt_length + 12, 1000, train_on="last", prefix="PRE ")
    (row,), counts = _encode(TURNS, family, tokenizer, rules)
    assert counts.turns_dropped == 1
    assert "PRE " in tokenizer.decode(row.input_ids)
    long = [{"role": "user", "content": "上衣" * 200}, TURNS[2]]
    (row,), counts = _encode(long, family, tokenizer, EncodingRules(60, 1000, prefix="PRE "))
    assert counts.prompts_cut == 1
    assert "PRE 上" in tokenizer.decode(row.input_ids).replace("PRE 衣", "PRE 上")


def test_a_long_talk_is_cut_in_little_time(load):
    """Every answer of it is a row of its own for ChatGLM-6B; dropping turns one by one would be cubic."""
    tokenizer, family = load("chatglm")
    talk = [{"role": role, "content": f"{role[0]}{i}"} for i in range(150) for role in ("user", "assistant")]
    calls = []
    original = family.encode
    try:
        type(family).encode = lambda self, *arguments: (calls.append(1), original(*arguments))[1]
        rows, counts = _encode(talk, family, tokenizer, EncodingRules(60, 60))
    finally:
        del type(family).encode
    assert len(rows) == 150
    assert counts.turns_dropped > 100
    assert len(calls) < 150 * 10


# --- the cache ---


def _sources(path):
    return open_sources(str(path))


def test_a_second_start_maps_what_the_first_encoded(load, adgen_file, monkeypatch):
    tokenizer, family = load("chatglm3")
    path = adgen_file(30)
    first = encode_sources(_sources(path), family, tokenizer, ROOMY)
    monkeypatch.setattr("glmtune.data.cache._encode_to_folder", None)  # calling it would fail
    second = encode_sources(_sources(path), family, tokenizer, ROOMY)
    assert second.rows.path == first.rows.path
    assert second.info == first.info
    assert len(second.rows) == 30
    direct = EncodingCounts()
    wanted = list(encode_conversations(sample_sources(_sources(path)), family, tokenizer, ROOMY, direct))
    for number, row in enumerate(wanted):
        kept = second.rows[number]
        assert (list(kept.input_ids), list(kept.labels)) == (row.input_ids, row.labels)
        assert (kept.context, kept.conversation, kept.where) == (row.context, row.conversation, row.where)
    assert list(second.rows.lengths) == [len(row.input_ids) for row in wanted]


def test_two_at_once_encode_once(load, adgen_file, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from glmtune.data import cache

    tokenizer, family = load("chatglm3")
    path = adgen_file(60)
    calls = []
    original = cache._encode_to_folder
    monkeypatch.setattr(cache, "_encode_to_folder", lambda *arguments: (calls.append(1), original(*arguments)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: encode_sources(_sources(path), family, tokenizer, ROOMY), range(4)))
    assert len(calls) == 1
    assert {data.rows.path for data in found} == {found[0].rows.path}
    assert {len(data.rows) for data in found} == {60}


def test_other_content_settings_or_tokenizers_are_encoded_anew(load, adgen_file):
    tokenizer, family = load("chatglm3")
    path = adgen_file(4)
    paths = {encode_sources(_sources(path), family, tokenizer, ROOMY).rows.path}
    paths.add(encode_sources(_sources(path), family, tokenizer, EncodingRules(1000, 999)).rows.path)
    other, second = load("chatglm2")
    paths.add(encode_sources(_sources(path), second, other, ROOMY).rows.path)
    path.write_text(path.read_text("utf-8").replace("类型", "种类"), "utf-8")
    paths.add(encode_sources(_sources(path), family, tokenizer, ROOMY).rows.path)
    assert len(paths) == 4


def test_a_failed_or_killed_encoding_leaves_nothing_that_looks_whole(load, tmp_path):
    tokenizer, family = load("chatglm2")
    path = tmp_path / "rows.json"
    rows = [{"content": "一", "summary": "壹"}, {"content": "二", "summary": 2}]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    with pytest.raises(DataError, match=r"rows\.json:2"):
        encode_sources(_sources(path), family, tokenizer, ROOMY, folder=tmp_path / "out")
    with pytest.raises(DataError, match="not a complete encoded data set"):
        open_encoded_data(tmp_path / "out")
    rows[1]["summary"] = "贰"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    assert len(encode_sources(_sources(path), family, tokenizer, ROOMY, folder=tmp_path / "out").rows) == 2
