"""Replies of a JSON schema: what the automaton accepts is valid, and what follows the schema's order is accepted."""

from __future__ import annotations

import json
import random
from typing import Literal, Optional, Union

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from glmtune import detect_family, load_tokenizer
from glmtune.generation.json_schema import SchemaError, SchemaGrammar
from glmtune.generation.token_constraint import JsonConstraint, TokenTable, advance_grammar


class Colour(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Literal["red", "redder", "蓝"]
    share: float


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    title: str
    count: int
    tags: list[str]
    colour: Optional[Colour] = None  # noqa: UP045 (as a user of pydantic on Python 3.9 writes it)
    size: Union[int, bool, Literal["large"]] = 3  # noqa: UP007
    parts: list[Item] = []
    prices: dict[str, float] = {}
    note: None = None


GRAMMAR = SchemaGrammar(Item.model_json_schema())
START = '{"title": "a", "count": 1, "tags": []'


def accepts(grammar, text):
    return advance_grammar(grammar, grammar.start, text.encode()) == grammar.end


def test_a_model_of_pydantic_is_followed():
    part = {"title": "龙\n", "count": -12, "tags": ["x", ""], "colour": None, "size": "large"}
    value = {"title": "a", "count": 0, "tags": [], "colour": {"name": "蓝", "share": -1.5e3}, "size": True}
    value |= {"parts": [part, part | {"parts": [part]}], "prices": {"a": 1, "é": 2.5}, "note": None}
    for form in ({}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        text = json.dumps(value, **form)
        if form.get("ensure_ascii") is False:
            assert accepts(GRAMMAR, text)
            assert not accepts(GRAMMAR, text[:-1])
            assert not accepts(GRAMMAR, text + " ")
        Item.model_validate_json(text)
    assert accepts(GRAMMAR, START + "}")
    assert accepts(GRAMMAR, START + ', "note": null}')  # what is not required may be left out


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"title": "a", "count": 1}',
        '{"count": 1, "title": "a", "tags": []}',
        '{"title": "a", "count": 1.0, "tags": []}',
        '{"title": "a", "count": 1e2, "tags": []}',
        '{"title": "a", "count": 01, "tags": []}',
        '{"title": 1, "count": 1, "tags": []}',
        '{"title": "a", "count": 1, "tags": [1]}',
        '{"title": "a", "count": 1, "tags": [],}',
        '{"title": "a", "count": 1, "tags": ["b",]}',
        START + ', "other": 1}',
        START + ', "note": null, "note": null}',
        START + ', "size": "larger"}',
        START + ', "size": 1.5}',
        START + ', "colour": {"name": "reddest", "share": 1}}',
        START + ', "colour": {"name": "red"}}',
        START + ', "parts": [{}]}',
        START + ', "prices": {"a": "b"}}',
    ],
)
def test_what_is_not_valid_is_not_accepted(text):
    assert not accepts(GRAMMAR, text)


def write_reply(grammar, draw):
    """A random text of the grammar, byte by byte, that soon tends to its end."""
    state, text = grammar.start, b""
    while state != grammar.end:
        allowed = [byte for byte in range(256) if grammar.step(state, byte) is not None]
        ending = [byte for byte in allowed if byte in b'"}]'] if len(text) > 60 else []
        text += bytes([draw.choice(ending or [byte for byte in allowed if byte not in b" \n\r\t"] or allowed)])
        state = grammar.step(state, text[-1])
        assert len(text) < 5000
    return text.decode()


def test_whatever_is_accepted_is_valid():
    draw = random.Random(0)
    for _ in range(15):
        Item.model_validate_json(write_reply(GRAMMAR, draw))


def test_arrays_are_counted_and_any_value_is_one():
    items = {"type": "array", "items": {"type": ["integer", "null"]}, "minItems": 1, "maxItems": 2}
    schema = {"type": "object", "properties": {"a": items, "b": {}}, "required": ["a"]}
    grammar = SchemaGrammar(schema)
    accepted = [
        '{"a": [1]}',
        '{"a":[null,22]}',
        '{"a": [1], "b": {"x": [1, {"y": null}], "z": 1.5}}',
        '{"a":[1],"b":2}',
    ]
    assert all(accepts(grammar, text) for text in accepted)
    refused = ['{"a": []}', '{"a": [1, 2, 3]}', '{"a": [1.5]}', '{"b": 1}', '{"a": [1], "b": [1}}', '{"a": [1], "b": }']
    assert not any(accepts(grammar, text) for text in refused)
    assert accepts(SchemaGrammar({"type": "object"}), '{"any": [1, "x"], "": {}}')
    empty = SchemaGrammar({"type": "object", "additionalProperties": False})
    assert accepts(empty, "{ }")
    assert not accepts(empty, '{"a": 1}')
    numbers = SchemaGrammar({"type": "object", "properties": {"n": {"enum": [1, 12, 1.5, None]}}, "required": ["n"]})
    assert [n for n in ("1", "12", "1.5", "null", "2", "121", "15") if accepts(numbers, f'{{"n": {n}}}')] == [
        *("1", "12", "1.5", "null")
    ]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "must be an object"),
        ({"type": "string"}, "root must have type object"),
        ({"anyOf": [{"type": "object"}, {"type": "object"}]}, "root must have type object"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}},
            "properties.a.pattern: this keyword",
        ),
        ({"type": "object", "properties": {"a": {"type": "number", "minimum": 1}}}, "properties.a.minimum"),
        ({"type": "object", "properties": {"a": {"oneOf": [{}]}}}, "properties.a.oneOf"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "text is not one of object"),
        ({"type": "object", "properties": {"a": {"$ref": "https://x.org/y"}}}, r"properties.a.\$ref: https"),
        ({"type": "object", "properties": {"a": {"$ref": "#", "minItems": 1}}}, "beside"),
        ({"type": "object", "required": ["a"]}, "a is not one of properties"),
        ({"type": "object", "properties": {"a": {"enum": []}}}, "list of values"),
        ({"type": "object", "properties": {"a": {"enum": [[1]]}}}, "objects and lists"),
        ({"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}}, "no value"),
        ({"type": "object", "properties": {"a": {"type": "array", "minItems": 2, "maxItems": 1}}}, "maxItems"),
        ({"type": "object", "properties": {"a": {"properties": {}}}}, "give type object"),
        ({"type": "object", "properties": {str(i): {} for i in range(1001)}}, "more than 1,000"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without an end"),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/x"}},
                "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "string"}]}},
            },
            "without an end",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(schema, message):
    with pytest.raises(SchemaError, match=message):
        SchemaGrammar(schema)


def test_a_deep_schema_is_refused():
    schema = {"type": "string"}
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    with pytest.raises(SchemaError, match="nested more than"):
        SchemaGrammar({"type": "object", "properties": {"a": schema}})


ENDS = [(b'"', b"}", b"]"), (b",", b":")]
"""What leads to the end of a reply: first of all what closes something."""


@pytest.mark.parametrize("family", ["chatglm", "glm4"])
def test_random_replies_follow_the_schema(tiny, family):
    tokenizer = load_tokenizer(tiny(family))
    stops = detect_family(tiny(family)).get_stop_ids(tokenizer)
    table, draw = TokenTable(tokenizer, len(tokenizer), stops), random.Random(1)
    ends = [[token for token, value in enumerate(table.bytes) if value in group] for group in ENDS]
    for _ in range(3):
        constraint, ids = JsonConstraint(table, GRAMMAR), []
        while not ids or ids[-1] not in stops:
            allowed = np.flatnonzero(constraint.list_allowed())
            preferred = [[token for token in group if token in allowed] for group in ends] if len(ids) > 30 else []
            ids.append(int(draw.choice(next(filter(None, preferred), list(allowed)))))
            constraint.advance(ids[-1])
            assert len(ids) < 3000
        Item.model_validate_json(tokenizer.decode(ids, skip_special_tokens=True))
