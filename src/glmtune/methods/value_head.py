"""The value head of a reward model: one number from the final hidden state of an answer's last token.

It is trained beside what a method trains, in fp32, and kept in a file of its own: an adapter stays a plain adapter, and
a model folder one that loads like any base. Its weight has the name that transformers' `...ForSequenceClassification`
gives it.

Shapes: H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from glmtune.errors import ConfigError, ModelError, RunError
from glmtune.methods.base_info import BaseInfo, require_same_base
from glmtune.methods.method import Method, StateDict
from glmtune.methods.value_head_file import WEIGHT_NAME, is_reward_folder, read_value_head, write_value_head

_MODULE = "score"


class RewardMethod(Method):
    """A method, and the value head that is trained beside it.

    Args:
        method: of the run; its head is not trained, since nothing uses its logits.
    """

    def __init__(self, method: Method):
        self._method = method
        self.output_kind = method.output_kind  # type: ignore[misc]

    @property
    def casts_base(self) -> bool:
        return self._method.casts_base

    @casts_base.setter
    def casts_base(self, value: bool) -> None:
        self._method.casts_base = value

    def load_dtype(self, precision: torch.dtype) -> torch.dtype | None:
        return self._method.load_dtype(precision)

    def save_dtype(self, precision: torch.dtype, own: torch.dtype) -> torch.dtype | None:
        return self._method.save_dtype(precision, own)

    def prepare(self, model: Any) -> Any:
        """As the method does, with a new value head.

        Raises:
            ConfigError: a setting does not suit this model, or trains the head of logits.
        """
        prepared = self._method.prepare(model)
        language_model = find_language_model(prepared)
        embedding, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        if trained and self.output_kind == "adapter":
            raise ConfigError(
                "stage rm: the settings of the method train the head, whose logits a reward model does not use.",
                "Leave the head out of lora.targets and lora.modules_to_save.",
            )
        for parameter in trained:
            if not any(parameter is shared for shared in embedding.parameters()):
                parameter.requires_grad_(False)
        attach_value_head(language_model, make_value_head(language_model))
        return prepared

    def optimizer_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]] | None:
        return self._method.optimizer_groups(model, learning_rate, weight_decay)

    def write(self, model: Any, folder: Path, base_info: BaseInfo, state: StateDict | None = None) -> None:
        with _without_value_head(model):
            self._method.write(model, folder, base_info, _drop_value_head(state))
        self._write_value_head(model, folder, state)

    def read(self, model: Any, folder: Path) -> None:
        with _without_value_head(model):
            self._method.read(model, folder)
        self._read_value_head(model, folder)

    def start_from(self, model: Any, folder: Path, base_info: BaseInfo) -> None:
        """Load an earlier run's weights; a reward model's value head too, while any other starts with a new one."""
        require_same_base(folder, base_info.fingerprint, Path(base_info.path))
        with _without_value_head(model):
            self._method.read(model, folder)
        if is_reward_folder(folder):
            self._read_value_head(model, folder)

    def save(
        self,
        model: Any,
        folder: Path,
        base_info: BaseInfo,
        dtype: torch.dtype | None = None,
        state: StateDict | None = None,
    ) -> None:
        with _without_value_head(model):
            self._method.save(model, folder, base_info, dtype, _drop_value_head(state))
        self._write_value_head(model, folder, state)

    def saved_state(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, value) for name, value in self._method.saved_state(folder) if name != WEIGHT_NAME)
        yield WEIGHT_NAME, read_value_head(folder)

    def trained_state(self, model: Any, state: StateDict | None = None) -> StateDict:
        with _without_value_head(model):
            trained = self._method.trained_state(model, _drop_value_head(state))
        return {**trained, WEIGHT_NAME: _select_value_head(model, state)}

    def _write_value_head(self, model: Any, folder: Path, state: StateDict | None) -> None:
        # In fp32 whatever the precision of the rest: it is one row, and rewards are compared in small differences.
        write_value_head(folder, _select_value_head(model, state))

    def _read_value_head(self, model: Any, folder: Path) -> None:
        head = require_value_head(model)
        try:
            weight_1H = read_value_head(folder)
        except ModelError as error:
            raise RunError(error.message, error.hint) from None
        if weight_1H.shape != head.weight.shape:
            raise RunError(f"{folder}: its value head is {tuple(weight_1H.shape)}, not {tuple(head.weight.shape)}.")
        head.weight.data.copy_(weight_1H)


def make_value_head(model: Any) -> nn.Linear:
    """A new value head in fp32 for a language model, with small random weights: of variance 1 / (H + 1), as in
    arXiv 2009.01325."""
    size = int(model.config.hidden_size)
    head = nn.Linear(size, 1, bias=False, dtype=torch.float32, device=model.get_input_embeddings().weight.device)
    if head.weight.device.type == "meta":
        return head
    # Drawn on the CPU, so that a seed gives the same on every device.
    head.weight.data.copy_(torch.empty(1, size).normal_(std=(size + 1) ** -0.5))
    return head


def attach_value_head(model: Any, head: nn.Linear) -> None:
    """Make a language model a reward model."""
    setattr(model, _MODULE, head)


def find_value_head(model: nn.Module) -> nn.Linear | None:
    """The value head of a model, which may be wrapped; None if it is no reward model."""
    return getattr(find_language_model(model), _MODULE, None)


def require_value_head(model: nn.Module) -> nn.Linear:
    """The value head of a model that must have one.

    Raises:
        ValueError: it is no reward model.
    """
    head = find_value_head(model)
    if head is None:
        raise ValueError("the model has no value head")
    return head


def find_language_model(model: nn.Module) -> Any:
    """The language model inside an adapter or a wrapper of several processes."""
    unwrapped: Any = getattr(model, "module", model)
    return unwrapped if isinstance(unwrapped, PreTrainedModel) else unwrapped.get_base_model()


def _select_value_head(model: nn.Module, state: StateDict | None) -> torch.Tensor:
    if state is not None:
        name = next(name for name in state if name.endswith(WEIGHT_NAME))
        return state[name]
    return require_value_head(model).weight


def _drop_value_head(state: StateDict | None) -> StateDict | None:
    return state and {name: value for name, value in state.items() if not name.endswith(WEIGHT_NAME)}


@contextmanager
def _without_value_head(model: nn.Module) -> Iterator[None]:
    """The model as its method knows it."""
    language_model = find_language_model(model)
    head = language_model._modules.pop(_MODULE)
    try:
        yield
    finally:
        language_model._modules[_MODULE] = head
