"""Write docs/config.md and docs/config.zh.md from the dataclasses of the config.

python tools/write_config_docs.py
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import config_page_zh as zh
import yaml

from glmtune.config import TRAINING_DEFAULTS, RunConfig
from glmtune.config_ranges import TRAINING_RANGES, NumberRange, format_number
from glmtune.html.i18n import text
from glmtune.training.training_keys import OPTIMIZER_USES, TRAINING_KEY_USES
from glmtune.utils.installation import quote_requirement

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """# The config

[中文](config.zh.md)

One YAML (or JSON) file describes a run; `--set key=value` changes any key of it. An unknown key is an error that names
the most similar known key. `model:` and `data:` may be plain strings, short for `model.path` and `data.train`.
This page is generated from the code by `python tools/write_config_docs.py`.
"""
TAIL = """
## training

Keys of transformers' `TrainingArguments`; what becomes of each is listed below. These defaults differ from those of
transformers:

```yaml
{defaults}```

With `data.packing` (the default) the batch size is in blocks, not rows: `per_device_train_batch_size: 1` is one block
of up to `max_source_length + max_target_length` tokens. `warmup_steps` below 1 is a fraction of all steps. Precision
follows `model.precision` unless `bf16` or `fp16` is set here. `output_dir` and similar paths follow from `output`.

Numbers outside these ranges, NaN and infinity are refused before anything is loaded:

| key | range |
| --- | --- |
{ranges}

### Every key

used: as in transformers, but for what the last column says. refused: an error that names the reason, except for the
values in brackets, which ask for nothing. no effect: accepted, and a line says so when the run starts.

| key of `training` | | |
| --- | --- | --- |
{keys}

### Optimizers

`training.optim`; packages are looked for, and options checked, before anything is loaded.

| `training.optim` | needs | options in `training.optim_args` |
| --- | --- | --- |
{optimizers}
"""


def render_page() -> str:
    """The whole page."""
    sections = [HEAD, _render_table("the run", RunConfig, "")]
    for field in dataclasses.fields(RunConfig):
        kind = get_type_hints(RunConfig)[field.name]
        if dataclasses.is_dataclass(kind):
            sections.append(_render_table(field.name, kind, f"{field.name}."))
    defaults = yaml.safe_dump(TRAINING_DEFAULTS, sort_keys=False)
    ranges = "\n".join(f"| `training.{key}` | {allowed} |" for key, allowed in TRAINING_RANGES.items())
    return (
        "\n".join(sections)
        + "\n"
        + TAIL.format(defaults=defaults, ranges=ranges, keys=_render_key_uses(), optimizers=_render_optimizer_uses())
    )


def _render_key_uses() -> str:
    lines = []
    for key, use in TRAINING_KEY_USES.items():
        accepted = ", ".join(f"`{json.dumps(value)}`" for value in use.accepted)
        status = f"{use.status} ({accepted})" if use.status == "refused" and accepted else use.status
        lines.append(f"| `{key}` | {status} | {use.reason} |")
    return "\n".join(lines)


def _render_optimizer_uses() -> str:
    groups: dict[Any, list[str]] = {}
    for name, use in OPTIMIZER_USES.items():
        groups.setdefault(use, []).append(f"`{name}`")
    lines = []
    for use, names in groups.items():
        install = f"`pip install {quote_requirement(use.install)}`" if use.install else ""
        needs = f"refused: {use.refusal}" if use.refusal else install
        needs += "; `training.optim_target_modules`, method full or freeze" if use.needs_targets else ""
        options = ", ".join(f"`{option}`" for option in use.options)
        lines.append(f"| {', '.join(names)} | {needs} | {options} |")
    return "\n".join(lines)


def _render_table(title: str, kind: Any, prefix: str) -> str:
    lines = [f"\n## {title}\n", "| key | type | default | |", "| --- | --- | --- | --- |"]
    for field, hint, shown in _list_keys(kind):
        lines.append(
            f"| `{prefix}{field.name}` | {_describe_type(hint)}{_describe_range(field)} | {shown} "
            f"| {field.metadata['help']} |"
        )
    return "\n".join(lines)


def _list_keys(kind: Any) -> Iterator[tuple[dataclasses.Field[Any], Any, str]]:
    """The keys of a section, each with its type and its default as YAML."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]) or field.name == "training":
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        shown = "" if default in ("", None, [], {}) else f"`{yaml.safe_dump(default).splitlines()[0]}`"
        yield field, hints[field.name], shown


def _describe_range(field: dataclasses.Field[Any]) -> str:
    return f", {field.metadata['range']}" if "range" in field.metadata else ""


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if get_args(kind) and get_origin(kind) not in (list, dict):
        return " or ".join(_describe_type(part) for part in get_args(kind) if part is not type(None))
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(kind, "list" if get_origin(kind) is list else "keys and values")


def render_chinese_page() -> str:
    """The whole page in Chinese; helps are those of the web page."""
    sections = [zh.HEAD, _render_chinese_table(zh.RUN_TITLE, RunConfig, "")]
    for field in dataclasses.fields(RunConfig):
        kind = get_type_hints(RunConfig)[field.name]
        if dataclasses.is_dataclass(kind):
            sections.append(_render_chinese_table(field.name, kind, f"{field.name}."))
    defaults = [
        "| 键 | 默认 | |",
        "| --- | --- | --- |",
        *(
            f"| `{key}` | `{json.dumps(value)}` | {_get_chinese_help(f'training.{key}')} |"
            for key, value in TRAINING_DEFAULTS.items()
        ),
    ]
    ranges = (f"| `training.{key}` | {_describe_chinese_range(allowed)} |" for key, allowed in TRAINING_RANGES.items())
    keys = []
    for key, use in TRAINING_KEY_USES.items():
        accepted = "、".join(f"`{json.dumps(value)}`" for value in use.accepted)
        status = zh.STATUSES[use.status]
        keys.append(f"| `{key}` | {status}{f'（{accepted}）' if use.status == 'refused' and accepted else ''} |")
    return (
        "\n".join(sections)
        + "\n"
        + zh.TAIL.format(
            defaults="\n".join(defaults),
            learning_rate=_get_chinese_help("training.learning_rate"),
            ranges="\n".join(ranges),
            keys="\n".join(keys),
            optimizers=_render_chinese_optimizers(),
        )
    )


def _get_chinese_help(key: str) -> str:
    return text(f"ui.help.{key}", "zh")


def _render_chinese_table(title: str, kind: Any, prefix: str) -> str:
    introduction = [f"{zh.INTRODUCTIONS[title]}\n"] if title in zh.INTRODUCTIONS else []
    lines = [f"\n## {title}\n", *introduction, *zh.TABLE_HEAD]
    for field, hint, shown in _list_keys(kind):
        allowed = f"，{_describe_chinese_range(field.metadata['range'])}" if "range" in field.metadata else ""
        help = _get_chinese_help(prefix + field.name)
        lines.append(f"| `{prefix}{field.name}` | {_describe_chinese_type(hint)}{allowed} | {shown} | {help} |")
    return "\n".join(lines)


def _describe_chinese_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return zh.OR.join(f"`{choice}`" for choice in get_args(kind))
    if get_args(kind) and get_origin(kind) not in (list, dict):
        return zh.OR.join(_describe_chinese_type(part) for part in get_args(kind) if part is not type(None))
    return zh.TYPES[get_origin(kind) or kind]


def _describe_chinese_range(allowed: NumberRange) -> str:
    low, high = format_number(allowed.low), format_number(allowed.high)
    special = "" if allowed.special is None else f"，或 {format_number(allowed.special)}"
    first = f"大于 {low}" if allowed.excludes_low else f"从 {low} 起"
    return f"{first}，{'小于' if allowed.excludes_high else '最大'} {high}{special}"


def _render_chinese_optimizers() -> str:
    groups: dict[Any, list[str]] = {}
    for name, use in OPTIMIZER_USES.items():
        groups.setdefault(use, []).append(f"`{name}`")
    lines = []
    for use, names in groups.items():
        needs = (
            [zh.REFUSED] if use.refusal else [f"`pip install {quote_requirement(use.install)}`"] if use.install else []
        )
        needs += [zh.NEEDS_TARGETS] if use.needs_targets else []
        options = "、".join(f"`{option}`" for option in use.options)
        lines.append(f"| {'、'.join(names)} | {'；'.join(needs)} | {options} |")
    return "\n".join(lines)


def write_pages() -> None:
    """Write both pages."""
    (DOCS / "config.md").write_text(render_page(), encoding="utf-8")
    (DOCS / "config.zh.md").write_text(render_chinese_page(), encoding="utf-8")


if __name__ == "__main__":
    write_pages()
