"""The raw rows of a source: of files one after the other, or of a hub data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Protocol

from glmtune.data.conversation import InvalidRow, RawRow
from glmtune.data.files import DataFile
from glmtune.errors import ConfigError, DataError, summarize_error
from glmtune.utils.installation import format_install
from glmtune.utils.io import add_file_to_hash
from glmtune.utils.optional_packages import import_extra


class SourceRows(Protocol):
    """The raw rows of a source."""

    def read_rows(self) -> Iterator[RawRow | InvalidRow]:
        """Read all rows in order."""

    def update_hash(self, hasher: Any) -> None:
        """Add the content to a hash."""


class FileRows:
    """The rows of several files in order."""

    def __init__(self, files: list[DataFile]):
        self.files = files

    def read_rows(self) -> Iterator[RawRow | InvalidRow]:
        for file in self.files:
            yield from file.read_rows()

    def update_hash(self, hasher: Any) -> None:
        for file in self.files:
            content = hashlib.sha256(file.suffix.encode())
            file.check_unchanged()
            add_file_to_hash(content, file.path)
            file.check_unchanged()
            hasher.update(content.digest())


class HubRows:
    """The rows of a hub data set, memory mapped by the hub's client."""

    def __init__(self, name: str, rows: Any):
        self.name = name
        self._rows = rows

    def read_rows(self) -> Iterator[RawRow | InvalidRow]:
        for number, values in enumerate(self._rows, start=1):
            yield RawRow(dict(values), f"{self.name}:row {number}")

    def update_hash(self, hasher: Any) -> None:
        # Not the client's own fingerprint, which also depends on its version and cache.
        for values in self._rows:
            hasher.update(hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).digest())


def open_hub_dataset(name: str, hub: str, split: str, subset: str | None) -> HubRows:
    """Download a data set, or find it in the cache of the hub's client."""
    client = import_extra("modelscope.msdatasets" if hub == "modelscope" else "datasets", f"{name}: hub data")
    try:
        if hub == "modelscope":
            dataset = client.MsDataset.load(name, subset_name=subset, split=split)
            return HubRows(name, dataset.to_hf_dataset() if hasattr(dataset, "to_hf_dataset") else dataset)
        return HubRows(name, client.load_dataset(name, subset, split=split))
    except ImportError as error:  # of what the client imports later
        raise ConfigError(
            f"{name}: hub data needs the package {error.name or error}, which is not installed.",
            f"Install it: {format_install('glmtune[modelscope]' if hub == 'modelscope' else 'glmtune[hub]')}",
        ) from None
    except Exception as error:  # the clients raise many types; each means that the data cannot be downloaded
        reason = summarize_error(error)[:200].rstrip(".")
        raise DataError(
            f"{name}: no such file, and it cannot be downloaded from {hub} ({reason}).",
            "Check the spelling, the split and the network, or download it and give the files.",
        ) from None


def require_same_schema(files: list[DataFile]) -> None:
    first: tuple[DataFile, dict[str, str]] | None = None
    for file in files:
        schema = file.read_schema()
        if schema is None:
            continue
        if first is None:
            first = file, schema
            continue
        for column in sorted(schema.keys() | first[1].keys()):
            kind, first_kind = schema.get(column, "missing"), first[1].get(column, "missing")
            if kind != first_kind and "null" not in (kind, first_kind):  # null: the column is empty in that file
                raise DataError(
                    f"{file.path}: column {column!r} is {kind}, but {first_kind} in {first[0].path}.",
                    "Give files of different schemas as separate entries of data.train.",
                )
