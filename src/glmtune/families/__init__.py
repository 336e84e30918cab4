"""Model families: everything that differs between the generations, and nothing else."""

from __future__ import annotations

import os

from glmtune.families.detection import (
    FAMILIES,
    FAMILY_KEY,
    AmbiguousFamilyError,
    family_from_config,
    family_from_folder,
    get_family,
    read_model_config,
)
from glmtune.families.family import IGNORE_INDEX, EncodedSequence, Family, Message, Reply, ToolCall
from glmtune.hub import resolve_checkpoint


def detect_family(path: str | os.PathLike[str], hub: str = "huggingface") -> Family:
    """Detect the generation of a checkpoint; only its config.json is needed.

    Args:
        path: a checkpoint folder or a hub id.
        hub: `huggingface` or `modelscope`, for a hub id.

    Raises:
        ModelError: no such folder, not a ChatGLM checkpoint, or ChatGLM2 and ChatGLM3 cannot be told apart.
    """
    return family_from_folder(resolve_checkpoint(path, hub, parts="config"), name=str(path))


__all__ = [
    "FAMILIES",
    "FAMILY_KEY",
    "IGNORE_INDEX",
    "AmbiguousFamilyError",
    "EncodedSequence",
    "Family",
    "Message",
    "Reply",
    "ToolCall",
    "detect_family",
    "family_from_config",
    "family_from_folder",
    "get_family",
    "read_model_config",
]
