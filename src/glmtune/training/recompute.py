"""Gradient checkpointing of some layers: those nearest the input, as many as memory asks for.

A checkpointed layer is computed again in the backward pass, which costs its forward pass once more. It is the first
layers that are: by the time they are computed again, the others' activations are gone.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_first(model: nn.Module, layers: int) -> None:
    """Of a model whose checkpointing is on, leave it on for the first `layers` alone."""
    for place, layer in enumerate(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)):
        layer.gradient_checkpointing = place < layers


class RecomputeFirst(TrainerCallback):
    """`recompute_first`, once the Trainer has turned checkpointing on."""

    def __init__(self, layers: int):
        self._layers = layers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        recompute_first(kwargs["model"], self._layers)
