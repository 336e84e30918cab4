"""`chat` of published scripts, and models with a prefix, at the end of the context window."""

from __future__ import annotations

import warnings

import pytest
from transformers import AutoModel, AutoTokenizer

from glmtune.errors import DataError, ModelError
from glmtune.families import detect_family
from glmtune.generation.context_window import get_context_window
from glmtune.methods.ptuning import attach_new_prefix
from tiny import FAMILIES

OPTIONS = {"do_sample": False, "max_new_tokens": 2}


def load(folder):
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def make_history(family, turns, length=40):
    pairs = [(f"{number}颜色" * length, "白色") for number in range(turns)]
    if family not in ("chatglm3", "glm4"):
        return pairs
    roles = ({"role": "user", "content": query} for query, _ in pairs)
    return [message for user in roles for message in (user, {"role": "assistant", "content": "白色", "metadata": ""})]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oldest_turns_go_with_a_notice(family, tiny):
    model, tokenizer = load(tiny(family))
    history = make_history(family, 12)
    with pytest.warns(UserWarning, match="oldest messages of the history left out.* 512 tokens together"):
        reply, longer = model.chat(tokenizer, "裙", history, **OPTIONS)
    assert len(longer) > len(history)  # the caller's history is complete
    with pytest.warns(UserWarning, match="left out"):
        pieces = list(model.stream_chat(tokenizer, "裙", history, **OPTIONS))
    assert pieces[-1][0] == reply


def test_a_short_history_is_complete_and_says_nothing(tiny):
    model, tokenizer = load(tiny("chatglm2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.chat(tokenizer, "裙", [("颜色", "白色")], **OPTIONS)


def test_a_max_length_of_the_caller_is_kept_exactly(tiny):
    folder = tiny("chatglm2")
    model, tokenizer = load(folder)
    history = [{"role": "user", "content": "颜色"}, {"role": "assistant", "content": "白色"}]
    prompt = detect_family(folder).encode_prompt([*history, {"role": "user", "content": "裙"}], tokenizer)
    lengths = []
    for room in (1, 3):
        options = {"do_sample": False, "max_length": len(prompt) + room}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pieces = list(model.stream_chat(tokenizer, "裙", [("颜色", "白色")], **options))
        lengths.append(len(pieces))
    assert lengths[0] <= 1
    assert lengths[1] <= 3
    with pytest.warns(UserWarning, match=f"2 oldest messages .*{len(prompt):,} tokens together"):
        model.chat(tokenizer, "裙", [("颜色", "白色")], do_sample=False, max_length=len(prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_query_that_cannot_fit_is_refused(family, tiny):
    model, tokenizer = load(tiny(family))
    with pytest.raises(ModelError, match="context window of this model holds 512"):
        model.chat(tokenizer, "颜色" * 600)
    with pytest.raises(DataError, match="max_length, 20, counts"):
        model.chat(tokenizer, "颜色" * 60, max_length=20)
    with pytest.raises(ModelError, match="its reply may have 600"):
        model.chat(tokenizer, "裙", max_new_tokens=600)


def test_a_long_query_may_have_a_short_reply(tiny):
    folder = tiny("chatglm2")
    model, tokenizer = load(folder)
    query = "a" * 350
    prompt = detect_family(folder).encode_prompt([{"role": "user", "content": query}], tokenizer)
    assert 512 - 256 < len(prompt) < 512  # the default reply has half of the window
    reply, _ = model.chat(tokenizer, query, do_sample=False)
    assert isinstance(reply, str)


@pytest.mark.parametrize("family", ["chatglm", "glm4"])
def test_the_tokens_of_a_prefix_count(family, tiny):
    model, tokenizer = load(tiny(family))
    assert get_context_window(model) == 512
    attach_new_prefix(model, 480, with_projection=False)
    assert get_context_window(model) == 32
    with pytest.raises(ModelError, match="context window of this model holds 32"):
        model.chat(tokenizer, "颜色" * 40)
