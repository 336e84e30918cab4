"""Weights that are not numbers: found before they cost a training run, and named as the files name them."""

from __future__ import annotations

import torch
from torch import nn

from glmtune.errors import ModelError
from glmtune.models.checkpoints import WeightInventory, read_tensors
from glmtune.models.weight_names import find_published_name

_MEND = "Download the file again (compare its SHA-256 with the hub's)"


def check_finite(model: nn.Module, inventory: WeightInventory) -> None:
    """Look at every floating weight of a loaded model once.

    Raises:
        ModelError: names the first weight with a NaN or an infinity, and its file.
    """
    for native, value in model.named_parameters():
        if not is_finite_tensor(value.detach()):
            _raise_not_finite(_find_name_on_disk(native, inventory), inventory, value.dtype)


def check_finite_on_disk(inventory: WeightInventory) -> None:
    """The same on the files, for loading that leaves no floating numbers to look at.

    Raises:
        ModelError: names the first weight with a NaN or an infinity, and its file.
    """
    for name, value in read_tensors(inventory):
        if not is_finite_tensor(value):
            _raise_not_finite(name, inventory, value.dtype)


def is_finite_tensor(value: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; one pass, no copy. Whole numbers always are."""
    if not value.is_floating_point() or not value.numel():
        return True
    least, most = value.aminmax()  # either is NaN if any element is
    return bool(least.isfinite() & most.isfinite())


def _find_name_on_disk(native: str, inventory: WeightInventory) -> str:
    """The stored weight that a loaded one came from; packing while loading makes scales of weights."""
    origins = (native, native.removesuffix("_scale"))
    names = [name for origin in origins for name in (origin, find_published_name(origin)[0])]
    return next(name for name in names if name in inventory.weights)


def _raise_not_finite(name: str, inventory: WeightInventory, loaded: torch.dtype) -> None:
    weight = inventory.weights[name]
    cast = str(loaded).removeprefix("torch.")
    also = "" if cast == weight.dtype else f"; or its {weight.dtype} does not fit {cast}, then load it as bf16 or fp32"
    raise ModelError(f"{weight.file}: {name} holds a NaN or an infinity.", f"{_MEND}{also}.")
