"""LoRA+: B learns faster than A (Hayou et al., arXiv 2402.12354)."""

from __future__ import annotations

from typing import Any

from torch import nn


def make_loraplus_groups(model: nn.Module, learning_rate: float, weight_decay: float, ratio: float) -> list[dict[str, Any]]:
    """The trained parameters as groups for a torch optimiser.

    Args:
        model: a prepared model.
        learning_rate: of all but the B matrices.
        weight_decay: of matrices; vectors (biases, norms, DoRA's magnitudes) have none.
        ratio: B's learning rate over A's.
    """
    rates = {"rest": learning_rate, "B": learning_rate * ratio}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "B" if _is_b(name) else "rest"
            groups.setdefault((kind, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[kind], "weight_decay": decay} for (kind, decay), parameters in groups.items()
    ]


def _is_b(name: str) -> bool:
    return any(part in ("lora_B", "lora_embedding_B") for part in name.split("."))
