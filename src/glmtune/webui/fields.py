"""Components for the keys of the config: labels, help, defaults and choices come from the key."""

from __future__ import annotations

from typing import Any

import gradio as gr

from glmtune.webui.forms import Field, fields, to_component, unavailable
from glmtune.webui.words import Words

_FIELDS = {field.key: field for field in fields()}


def build_field(key: str, words: Words, **layout: Any) -> Any:
    """The component of a dotted key, with its name and help in the page's language."""
    field = _FIELDS[key]
    return words.add(_component(field, layout), label=f"name.{key}", info=f"help.{key}")


def _component(field: Field, layout: dict[str, Any]) -> Any:
    value = to_component(field, field.default)
    layout = {"interactive": True, **layout}
    if field.kind == "flag":
        return gr.Checkbox(value=value, **layout)
    if field.kind == "choice":
        return gr.Dropdown(_choices(field), value=value, **layout)
    if field.kind in ("integer", "number") and not field.optional:  # a number's component cannot be empty
        return gr.Number(value=value, precision=0 if field.kind == "integer" else None, **layout)
    return gr.Textbox(value=value, lines=2 if field.kind in ("lines", "mapping") else 1, **layout)


def _choices(field: Field) -> list[tuple[str, Any]]:
    able = [choice for choice in field.choices if choice not in unavailable()]
    return [*([("-", "")] if field.optional else []), *((str(choice), choice) for choice in able)]
