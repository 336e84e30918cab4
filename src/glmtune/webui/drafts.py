"""What a browser typed and has not started yet: kept by the server, so that a reload or a crash loses nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.utils.io import find_json_object, slugify, write_json
from glmtune.webui.context import Context
from glmtune.webui.requests import FormData

_MAX_NAME = 60


def load_draft(context: Context, owner: str, form: str) -> FormData | None:
    """The fields that a browser left in a form; None if it has left none.

    Args:
        context: the server's settings.
        owner: see `guard.owner_of`.
        form: name of the form, such as `train`.
    """
    return _load(_draft_path(context, owner, form))


def save_draft(context: Context, owner: str, form: str, fields: FormData) -> None:
    """Keep the fields of a form."""
    write_json(_draft_path(context, owner, form), {"fields": fields.pairs})


def list_saved(context: Context) -> list[str]:
    """Names of the settings that were saved on purpose."""
    paths = sorted(context.state("settings").glob("*.json"))
    return [str(content["name"]) for content in map(find_json_object, paths) if content and content.get("name")]


def save_settings(context: Context, name: str, fields: FormData) -> str:
    """Keep the fields of the training form under a name, for all browsers; one of the same name is replaced.

    Raises:
        ConfigError: the name is too long.
    """
    name = " ".join(name.split()) or "settings"
    if len(name) > _MAX_NAME:
        raise ConfigError(f"The name is longer than {_MAX_NAME} characters.", "Choose a shorter one.")
    write_json(_settings_path(context, name), {"name": name, "fields": fields.pairs})
    return name


def load_settings(context: Context, name: str) -> FormData | None:
    """The fields that were saved under a name."""
    return _load(_settings_path(context, name))


def _settings_path(context: Context, name: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return context.state("settings") / f"{slugify(name, 'settings')[:40]}-{digest}.json"


def _draft_path(context: Context, owner: str, form: str) -> Path:
    return context.state("drafts") / f"{hashlib.sha256(owner.encode('utf-8', 'replace')).hexdigest()[:24]}-{form}.json"


def _load(path: Path) -> FormData | None:
    content: dict[str, Any] = find_json_object(path) or {}
    fields = content.get("fields")
    if not isinstance(fields, list):
        return None
    return FormData([(pair[0], pair[1]) for pair in fields if isinstance(pair, list) and len(pair) == 2])
