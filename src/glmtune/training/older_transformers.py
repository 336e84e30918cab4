"""transformers 5.20 to 5.22, the newest for Python 3.10: checkpointing of activations under its older name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

HAS_NEW_NAME = "activation_checkpointing" in {field.name for field in dataclasses.fields(TrainingArguments)}


@dataclass
class OlderTrainingArguments(TrainingArguments):
    """`TrainingArguments` that also take the names of transformers 5.23."""

    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        if self.activation_checkpointing is not None:
            self.gradient_checkpointing = self.activation_checkpointing
        if self.activation_checkpointing_kwargs is not None:
            self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs
        super().__post_init__()
        self.activation_checkpointing = self.gradient_checkpointing
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs


def enable_checkpointing(model: Any, options: dict[str, Any]) -> None:
    """Let a model recompute its activations in the backward pass.

    Args:
        model: of transformers.
        options: of `torch.utils.checkpoint`.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
