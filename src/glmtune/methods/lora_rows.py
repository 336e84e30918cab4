"""Several LoRA adapters in one batch, each for its own rows.

The matrices of all adapters of a module are stacked, and every row multiplies by all of them; a mask then leaves its
own adapter's. The ranks are small, so this is cheaper than splitting the batch, as peft's `adapter_names` does.

Shapes: B rows, T new tokens, I inputs, O outputs, R ranks of all adapters of a module together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

# Of peft.tuners.lora: layers around an ordinary linear module and around those of bitsandbytes.
_KINDS = ("Linear", "Linear4bit", "Linear8bitLt")


class RowAdapters:
    """Lets the LoRA layers of a model compute each row with an adapter of its own, until `remove`.

    Args:
        model: with adapters, in eval mode; none is added, merged or trained before `remove`.
        names: the adapters that rows may have.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]):
        self.names = list(names)
        self.is_active = True
        """False: the layers do what peft does, with its active adapter."""
        self._rows: tuple[str | None, ...] = ()
        self._has_adapters = False
        self._masks: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}
        self._device = next(model.parameters()).device
        self._layers: list[Any] = []
        layers: list[Any] = [module for module in model.modules() if _is_plain(module)]
        for module in layers:
            if any(name in module.lora_A for name in names):
                module.forward = _StackedUpdate(module, self)
                self._layers.append(module)

    def select(self, rows: Sequence[str | None]) -> None:
        """Choose the adapter of each row of the next forward passes; None: the base."""
        if self._rows != tuple(rows):
            self._rows = tuple(rows)
            self._masks = {}
            self._has_adapters = any(rows)

    def make_mask(self, ranks: tuple[tuple[int, int], ...], dtype: torch.dtype) -> torch.Tensor | None:
        """Which of a module's stacked ranks belong to a row, (B, 1, R) of zeros and ones; None: none to any.

        Args:
            ranks: number of the adapter and its rank, in the order in which they are stacked.
            dtype: of the mask.
        """
        if not self._has_adapters:
            return None
        if ranks not in self._masks:
            numbers_R = torch.tensor([number for number, rank in ranks for _ in range(rank)])
            rows_B = torch.tensor([-1 if name is None else self.names.index(name) for name in self._rows])
            mask_B1R = (rows_B[:, None, None] == numbers_R).to(self._device, dtype)
            self._masks[ranks] = mask_B1R
        return self._masks[ranks]

    def remove(self) -> None:
        """Give the layers back to peft."""
        for module in self._layers:
            del module.forward
        self._layers = []


def is_stackable(model: nn.Module, name: str) -> bool:
    """Whether adapter `name` is made of nothing but LoRA updates of linear modules."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            holders: Any = (module.lora_A, module.lora_embedding_A)
            if any(name in holder for holder in holders) and not _is_plain(module):
                return False
            if name in module.lora_variant or getattr(module, "lora_bias", {}).get(name):
                return False
        elif isinstance(module, AuxiliaryTrainingWrapper) and name in module._adapters:
            return False  # whole modules, or rows of an embedding
    return True


def _is_plain(module: nn.Module) -> bool:
    names = [kind.__name__ for kind in type(module).__mro__]
    return isinstance(module, LoraLayer) and any(name in _KINDS for name in names) and "Embedding" not in names


class _StackedUpdate:
    """The forward pass of one layer."""

    def __init__(self, module: Any, adapters: RowAdapters):
        self._module = module
        self._adapters = adapters
        names = [name for name in adapters.names if name in module.lora_A]
        self._down_RI = torch.cat([module.lora_A[name].weight.detach() for name in names])
        self._up_OR = torch.cat([module.lora_B[name].weight.detach() * module.scaling[name] for name in names], dim=1)
        self._ranks = tuple((adapters.names.index(name), len(module.lora_A[name].weight)) for name in names)

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapters = self._adapters
        if not adapters.is_active:
            return type(self._module).forward(self._module, x, *args, **kwargs)
        result_BTO = self._module.base_layer(x)
        mask_B1R = adapters.make_mask(self._ranks, self._down_RI.dtype)
        if mask_B1R is None:
            return result_BTO
        low_BTR = F.linear(x.to(self._down_RI.dtype), self._down_RI) * mask_B1R
        return (result_BTO + F.linear(low_BTR, self._up_OR)).to(result_BTO.dtype)
