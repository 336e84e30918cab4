"""The interface of a tuning method: prepare a model, write what was trained, read it again.

The trainer, resuming, loading and export use methods through this class only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from glmtune.methods.base_info import BaseInfo, require_same_base

StateDict = dict[str, torch.Tensor]
"""Whole weights by the names of `model.state_dict()`."""


class Method(ABC):
    """A tuning method with the settings of one run."""

    output_kind: ClassVar[str]
    """`adapter` or `model`: the folder of a run that holds what was trained."""
    casts_base = True
    """Whether `prepare` brings the base's own weights to their precision. Not for a model that is going to be sharded,
    which would be converted as a whole: each shard is."""

    def load_dtype(self, precision: torch.dtype) -> torch.dtype | None:
        """The precision to load the base in, for a run in `precision`; None for the checkpoint's own."""
        return precision

    def save_dtype(self, precision: torch.dtype, own: torch.dtype) -> torch.dtype | None:
        """The precision of the result, for a run in `precision` on a checkpoint in `own`; None: as it is trained."""
        return precision

    @abstractmethod
    def prepare(self, model: Any) -> Any:
        """Make a loaded base trainable: what is trained requires gradients and is in fp32, all else is frozen.

        Args:
            model: a base as it was loaded, in `load_dtype`.

        Returns:
            The model to train: the same object, or one around it.

        Raises:
            ConfigError: a setting does not suit this model.
        """

    def optimizer_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]] | None:
        """Groups of parameters with rates of their own, for torch's optimisers; None for one rate everywhere."""
        return None

    @abstractmethod
    def write(self, model: Any, folder: Path, base_info: BaseInfo, state: StateDict | None = None) -> None:
        """Write what was trained into an existing or new folder, in the precision that it is trained in.

        Args:
            model: from `prepare`.
            folder: of a checkpoint; the caller makes the writing atomic.
            base_info: the base.
            state: all weights, gathered, if they are sharded; read from `model` when None.
        """

    @abstractmethod
    def read(self, model: Any, folder: Path) -> None:
        """Load what `write` or `save` wrote into a prepared model.

        Raises:
            RunError: a weight is missing, left over, or of another shape.
        """

    def start_from(self, model: Any, folder: Path, base_info: BaseInfo) -> None:
        """Load what an earlier run trained into a prepared model, to train it further.

        Args:
            model: from `prepare`.
            folder: the result of a run of this method, or of another tool.
            base_info: the base; the folder must name the same one.

        Raises:
            RunError: it was trained on another base, or with settings that do not fit.
        """
        require_same_base(folder, base_info.fingerprint, Path(base_info.path))
        self.read(model, folder)

    @abstractmethod
    def save(
        self,
        model: Any,
        folder: Path,
        base_info: BaseInfo,
        dtype: torch.dtype | None = None,
        state: StateDict | None = None,
    ) -> None:
        """Write the result of a run for use, in `dtype` (as trained when None), into an empty folder.

        The other arguments are those of `write`.
        """

    @abstractmethod
    def saved_state(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Read the weights of a folder of `write` or `save`, under the names of `trained_state`."""

    @abstractmethod
    def trained_state(self, model: Any, state: StateDict | None = None) -> StateDict:
        """The trained weights, which `saved_state` must give back."""


def count_trainable_parameters(model: nn.Module) -> int:
    """Count the parameters that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
