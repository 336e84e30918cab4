"""A JSON schema as numbered nodes, and the keywords that can be followed.

The subset is that of OpenAI's structured outputs without `pattern`, `format` and limits of strings and numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

MAX_CHOICES = 1000
"""Properties, and values of `enum`, in a schema."""
_MAX_DEPTH = 64

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ANNOTATIONS = frozenset(("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"))
_DEFINITIONS = ("$defs", "definitions")
# Keywords of each type besides.
_KEYWORDS = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
}


class SchemaError(ValueError):
    """A schema that cannot be followed. The message has the place."""


@dataclass
class SchemaNode:
    """What a value may be.

    Attributes:
        kind: `choice` (one of other nodes), `text` (certain bytes), `string`, `number`, `integer`, `any`, `object`,
            `map` (an object with any keys) or `array`.
        choices: nodes of a `choice`.
        text: of a `text`.
        keys: of an `object`: each property's key in bytes, its node, and whether it is required.
        items: node of an array's items or a map's values.
        least, most: number of items.
    """

    kind: str
    choices: list[int] = field(default_factory=list)
    text: bytes = b""
    keys: list[tuple[bytes, int, bool]] = field(default_factory=list)
    items: int = -1
    least: int = 0
    most: int | None = None


def compile_schema(schema: Any) -> list[SchemaNode]:
    """The nodes of a schema, the root's first.

    Args:
        schema: as in OpenAI's `response_format`; its root is an object.

    Raises:
        SchemaError: it has a keyword that cannot be followed, or no value is valid.
    """
    return _SchemaCompiler(schema).nodes


class _SchemaCompiler:
    """Makes the nodes of a schema, the root's first."""

    def __init__(self, schema: Any):
        self.nodes: list[SchemaNode] = []
        self._root = schema
        self._by_reference: dict[str, int] = {}
        self._choices = 0
        self._add(schema, "", 0)
        self._require_finite()
        root = self.nodes[0]
        while len(root.choices) == 1:
            root = self.nodes[root.choices[0]]
        if root.kind not in ("object", "map"):
            raise SchemaError("the schema's root must have type object")

    def _add(self, schema: Any, path: str, depth: int) -> int:
        """Add the node of a schema; returns its number."""
        if depth > _MAX_DEPTH:
            raise SchemaError(f"{path[:80]}: the schema is nested more than {_MAX_DEPTH} deep")
        self.nodes.append(SchemaNode("any"))
        number = len(self.nodes) - 1
        if depth == 0:
            self._by_reference["#"] = number
        if schema is not True:
            if not isinstance(schema, dict):
                raise SchemaError(f"{path or 'the schema'}: must be an object")
            self._fill(self.nodes[number], schema, path, depth)
        return number

    def _fill(self, node: SchemaNode, schema: dict[str, Any], path: str, depth: int) -> None:
        keywords = {key: item for key, item in schema.items() if key not in _ANNOTATIONS}
        for name in _DEFINITIONS:
            if depth == 0:
                keywords.pop(name, None)
        if "$ref" in keywords:
            self._require_alone(keywords, "$ref", path)
            node.kind, node.choices = "choice", [self._resolve(keywords["$ref"], path, depth)]
            return
        for name in ("anyOf", "allOf"):
            if name in keywords:
                self._require_alone(keywords, name, path)
                schemas = keywords[name]
                if not isinstance(schemas, list) or not schemas or (name == "allOf" and len(schemas) > 1):
                    number = "one schema" if name == "allOf" else "at least one schema"
                    raise SchemaError(f"{_join(path, name)}: must be a list of {number}")
                node.kind = "choice"
                node.choices = [self._add(s, _join(path, f"{name}[{i}]"), depth + 1) for i, s in enumerate(schemas)]
                return
        if "enum" in keywords or "const" in keywords:
            self._fill_enum(node, keywords, path)
            return
        kinds = keywords.pop("type", None)
        if kinds is None:
            implied = [kind for kind, words in _KEYWORDS.items() if words & keywords.keys()]
            if implied:
                raise SchemaError(f"{path or 'the schema'}: give type {implied[0]}")
            kinds = []
        kinds = kinds if isinstance(kinds, list) else [kinds]
        wrong = next((kind for kind in kinds if kind not in _TYPES), None)
        if wrong is not None:
            raise SchemaError(f"{_join(path, 'type')}: {str(wrong)[:40]} is not one of {', '.join(_TYPES)}")
        known = frozenset[str]().union(*(_KEYWORDS.get(kind, frozenset()) for kind in kinds))
        unknown = next((key for key in keywords if key not in known), None)
        if unknown is not None:
            raise SchemaError(f"{_join(path, unknown[:80])}: this keyword is not supported")
        if len(kinds) == 1:
            self._fill_type(node, kinds[0], keywords, path, depth)
        elif kinds:
            node.kind = "choice"
            for kind in kinds:
                self.nodes.append(SchemaNode("any"))
                node.choices.append(len(self.nodes) - 1)
                self._fill_type(self.nodes[-1], kind, keywords, path, depth)

    def _fill_type(self, node: SchemaNode, kind: str, keywords: dict[str, Any], path: str, depth: int) -> None:
        if kind == "boolean":
            node.kind, node.choices = "choice", [self._add_text("true"), self._add_text("false")]
        elif kind == "null":
            node.kind, node.text = "text", b"null"
        elif kind == "array":
            node.kind, node.items = "array", self._add(keywords.get("items", True), _join(path, "items"), depth + 1)
            node.least = _read_count(keywords, "minItems", path) or 0
            node.most = _read_count(keywords, "maxItems", path)
            if node.most is not None and node.most < node.least:
                raise SchemaError(f"{_join(path, 'maxItems')}: is less than minItems")
        elif kind == "object":
            self._fill_object(node, keywords, path, depth)
        else:
            node.kind = kind

    def _fill_object(self, node: SchemaNode, keywords: dict[str, Any], path: str, depth: int) -> None:
        properties, required = keywords.get("properties", {}), keywords.get("required", [])
        if not isinstance(properties, dict):
            raise SchemaError(f"{_join(path, 'properties')}: must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaError(f"{_join(path, 'required')}: must be a list of names")
        missing = next((name for name in required if name not in properties), None)
        if missing is not None:
            raise SchemaError(f"{_join(path, 'required')}: {missing[:80]} is not one of properties")
        others = keywords.get("additionalProperties", True)
        self._count_choices(len(properties), path)
        node.kind = "object"
        for name, schema in properties.items():
            value = self._add(schema, _join(path, f"properties.{name[:80]}"), depth + 1)
            node.keys.append((_dump(name), value, name in required))
        if not properties and others is not False:
            node.kind = "map"
            node.items = self._add(others, _join(path, "additionalProperties"), depth + 1)
        elif not isinstance(others, (bool, dict)):
            raise SchemaError(f"{_join(path, 'additionalProperties')}: must be an object or true or false")

    def _fill_enum(self, node: SchemaNode, keywords: dict[str, Any], path: str) -> None:
        name = "enum" if "enum" in keywords else "const"
        values = keywords["enum"] if name == "enum" else [keywords["const"]]
        unknown = next((key for key in keywords if key not in (name, "type")), None)
        if unknown is not None:
            raise SchemaError(f"{_join(path, unknown[:80])}: this keyword is not supported beside {name}")
        if not isinstance(values, list) or not values:
            raise SchemaError(f"{_join(path, name)}: must be a list of values")
        if any(isinstance(value, (dict, list)) for value in values):
            raise SchemaError(f"{_join(path, name)}: objects and lists are not supported")
        kinds = keywords.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        values = [value for value in values if kinds == [None] or any(_has_type(value, kind) for kind in kinds)]
        if not values:
            raise SchemaError(f"{_join(path, name)}: no value has the schema's type")
        self._count_choices(len(values), path)
        node.kind, node.choices = "choice", [self._add_text(json.dumps(v, ensure_ascii=False)) for v in values]

    def _add_text(self, text: str) -> int:
        self.nodes.append(SchemaNode("text", text=text.encode("utf-8", "replace")))
        return len(self.nodes) - 1

    def _resolve(self, reference: Any, path: str, depth: int) -> int:
        """The node that a reference names, made at its first use."""
        if not isinstance(reference, str):
            raise SchemaError(f"{_join(path, '$ref')}: must be a string")
        if reference not in self._by_reference:
            _, *parts = reference.split("/")
            target = self._root.get(parts[0]) if len(parts) == 2 and parts[0] in _DEFINITIONS else None
            if not reference.startswith("#/") or not isinstance(target, dict) or parts[1] not in target:
                raise SchemaError(f"{_join(path, '$ref')}: {reference[:80]} is not #, nor one of #/$defs/")
            # Before the definition is read, which may refer to itself.
            number = len(self.nodes)
            self._by_reference[reference] = number
            self._add(target[parts[1]], f"$defs.{parts[1][:80]}", depth + 1)
        return self._by_reference[reference]

    def _require_alone(self, keywords: dict[str, Any], name: str, path: str) -> None:
        other = next((key for key in keywords if key != name), None)
        if other is not None:
            raise SchemaError(f"{_join(path, other[:80])}: this keyword is not supported beside {name}")

    def _count_choices(self, count: int, path: str) -> None:
        self._choices += count
        if self._choices > MAX_CHOICES:
            raise SchemaError(f"{path or 'the schema'}: more than {MAX_CHOICES:,} properties and enum values in all")

    def _require_finite(self) -> None:
        """Refuse values that contain themselves, and choices that lead to themselves."""
        finite: set[int] = set()
        begun: set[int] = set()  # nodes whose first byte needs no endless chain of choices
        for nodes, is_done in ((finite, _is_finite), (begun, _is_begun)):
            while more := {i for i, node in enumerate(self.nodes) if i not in nodes and is_done(node, nodes)}:
                nodes |= more
            if len(nodes) < len(self.nodes):
                raise SchemaError("the schema refers to itself without an end")


def _is_begun(node: SchemaNode, begun: set[int]) -> bool:
    return node.kind != "choice" or all(choice in begun for choice in node.choices)


def _is_finite(node: SchemaNode, finite: set[int]) -> bool:
    if node.kind == "choice":
        return any(choice in finite for choice in node.choices)
    if node.kind == "array":
        return node.least == 0 or node.items in finite
    return all(value in finite for _, value, is_required in node.keys if is_required)


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value of `enum` is of a type of JSON Schema."""
    if value is None or isinstance(value, (bool, str)):
        return kind == ("null" if value is None else "boolean" if isinstance(value, bool) else "string")
    return kind == "number" or (kind == "integer" and float(value).is_integer())


def _read_count(keywords: dict[str, Any], name: str, path: str) -> int | None:
    count = keywords.get(name)
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise SchemaError(f"{_join(path, name)}: must be a number from 0 on")
    return count


def _dump(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False).encode("utf-8", "replace")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
