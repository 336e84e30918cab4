"""What a browser typed and has not started yet: kept by the server, so that a reload or a crash loses nothing."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.html.pages import is_number
from glmtune.utils.documents import shorten_value
from glmtune.utils.io import find_json_object, slugify, write_json
from glmtune.webui.context import Context
from glmtune.webui.requests import FormData

_MAX_NAME = 60
_MAX_SAVED = 200


def load_draft(context: Context, owner: str, form: str) -> FormData | None:
    """The fields that a browser left in a form; None if it has left none.

    Args:
        context: the server's settings.
        owner: see `guard.owner_of`.
        form: name of the form, such as `train`.
    """
    return _load(locate_draft(context, owner, form))


def save_draft(context: Context, owner: str, form: str, fields: FormData) -> None:
    """Keep the fields of a form."""
    write_json(locate_draft(context, owner, form), {"fields": fields.pairs})


@dataclass(frozen=True)
class SavedSettings:
    """The training form under a name.

    Attributes:
        name: as it was typed.
        model: path or hub id.
        method: of the training.
        saved: seconds since 1970.
    """

    name: str
    model: str
    method: str
    saved: float


def list_saved(context: Context) -> list[SavedSettings]:
    """The settings that were saved on purpose, the newest first."""
    entries = [entry for path in context.state("settings").glob("*.json") if (entry := _describe(path)) is not None]
    return sorted(entries, key=lambda entry: (-entry.saved, entry.name))


def save_settings(context: Context, name: str, fields: FormData, *, may_replace: bool = False) -> SavedSettings | None:
    """Keep the fields of the training form under a name, for all browsers.

    Returns:
        Those of the same name that are there, which stay unless `may_replace`; None: the fields are saved.

    Raises:
        ConfigError: no name, or too many are saved.
    """
    name = _clean_name(name)
    path = _settings_path(context, name)
    rival = _describe(path)
    if rival is not None and not may_replace:
        return rival
    if rival is None and len(list(path.parent.glob("*.json"))) >= _MAX_SAVED:
        raise ConfigError(f"{_MAX_SAVED} settings are saved already.", "Delete one first.")
    write_json(path, {"name": name, "saved": time.time(), "fields": fields.pairs})
    return None


def load_settings(context: Context, name: str) -> FormData:
    """The fields that were saved under a name.

    Raises:
        ConfigError: there are none.
    """
    fields = _load(_settings_path(context, name))
    if fields is None:
        raise _no_settings_error(name)
    return fields


def rename_settings(context: Context, name: str, new_name: str) -> None:
    """Give saved settings another name.

    Raises:
        ConfigError: there are none, no name is given, or it is taken.
    """
    new_name = _clean_name(new_name)
    path, new_path = _settings_path(context, name), _settings_path(context, new_name)
    content = find_json_object(path)
    if content is None:
        raise _no_settings_error(name)
    if new_path == path:
        return
    if new_path.exists():
        raise ConfigError(f"{new_name}: there are settings of this name.", "Choose another name.")
    write_json(new_path, {"saved": path.stat().st_mtime, **content, "name": new_name})
    path.unlink(missing_ok=True)


def delete_settings(context: Context, name: str) -> None:
    """Remove saved settings.

    Raises:
        ConfigError: there are none of this name.
    """
    try:
        _settings_path(context, name).unlink()
    except FileNotFoundError:
        raise _no_settings_error(name) from None


def _describe(path: Path) -> SavedSettings | None:
    content, fields = find_json_object(path), _load(path)
    if content is None or fields is None or not content.get("name"):
        return None
    saved = content.get("saved")
    try:
        saved = float(saved) if is_number(saved) else path.stat().st_mtime  # older files do not say it
    except OSError:  # deleted meanwhile
        return None
    return SavedSettings(str(content["name"]), fields.get("model.path"), fields.get("method", "lora"), saved)


def _clean_name(name: str) -> str:
    name = " ".join(name.split())
    if not name:
        raise ConfigError("No name is given.", "Type a name for the settings.")
    if len(name) > _MAX_NAME:
        raise ConfigError(f"The name is longer than {_MAX_NAME} characters.", "Choose a shorter one.")
    return name


def _no_settings_error(name: str) -> ConfigError:
    return ConfigError(f"{shorten_value(name)}: no settings of this name.", "Choose one of the list.")


def _settings_path(context: Context, name: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return context.state("settings") / f"{slugify(name, 'settings')[:40]}-{digest}.json"


def locate_draft(context: Context, owner: str, form: str) -> Path:
    """The file that keeps what a browser left in a form."""
    return context.state("drafts") / f"{hashlib.sha256(owner.encode('utf-8', 'replace')).hexdigest()[:24]}-{form}.json"


def _load(path: Path) -> FormData | None:
    content: dict[str, Any] = find_json_object(path) or {}
    fields = content.get("fields")
    if not isinstance(fields, list):
        return None
    return FormData([(pair[0], pair[1]) for pair in fields if isinstance(pair, list) and len(pair) == 2])
