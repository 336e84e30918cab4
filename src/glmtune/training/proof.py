"""Proof that a saved adapter does something: read it back and compare logits with and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from glmtune.errors import TrainingError
from glmtune.training.loss import model_inputs


def prove_adapter(model: PeftModel, folder: Path, batch: dict[str, Any]) -> float:
    """Load the adapter from disk beside the trained one and compare.

    Args:
        model: the trained model.
        folder: the saved adapter.
        batch: a row, as `Collate` makes it.

    Returns:
        The largest change of a logit that the adapter makes.

    Raises:
        TrainingError: the read-back adapter leaves the logits as they were, or differs from the trained one.
    """
    was_training = model.training
    model.eval()
    trained = _logits(model, batch)
    with model.disable_adapter():
        base = _logits(model, batch)
    model.load_adapter(str(folder), "proof")
    try:
        model.set_adapter("proof")
        loaded = _logits(model, batch)
    finally:
        model.set_adapter("default")
        model.delete_adapter("proof")
        model.train(was_training)
    change = (loaded - base).abs().max().item()
    difference = (loaded - trained).abs().max().item()
    if change == 0:
        raise TrainingError(
            f"{folder}: the saved adapter does not change the model's output at all.",
            "Was the learning rate 0, or no step taken? Train longer or with a higher rate.",
        )
    # An adapter stored in 16 bits differs from the fp32 one it came from by its rounding.
    if difference > 1e-5 + 0.05 * (trained - base).abs().max().item():
        raise TrainingError(
            f"{folder}: the saved adapter does not act like the trained one (logits differ by {difference:.3g}).",
            "This is a fault of glmtune; please report it. The checkpoints hold the trained weights.",
        )
    return change


@torch.no_grad()
def _logits(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(**model_inputs(model, batch), use_cache=False).logits.float()
