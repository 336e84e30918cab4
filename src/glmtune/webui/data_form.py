"""The form of the tab `Data`: from fields of the page to the rows that they name, and to the training form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from glmtune.config import RunConfig
from glmtune.data.column_formats import COLUMN_ROLES
from glmtune.data.sources import DataSource
from glmtune.webui.context import Context
from glmtune.webui.data_edits import EditBook
from glmtune.webui.data_rows import make_run, open_rows
from glmtune.webui.errors import PathError
from glmtune.webui.forms import Field, map_fields, parse_value, tree_of
from glmtune.webui.paths import model_or_path
from glmtune.webui.requests import FormData
from glmtune.webui.run_form import DATA, WEIGHT, make_entries, parse_datasets

DATA_DRAFT = "data"
"""Name of the form among the drafts."""
PREFERENCE = "data.preference"
_SETTINGS = (
    *("model.family", "data.format", "data.max_source_length", "data.max_target_length", "data.max_length"),
    *("data.overlength", "data.train_on", PREFERENCE, "data.prefix"),
)
_STAGES = {"pairs": ("dpo", "orpo", "simpo", "rm"), "labels": ("kto",), "prompts": ("grpo",)}
"""Stages of training by how they read rows; rows that are read otherwise are for stage sft."""


def list_settings() -> list[Field]:
    """The keys of the config on this form, besides rows, columns and model."""
    return [map_fields()[key] for key in _SETTINGS]


def get_default(field: Field) -> Any:
    """What the form shows where nothing was chosen."""
    value = parse_value(field, "")
    return "" if value is None else value


def parse_run(context: Context, data: FormData) -> RunConfig:
    """The config behind the fields of the tab.

    Raises:
        GlmtuneError: a path outside the roots, or a value that its key cannot take.
    """
    sent = {name for name, _ in data.pairs}
    tree = tree_of(
        {item.key: data.get(item.key) for item in list_settings() if item.key in sent and item.kind != "flag"}
    )
    section = tree.setdefault("data", {})
    entries = make_entries(context, parse_datasets(data))
    if not entries:
        raise PathError("No data is given.", "Choose a file, or upload one.")
    section["train"] = entries[0] if len(entries) == 1 and isinstance(entries[0], str) else entries
    columns = get_columns(data)
    if columns:
        section["columns"] = columns
    if data.get("model.path"):
        tree.setdefault("model", {})["path"] = model_or_path(context.roots, data.get("model.path"))
    return make_run(tree)


def open_form_rows(run: RunConfig, edits: EditBook) -> tuple[list[DataSource], list[DataSource]]:
    """The rows of a form with those that were changed by hand, and the data sets whose changes are outdated.

    Raises:
        GlmtuneError: they cannot be read.
    """
    sources = open_rows(run)
    return sources, edits.apply(sources)


def describe_data(context: Context, data: FormData) -> str:
    """The names of the data sets, for a heading."""
    return ", ".join(context.shorten(entry) for entry, _ in parse_datasets(data))


def replace_datasets(data: FormData, entries: Sequence[str]) -> FormData:
    """The form with other data sets of the same shares."""
    weights = [weight for _, weight in parse_datasets(data)]
    pairs = [pair for entry, weight in zip(entries, weights, strict=True) for pair in ((DATA, entry), (WEIGHT, weight))]
    return FormData([*data.without(DATA, WEIGHT).pairs, *pairs])


def make_train_draft(draft: FormData, data: FormData) -> FormData:
    """The training form with the rows, columns, limits and model of this tab in place of its own.

    Args:
        draft: fields of the training form.
        data: fields of this tab.
    """
    names = {name for name, _ in data.pairs}
    fields = [(key, data.get(key)) for key in _SETTINGS if key in names and key != PREFERENCE]
    if data.get("model.path"):
        fields.append(("model.path", data.get("model.path")))
    # One a line; JSON strings are YAML, whatever is in a name.
    lines = "\n".join(f"{role}: {json.dumps(name, ensure_ascii=False)}" for role, name in get_columns(data).items())
    fields.append(("data.columns", lines))
    for entry, weight in parse_datasets(data):
        fields += [(DATA, entry), (WEIGHT, weight)]
    if PREFERENCE in names:
        fields += _choose_stage(draft.get("stage") or "sft", data.get(PREFERENCE))
    others = draft.without(*(name for name, _ in fields), WEIGHT)
    return FormData([*others.pairs, *fields])


def _choose_stage(stage: str, preference: str) -> list[tuple[str, str]]:
    """The stage of training that reads rows so; it is kept where it does already."""
    stages = _STAGES.get(preference, ("sft",))
    # Of other stages than sft, how they read rows is not chosen.
    reading = "refuse" if preference in _STAGES else preference
    return [("stage", stage if stage in stages else stages[0]), (PREFERENCE, reading)]


def get_columns(data: FormData) -> dict[str, str]:
    """The columns that the menus name, by role."""
    return {role: data.get(f"column.{role}") for role in COLUMN_ROLES if data.get(f"column.{role}")}
