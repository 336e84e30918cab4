"""The tokenizer of a run: that of its base, with the tokens that the run or the adapter it starts from adds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.config import RunConfig
from glmtune.errors import ConfigError
from glmtune.methods.lora_files import read_config
from glmtune.methods.lora_tokens import list_trained_ids
from glmtune.methods.tuned_model import find_trained_folder
from glmtune.models.tokenizers import load_tokenizer
from glmtune.models.tokenizers.new_tokens import NewTokens, add_adapter_tokens, add_new_tokens, read_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_run_tokenizer(
    run: RunConfig, base: str | os.PathLike[str], family: str
) -> tuple[PreTrainedTokenizerFast, NewTokens]:
    """Load the tokenizer of a run.

    Args:
        run: its settings.
        base: the checkpoint folder, or a hub id.
        family: the generation.

    Returns:
        The tokenizer, and the tokens that it has beyond those of the base.

    Raises:
        ConfigError: `data.new_tokens` cannot be used, or the method cannot train rows for new tokens.
        ModelError: see `load_tokenizer`.
    """
    texts = read_new_tokens(run.data.new_tokens)
    tokenizer = load_tokenizer(base, run.model.hub, family)
    if not run.adapter:
        return tokenizer, add_new_tokens(tokenizer, texts)
    adapter = find_trained_folder(Path(run.adapter), "model" if run.method in ("freeze", "full") else "adapter")
    tokens = add_adapter_tokens(tokenizer, adapter)
    if tokens and run.method in ("freeze", "ptuning"):
        raise ConfigError(
            f"{adapter}: has {len(tokens.ids)} tokens that the base does not have; "
            f"method {run.method} does not train their rows.",
            "Export the run that added them, and give that folder as --model.",
        )
    trained_ids = sorted(tokens.ids.values())
    if run.method == "lora":
        config = read_config(adapter)
        saved_ids = list_trained_ids(config)
        trained_ids = sorted(tokens.ids.values()) if config.get("modules_to_save") else saved_ids
        tokens = NewTokens(tokens.ids, {}, saved_ids)
    untrained = [text for text in texts if tokenizer.get_vocab().get(text) not in trained_ids]
    if untrained:
        raise ConfigError(
            f"data.new_tokens: {untrained[0]} is no token of the adapter that the run starts from, {adapter}.",
            "Leave it out; or export that run and give the folder as --model, without adapter.",
        )
    return tokenizer, tokens
