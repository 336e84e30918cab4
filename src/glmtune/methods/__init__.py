"""How a model is tuned: prepared, saved and loaded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from glmtune.config import RunConfig
    from glmtune.families import Family
    from glmtune.methods.method import Method
    from glmtune.models.tokenizers.new_tokens import NewTokens


def make_method(
    config: RunConfig, family: Family, precision: torch.dtype, new_tokens: NewTokens | None = None
) -> Method:
    """Make the method of a run's config, with its settings; for stage rm, with a value head.

    Args:
        config: the run.
        family: the base's generation.
        precision: of the frozen weights.
        new_tokens: that the run adds to the base's vocabulary.
    """
    from glmtune.methods.full_finetuning import Freeze, Full
    from glmtune.methods.lora import Lora
    from glmtune.methods.ptuning import PTuning
    from glmtune.methods.value_head import RewardMethod

    methods = {
        "lora": lambda: Lora(config.lora, family, new_tokens),
        "ptuning": lambda: PTuning(config.ptuning),
        "freeze": lambda: Freeze(config.freeze, precision),
        "full": lambda: Full(new_tokens),
    }
    method = methods[config.method]()
    return RewardMethod(method) if config.stage == "rm" else method
