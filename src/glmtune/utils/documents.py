"""YAML and JSON that a person or another program wrote, read in bounded time and memory.

Refused, each with its line where the parser knows it: files that are no regular files (reading a pipe would wait
forever), files over a size limit, nesting without end, YAML aliases that expand to more than the limit or contain
themselves (the "billion laughs"), keys that are present twice, whole numbers of thousands of digits.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from glmtune.utils.file_access import require_readable

MAX_JSON_BYTES = 8 * 2**20
MAX_YAML_BYTES = 2**20
_MAX_DEPTH = 100
_MAX_JSON_CONTAINERS = 400_000
# Scalars, lists and mappings, aliases expanded; PyYAML takes half a kilobyte for each.
_MAX_YAML_NODES = 100_000


class DocumentError(ValueError):
    """Text that is not a document, or one that is too large.

    Args:
        problem: what is wrong, as part of a sentence.
        line: from 1; None if it is not known.
        is_syntax: the text is not JSON or YAML, rather than too much of it.
    """

    def __init__(self, problem: str, line: int | None = None, is_syntax: bool = False):
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.is_syntax = is_syntax

    def describe(self, path: str | Path) -> str:
        """A sentence: the path, its line if that is known, and the problem."""
        line = f":{self.line}" if self.line else ""
        return f"{shorten_path(path)}{line}: {self.problem}."


def read_document(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Read a small text file in UTF-8, with or without a byte order mark.

    Args:
        path: of a regular file; others are refused without being opened.
        max_bytes: its maximum size.

    Raises:
        DocumentError: not a regular file, too large, not UTF-8, or the system refuses to read it.
        FileAccessError: this process is limited to other folders.
    """
    path = require_readable(path)
    if "\0" in str(path):  # the system's functions raise ValueError
        raise DocumentError("no such file")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DocumentError(f"{describe_file_type(status.st_mode)}, not a file")
        if status.st_size > max_bytes:
            raise DocumentError(f"too large ({status.st_size:,} bytes; at most {max_bytes:,})")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DocumentError("no such file") from None
    except OSError as error:
        raise DocumentError(f"cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DocumentError("not UTF-8 text", line) from None


def describe_file_type(mode: int) -> str:
    """What a path that is no regular file is, from its `st_mode`."""
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((kind for is_kind, kind in kinds.items() if is_kind(mode)), "something else")


def parse_json(text: str, unique_keys: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: of the document.
        unique_keys: refuse objects that hold a key twice; else the last one counts, as everywhere in JSON.

    Raises:
        DocumentError: not JSON, nested too deeply, or too large.
    """
    if text.count("{") + text.count("[") > _MAX_JSON_CONTAINERS:
        raise DocumentError(f"too large (more than {_MAX_JSON_CONTAINERS:,} lists and objects)")
    try:
        value = json.loads(text, object_pairs_hook=_make_unique_object if unique_keys else None)
    except json.JSONDecodeError as error:
        raise DocumentError(f"not valid JSON: {error.msg}", error.lineno) from None
    except RecursionError:
        raise DocumentError(f"lists or objects are nested over {_MAX_DEPTH} levels deep") from None
    except DocumentError:
        raise
    except ValueError:  # Python converts no text of over 4300 digits
        raise DocumentError("not valid JSON: a number has thousands of digits") from None
    _check_depth(value)
    return value


def _make_unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise DocumentError(f"the key {shorten_value(name)} is present twice")
    return result


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    raise DocumentError(f"lists or objects are nested over {_MAX_DEPTH} levels deep")


def parse_yaml(text: str) -> Any:
    """Parse YAML without running code in it.

    Raises:
        DocumentError: not YAML, nested too deeply, too large with its aliases expanded, or a key is present twice.
    """
    import yaml

    # The C loader is ten times as fast; some platforms have none.
    loader_class: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > MAX_YAML_BYTES:
        raise DocumentError(f"too large (more than {MAX_YAML_BYTES:,} characters)")
    try:
        _check_events(yaml.parse(text, Loader=loader_class))  # before composing, which is recursive
        loader = loader_class(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_nodes(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise DocumentError(f"not valid YAML: {problem}", mark.line + 1 if mark else None, is_syntax=True) from None
    except DocumentError:
        raise
    # PyYAML raises whatever int(), float() or datetime() do: of a number with thousands of digits, of 2024-13-45.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        problem = "not valid YAML: a value cannot be read as the number or date that it looks like"
        raise DocumentError(problem, is_syntax=True) from None


def _check_events(events: Any) -> None:
    import yaml

    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = event.start_mark.line + 1
        if depth > _MAX_DEPTH:
            raise DocumentError(f"lists or keys are nested over {_MAX_DEPTH} levels deep", line)
        if count > _MAX_YAML_NODES:
            raise DocumentError(f"too large (more than {_MAX_YAML_NODES:,} values)", line)


def _check_nodes(root: Any) -> None:
    """Check that aliases are finite and small when expanded, and that no mapping holds a key twice."""
    import yaml

    sizes: dict[int, int] = {}  # by the id of a node; an alias is the same node again
    open_nodes: set[int] = set()

    def measure(node: Any) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        line = node.start_mark.line + 1
        if key in open_nodes:
            raise DocumentError("an alias contains itself", line)
        open_nodes.add(key)
        size = 1
        if isinstance(node, yaml.MappingNode):
            _check_unique_keys(node)
            size += sum(measure(name) + measure(value) for name, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(map(measure, node.value))
        if size > _MAX_YAML_NODES:
            raise DocumentError(f"aliases expand to more than {_MAX_YAML_NODES:,} values", line)
        open_nodes.remove(key)
        sizes[key] = size
        return size

    measure(root)


def _check_unique_keys(mapping: Any) -> None:
    import yaml

    names = set()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if (key.tag, key.value) in names:
            raise DocumentError(f"the key {shorten_value(key.value)} is present twice", key.start_mark.line + 1)
        names.add((key.tag, key.value))


def shorten_path(path: str | Path, max_length: int = 200) -> str:
    """A path for a message; of one that no system accepts, the start."""
    text = str(path)
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def shorten_value(value: Any, max_length: int = 60) -> str:
    """A value as Python writes it, cut to one short line: for messages about values of unknown size."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of over 4300 digits
        text = "a number of thousands of digits"
    except RecursionError:
        text = "a value that contains itself"
    text = text.replace("\n", " ")
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
