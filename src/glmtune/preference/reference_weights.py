"""The model as it was before training, without a second copy of what is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from glmtune.generation.compiled_step import unwrap_model
from glmtune.methods.prefix_attention import disable_prefix, find_prefix


class ReferenceWeights:
    """The trained weights before the first step; with a new prefix, the model without it.

    An untrained LoRA adapter adds exactly 0, so its weights are the reference's too.

    Args:
        model: trainable, before the first step and before a checkpoint is loaded.
        is_new: whether nothing was trained before: there is no adapter that training starts from.
    """

    def __init__(self, model: Any, is_new: bool):
        self._bare = unwrap_model(model)
        self._leaves_prefix_out = is_new and find_prefix(self._bare) is not None
        trained = [] if self._leaves_prefix_out else [p for p in model.parameters() if p.requires_grad]
        self._copies = [(parameter, parameter.detach().clone()) for parameter in trained]

    @contextmanager
    def use(self) -> Iterator[None]:
        """Compute with the reference during the block, on whatever device and in whatever precision the model is."""
        if self._leaves_prefix_out:
            with disable_prefix(self._bare):
                yield
            return
        with torch.no_grad():
            present = [parameter.data for parameter, _ in self._copies]
            for number, (parameter, copy) in enumerate(self._copies):
                if copy.device != parameter.device or copy.dtype != parameter.dtype:  # moved since
                    copy = copy.to(parameter.device, parameter.dtype)
                    self._copies[number] = parameter, copy
                parameter.data = copy
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._copies, present, strict=True):
                parameter.data = data
