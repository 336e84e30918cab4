"""Whether bytes can become a JSON object of a schema: an automaton that reads them one by one.

A schema is compiled into nodes. A state is the set of readings that are still possible, several where `anyOf`, `enum`
or optional properties leave a choice. What it accepts is valid by the schema, but it does not accept all that is:
properties come in the schema's order, and others than those that are listed come only where none is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from glmtune.generation.json_grammar import MAX_WHITESPACE, NUMBER_ENDS, NUMBERS, WHITESPACE, JsonState, step_json
from glmtune.generation.schema_nodes import SchemaError, compile_schema

__all__ = ["SchemaError", "SchemaGrammar"]

_MAX_READINGS = 1000


class _Frame(NamedTuple):
    """An open object, map or array: its node, and the next property or the number of items."""

    node: int
    place: int


class Reading(NamedTuple):
    """One way to read the text so far.

    Attributes:
        mode: `value` (a value of `node` begins), `text` (`rest` follows, then `then`), `inner` (inside a string, a
            number or any value), `first` (an object, map or array is open), `next` (after a comma), `colon`, `after`
            (a value), or `end`.
        stack: what is open, the outermost first.
        node: of the value.
        rest: bytes.
        then: mode after them.
        inner: state of the value that is read.
        whitespace: its length so far.
    """

    mode: str
    stack: tuple[_Frame, ...] = ()
    node: int = -1
    rest: bytes = b""
    then: str = ""
    inner: JsonState | None = None
    whitespace: int = 0


SchemaState = frozenset[Reading]
_END = Reading("end")


class SchemaGrammar:
    """The automaton of a schema.

    Args:
        schema: as in OpenAI's `response_format`; its root is an object.

    Raises:
        SchemaError: it has a keyword that cannot be followed, or no value is valid.
    """

    def __init__(self, schema: Any):
        self._nodes = compile_schema(schema)
        self.start: SchemaState = frozenset((Reading("value", node=0),))
        self.end: SchemaState = frozenset((_END,))

    def step(self, state: SchemaState, byte: int) -> SchemaState | None:
        """The state after a byte; None if no object of the schema has it here."""
        readings = frozenset(after for reading in state for after in self._step_reading(reading, byte))
        if len(readings) > _MAX_READINGS:
            raise SchemaError(f"the schema leaves more than {_MAX_READINGS:,} ways to read a reply")
        return readings or None

    def takes_text(self, state: SchemaState) -> bool:
        """Whether any whole characters of a string may follow."""
        return any(
            reading.inner is not None and reading.inner.mode == "string" and not reading.inner.following
            for reading in state
        )

    def _step_reading(self, reading: Reading, byte: int) -> Iterator[Reading]:
        mode = reading.mode
        if mode == "text":
            if byte == reading.rest[0]:
                rest = reading.rest[1:]
                yield reading._replace(rest=rest) if rest else _follow(reading)
        elif mode == "inner":
            yield from self._step_inner(reading, byte)
        elif byte in WHITESPACE and mode != "end":
            if reading.whitespace < MAX_WHITESPACE:
                yield reading._replace(whitespace=reading.whitespace + 1)
        elif mode == "value":
            yield from self._begin_value(reading.stack, reading.node, byte)
        elif mode == "colon":
            if byte == ord(":"):
                yield Reading("value", reading.stack, reading.node)
        elif mode == "first":
            yield from self._close(reading.stack, byte)
            yield from self._begin_member(reading.stack, byte)
        elif mode == "next":
            yield from self._begin_member(reading.stack, byte)
        elif mode == "after":
            yield from self._close(reading.stack, byte)
            if byte == ord(",") and self._may_continue(reading.stack[-1]):
                yield Reading("next", reading.stack)

    def _step_inner(self, reading: Reading, byte: int) -> Iterator[Reading]:
        assert reading.inner is not None
        kind = self._nodes[reading.node].kind if reading.then == "after" else "string"
        after = step_json(reading.inner, byte)
        is_number = reading.inner.mode in NUMBER_ENDS and not reading.inner.stack
        if is_number and (after is None or after.mode not in NUMBERS):  # the number ended before this byte
            yield from self._step_reading(Reading("after", reading.stack), byte)
        elif after is None or (kind == "integer" and after.mode in ("point", "exponent")):
            return
        elif not after.stack and after.mode in ("after", "end"):
            yield _follow(reading)
        else:
            yield reading._replace(inner=after)

    def _begin_value(self, stack: tuple[_Frame, ...], number: int, byte: int) -> Iterator[Reading]:
        node = self._nodes[number]
        if node.kind == "choice":
            for choice in node.choices:
                yield from self._begin_value(stack, choice, byte)
        elif node.kind == "text":
            yield from self._step_reading(Reading("text", stack, number, node.text, "after"), byte)
        elif node.kind in ("object", "map", "array"):
            if byte == ord("[" if node.kind == "array" else "{"):
                yield Reading("first", (*stack, _Frame(number, 0)))
        else:
            is_string, is_number = byte == ord('"'), byte in b"-0123456789"
            if node.kind == "any" or (is_string if node.kind == "string" else is_number):
                inner = step_json(JsonState("value"), byte)
                if inner is not None:
                    yield Reading("inner", stack, number, then="after", inner=inner)

    def _begin_member(self, stack: tuple[_Frame, ...], byte: int) -> Iterator[Reading]:
        """The first byte of an item, or of a key."""
        frame = stack[-1]
        node, outer = self._nodes[frame.node], stack[:-1]
        if node.kind == "object":
            for place in range(frame.place, len(node.keys)):
                key, value, is_required = node.keys[place]
                inside = (*outer, _Frame(frame.node, place + 1))
                yield from self._step_reading(Reading("text", inside, value, key, "colon"), byte)
                if is_required:
                    return
            return
        inside = (*outer, _Frame(frame.node, frame.place + 1))
        if node.kind == "array":
            if self._may_continue(frame):
                yield from self._begin_value(inside, node.items, byte)
        elif byte == ord('"'):
            # Maps do not count: their states stay the same.
            yield Reading("inner", (*outer, frame), node.items, then="colon", inner=JsonState("string"))

    def _close(self, stack: tuple[_Frame, ...], byte: int) -> Iterator[Reading]:
        frame = stack[-1]
        node = self._nodes[frame.node]
        if byte != ord("]" if node.kind == "array" else "}"):
            return
        if node.kind == "array" and frame.place < node.least:
            return
        if any(is_required for _, _, is_required in node.keys[frame.place :]):
            return
        yield Reading("after", stack[:-1]) if len(stack) > 1 else _END

    def _may_continue(self, frame: _Frame) -> bool:
        node = self._nodes[frame.node]
        if node.kind == "object":
            return frame.place < len(node.keys)
        return node.most is None or frame.place < node.most


def _follow(reading: Reading) -> Reading:
    """What comes after a text or an inner value: a colon and the value of `node`, or nothing of it."""
    return Reading(reading.then, reading.stack, reading.node if reading.then == "colon" else -1)
