"""What every method of tuning offers: prepare a model, write what was trained, read it again.

The trainer, resuming, loading and exporting know methods by this class alone.
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
    """One way to tune, with the settings of one run."""

    output_kind: ClassVar[str]
    """`adapter` or `model`: the folder of a run that holds what was trained."""

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
    def write(self, model: Any, folder: Path, note: BaseInfo, state: StateDict | None = None) -> None:
        """Write what was trained into an existing or new folder, in the precision that it is trained in.

        Args:
            model: from `prepare`.
            folder: of a checkpoint; whoever calls makes the writing atomic.
            note: the base.
            state: where processes share the weights out: all of them, gathered; read from `model` when None.
        """

    @abstractmethod
    def read(self, model: Any, folder: Path) -> None:
        """Put what `write` or `save` wrote back onto a prepared model.

        Raises:
            RunError: a weight is missing, left over, or of another shape.
        """

    def start_from(self, model: Any, folder: Path, note: BaseInfo) -> None:
        """Put what an earlier run trained onto a prepared model, to train it further.

        Args:
            model: from `prepare`.
            folder: the result of a run of this method, or what others made of the kind.
            note: the base; the folder's own note must name the same.

        Raises:
            RunError: it was trained on another base, or with settings that do not fit.
        """
        require_same_base(folder, note.fingerprint, Path(note.path))
        self.read(model, folder)

    @abstractmethod
    def save(
        self, model: Any, folder: Path, note: BaseInfo, dtype: torch.dtype | None = None, state: StateDict | None = None
    ) -> None:
        """Write the result of a run for use, in `dtype` (as trained when None), into an empty folder.

        The other arguments are those of `write`.
        """

    @abstractmethod
    def saved_state(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights in a folder of `write` or `save`, under the names that `trained` has."""

    @abstractmethod
    def trained_state(self, model: Any, state: StateDict | None = None) -> StateDict:
        """The weights that `stored` is to give back, as they are trained."""


def count_trainable_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
