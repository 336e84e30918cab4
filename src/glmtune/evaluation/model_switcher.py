"""One model in memory at a time; adapters of one base take turns on it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glmtune.evaluation.candidates import Candidate
from glmtune.evaluation.model_info import ModelInfo
from glmtune.generation.load import LoadedModel
from glmtune.methods.lora import load_adapter
from glmtune.methods.ptuning import is_prefix_folder, load_prefix, remove_prefix
from glmtune.methods.tuned_model import load_with_adapter
from glmtune.models.devices import free_cached_memory
from glmtune.models.embedding_rows import set_vocabulary_size


class ModelSwitcher:
    """Shows candidates one after another. A base stays loaded while the next one needs it too.

    Args:
        dtype: precision; each checkpoint's own when None.
        device: a GPU if there is one when None.
    """

    def __init__(self, dtype: str | None = None, device: str | None = None):
        self._dtype, self._device = dtype, device
        self._key: object = None
        self._base: Any = None
        self._take_off: Callable[[], None] | None = None

    def load(self, candidate: Candidate) -> tuple[LoadedModel, ModelInfo]:
        """The candidate, ready to answer. What was shown before must not be used any more.

        Raises:
            ModelError: it cannot be loaded.
            RunError: its adapter belongs to another base.
        """
        if self._take_off is not None:
            self._take_off()
            self._take_off = None
        if candidate.base_key != self._key:
            self.clear()
            self._base = load_with_adapter(
                candidate.base,
                None,
                dtype=self._dtype,
                device=self._device,
                quantization=candidate.target.quantization,
                double_quantization=candidate.target.double_quantization,
            )
            self._key = candidate.base_key
        model = self._base if candidate.target.adapter is None else self._put_on(candidate.target.adapter)
        opened = LoadedModel(model, candidate.tokenizer, candidate.base.family, candidate.target.prefix)
        return opened, candidate.info(model.dtype)

    def clear(self) -> None:
        """Free the memory."""
        self._base = self._key = self._take_off = None
        gc.collect()
        free_cached_memory()

    def _put_on(self, adapter: Path) -> Any:
        base = self._base
        if is_prefix_folder(adapter):
            model = load_prefix(base, adapter).eval()
            self._take_off = lambda: _drop_prefix(base)
            return model
        # When an adapter is removed, peft leaves `modules_to_save` in place, and trained biases, which it writes over
        # the base's own; embedding and head stay as large as the adapter's tokens made them.
        modules = dict(base.named_modules())
        biases = {name: p.detach().clone() for name, p in base.named_parameters() if name.endswith("bias")}
        rows = base.config.vocab_size
        wrapped = load_adapter(base, adapter).eval()
        self._take_off = lambda: _drop_lora(wrapped, modules, biases, rows)
        return wrapped


def _drop_prefix(model: Any) -> None:
    remove_prefix(model)


def _drop_lora(wrapped: Any, modules: dict[str, nn.Module], biases: dict[str, torch.Tensor], rows: int) -> None:
    base = wrapped.unload()
    for name, module in modules.items():
        if base.get_submodule(name) is not module:
            base.set_submodule(name, module)
    if base.config.vocab_size != rows:  # the adapter had rows for tokens of its own
        set_vocabulary_size(base, rows)
    own = dict(base.named_parameters())
    with torch.no_grad():
        for name, value in biases.items():
            own[name].copy_(value)
