"""Write docs/config.md from the dataclasses of the config.

python tools/write_config_docs.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from glmtune.config import TRAINING_DEFAULTS, RunConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"
HEAD = """# The config

One YAML (or JSON) file describes a run; `--set key=value` changes any key of it. An unknown key is an error that names
the most similar known key. `model:` and `data:` may be plain strings, short for `model.path` and `data.train`.
This page is generated from the code by `python tools/write_config_docs.py`.
"""
TAIL = """
## training

Any key of transformers' `TrainingArguments`. These defaults differ from those of transformers:

```yaml
{defaults}```

With `data.packing` (the default) the batch size is in blocks, not rows: `per_device_train_batch_size: 1` is one block
of up to `max_source_length + max_target_length` tokens. `warmup_steps` below 1 is a fraction of all steps. Precision
follows `model.precision` unless `bf16` or `fp16` is set here. `output_dir` and similar paths follow from `output`.
"""


def render_page() -> str:
    """The whole page."""
    sections = [HEAD, _render_table("the run", RunConfig, "")]
    for field in dataclasses.fields(RunConfig):
        kind = get_type_hints(RunConfig)[field.name]
        if dataclasses.is_dataclass(kind):
            sections.append(_render_table(field.name, kind, f"{field.name}."))
    defaults = yaml.safe_dump(TRAINING_DEFAULTS, sort_keys=False)
    return "\n".join(sections) + TAIL.format(defaults=defaults)


def _render_table(title: str, kind: Any, prefix: str) -> str:
    lines = [f"\n## {title}\n", "| key | type | default | |", "| --- | --- | --- | --- |"]
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]) or field.name == "training":
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        shown = "" if default in ("", None, [], {}) else f"`{yaml.safe_dump(default).splitlines()[0]}`"
        lines.append(
            f"| `{prefix}{field.name}` | {_describe_type(hints[field.name])} | {shown} | {field.metadata['help']} |"
        )
    return "\n".join(lines)


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if get_args(kind) and get_origin(kind) not in (list, dict):
        return " or ".join(_describe_type(part) for part in get_args(kind) if part is not type(None))
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(kind, "list" if get_origin(kind) is list else "keys and values")


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
