"""Whatever a user names, ready to answer: model, tokenizer and family together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transformers import set_seed

from glmtune.families import Family
from glmtune.methods.tuned_model import ModelTarget, load_with_adapter, resolve_target
from glmtune.models.checkpoints import Checkpoint, inspect_checkpoint
from glmtune.models.tokenizers import load_tokenizer
from glmtune.utils.console import silence_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A model with what it needs to be talked to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    prefix: str = ""
    """What the run put in front of every first question; chat does the same."""


def load_for_generation(
    target: str,
    *,
    base: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
    seed: int | None = None,
    quantization: str | None = None,
) -> LoadedModel:
    """Open a run, an adapter, a checkpoint folder or a hub id.

    Args:
        target: what the user named.
        base: of the adapter, if it is no longer where the adapter was trained.
        dtype: precision; the checkpoint's own when None.
        device: a GPU if there is one when None.
        family: the generation, for folders that do not say it.
        hub: where a hub id is looked up.
        seed: seeds the sampling.
        quantization: see `load_model`; None: as the run had its base, else as the checkpoint is.

    Raises:
        ModelError: the base or its tokenizer cannot be loaded.
        RunError: the adapter is unfinished, its base gone, or another one.
    """
    opened, _, _ = load_parts(
        target, base=base, dtype=dtype, device=device, family=family, hub=hub, quantization=quantization
    )
    if seed is not None:
        set_seed(seed)
    return opened


def load_parts(
    target: str,
    *,
    base: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
    quantization: str | None = None,
) -> tuple[LoadedModel, ModelTarget, Checkpoint]:
    """`open_model`, with what was found behind the name: the target, its quantisation decided, and the checkpoint."""
    silence_libraries()
    target_parts = resolve_target(target, base=base, family=family, hub=hub)
    target_parts = replace(target_parts, quantization=quantization or target_parts.quantization)
    inspected = inspect_checkpoint(target_parts.base, family=target_parts.family, hub=target_parts.hub)
    tokenizer = load_tokenizer(inspected.folder, family=inspected.family.name)
    model = load_with_adapter(
        inspected,
        target_parts.adapter,
        dtype=dtype,
        device=device,
        quantization=target_parts.quantization,
        double_quantization=target_parts.double_quantization,
    )
    return LoadedModel(model, tokenizer, inspected.family, target_parts.prefix), target_parts, inspected
