"""P-Tuning v2 (Liu et al., arXiv 2110.07602): trained keys and values in front of every layer's own.

As the published code computes it: prefix keys are not rotated, the text's positions still start at 0, every token sees
the whole prefix, and the encoder stays in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from glmtune.config import DEFAULT_DROPOUT, PTuningConfig
from glmtune.errors import ConfigError, ModelError, RunError
from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.method import Method, StateDict
from glmtune.methods.prefix_attention import attach_prefix, disable_prefix, find_prefix, remove_prefix
from glmtune.methods.prefix_encoder import PrefixEncoder, PrefixShape, Projection
from glmtune.methods.prefix_files import (
    PUBLISHED_DROPOUT,
    StoredPrefix,
    find_official_base,
    holds_whole_model,
    is_prefix_folder,
    make_published_state,
    read_prefix,
    write_official,
    write_prefix,
)
from glmtune.models.auto import has_published_layout

__all__ = [
    "PTuning",
    "allow_quantized_training",
    "attach_new_prefix",
    "disable_prefix",
    "find_official_base",
    "find_prefix",
    "holds_whole_model",
    "is_prefix_folder",
    "load_prefix",
    "remove_prefix",
    "write_official",
]


class PTuning(Method):
    """The prefix alone is trained.

    Args:
        config: its length, dropout, and whether a network makes it.
    """

    output_kind: ClassVar[str] = "adapter"

    def __init__(self, config: PTuningConfig):
        self._config = config

    def save_dtype(self, precision: torch.dtype, own: torch.dtype) -> torch.dtype | None:
        return None  # the published checkpoints are in fp32 too

    def prepare(self, model: Any) -> Any:
        tokens, longest = self._config.num_virtual_tokens, model.config.max_position_embeddings
        if tokens > longest:
            raise ConfigError(
                f"ptuning.num_virtual_tokens is {tokens}; the model has {longest} positions.", "128 is usual."
            )
        model.requires_grad_(False)
        dropout = DEFAULT_DROPOUT if self._config.dropout is None else self._config.dropout
        attach_new_prefix(model, tokens, self._config.prefix_projection, dropout)
        return model

    def write(self, model: Any, folder: Path, base_info: BaseInfo, state: StateDict | None = None) -> None:
        self.save(model, folder, base_info, state=state)

    def save(
        self,
        model: Any,
        folder: Path,
        base_info: BaseInfo,
        dtype: torch.dtype | None = None,
        state: StateDict | None = None,
    ) -> None:
        cast = {name: value.to(dtype or value.dtype) for name, value in self.trained_state(model, state).items()}
        write_prefix(cast, _require_encoder(model), folder)
        write_base_info(folder, base_info)

    def read(self, model: Any, folder: Path) -> None:
        encoder = _require_encoder(model)
        try:
            stored_prefix = _read_fitting_prefix(model, encoder.shape, folder)
            read = PrefixEncoder.from_state(stored_prefix.state, encoder.shape, stored_prefix.dropout)
        except ModelError as error:
            raise RunError(error.message, error.hint) from None
        except ValueError as error:
            raise RunError(f"{folder}: the prefix cannot be read ({error}).") from None
        if _describe_settings(read) != _describe_settings(encoder):
            raise RunError(
                f"{folder}: holds a prefix of {_describe_settings(read)}; "
                f"this run trains one of {_describe_settings(encoder)}.",
                "Set ptuning.num_virtual_tokens and ptuning.prefix_projection to what it was trained with.",
            )
        encoder.load_state_dict(read.state_dict())

    def saved_state(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        yield from make_published_state(read_prefix(folder).state).items()

    def trained_state(self, model: Any, state: StateDict | None = None) -> StateDict:
        if state is None:
            return make_published_state(_require_encoder(model).state_dict())
        start = f"{model.base_model_prefix}.prefix_encoder."
        return make_published_state(
            {name.removeprefix(start): v for name, v in state.items() if name.startswith(start)}
        )


def load_prefix(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load a saved prefix, ours or a published one, onto its base. Nothing requires gradients then.

    Returns:
        The same model.

    Raises:
        ModelError: no prefix here, a broken file, or a prefix made for another model.
        ConfigError: the model's attention cannot take a prefix.
    """
    shape = PrefixShape.from_config(model.config)
    stored_prefix = _read_fitting_prefix(model, shape, folder)
    try:
        encoder = PrefixEncoder.from_state(stored_prefix.state, shape, stored_prefix.dropout)
    except ValueError as error:
        raise ModelError(
            f"{folder}: the prefix does not fit this base ({error}).", "Give its own base with --base."
        ) from None
    attach_prefix(model, encoder)
    model.requires_grad_(False)
    return model


def attach_new_prefix(
    model: PreTrainedModel, tokens: int, with_projection: bool, dropout: float = PUBLISHED_DROPOUT
) -> None:
    """Put a prefix with random weights in front of a model, for training or for weights that are loaded into it.

    Args:
        model: a base.
        tokens: virtual tokens.
        with_projection: whether a network makes the prefix.
        dropout: while training.
    """
    projection = Projection.from_config(model.config) if with_projection else None
    attach_prefix(model, PrefixEncoder(tokens, PrefixShape.from_config(model.config), projection, dropout))


@contextmanager
def allow_quantized_training(model: nn.Module) -> Iterator[None]:
    """Let transformers' Trainer be made for a quantised model with a prefix.

    It refuses those without anything trainable on top, and knows peft's adapters alone. Other models are left to its
    own judgement.
    """
    if find_prefix(model) is None:
        yield
        return
    model._hf_peft_config_loaded = True  # type: ignore[assignment]
    try:
        yield
    finally:
        del model._hf_peft_config_loaded


def _read_fitting_prefix(model: Any, shape: PrefixShape, folder: Path) -> StoredPrefix:
    stored_prefix = read_prefix(folder)
    if stored_prefix.peft_base is not None:
        _require_published_positions(model, folder, stored_prefix.peft_base)
    if stored_prefix.shape is not None and stored_prefix.shape != shape:
        raise ModelError(
            f"{folder}: the prefix was made for {stored_prefix.shape}; this base has {shape}.",
            "Give its own base with --base.",
        )
    return stored_prefix


def _require_published_positions(model: Any, folder: Path, named_base: str) -> None:
    """Require that peft's prefix was trained with positions as we have them.

    The published code of ChatGLM2, ChatGLM3 and GLM-4 counts a text's positions from 0, with peft's prefix too, and
    does not rotate prefix keys. Transformers' own models count behind the prefix, which gives other attention to it;
    and ChatGLM-6B's code makes neither positions nor masks once it is given a prefix.
    """
    if getattr(model.config, "position_encoding_2d", False):
        raise ModelError(
            f"{folder}: a prefix of peft (PREFIX_TUNING), which ChatGLM-6B's code cannot compute with.",
            "Train it with glmtune train --method ptuning.",
        )
    source = next((path for path in (named_base, model.name_or_path) if path and Path(path).is_dir()), None)
    if source is not None and not has_published_layout(Path(source)):
        raise ModelError(
            f"{folder}: a prefix of peft (PREFIX_TUNING) for transformers' own model ({source}), where positions begin "
            "behind the prefix; here they begin at 0, and the replies would differ.",
            "Train it with glmtune train --method ptuning.",
        )


def _require_encoder(model: Any) -> PrefixEncoder:
    encoder = find_prefix(model)
    if encoder is None:
        raise ValueError("the model has no prefix")
    return encoder


def _describe_settings(encoder: PrefixEncoder) -> str:
    origin = "made by a network" if encoder.trans is not None else "trained directly"
    return f"{encoder.tokens} virtual tokens {origin}"
