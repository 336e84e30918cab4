"""Rows of embedding and head for tokens that a base's vocabulary does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from glmtune.errors import ModelError


@torch.no_grad()
def grow_vocabulary(model: Any, rows: int) -> None:
    """Give embedding and head at least this many rows; each new row is the mean of all others.

    Args:
        model: a base without adapters; modules that grow are replaced, so that the old ones can be put back.
        rows: number of ids.

    Raises:
        ModelError: the head is quantised.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if rows <= embedding.weight.shape[0]:
        return
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise ModelError(
            f"The head of this model is a {type(head).__name__}, which cannot have rows for more tokens.",
            "Use the full-precision repository of the same model.",
        )
    is_tied = head.weight is embedding.weight
    # Without memory: the weights are set below.
    new_embedding = nn.Embedding(rows, embedding.embedding_dim, embedding.padding_idx, device="meta")
    new_embedding.weight = _add_rows(embedding.weight, rows)
    new_head = nn.Linear(head.in_features, rows, bias=head.bias is not None, device="meta")
    new_head.weight = new_embedding.weight if is_tied else _add_rows(head.weight, rows)
    if head.bias is not None:
        new_head.bias = _add_rows(head.bias, rows)
    for old, new in ((embedding, new_embedding), (head, new_head)):
        new.train(old.training)
    model.set_input_embeddings(new_embedding)
    model.set_output_embeddings(new_head)
    set_vocabulary_size(model, rows)


def set_vocabulary_size(model: Any, rows: int) -> None:
    """Write the number of ids into a model's config, and where its modules repeat it."""
    model.config.vocab_size = rows
    for module in (model, model.base_model):
        if "vocab_size" in vars(module):
            module.vocab_size = rows


def _add_rows(weight: torch.Tensor, rows: int) -> nn.Parameter:
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    more = mean.expand(rows - len(weight), *weight.shape[1:])
    return nn.Parameter(torch.cat((weight, more)), requires_grad=weight.requires_grad)


@torch.no_grad()
def initialize_rows(model: Any, ids: Mapping[str, int], pieces: Mapping[str, Sequence[int]]) -> None:
    """Set the rows of new tokens, in embedding and head, to the mean of the rows of what they are made of.

    Args:
        model: with a row for each of them.
        ids: by token.
        pieces: ids of the base's tokens that each one is made of; its row stays as it is without any.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for weight in (embedding,) if head is embedding else (embedding, head):
        for token, index in ids.items():
            if pieces.get(token):
                weight[index] = weight[list(pieces[token])].float().mean(0).to(weight.dtype)
