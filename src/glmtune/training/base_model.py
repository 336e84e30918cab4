"""The base of a run, loaded and changed as the config says, before a method makes it trainable."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import ConfigError, summarize_error
from glmtune.models.checkpoints import Checkpoint
from glmtune.models.embedding_and_head import move_embedding_to_host, quantize_head
from glmtune.models.embedding_rows import grow_vocabulary, initialize_rows
from glmtune.models.loading import load_base
from glmtune.models.packed_attention import set_packed_attention
from glmtune.models.shared_head import has_shared_head, separate_head
from glmtune.models.tokenizers.new_tokens import NewTokens
from glmtune.training.deepspeed import without_zero_init
from glmtune.utils.console import print_message, print_warning


def load_trainable_base(
    config: RunConfig,
    base: Checkpoint,
    arguments: TrainingArguments,
    dtype: torch.dtype | None,
    device: torch.device | str,
    new_tokens: NewTokens | None,
) -> Any:
    """Load a base for training: its attention keeps packed rows apart, and it has rows for new tokens.

    Args:
        config: of the run.
        base: that was inspected.
        arguments: of the training, for the device that it is on.
        dtype: of the weights; None for that of the checkpoint.
        device: to load to.
        new_tokens: that the run adds to the vocabulary.

    Raises:
        ConfigError: the attention implementation is not installed, or not supported.
    """
    with without_zero_init(arguments):
        model: Any = load_base(
            base,
            dtype=dtype,
            device=device,
            quantization=config.model.quantization,
            double_quantization=config.model.double_quantization,
        )
    if config.model.attention != "auto":
        try:
            model.set_attn_implementation(config.model.attention)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"model.attention: {summarize_error(error)}", "Use sdpa or eager.") from None
    set_packed_attention(model)
    # transformers gives the embedding of the padding token no gradient. Nothing is padded here, and GLM-4's rows end
    # with that token: a reward is read there.
    model.get_input_embeddings().padding_idx = None
    if new_tokens:
        separate_head(model)  # its new rows are trained apart from the embedding's
        grow_vocabulary(model, new_tokens.rows)
        initialize_rows(model, new_tokens.ids, new_tokens.pieces)
    if config.model.head_quantization:
        kind = config.model.head_quantization
        deviation = quantize_head(model, kind, config.model.double_quantization)
        print_message(f"The head is in {kind}: its weights are off by {deviation:.1%} (root mean square).")
    if config.model.embedding_on_host:
        _move_embedding(model, arguments.device)
    return model


def print_new_tokens(new_tokens: NewTokens, base: Checkpoint) -> None:
    """Print the ids of new tokens, and whether the base has free rows for them."""
    ids, rows = list(new_tokens.ids.values()), int(base.config.vocab_size)
    added = f"embedding and head grow from {rows} rows" if ids[-1] >= rows else "in free rows of embedding and head"
    print_message(f"New tokens: {len(ids)}, ids {ids[0]} to {ids[-1]}, {added}.")


def _move_embedding(model: Any, device: torch.device) -> None:
    """Keep the embedding on the host; say where that saves nothing."""
    if device.type == "cpu":
        print_warning("model.embedding_on_host saves nothing here: the training is on the CPU.")
    elif has_shared_head(model):
        print_warning(
            "model.embedding_on_host saves nothing here: this head is the same matrix, unless "
            "model.head_quantization gives it another."
        )
    move_embedding_to_host(model)
