"""Rows of data sets that live on a hub, through the hub's own client and its cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from glmtune.data.conversation import Fault, Row
from glmtune.errors import ConfigError, DataError


class HubData:
    """An opened hub data set (memory mapped by its client)."""

    def __init__(self, name: str, rows: Any):
        self.name = name
        self._rows = rows

    def rows(self) -> Iterator[Row | Fault]:
        """Rows from the first to the last, each named `name:row N`."""
        for number, values in enumerate(self._rows, start=1):
            yield Row(dict(values), f"{self.name}:row {number}")

    def hash_into(self, hasher: Any) -> None:
        """Add the rows' content. The client's own fingerprint would also change with its version and cache."""
        for values in self._rows:
            hasher.update(hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).digest())


def open_hub(name: str, hub: str, split: str | None, subset: str | None) -> HubData:
    """Download a data set, or find it in the client's cache.

    Args:
        name: `org/name`.
        hub: `huggingface` or `modelscope`.
        split: which part; `train` when None.
        subset: the data set's configuration, where it has several.

    Raises:
        ConfigError: the hub's client is not installed.
        DataError: the hub did not give the data set.
    """
    load = _from_modelscope if hub == "modelscope" else _from_huggingface
    try:
        return HubData(name, load(name, subset, split or "train"))
    except ImportError as error:
        extra = "hub,modelscope" if hub == "modelscope" else "hub"
        missing = error.name or str(error)
        raise ConfigError(
            f"{name}: hub data needs the package {missing}, which is not installed.",
            f"Install it: pip install 'glmtune[{extra}]'",
        ) from None
    except Exception as error:  # the clients raise dozens of kinds; each means that the data is not to be had
        lines = str(error).strip().splitlines()
        reason = lines[0][:200].rstrip(".") if lines else type(error).__name__
        raise DataError(
            f"{name}: no such file here, and {hub} did not give it ({reason}).",
            "Check the spelling, the split and the network, or download it and give the files.",
        ) from None


def _from_huggingface(name: str, subset: str | None, split: str) -> Any:
    from datasets import load_dataset

    return load_dataset(name, subset, split=split)


def _from_modelscope(name: str, subset: str | None, split: str) -> Any:
    from modelscope.msdatasets import MsDataset

    loaded = MsDataset.load(name, subset_name=subset, split=split)
    return loaded.to_hf_dataset() if hasattr(loaded, "to_hf_dataset") else loaded
