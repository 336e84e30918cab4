"""List the messages of the code that the page shows, and which of them have no translation.

    python tools/list_messages.py            # those without a Chinese text
    python tools/list_messages.py --all

Read from the sources: the first arguments of errors (`raise DataError(message, hint)`), of findings about rows and of
the doctor's diagnoses, what `verify` says of files, and nouns after numbers. An f-string becomes a template: each
value a `{name}`. A message chosen by a condition counts once for each outcome.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glmtune.webui.error_texts import translate_message

SOURCE = Path(__file__).parents[1] / "src" / "glmtune"
# What is called -> places and names of the arguments that are sentences.
_CALLS: dict[str, tuple[int | str, ...]] = {
    "error_class": (0, 1),
    "Diagnosis": (2, 3, 4),
    "InvalidRow": (2, 3, "hint"),
    "InvalidRowError": (1, 2, "hint"),
    "Problem": (1, "hint"),
    "DocumentError": (0, 1),
    "add_fault": (2,),
    "add_comment": (2,),
    "lock_folder": (1,),
    "explain_memory": (1,),
    "read_folder": (0,),
    "require_new_folder": (1,),
}
_SENTENCE_MODULES = (
    *(
        "verification/",
        "doctor/platform",
        "doctor/pro",
        "doctor/trials",
        "data/truncation.py",
        "data/pair_checks.py",
        "data/row_format.py",
    ),
    *("config_ranges.py", "training/plan/changes.py", "utils/documents.py", "utils/optional_packages.py"),
)
"""Whose functions return sentences."""
_OTHER_PLACES = (
    *("generation/json_", "generation/schema_", "utils/network"),
    *("serve/", "auto_classes/", "bench/", "demo/", "cli/bench", "cli/chat", "cli/demo", "cli/migrate"),
    *("cli/report", "cli/run_script", "cli/score", "cli/serve", "cli/ui"),
)
"""Where the errors are of commands that the page does not start, and of Python's users."""
_SPEAKS = re.compile(rf"\b({'|'.join([*_CALLS, 'count_noun', 'notes'])})\b|Error\(|    return f?\"")
"""What is in files that have messages."""
_OTHER_ERRORS = ("ServerError", "RefusedRequestError", "UploadError")
"""Of a server that does not start, and those that name a text of the locales."""
_MAX_VARIANTS = 8


@dataclass(frozen=True)
class Message:
    """A sentence of the code.

    Attributes:
        template: with a `{name}` for each value.
        sample: with values in place of the names.
        place: `file:line`.
    """

    template: str
    sample: str
    place: str


@cache
def list_messages(source: Path = SOURCE) -> list[Message]:
    """All messages that the page may show, each template once, in the order of the files."""
    messages: dict[str, Message] = {}
    for path in sorted(source.rglob("*.py")):
        name, code = path.relative_to(source).as_posix(), path.read_text("utf-8")
        if name.startswith(_OTHER_PLACES) or not _SPEAKS.search(code):
            continue
        for parts, line in _list_texts(ast.parse(code), name.startswith(_SENTENCE_MODULES)):
            template, sample = _format_parts(parts)
            if any(letter.isalpha() for part in parts if isinstance(part, str) for letter in part):
                messages.setdefault(sample, Message(template, sample, f"{name}:{line}"))
    return list(messages.values())


def list_untranslated(lang: str = "zh") -> list[Message]:
    """The messages without a text in a language."""
    return [message for message in list_messages() if translate_message(message.sample, lang) is None]


@dataclass(frozen=True)
class _Value:
    """What is put into an f-string."""

    name: str


_Parts = tuple["str | _Value", ...]


def _list_texts(tree: ast.Module, has_sentences: bool) -> Iterator[tuple[_Parts, int]]:
    constants = {
        target.id: [node.value]
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    scopes: list[ast.AST] = [tree]
    for scope in scopes:  # functions that are found on the way are added to it
        nodes = _list_nodes(scope, scopes)
        variables = constants if scope is tree else constants | _read_variables(nodes)
        for node in nodes:
            for argument in _list_arguments(node, has_sentences):
                for parts in _expand(argument, variables, 0):
                    yield parts, getattr(node, "lineno", 0)


def _list_nodes(scope: ast.AST, scopes: list[ast.AST]) -> list[ast.AST]:
    """The nodes of a function without those of functions in it, which are added to `scopes`."""
    nodes: list[ast.AST] = []
    queue = list(ast.iter_child_nodes(scope))
    for node in queue:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scopes.append(node)
        else:
            nodes.append(node)
            queue.extend(ast.iter_child_nodes(node))
    return nodes


def _list_arguments(node: ast.AST, has_sentences: bool) -> Iterator[ast.expr]:
    if has_sentences and isinstance(node, ast.Return) and isinstance(node.value, (ast.Constant, ast.JoinedStr)):
        yield node.value
    if not isinstance(node, ast.Call):
        return
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if name == "count_noun":
        yield from _list_nouns(node)
    if name == "append" and ast.unparse(node.func).endswith("notes.append"):
        yield node.args[0]
    places = _CALLS.get(name, ())
    if not places and name.endswith("Error") and name not in _OTHER_ERRORS and not hasattr(builtins, name):
        places = (0, 1, "hint")  # an error of ours
    yield from (argument for place, argument in enumerate(node.args) if place in places)
    yield from (word.value for word in node.keywords if word.arg in places)


def _list_nouns(node: ast.Call) -> Iterator[ast.expr]:
    words = [str(argument.value) for argument in node.args[1:] if isinstance(argument, ast.Constant)]
    if words:
        for word in (words[0], words[1] if len(words) > 1 else f"{words[0]}s"):
            count = ast.FormattedValue(ast.Name("count"), -1, None)
            yield ast.JoinedStr([count, ast.Constant(f" {word}")])


def _read_variables(nodes: list[ast.AST]) -> dict[str, list[ast.expr]]:
    """The values that are assigned to each name."""
    variables: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in variables:
            values = variables[node.target.id]
            values[-1] = ast.BinOp(values[-1], ast.Add(), node.value)
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):
                variables.setdefault(target.id, []).append(node.value)
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for name, value in zip(target.elts, node.value.elts, strict=False):
                    if isinstance(name, ast.Name):
                        variables.setdefault(name.id, []).append(value)
    return variables


def _expand(node: ast.expr | None, variables: dict[str, list[ast.expr]], depth: int) -> list[_Parts]:
    """The texts that an expression may have; a value that is not known is a `_Value`."""
    if isinstance(node, ast.Constant):
        return [(node.value,)] if isinstance(node.value, str) else []
    if depth > 6 or node is None:
        return [(_Value(_find_name(node)),)]
    if isinstance(node, ast.JoinedStr):
        return _join([_expand(part, variables, depth + 1) for part in node.values])
    if isinstance(node, ast.FormattedValue):
        simple = node.format_spec is None and node.conversion == -1
        variants = _expand(node.value, variables, depth + 1) if simple else []
        return variants or [(_Value(_find_name(node.value)),)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _join([_expand(node.left, variables, depth + 1), _expand(node.right, variables, depth + 1)])
    if isinstance(node, ast.IfExp):
        return [*_expand(node.body, variables, depth + 1), *_expand(node.orelse, variables, depth + 1)]
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        return [parts for value in node.values for parts in _expand(value, variables, depth + 1)]
    if isinstance(node, ast.Name) and node.id in variables:
        values = variables[node.id]
        texts = [parts for value in values if _is_text(value) for parts in _expand(value, variables, depth + 1)]
        if texts:
            return texts if all(map(_is_text, values)) else [*texts, (_Value(node.id),)]
    return [(_Value(_find_name(node)),)]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, (ast.JoinedStr, ast.BinOp)) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _join(choices: list[list[_Parts]]) -> list[_Parts]:
    products = itertools.islice(itertools.product(*choices), _MAX_VARIANTS)
    return [tuple(itertools.chain.from_iterable(product)) for product in products]


def _find_name(node: ast.expr | None) -> str:
    """A word for what an expression is."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "format", "get", "strip"):
            return _find_name(node.args[0] if node.args else node.func.value)
        return _find_name(node.args[0]) if node.args else _find_name(node.func)
    if isinstance(node, ast.Subscript):
        return _find_name(node.value)
    return "value"


def _format_parts(parts: _Parts) -> tuple[str, str]:
    """A template, whose names all differ, and a sample."""
    template, sample, names = "", "", []
    for part in parts:
        if isinstance(part, str):
            template += part.replace("{", "{{").replace("}", "}}")
            sample += part
            continue
        name = part.name.strip("_") or "value"
        names.append(name)
        if names.count(name) > 1:
            name = f"{name}_{names.count(name)}"
        template += f"{{{name}}}"
        sample += "7" if re.fullmatch(r"count(_\d)?", name) else f"‹{len(names)}›"
    return " ".join(template.split()), " ".join(sample.split())


if __name__ == "__main__":
    for message in list_messages() if "--all" in sys.argv else list_untranslated():
        print(f"{message.place}\t{message.template}")
