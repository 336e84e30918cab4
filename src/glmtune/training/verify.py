"""Verification that the saved weights are the trained ones, and that they change the model's output."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.errors import TrainingError
from glmtune.methods.method import Method, StateDict
from glmtune.training.loss import select_model_inputs

# Last positions of the probe whose logits are compared; each has 65,024 or 130,528 columns.
_POSITIONS = 32


@torch.no_grad()
def compute_probe_logits(model: Any, batch: dict[str, Any], arguments: TrainingArguments) -> torch.Tensor:
    """Compute the logits (B, up to 32, V) in fp32 of a block's last positions, in the precision of the training."""
    device = arguments.device
    inputs = select_model_inputs(model, {key: value.to(device) for key, value in batch.items()})
    was_training = model.training
    model.eval()
    with torch.autocast(
        device.type, torch.float16 if arguments.fp16 else torch.bfloat16, enabled=arguments.fp16 or arguments.bf16
    ):
        logits = model(**inputs, use_cache=False, logits_to_keep=_POSITIONS).logits
    model.train(was_training)
    return logits.float()


def require_saved_weights(method: Method, model: nn.Module, folder: Path, state: StateDict | None = None) -> None:
    """Compare every weight in a folder with the trained one, bit for bit in the precision that it is stored in.

    Args:
        method: that saved it.
        model: the trained model.
        folder: the result of the run.
        state: all weights, gathered, if they are sharded.

    Raises:
        TrainingError: a weight is missing, differs, or is not finite.
    """
    trained = method.trained_state(model, state)
    saved_names = set()
    for name, weight in method.saved_state(folder):
        if name in trained:
            saved_names.add(name)
            if not torch.isfinite(weight).all():
                raise _make_finite_error(folder, name)
            if not torch.equal(weight, trained[name].detach().cpu().to(weight.dtype)):
                raise _make_error(folder, name)
    for name in trained:
        if name not in saved_names:
            raise _make_error(folder, name)


def require_change(folder: Path, before: torch.Tensor, after: torch.Tensor) -> float:
    """Compare the logits of base and tuned model.

    Returns:
        The largest change of a logit.

    Raises:
        TrainingError: there is none, or a logit is not finite.
    """
    change = (after - before).abs().max().item()
    if not math.isfinite(change):
        raise TrainingError(
            f"{folder}: the logits of what was trained are not finite.",
            "Was the learning rate too high? Use an earlier checkpoint, or train with a lower rate, in bf16 or fp32.",
        )
    if change == 0:
        raise TrainingError(
            f"{folder}: what was trained does not change the model's output at all.",
            "Was the learning rate 0, or was there no step? Train longer or with a higher rate.",
        )
    return change


def _make_finite_error(folder: Path, name: str) -> TrainingError:
    return TrainingError(
        f"{folder}: {name} is not finite in the precision that it is saved in.",
        "Was the learning rate too high? Use an earlier checkpoint, or train with a lower rate, in bf16 or fp32.",
    )


def _make_error(folder: Path, name: str) -> TrainingError:
    return TrainingError(
        f"{folder}: {name} was not saved as it was trained.",
        "This is a bug of glmtune; please report it. The checkpoints have the trained weights.",
    )
