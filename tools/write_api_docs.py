"""Write docs/api.md, the reference of the Python API, from signatures and docstrings.

python tools/write_api_docs.py
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """# The Python API

What the pages of this documentation import, from signatures and docstrings; how it is used is in
[From Python](python.md). Other modules may change from one release to the next. Errors that a user can fix are a
`glmtune.errors.GlmtuneError`.
This page is generated from the code by `python tools/write_api_docs.py`.
"""
PUBLIC = {
    "Models": ("glmtune.load_model", "glmtune.load_tokenizer", "glmtune.detect_family"),
    "Prompts and replies": (
        "glmtune.families.family.Family.encode_prompt",
        "glmtune.families.family.Family.encode",
        "glmtune.families.family.Family.parse_reply",
        "glmtune.families.family.EncodedSequence",
        "glmtune.families.family.Reply",
        "glmtune.families.family.ToolCall",
        "glmtune.generation.reply.Sampling",
        "glmtune.generation.reply.generate_reply",
    ),
    "Training": ("glmtune.config.load_config", "glmtune.training.run.train", "glmtune.training.run.TrainingResult"),
    "Evaluation": (
        "glmtune.evaluation.model_info.load_target",
        "glmtune.evaluation.model_info.read_settings",
        "glmtune.evaluation.dataset.read_eval_data",
        "glmtune.evaluation.evaluate.evaluate",
        "glmtune.evaluation.candidates.open_candidates",
        "glmtune.evaluation.comparison.read_entries",
        "glmtune.evaluation.comparison.compare_models",
        "glmtune.preference.load_reward_model",
        "glmtune.bench.measure.measure_model",
    ),
    "Results": ("glmtune.report.write_report", "glmtune.report.write_pictures"),
    "Errors": ("glmtune.errors.GlmtuneError",),
}
# `name: text` of an entry in Args or Raises.
_ENTRY = re.compile(r"^(\*{0,2}\w[\w.]*(?:, \w+)*): (.*)", re.DOTALL)


def render_page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, paths in PUBLIC.items():
        parts.append(f"\n## {title}\n")
        parts += [_render_entry(path) for path in paths]
    return "\n".join(parts).rstrip() + "\n"


def import_name(path: str) -> Any:
    """The object of a dotted path, which may lead through a class."""
    names = path.split(".")
    for count in range(len(names) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(names[:count]))
        except ModuleNotFoundError:
            continue
        for name in names[count:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


def _render_entry(path: str) -> str:
    value = import_name(path)
    owner, name = path.split(".")[-2:]
    is_method = owner[0].isupper()
    lines = [f"### {owner}.{name}\n" if is_method else f"### {name}\n"]
    statement = "" if is_method else f"from {path.rpartition('.')[0]} import {name}\n\n\n"
    lines.append(f"```python\n{statement}{_format_signature(name, value)}\n```\n")
    lines += _render_docstring(inspect.getdoc(value) or "")
    if dataclasses.is_dataclass(value):
        lines += _render_fields(value)
    return "\n".join(lines)


def _format_signature(name: str, value: Any) -> str:
    """The definition with `...` for its body; arguments a line each if it is long."""
    if inspect.isclass(value) and not dataclasses.is_dataclass(value):
        return f"class {name}({value.__bases__[0].__name__}): ..."
    signature = inspect.signature(value)
    words = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(_format_parameter(parameter))
    if inspect.isclass(value):
        return f"@dataclass\nclass {name}:\n    " + "\n    ".join(words)
    result = f" -> {signature.return_annotation}: ..."
    line = f"def {name}({', '.join(words)}){result}"
    return line if len(line) <= 100 else f"def {name}(\n    " + ",\n    ".join(words) + f",\n){result}"


def _format_parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is not parameter.empty:
        default = parameter.default
        if isinstance(default, str):
            text += f" = {json.dumps(default, ensure_ascii=False)}"
        else:  # the default of a dataclass field with a factory is a private object
            text += " = ..." if type(default).__module__ == "dataclasses" else f" = {default!r}"
    return text


def _render_docstring(docstring: str) -> list[str]:
    """Paragraphs as they are; the sections Args, Returns and Raises as lists."""
    lines = []
    for block in re.split(r"\n(?=(?:Args|Returns|Raises):\n)", docstring):
        title, _, body = block.partition(":\n")
        if title not in ("Args", "Returns", "Raises"):
            lines.append(f"{block.strip()}\n")
            continue
        body = textwrap.dedent(body).strip()
        entries = re.split(r"\n(?! )", body) if title != "Returns" else [body]
        lines.append(f"{title}:\n")
        for entry in entries:
            text = " ".join(entry.split())
            found = _ENTRY.match(text) if title != "Returns" else None
            lines.append(f"- `{found[1]}`: {found[2]}" if found else f"- {text}")
        lines.append("")
    return lines


def _render_fields(kind: type) -> list[str]:
    """The fields of a dataclass with the strings below them."""
    texts = _read_attribute_docstrings(kind)
    lines = ["| field | type | |", "| --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        annotation = str(field.type).replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{annotation}` | {texts.get(field.name, '')} |")
    return [*lines, ""]


def _read_attribute_docstrings(kind: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, following in zip(definition.body[:-1], definition.body[1:], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


if __name__ == "__main__":
    (DOCS / "api.md").write_text(render_page(), encoding="utf-8")
