"""The automaton of JSON agrees with Python's reader, and tokens with the automaton."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtune import detect_family, load_tokenizer
from glmtune.generation.json_grammar import END, START
from glmtune.generation.token_constraint import JSON_OBJECT, JsonConstraint, TokenTable, advance_grammar

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FORMS = st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])


def advance_json(state, text):
    return advance_grammar(JSON_OBJECT, state, text)


def is_object(text: bytes) -> bool:
    def refuse(name):
        raise ValueError(name)

    try:
        return isinstance(json.loads(text.decode(), parse_constant=refuse), dict)
    except (ValueError, UnicodeDecodeError):
        return False


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), VALUES, max_size=4), FORMS)
def test_every_object_is_accepted(value, form):
    text = json.dumps(value, **form).encode("utf-8", "replace")
    assert advance_json(START, text) == END
    assert advance_json(START, text + b"}") is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([*'{}[]:,"\\ 0123456789.-+eEtfnulr', "true", "null", '"a"', '"a":', "é", "\x1f"])))
def test_random_text_is_accepted_if_python_reads_it(parts):
    text = ("{" + "".join(parts)).encode()
    assert (advance_json(START, text.strip()) == END) == is_object(text)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.text(), VALUES, min_size=1, max_size=3), st.integers(0, 200), st.binary(min_size=1, max_size=2)
)
def test_a_changed_object_is_accepted_if_python_reads_it(value, place, change):
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    changed = text[: place % len(text)] + change + text[place % len(text) + len(change) :]
    if changed.strip() == changed and b"\xef\xbb\xbf" not in changed:
        assert (advance_json(START, changed) == END) == is_object(changed)


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_the_allowed_tokens_are_those_the_automaton_takes(tiny, family):
    folder = tiny(family)
    tokenizer, stops = load_tokenizer(folder), detect_family(folder).get_stop_ids(load_tokenizer(folder))
    table = TokenTable(tokenizer, len(tokenizer), stops)
    texts = [
        b"",
        b"{",
        b'{"',
        b'{"a',
        b'{"a\xe4',
        b'{"a\\',
        b'{"a\\u0',
        b'{"a"',
        b'{"a":',
        b'{"a":1',
        b'{"a":1.',
        b'{"a":t',
    ]
    texts += [b'{"a":[', b'{"a":[1', b'{"a":[{}', b'{"a":{"b":"', b'{"a":"b",', b"{" + b" " * 64]
    for text in texts:
        state = advance_json(START, text)
        expected = [bool(value) and advance_json(state, value) is not None for value in table.bytes]
        assert table.list_allowed(JSON_OBJECT, state).tolist() == expected, text
        assert any(expected), text
        assert not any(expected[stop] for stop in stops)
    assert np.flatnonzero(table.list_allowed(JSON_OBJECT, END)).tolist() == sorted(stops)
    assert table.list_allowed(JSON_OBJECT, advance_json(START, b"{}")).sum() == len(stops)


@pytest.mark.parametrize("family", ["chatglm", "glm4"])
def test_random_replies_are_objects(tiny, family):
    folder = tiny(family)
    tokenizer = load_tokenizer(folder)
    stops = detect_family(folder).get_stop_ids(tokenizer)
    table = TokenTable(tokenizer, len(tokenizer), stops)
    closing = [token for token, value in enumerate(table.bytes) if value in (b'"', b"}", b"]", b":", b"1", b"u", b"0")]
    draw = random.Random(1)
    for _ in range(5):
        constraint, ids = JsonConstraint(table), []
        while not ids or ids[-1] not in stops:
            allowed = np.flatnonzero(constraint.list_allowed())
            # After a while only what leads to the end, where there is something of it.
            preferred = [token for token in closing if token in allowed] if len(ids) > 30 else []
            ids.append(int(draw.choice(preferred or list(allowed))))
            constraint.advance(ids[-1])
            assert len(ids) < 2000
        assert isinstance(json.loads(tokenizer.decode(ids, skip_special_tokens=True)), dict)
