"""Tuning of the base's own weights: all of them (full) or those of the last layers (freeze).

Checkpoints hold the trained weights alone, in fp32; the result of a run is a complete model folder, which loads like
any base and does not need the old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import nn

from glmtune.config import FreezeConfig
from glmtune.errors import ConfigError, RunError
from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.lora_sources import require_finite_weights
from glmtune.methods.method import Method, StateDict
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.models.shared_head import separate_head
from glmtune.models.tokenizers import load_tokenizer
from glmtune.models.tokenizers.new_tokens import NewTokens, add_new_tokens
from glmtune.models.tokenizers.tokenizer_files import write_tokenizer
from glmtune.utils.file_access import require_readable

SHARD_SIZE = "5GB"


class Full(Method):
    """Every weight is trained.

    Args:
        new_tokens: that the run adds to the base's vocabulary.
    """

    output_kind: ClassVar[str] = "model"

    def __init__(self, new_tokens: NewTokens | None = None):
        self._new_tokens = new_tokens

    def load_dtype(self, precision: torch.dtype) -> torch.dtype | None:
        return torch.float32  # by way of bf16, weights published in fp16 would lose three bits

    def save_dtype(self, precision: torch.dtype, own: torch.dtype) -> torch.dtype | None:
        return own

    def prepare(self, model: Any) -> Any:
        _require_plain(model)
        separate_head(model)
        # Optimisers lose small steps in 16 bits; mixed precision computes in them all the same.
        return (model.float() if self.casts_base else model).requires_grad_(True)

    def write(self, model: Any, folder: Path, base_info: BaseInfo, state: StateDict | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(
            _copy_storage(self.trained_state(model, state)),
            folder,
            filename_pattern="trained{suffix}.safetensors",
            max_shard_size=SHARD_SIZE,
        )
        write_base_info(folder, base_info)

    def save(
        self,
        model: Any,
        folder: Path,
        base_info: BaseInfo,
        dtype: torch.dtype | None = None,
        state: StateDict | None = None,
    ) -> None:
        full_state = model.state_dict() if state is None else state
        # On the CPU: a GPU with the optimiser's state has no memory left for the model in another precision.
        cast = {name: value.to("cpu", dtype or value.dtype) for name, value in full_state.items()}
        model.config.use_cache = True  # the Trainer turns it off
        model.save_pretrained(str(folder), state_dict=_copy_storage(cast), max_shard_size=SHARD_SIZE)
        base = Path(base_info.path)
        tokenizer = load_tokenizer(base, family=base_info.family)
        if self._new_tokens:
            add_new_tokens(tokenizer, list(self._new_tokens.ids))
        write_tokenizer(base, base_info.family, folder, tokenizer)
        write_base_info(folder, base_info)

    def read(self, model: Any, folder: Path) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        names = set()
        for name, value in self.saved_state(folder):
            if name in trained:
                if trained[name].shape != value.shape:
                    raise RunError(f"{folder}: {name} is {tuple(value.shape)}, not {tuple(trained[name].shape)}.")
                require_finite_weights(folder, {name: value})
                trained[name].data.copy_(value)
                names.add(name)
        if set(trained) - names:
            raise RunError(
                f"{folder}: lacks weights that this run trains: {', '.join(sorted(set(trained) - names)[:4])}.",
                "It belongs to a run with other settings.",
            )

    def saved_state(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise RunError(f"{folder}: no weights here.", "Give a checkpoint of a freeze or full run.")
        for file in files:
            with safe_open(require_readable(file), "pt") as source:
                for name in source.keys():  # noqa: SIM118 (not a dict)
                    yield name, source.get_tensor(name)

    def trained_state(self, model: Any, state: StateDict | None = None) -> StateDict:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        full_state = model.state_dict() if state is None else state
        return {name: full_state[name] for name in names}


class Freeze(Full):
    """The last layers are trained, the rest stays as it is.

    Args:
        config: how many layers.
        precision: of the layers that stay as they are.
    """

    def __init__(self, config: FreezeConfig, precision: torch.dtype):
        super().__init__()
        self._count = config.trainable_layers
        self._precision = precision

    def load_dtype(self, precision: torch.dtype) -> torch.dtype | None:
        return None  # the trained layers start from the weights as published

    def prepare(self, model: Any) -> Any:
        _require_plain(model)
        layers = _find_layers(model)
        if self._count > len(layers):
            raise ConfigError(
                f"freeze.trainable_layers is {self._count}; the model has {len(layers)} layers.",
                "Lower it, or use method full.",
            )
        trained = layers[-self._count :]
        model.requires_grad_(False)
        trained.requires_grad_(True)
        if not self.casts_base:
            return model
        for layer in trained:
            layer.float()
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self._precision)
        return model

    def save(
        self,
        model: Any,
        folder: Path,
        base_info: BaseInfo,
        dtype: torch.dtype | None = None,
        state: StateDict | None = None,
    ) -> None:
        """As `Full.save`; the layers that were not trained are read from the base again, for the run may have held
        them in a precision that rounded them."""
        base: Any = load_base(inspect_checkpoint(base_info.path, family=base_info.family), dtype=dtype, device="cpu")
        separate_head(base)
        super().save(base, folder, base_info, dtype, base.state_dict() | self.trained_state(model, state))


def _find_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of transformer layers: the longest list of modules there is."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len)


def _require_plain(model: nn.Module) -> None:
    packed = [name for name, p in model.state_dict().items() if not p.is_floating_point() and name.endswith("weight")]
    if packed:
        raise ConfigError(
            f"This base is quantised ({packed[0]} holds integers), so its own weights cannot be trained.",
            "Use its full-precision repository, or method ptuning, or method qlora on the full-precision one.",
        )


def _copy_storage(state: StateDict) -> StateDict:
    """Copy each weight to the CPU: query, key and value are views of one matrix, and a file needs them apart."""
    return {
        name: value.contiguous()
        if value.untyped_storage().nbytes() == value.nbytes
        else value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in ((name, value.detach()) for name, value in state.items())
    }
