"""The model to plan for: a run's base and method built on torch's meta device, with any number of layers."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from glmtune.config import RunConfig
from glmtune.errors import ModelError
from glmtune.families import Family, family_of_folder, get_family
from glmtune.hub import resolve
from glmtune.methods import method_of
from glmtune.models.auto import family_or_none, native_config, packed_bits
from glmtune.models.checkpoints import read_inventory
from glmtune.models.loading import Base
from glmtune.models.packed_attention import separate_rows
from glmtune.models.quantized import BITSANDBYTES, PACKED, stored_quantization
from glmtune.quantization.quantizer import replace_linears
from glmtune.training.plan.meta_linear import hold_in_fewer_bits

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass
class Subject:
    """A base as far as a plan needs it; its weights may be absent."""

    folder: Path
    family: Family
    config: PreTrainedConfig
    own: torch.dtype
    """The precision on disk."""
    held: str | None
    """`nf4`, `int8`, `packed4` or `packed8` where the checkpoint itself is quantised."""
    on_disk: int
    """Bytes of the weight files; 0 where they are not here."""

    @property
    def layers(self) -> int:
        """How many layers the whole model has."""
        return int(self.config.num_hidden_layers)


def look_at(path: str, family: str | None, hub: str) -> Subject:
    """What config.json says, and the weight files' headers where they are here. A hub's weights are not downloaded.

    Raises:
        ModelError: no such folder, or a config.json that cannot be used.
    """
    folder = resolve(path, hub, "tokenizer")
    chosen = get_family(family) if family else family_or_none(folder, name=path) or family_of_folder(folder)
    config = native_config(folder, chosen)
    files = [file for kind in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(kind)]
    own = getattr(config, "dtype", None) or torch.float16
    if files:
        try:
            own = read_inventory(folder).dtype
        except ModelError:  # half a download: a plan does without
            files = []
    return Subject(folder, chosen, config, _dtype(own), _held(config), _bytes(folder, files))


def subject_of(base: Base) -> Subject:
    """The same of a base that was inspected."""
    files = sorted({weight.file for weight in base.inventory.weights.values()})
    return Subject(
        base.folder, base.family, base.config, base.inventory.dtype, _held(base.config), _bytes(base.folder, files)
    )


def _bytes(folder: Path, files: list[Path]) -> int:
    """Of the weights on disk. A repository that holds them twice counts once."""
    for name in _INDEXES:
        if (folder / name).is_file():
            named = set(json.loads((folder / name).read_text("utf-8"))["weight_map"].values())
            return sum((folder / file).stat().st_size for file in named if (folder / file).is_file())
    chosen = [file for file in files if file.suffix == ".safetensors"] or files
    return sum(file.stat().st_size for file in chosen)


def _held(config: PreTrainedConfig) -> str | None:
    bits = packed_bits(config)
    return f"packed{bits}" if bits else stored_quantization(config)


def _dtype(named: Any) -> torch.dtype:
    return getattr(torch, named) if isinstance(named, str) else named


def stack_of(model: nn.Module) -> nn.ModuleList:
    """The layers: the longest list of modules there is."""
    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)


def build(subject: Subject, run: RunConfig, precision: torch.dtype, mixed: bool, layers: int, trained: int) -> Any:
    """The model of a run, prepared by its method, on the meta device.

    Args:
        subject: the base.
        run: its settings.
        precision: of the frozen weights.
        mixed: whether the run computes under autocast.
        layers: how many layers to build.
        trained: of these, how many the method freeze trains.

    Raises:
        ConfigError: what the method refuses of this model.
    """
    config = copy.deepcopy(subject.config)
    config.num_hidden_layers = layers
    run = dataclasses.replace(run, freeze=dataclasses.replace(run.freeze, trainable_layers=trained))
    method = method_of(run, subject.family, precision if mixed else torch.float32)
    dtype = method.load_dtype(precision) or subject.own
    held = subject.held or run.model.quantization
    config.quantization_config = None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if held in PACKED:
            replace_linears(model, PACKED[held])
        elif held in BITSANDBYTES:
            hold_in_fewer_bits(model, held, dtype, run.model.double_quantization)
        if run.model.attention == "eager":
            model.set_attn_implementation("eager")
        separate_rows(model)
        return method.prepare(model)
