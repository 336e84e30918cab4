"""Proof that a saved adapter does something: read it back and compare logits with and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from glmtune.errors import TrainingError
from glmtune.training.loss import model_inputs


def prove_adapter(model: PeftModel, folder: Path, batch: dict[str, Any]) -> float:
    """Load the adapter from disk beside the trained one and compare.

    Args:
        model: the trained model.
        folder: the saved adapter.
        batch: a block, as `Collate` makes it.

    Returns:
        The largest change of a logit that the adapter makes.

    Raises:
        TrainingError: the read-back adapter leaves the logits as they were, or holds other weights than were trained.
    """
    was_training = model.training
    model.eval()
    stored = load_file(folder / "adapter_model.safetensors")
    for name, trained in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        if name not in stored or not torch.equal(stored[name], trained.detach().cpu().to(stored[name].dtype)):
            raise TrainingError(
                f"{folder}: {name} was not saved as it was trained.",
                "This is a fault of glmtune; please report it. The checkpoints hold the trained weights.",
            )
    with model.disable_adapter():
        base = _logits(model, batch)
    model.load_adapter(str(folder), "proof")
    try:
        model.set_adapter("proof")
        change = (_logits(model, batch) - base).abs().max().item()
    finally:
        model.set_adapter("default")
        model.delete_adapter("proof")
        model.train(was_training)
    if change == 0:
        raise TrainingError(
            f"{folder}: the saved adapter does not change the model's output at all.",
            "Was the learning rate 0, or no step taken? Train longer or with a higher rate.",
        )
    return change


@torch.no_grad()
def _logits(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(**model_inputs(model, batch), use_cache=False).logits.float()
