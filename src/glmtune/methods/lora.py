"""LoRA through peft: a plain adapter, plus a note of the base it belongs to."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from glmtune.config import LoraConfig, nearest
from glmtune.errors import ConfigError, ModelError, RunError
from glmtune.rundir import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glmtune.families import Family

NOTE = "glmtune.json"
"""Lies beside an adapter and says which base it was trained on."""


@dataclass
class BaseNote:
    """The base of an adapter."""

    path: str
    fingerprint: str
    family: str


def add_lora(model: PreTrainedModel, family: Family, config: LoraConfig) -> PeftModel:
    """Wrap `model` with fresh adapters: B is zero, so the logits are the base's until a step is taken.

    Raises:
        ConfigError: a target names no linear module of this model.
    """
    targets = config.targets or list(family.lora_targets)
    _check_targets(model, targets)
    # peft keeps adapters in fp32 when the frozen weights are in 16 bits.
    return get_peft_model(
        model,
        PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=model.name_or_path,
        ),
    )


def save_adapter(model: PeftModel, folder: Path, note: BaseNote) -> None:
    """Write a plain peft adapter, whole or not at all.

    It is stored in the precision of the frozen weights: about 7 MB for a 16-bit 6B base at rank 8. Checkpoints keep
    fp32.
    """
    frozen = next(p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point())
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write_adapter(model, temporary, note, frozen)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def write_adapter(model: PeftModel, folder: Path, note: BaseNote, dtype: torch.dtype | None = None) -> None:
    """Write the adapter's files into `folder`, in `dtype` or as they are."""
    # peft would compare the vocabulary with a config it cannot read and add both embeddings.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    cast = {name: value.to(dtype or value.dtype) for name, value in state.items()}
    model.save_pretrained(str(folder), state_dict=cast, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card has nothing filled in
    write_json(folder / NOTE, asdict(note))


def load_adapter(model: PreTrainedModel, folder: Path, *, name: str = "default", trainable: bool = False) -> PeftModel:
    """Put a saved adapter onto its base.

    Raises:
        ModelError: the folder holds no adapter, or one for other modules.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: no adapter here (no adapter_config.json).", "Give a run or a peft folder.")
    try:
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"{folder}: the adapter does not fit this base ({reason}).", "Give its own base with --base."
        ) from None


def read_note(folder: Path) -> BaseNote | None:
    """What the adapter says of its base; None for adapters that others made."""
    path = folder / NOTE
    if not path.is_file():
        return None
    return BaseNote(**json.loads(path.read_text(encoding="utf-8")))


def check_base(folder: Path, fingerprint: str, base: Path) -> None:
    """Refuse an adapter whose base was another one.

    Raises:
        RunError: names both fingerprints.
    """
    note = read_note(folder)
    if note and note.fingerprint != fingerprint:
        raise RunError(
            f"{folder}: was trained on a base with fingerprint {note.fingerprint} ({note.path}); "
            f"{base} has {fingerprint}.",
            "Give the right base with --base.",
        )


def saved_base_path(folder: Path) -> str:
    """Where the adapter's base lay when it was saved."""
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path") or "")


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    linear = sorted({path.rsplit(".", 1)[-1] for path in paths})
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            raise ConfigError(f"lora.targets: no module {target!r} in this model.", nearest(target, linear))
