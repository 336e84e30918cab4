"""Proof that what was saved is what was trained, and that it does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.errors import TrainingError
from glmtune.methods.method import Method, State
from glmtune.training.loss import model_inputs

# Logits of so many last positions of the probe; every one of 65,024 or 130,528 columns.
_POSITIONS = 32


@torch.no_grad()
def probe_logits(model: Any, batch: dict[str, Any], arguments: TrainingArguments) -> torch.Tensor:
    """Logits (B, up to 32, V) in fp32 of a block's last positions, computed in the precision of the training."""
    device = arguments.device
    inputs = model_inputs(model, {key: value.to(device) for key, value in batch.items()})
    was_training = model.training
    model.eval()
    with torch.autocast(
        device.type, torch.float16 if arguments.fp16 else torch.bfloat16, enabled=arguments.fp16 or arguments.bf16
    ):
        logits = model(**inputs, use_cache=False, logits_to_keep=_POSITIONS).logits
    model.train(was_training)
    return logits.float()


def require_saved(method: Method, model: nn.Module, folder: Path, state: State | None = None) -> None:
    """Compare every weight in a folder with the trained one, bit for bit in the precision that it is stored in.

    Args:
        method: that saved it.
        model: the trained model.
        folder: the result of the run.
        state: all weights, gathered, where processes share them out.

    Raises:
        TrainingError: a weight is missing or another one.
    """
    trained = method.trained(model, state)
    seen = set()
    for name, stored in method.stored(folder):
        if name in trained:
            seen.add(name)
            if not torch.equal(stored, trained[name].detach().cpu().to(stored.dtype)):
                raise _not_saved(folder, name)
    for name in trained:
        if name not in seen:
            raise _not_saved(folder, name)


def require_change(folder: Path, before: torch.Tensor, after: torch.Tensor) -> float:
    """Compare the logits of base and tuned model.

    Returns:
        The largest change of a logit.

    Raises:
        TrainingError: there is none.
    """
    change = (after - before).abs().max().item()
    if change == 0:
        raise TrainingError(
            f"{folder}: what was trained does not change the model's output at all.",
            "Was the learning rate 0, or no step taken? Train longer or with a higher rate.",
        )
    return change


def _not_saved(folder: Path, name: str) -> TrainingError:
    return TrainingError(
        f"{folder}: {name} was not saved as it was trained.",
        "This is a fault of glmtune; please report it. The checkpoints hold the trained weights.",
    )
