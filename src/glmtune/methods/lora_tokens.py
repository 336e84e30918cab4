"""Rows of new tokens in a LoRA adapter: peft's `trainable_token_indices`, without its copies of whole matrices.

peft's own layer writes the trained rows into a copy of the whole embedding or head at every call, and the gradient of
that copy is as large. Here the frozen module computes as it is, and the outputs of the trained ids are replaced.

Shapes: K trained rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn

from glmtune.errors import ConfigError, ModelError
from glmtune.methods.method import StateDict

ROWS = "token_adapter.trainable_tokens_delta"
"""How peft's files name them; despite the name they are whole rows, not differences."""
CONFIG_KEY = "trainable_token_indices"


@dataclass(frozen=True)
class TrainedRows:
    """The trained rows of an embedding or a head."""

    module: nn.Module
    """The frozen one."""
    ids_K: torch.Tensor
    rows_KH: torch.Tensor


def make_token_indices(model: Any, ids: Sequence[int], targets: Sequence[str], saved: Sequence[str]) -> dict[str, Any]:
    """The arguments of peft's config that train the rows of tokens in embedding and head.

    Args:
        model: a base without adapters.
        ids: of the tokens.
        targets: modules that get an adapter.
        saved: modules that are trained whole.

    Raises:
        ConfigError: the head has an adapter too.
    """
    if not ids:
        return {}
    modules = {id(module): path for path, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head.weight is embedding.weight or getattr(model.config, "tie_word_embeddings", False)
    paths = [modules[id(module)] for module in ((embedding,) if is_tied else (embedding, head))]
    for path in paths:
        if any(path == target or path.endswith(f".{target}") for target in targets):
            raise ConfigError(
                f"lora.targets: {path} cannot have an update and rows for data.new_tokens.",
                f"Leave it out of lora.targets, or train it whole: lora.modules_to_save=[{path}].",
            )
    return {CONFIG_KEY: {path: list(ids) for path in paths if path not in saved} or None}


def patch_token_rows(model: nn.Module) -> None:
    """Let the layers that train rows of tokens compute them apart; nothing else about them changes.

    Layers with several adapters, or whose ids do not ascend, keep peft's way.
    """
    for module in model.modules():
        if type(module) is TrainableTokensLayer and len(module.token_indices) == 1:
            [(name, ids)] = module.token_indices.items()
            if list(ids) == sorted(set(ids)):
                module.__class__ = _SeparateRows
                separate: Any = module
                separate.separate_name = name
                device = module.trainable_tokens_delta[name].device
                module.register_buffer("ids_K", torch.tensor(ids, device=device), persistent=False)


class _SeparateRows(TrainableTokensLayer):
    """A layer of peft with another forward pass."""

    separate_name: str
    ids_K: torch.Tensor

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        trained = self.find_rows()
        if trained is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        outputs: torch.Tensor = trained.module(x)
        ids_K, rows_KH = trained.ids_K, trained.rows_KH.to(outputs.dtype)
        if isinstance(trained.module, nn.Embedding):
            places = torch.searchsorted(ids_K, x).clamp_(max=len(ids_K) - 1)
            return torch.where((ids_K[places] == x)[..., None], F.embedding(places, rows_KH), outputs)
        return outputs.index_copy(-1, ids_K, F.linear(x.to(outputs.dtype), rows_KH))

    def find_rows(self) -> TrainedRows | None:
        """None where peft's own way is needed: switched off, merged, or another adapter."""
        if self.active_adapters != [self.separate_name] or self.disable_adapters or self.merged:
            return None
        rows_KH = self.trainable_tokens_delta[self.separate_name]
        return TrainedRows(self.base_layer, self.ids_K, rows_KH)


def find_trained_rows(module: nn.Module) -> TrainedRows | None:
    """The rows that an adapter trains of an embedding or head; None if it trains none, or in peft's own way."""
    layer = module.token_adapter if isinstance(module, TrainableTokensWrapper) else None
    return layer.find_rows() if isinstance(layer, _SeparateRows) else None


@torch.no_grad()
def merge_token_rows(wrapper: TrainableTokensWrapper) -> nn.Module:
    """Write the trained rows of the active adapter into the frozen module, in place, and return it."""
    layer: Any = wrapper.token_adapter
    weight = layer.base_layer.weight
    for name in layer.active_adapters:
        ids_K = torch.tensor(layer.token_indices[name], device=weight.device)
        weight.data.index_copy_(0, ids_K, layer.trainable_tokens_delta[name].to(weight))
    module: nn.Module = layer.base_layer
    return module


def list_trained_ids(raw: Mapping[str, Any]) -> list[int]:
    """The ids whose rows an adapter has, from its adapter_config.json, ascending."""
    entry = raw.get(CONFIG_KEY)
    lists = list(entry.values()) if isinstance(entry, Mapping) else [entry] if entry else []
    if not all(isinstance(ids, list) and all(type(index) is int and index >= 0 for index in ids) for ids in lists):
        raise ModelError(f"adapter_config.json: {CONFIG_KEY} is not lists of ids.", "Copy or download the file again.")
    return sorted({index for ids in lists for index in ids})


def rename_token_modules(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, list[int]] | None:
    """The value of `trainable_token_indices` for a model with other names of modules.

    Args:
        raw: adapter_config.json; a plain list means the embedding.
        names: new names by old ones, of all modules that have rows of tokens.
    """
    entry = raw.get(CONFIG_KEY)
    if not entry or not names:
        return None
    if not isinstance(entry, Mapping):
        return dict.fromkeys(names.values(), entry)
    return {new: next(ids for key, ids in entry.items() if old.endswith(key)) for old, new in names.items()}


def count_needed_rows(raw: Mapping[str, Any], state: StateDict, modules: Sequence[str]) -> int:
    """Number of rows that an adapter needs of embedding and head.

    Args:
        raw: adapter_config.json.
        state: its weights by their native names.
        modules: the native paths of embedding and head.
    """
    trained = list_trained_ids(raw)
    names = {f"base_model.model.{path}.weight" for path in modules}
    return max([index + 1 for index in trained[-1:]] + [len(state[name]) for name in names & state.keys()], default=0)
