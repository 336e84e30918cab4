"""Whether bytes can become a JSON object: an automaton that reads them one by one (RFC 8259)."""

from __future__ import annotations

from typing import NamedTuple

# More would be refused by readers of JSON with a limited depth; a model that only indents would not end.
MAX_DEPTH = 64
MAX_WHITESPACE = 64

WHITESPACE = b" \t\n\r"
_LITERALS = {ord("t"): b"rue", ord("f"): b"alse", ord("n"): b"ull"}
_ESCAPES = b'"\\/bfnrt'
_HEX = b"0123456789abcdefABCDEF"
_DIGITS = b"0123456789"
# Of a number: which bytes follow, and the mode after them. Modes in NUMBER_ENDS may end it.
NUMBERS: dict[str, dict[bytes, str]] = {
    "minus": {b"0": "zero", b"123456789": "integer"},
    "zero": {b".": "point", b"eE": "exponent"},
    "integer": {_DIGITS: "integer", b".": "point", b"eE": "exponent"},
    "point": {_DIGITS: "fraction"},
    "fraction": {_DIGITS: "fraction", b"eE": "exponent"},
    "exponent": {b"+-": "sign", _DIGITS: "power"},
    "sign": {_DIGITS: "power"},
    "power": {_DIGITS: "power"},
}
NUMBER_ENDS = frozenset(("zero", "integer", "fraction", "power"))


class JsonState(NamedTuple):
    """What may follow.

    Attributes:
        mode: `start` (white space and the object), `first_key` (or the end of the object), `key`, `colon`, `first_item`
            (or the end of the list), `value`, `after` (a value), `string`, `escape`, `hex`, `literal`, a part of a
            number, or `end`.
        stack: open objects and lists, `{` and `[`.
        is_key: whether the string is a key.
        rest: of a literal, or of the hexadecimal digits of an escape.
        following: the bounds of the bytes that complete a character in UTF-8.
        whitespace: its length so far.
    """

    mode: str
    stack: str = ""
    is_key: bool = False
    rest: bytes = b""
    following: tuple[tuple[int, int], ...] = ()
    whitespace: int = 0


START = JsonState("start")
END = JsonState("end")


class JsonGrammar:
    """The automaton of any JSON object."""

    start = START
    end = END

    def step(self, state: JsonState, byte: int) -> JsonState | None:
        """The state after a byte; None if no JSON object has it here."""
        return step_json(state, byte)

    def takes_text(self, state: JsonState) -> bool:
        """Whether any whole characters of a string may follow."""
        return state.mode == "string" and not state.following


def step_json(state: JsonState, byte: int) -> JsonState | None:
    """The state after a byte; None if no JSON object has it here."""
    mode = state.mode
    if mode == "string":
        return _step_string(state, byte)
    if mode in ("escape", "hex"):
        return _step_escape(state, byte)
    if mode == "literal":
        if byte != state.rest[0]:
            return None
        return state._replace(rest=state.rest[1:]) if len(state.rest) > 1 else JsonState("after", state.stack)
    if mode in NUMBERS:
        for characters, following in NUMBERS[mode].items():
            if byte in characters:
                return JsonState(following, state.stack)
        return _step_structure(JsonState("after", state.stack), byte) if mode in NUMBER_ENDS else None
    return _step_structure(state, byte)


def _step_structure(state: JsonState, byte: int) -> JsonState | None:
    """A byte outside strings, numbers and literals."""
    mode, stack = state.mode, state.stack
    if mode == "end":
        return None
    if byte in WHITESPACE:
        return state._replace(whitespace=state.whitespace + 1) if state.whitespace < MAX_WHITESPACE else None
    character = chr(byte)
    if mode == "start":
        return JsonState("first_key", "{") if character == "{" else None
    if mode in ("first_key", "key") and character == '"':
        return JsonState("string", stack, is_key=True)
    if mode == "colon":
        return JsonState("value", stack) if character == ":" else None
    if mode in ("first_item", "value"):
        value = _step_value(stack, byte)
        if value is not None:
            return value
    is_closed = mode in ("after", "first_key") and character == "}" and stack.endswith("{")
    is_closed = is_closed or (mode in ("after", "first_item") and character == "]" and stack.endswith("["))
    if is_closed:
        return JsonState("after", stack[:-1]) if len(stack) > 1 else END
    if mode == "after" and character == ",":
        return JsonState("key" if stack.endswith("{") else "value", stack)
    return None


def _step_value(stack: str, byte: int) -> JsonState | None:
    """The first byte of a value."""
    character = chr(byte)
    if character in "{[":
        is_allowed = len(stack) < MAX_DEPTH
        return JsonState("first_key" if character == "{" else "first_item", stack + character) if is_allowed else None
    if character == '"':
        return JsonState("string", stack)
    if byte in _LITERALS:
        return JsonState("literal", stack, rest=_LITERALS[byte])
    if character == "-":
        return JsonState("minus", stack)
    if byte in _DIGITS:
        return JsonState("zero" if character == "0" else "integer", stack)
    return None


def _step_string(state: JsonState, byte: int) -> JsonState | None:
    if state.following:
        low, high = state.following[0]
        return state._replace(following=state.following[1:]) if low <= byte <= high else None
    if byte == ord('"'):
        return JsonState("colon" if state.is_key else "after", state.stack)
    if byte == ord("\\"):
        return state._replace(mode="escape")
    if byte < 0x20:
        return None
    if byte < 0x80:
        return state
    following = _list_following(byte)
    return state._replace(following=following) if following else None


def _step_escape(state: JsonState, byte: int) -> JsonState | None:
    if state.mode == "hex":
        if byte not in _HEX:
            return None
        return state._replace(rest=state.rest[1:], mode="hex" if len(state.rest) > 1 else "string")
    if byte == ord("u"):
        return state._replace(mode="hex", rest=b"xxxx")
    return state._replace(mode="string") if byte in _ESCAPES else None


def _list_following(byte: int) -> tuple[tuple[int, int], ...]:
    """The bounds of the bytes after the first one of a character (RFC 3629); empty if none begins with it."""
    any_byte = (0x80, 0xBF)
    if 0xC2 <= byte <= 0xDF:
        return (any_byte,)
    if 0xE0 <= byte <= 0xEF:
        first = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F)}.get(byte, any_byte)
        return (first, any_byte)
    if 0xF0 <= byte <= 0xF4:
        first = {0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.get(byte, any_byte)
        return (first, any_byte, any_byte)
    return ()
