"""All that differs between the generations, and nothing else."""

from __future__ import annotations

import os

from glmtune.families.detection import (
    FAMILIES,
    MARK,
    UndecidedError,
    family_of_config,
    family_of_folder,
    get_family,
    read_config,
)
from glmtune.families.family import IGNORE, Encoded, Family, Message, Reply, ToolCall
from glmtune.hub import resolve


def detect_family(path: str | os.PathLike[str], hub: str = "huggingface") -> Family:
    """The generation of a checkpoint folder or hub id; only its config.json is needed.

    Raises:
        ModelError: no such folder, not a ChatGLM, or nothing tells ChatGLM2 from ChatGLM3.
    """
    return family_of_folder(resolve(path, hub, parts="config"), name=str(path))


__all__ = [
    "FAMILIES",
    "IGNORE",
    "MARK",
    "Encoded",
    "Family",
    "Message",
    "Reply",
    "ToolCall",
    "UndecidedError",
    "detect_family",
    "family_of_config",
    "family_of_folder",
    "get_family",
    "read_config",
]
