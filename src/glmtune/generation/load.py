"""Load a model for generation: with its tokenizer and family."""

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
    """A model with its tokenizer and family."""

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
        family: the generation, for folders that do not name it.
        hub: source of a hub id: `huggingface` or `modelscope`.
        seed: seeds the sampling.
        quantization: see `load_model`; None: as the run had its base, else as the checkpoint is.

    Raises:
        ModelError: the base or its tokenizer cannot be loaded.
        RunError: the adapter is unfinished, its base gone, or another one.
    """
    loaded, _, _ = load_parts(
        target, base=base, dtype=dtype, device=device, family=family, hub=hub, quantization=quantization
    )
    if seed is not None:
        set_seed(seed)
    return loaded


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
    """Load as `load_for_generation` does; also returns the target, with its quantisation, and the checkpoint."""
    silence_libraries()
    model_target = resolve_target(target, base=base, family=family, hub=hub)
    model_target = replace(model_target, quantization=quantization or model_target.quantization)
    inspected = inspect_checkpoint(model_target.base, family=model_target.family, hub=model_target.hub)
    tokenizer = load_tokenizer(inspected.folder, family=inspected.family.name, adapter=model_target.adapter)
    model = load_with_adapter(
        inspected,
        model_target.adapter,
        dtype=dtype,
        device=device,
        quantization=model_target.quantization,
        double_quantization=model_target.double_quantization,
    )
    return LoadedModel(model, tokenizer, inspected.family, model_target.prefix), model_target, inspected
