"""Chat templates against `Family.encode`: the same ids, and `{% generation %}` marks the same targets."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import glmtune
from glmtune.families import get_family
from tiny import FAMILIES

ROLE_FAMILIES = ("chatglm3", "glm4")
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "查询天气", "parameters": {"city": "str"}}},
    {"name": "add", "description": "a < b & 'c'", "parameters": {}},
]
# Not what a template, being text, cannot keep apart: special tokens as words, and for GLM-4 a line break in front.
_LETTERS = st.text(st.sampled_from("白色上衣 abcpeo\t0.，\n😀"), max_size=12).filter(
    lambda text: "sop" not in text and "eop" not in text and not text.startswith("\n")
)
_TEXTS = st.one_of(_LETTERS, st.text(st.sampled_from("a'\"\\\n\r\t{}"), max_size=5))
_VALUES = st.recursive(
    st.one_of(_TEXTS, st.integers(), st.booleans(), st.none(), st.sampled_from([0.5, -2.0, 1e300])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXTS, inner, max_size=2),
    max_leaves=4,
)
_ARGUMENTS = st.dictionaries(st.sampled_from(["city", "day", "n"]), _VALUES, max_size=3)


@st.composite
def _rounds(draw):
    """Questions and answers in turn."""
    messages = [{"role": "system", "content": draw(_LETTERS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": "user", "content": draw(_LETTERS)}, {"role": "assistant", "content": draw(_LETTERS)}]
    return messages


@st.composite
def _calls(draw):
    """A conversation as OpenAI's clients write it, and the same with the project's `tool` messages."""
    sent = [{"role": "user", "content": draw(_LETTERS)}]
    own = list(sent)
    for _ in range(draw(st.integers(1, 2))):
        name, arguments, result = draw(st.sampled_from(["get_weather", "add"])), draw(_ARGUMENTS), draw(_LETTERS)
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        sent += [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": result}]
        own.append({"role": "tool", "name": name, "parameters": arguments, "observation": result})
    if draw(st.booleans()):
        answer = {"role": "assistant", "content": draw(_LETTERS)}
        return [*sent, answer], [*own, answer]
    own[-1] = {key: value for key, value in own[-1].items() if key != "observation"}
    return sent[:-1], own


@pytest.fixture(scope="module")
def load(tiny):
    tokenizers = {family: glmtune.load_tokenizer(tiny(family)) for family in FAMILIES}
    return lambda family: (get_family(family), tokenizers[family])


def _render(tokenizer, messages, **options):
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    return encoded["input_ids"], [i for i, marked in enumerate(encoded["assistant_masks"]) if marked]


def _list_targets(row):
    """Positions whose target is their own token: all but the end tokens of ChatGLM2's earlier answers."""
    return [i for i, (token, label) in enumerate(zip(row.input_ids, row.labels, strict=True)) if token == label]


@pytest.mark.parametrize("name", ROLE_FAMILIES)
@given(messages=_rounds())
@settings(max_examples=60, deadline=None)
def test_marked_tokens_are_the_targets(name, load, messages):
    family, tokenizer = load(name)
    row = family.encode(messages, tokenizer)
    assert _render(tokenizer, messages) == (row.input_ids, [i for i, label in enumerate(row.labels) if label != -100])


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
@given(messages=_rounds())
@settings(max_examples=60, deadline=None)
def test_marked_tokens_of_numbered_rounds_are_targets(name, load, messages):
    """ChatGLM2: of a last letter of an earlier answer that is written in bytes, the mask has the first one only.
    ChatGLM-6B's tokenizer drops a space in front of an answer, so no token is found where the mark begins."""
    family, tokenizer = load(name)
    assume(name != "chatglm" or not messages[-1]["content"].startswith(" "))
    row = family.encode(messages, tokenizer)
    ids, marked = _render(tokenizer, messages)
    assert ids == row.input_ids
    targets = _list_targets(row)
    assert set(marked) <= set(targets)
    missed = tokenizer.convert_ids_to_tokens([ids[i] for i in targets if i not in marked])
    assert all(token.startswith("<0x") for token in missed)
    assert [i for i in marked if i >= row.prompt_length] == list(range(row.prompt_length, len(ids)))


@pytest.mark.parametrize("name", ROLE_FAMILIES)
@given(talk=_calls(), offered=st.booleans())
@settings(max_examples=60, deadline=None)
def test_calls_of_tools_are_marked(name, load, talk, offered):
    family, tokenizer = load(name)
    sent, own = talk
    tools = TOOLS if offered else None
    row = family.encode(own, tokenizer, tools)
    targets = [i for i, label in enumerate(row.labels) if label != -100]
    assert _render(tokenizer, sent, tools=tools) == (row.input_ids, targets)


@pytest.mark.parametrize("name", ROLE_FAMILIES)
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "你是导游。"}]])
def test_tools_are_listed_as_in_the_family(name, system, load):
    family, tokenizer = load(name)
    messages = [*system, {"role": "user", "content": "北京天气"}]
    ids, _ = _render(tokenizer, messages, tools=TOOLS, add_generation_prompt=True)
    assert ids == family.encode_prompt(messages, tokenizer, TOOLS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_the_beginning_of_its_row(name, load):
    _, tokenizer = load(name)
    messages = [
        *({"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}),
        *({"role": "user", "content": "去哪"}, {"role": "assistant", "content": "黄山"}),
    ]
    prompt, _ = _render(tokenizer, messages[:-1], add_generation_prompt=True)
    row, marked = _render(tokenizer, messages)
    assert row[: len(prompt)] == prompt
    assert marked[-1] == len(row) - 1


@pytest.mark.parametrize("name", ROLE_FAMILIES)
def test_a_call_is_the_beginning_of_the_row_with_its_result(name, load):
    """What TRL asks of templates with tools."""
    _, tokenizer = load(name)
    call = {"type": "function", "function": {"name": "dummy", "arguments": {}}}
    talk = [{"role": "user", "content": "dummy"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = {"role": "tool", "name": "dummy", "content": "dummy"}
    before, _ = _render(tokenizer, talk)
    after, _ = _render(tokenizer, [*talk, result], add_generation_prompt=True)
    assert after[: len(before)] == before


def test_arguments_as_text_are_refused_where_they_cannot_be_rendered(load):
    _, tokenizer = load("chatglm3")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"n": 1}'}}
    with pytest.raises(Exception, match="as an object"):
        _render(tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}])


def test_the_file_for_llama_cpp_has_no_marks(tiny, load):
    from glmtune.export.gguf_vocabulary import make_vocabulary

    family, tokenizer = load("chatglm3")
    size = len(tokenizer)
    template = make_vocabulary(tokenizer, family, tiny("chatglm3"), size).template
    assert "generation %}" not in template
    talk = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    rendered = tokenizer.apply_chat_template(talk, tokenize=False)
    assert tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False) == rendered.replace(
        "[gMASK]sop", "[gMASK]<sop>"
    )
