"""One matrix for an embedding and a head that are equal: both published ChatGLM-6B matrices are, 1 GB each.

They are two weights for the checkpoint's layout, so they are written as two, and whatever changes one of them separates
them first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_SAME_SIZE = {2: torch.int16, 4: torch.int32}
_SAMPLE_ROWS = 64


def share_equal_head(model: Any) -> bool:
    """Let the head use the embedding's matrix if the two are equal bit for bit.

    For a model that was just loaded; and only for models whose `save_pretrained` writes both all the same
    (`writes_shared_head`).

    Returns:
        Whether they share it now.
    """
    if not getattr(model, "writes_shared_head", False):
        return False
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not (isinstance(embedding, nn.Embedding) and type(head) is nn.Linear and head.bias is None):
        return False
    if embedding.weight is head.weight:
        return True
    if not _are_equal(embedding.weight.data, head.weight.data):
        return False
    head.weight = embedding.weight
    return True


def separate_head(model: Any) -> bool:
    """Give the head a matrix of its own again, unless the config says that there is one for both.

    Args:
        model: a base; what is around its modules, such as an adapter, is looked through.

    Returns:
        Whether they shared it.
    """
    if getattr(model.config, "tie_word_embeddings", False):
        return False
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (getattr(module, "base_layer", module) for module in ends)
    if not _share_weight(embedding, head):
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    return True


def has_shared_head(model: Any) -> bool:
    """Whether embedding and head are one matrix in memory."""
    return _share_weight(model.get_input_embeddings(), model.get_output_embeddings())


def separate_state(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict in which the head is a tensor of its own, on the CPU: files cannot hold one tensor twice."""
    if getattr(model.config, "tie_word_embeddings", False):
        return state
    head = model.get_output_embeddings()
    if not _share_weight(model.get_input_embeddings(), head):
        return state
    (name,) = (name for name, module in model.named_modules() if module is head)
    return state | {f"{name}.weight": head.weight.detach().to("cpu", copy=True)}


def _share_weight(embedding: Any, head: Any) -> bool:
    weight = getattr(head, "weight", None)
    return weight is not None and weight is getattr(embedding, "weight", None)


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    alike = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    if not alike or first.is_meta or first.dtype.itemsize not in _SAME_SIZE:
        return False
    # As integers: equal numbers may differ in bits (zeros of both signs). Most heads differ in the first rows already.
    bits = _SAME_SIZE[first.dtype.itemsize]
    return all(torch.equal(first[:rows].view(bits), second[:rows].view(bits)) for rows in (_SAMPLE_ROWS, None))
