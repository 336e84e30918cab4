"""LoRA through peft: a plain adapter, and a file that names its base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn

from glmtune.config import DEFAULT_DROPOUT, LoraConfig
from glmtune.errors import ConfigError, ModelError, RunError, summarize_error
from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.lora_files import (
    load_state,
    make_peft_config,
    read_config,
    read_weights,
    select_adapter_state,
    write_files,
)
from glmtune.methods.lora_fused import fuse_updates
from glmtune.methods.lora_official import convert_to_native, list_module_rows
from glmtune.methods.lora_sources import ASSUMED_ALPHA, CONFIG, find_bare_weights, has_no_effect
from glmtune.methods.lora_targets import resolve_modules_to_save, resolve_targets
from glmtune.methods.lora_tokens import count_needed_rows, list_trained_ids, make_token_indices, patch_token_rows
from glmtune.methods.method import Method, StateDict
from glmtune.methods.value_head_file import require_generating
from glmtune.models.embedding_rows import grow_vocabulary
from glmtune.models.tokenizers.new_tokens import NewTokens, read_saved_ids, write_added_tokens
from glmtune.utils.console import print_warning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glmtune.families import Family

_SCALE = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}
"""Settings that the weights of an adapter depend on: peft's names and ours."""


class Lora(Method):
    """Low-rank updates of chosen linear modules (Hu et al., arXiv 2106.09685).

    Args:
        config: the options of method lora.
        family: gives the targets when the config names none.
        new_tokens: that the run adds to the base's vocabulary; their rows of embedding and head are trained.
    """

    output_kind: ClassVar[str] = "adapter"

    def __init__(self, config: LoraConfig, family: Family, new_tokens: NewTokens | None = None):
        self._config = config
        self._family = family
        self._new_tokens = new_tokens or NewTokens()

    def prepare(self, model: PreTrainedModel) -> PeftModel:
        """Wrap `model` with fresh adapters: B is zero, so the logits are the base's until a step is taken.

        Raises:
            ConfigError: a target or module to save that this model does not have, a base in the packed layout, or
                biases of quantised modules.
        """
        _require_adaptable(model)
        config = self._config
        targets = resolve_targets(model, config.targets or list(self._family.lora_targets))
        saved = resolve_modules_to_save(model, config.modules_to_save, targets)
        wrapped = get_peft_model(
            model,
            PeftLoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]
                lora_dropout=DEFAULT_DROPOUT if config.dropout is None else config.dropout,
                use_rslora=config.rslora,
                use_dora=config.dora,
                bias=config.bias,
                target_modules=targets,
                modules_to_save=saved or None,
                task_type="CAUSAL_LM",
                base_model_name_or_path=model.name_or_path,
                **make_token_indices(model, self._new_tokens.trained_ids, targets, saved),
            ),
        )
        fuse_updates(wrapped)
        patch_token_rows(wrapped)
        return _cast_to_fp32(wrapped)

    def optimizer_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]] | None:
        """LoRA+: a higher rate for B than for A."""
        ratio = self._config.loraplus_ratio
        return make_loraplus_groups(model, learning_rate, weight_decay, ratio) if ratio else None

    def write(self, model: PeftModel, folder: Path, base_info: BaseInfo, state: StateDict | None = None) -> None:
        """Write a plain peft adapter in fp32."""
        self.save(model, folder, base_info, state=state)

    def save(
        self,
        model: PeftModel,
        folder: Path,
        base_info: BaseInfo,
        dtype: torch.dtype | None = None,
        state: StateDict | None = None,
    ) -> None:
        """Write a plain peft adapter: about 7 MB for a 6B base at rank 8 in 16 bits."""
        trained = self.trained_state(model, state)
        config = model.peft_config["default"]
        assert isinstance(config, PeftLoraConfig)
        write_files(folder, config, {name: value.to(dtype or value.dtype) for name, value in trained.items()})
        write_base_info(folder, base_info)
        write_added_tokens(folder, self._new_tokens)

    def read(self, model: PeftModel, folder: Path) -> None:
        """Load an adapter into a prepared model, also one that was trained on the published code.

        Raises:
            RunError: it is broken, has other settings, or a weight is missing, left over, or of another shape.
        """
        try:
            saved_config, state = _open_adapter(folder, model.get_base_model(), trainable=True)
        except ModelError as error:
            raise RunError(error.message, error.hint) from None
        config: Any = model.peft_config["default"]
        for key, ours in _SCALE.items():
            if getattr(saved_config, key) != getattr(config, key):
                raise RunError(
                    f"{folder}: was trained with lora.{ours} {getattr(saved_config, key)}, not {getattr(config, key)}.",
                    f"Set lora.{ours}={getattr(saved_config, key)}.",
                )
        if saved_config.alpha_pattern != config.alpha_pattern:
            raise RunError(
                f"{folder}: some modules have a scale of their own (alpha_pattern), which a run cannot have.",
                "Merge it into the base and train on that.",
            )
        if list_trained_ids(saved_config.to_dict()) != list_trained_ids(config.to_dict()):
            raise RunError(
                f"{folder}: its rows of new tokens are not those of this run.",
                "Give the data.new_tokens that it was trained with.",
            )
        faults = load_state(model, state)
        if faults:
            raise RunError(
                f"{folder}: the adapter does not fit this run ({'; '.join(faults)}).",
                "It was trained on another base, or with other lora.targets, bias or modules_to_save.",
            )

    def saved_state(self, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of an adapter's file."""
        yield from read_weights(folder).items()

    def trained_state(self, model: PeftModel, state: StateDict | None = None) -> StateDict:
        """The adapter's matrices, trained biases and modules to save, under the names of peft's file."""
        return select_adapter_state(model, state=state)


def load_adapter(model: PreTrainedModel, folder: Path, *, name: str = "default", trainable: bool = False) -> PeftModel:
    """Load a saved adapter onto its base: one of ours, or one that peft wrote for the published code.

    Args:
        model: the base; it is changed in place.
        folder: a peft folder; it is only read.
        name: what peft is to call the adapter.
        trainable: train it further. What is trained is in fp32 then; else biases and whole modules have the base's
            precision, so that the model runs without autocast.

    Raises:
        ModelError: the folder holds no LoRA adapter, a broken one, or one for other modules.
        ConfigError: the base is in the packed layout, or biases of quantised modules would be trained.
    """
    _require_adaptable(model)
    config, state = _open_adapter(folder, model, trainable=trainable)
    _make_room_for_tokens(model, folder, config, state)
    config.base_model_name_or_path = model.name_or_path
    try:
        wrapped = get_peft_model(model, config, adapter_name=name)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _explain_misfit(folder, summarize_error(error, 200)) from None
    patch_token_rows(wrapped)
    if trainable:
        _cast_to_fp32(wrapped)
    else:
        wrapped.requires_grad_(False)
    faults = load_state(wrapped, state, name)
    if faults:
        wrapped.unload()
        raise _explain_misfit(folder, "; ".join(faults))
    return wrapped


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Load one more adapter onto a model that has some, for generation; the active one stays active.

    Args:
        model: with adapters of other names.
        folder: a peft folder; it is only read.
        name: what peft is to call the adapter.

    Raises:
        ModelError: the folder holds no LoRA adapter, a broken one, or one for other modules.
        RunError: it is a reward model.
    """
    require_generating(folder)
    config, state = _open_adapter(folder, model.get_base_model(), trainable=False)
    active = model.active_adapter
    try:
        model.add_adapter(name, config)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _explain_misfit(folder, summarize_error(error, 200)) from None
    model.requires_grad_(False)
    faults = load_state(model, state, name)
    if faults:
        model.delete_adapter(name)
        raise _explain_misfit(folder, "; ".join(faults))
    model.set_adapter(active)
    model.requires_grad_(False)


def read_base_path(folder: Path) -> str:
    """The path of the adapter's base when it was saved."""
    return str(read_config(folder).get("base_model_name_or_path") or "")


def _open_adapter(folder: Path, base: nn.Module, *, trainable: bool) -> tuple[PeftLoraConfig, StateDict]:
    """An adapter as `base` takes it."""
    raw, state = read_config(folder), read_weights(folder)
    if find_bare_weights(folder):
        print_warning(
            f"{folder}: no {CONFIG} says its alpha; taken as {ASSUMED_ALPHA}, as finetune.py had it. "
            "With another alpha the adapter has another strength: then write the file."
        )
    if not trainable and has_no_effect(state):
        print_warning(f"{folder}: every B of this adapter is zero, so it has no effect: the replies are the base's.")
    try:
        raw, state = convert_to_native(raw, state, list_module_rows(base))
        return make_peft_config(raw, trainable=trainable), state
    except ModelError as error:
        raise ModelError(f"{folder}: {error.message}", error.hint) from None


def _make_room_for_tokens(model: Any, folder: Path, config: PeftLoraConfig, state: StateDict) -> None:
    """Give embedding and head the rows that the adapter has for tokens of its own.

    Raises:
        ModelError: the tokenizer beside the adapter has a token without a row.
    """
    modules = {id(module): path for path, module in model.named_modules()}
    paths = [modules[id(module)] for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    grow_vocabulary(model, count_needed_rows(config.to_dict(), state, paths))
    rows = len(model.get_input_embeddings().weight)
    for token, index in read_saved_ids(folder).items():
        if index >= rows:
            raise ModelError(
                f"{folder}: its token {token!r} has id {index}, but the embedding of base and adapter has {rows} rows.",
                "It was trained on a base with more rows: give that one with --base.",
            )


def _explain_misfit(folder: Path, why: str) -> ModelError:
    return ModelError(f"{folder}: the adapter does not fit this base ({why}).", "Give its own base with --base.")


def _require_adaptable(model: Any) -> None:
    bits = getattr(model.config, "quantization_bit", None)
    if bits:
        raise ConfigError(
            f"LoRA cannot be put on a base in the published int{bits} layout.",
            "Use the full-precision repository with model.quantization=nf4, or method ptuning.",
        )


def _cast_to_fp32(model: PeftModel) -> PeftModel:
    """Optimisers lose small steps in 16 bits; peft raises the matrices alone, not biases and whole modules."""
    for path, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, nn.Parameter) and not weight.is_floating_point() and _is_adapter_weight(bias):
            raise ConfigError(
                f"lora.bias: bitsandbytes rounds the bias of {path} at every step, so it cannot be trained.",
                "Use lora.bias=none on a quantised base.",
            )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _is_adapter_weight(parameter: Any) -> bool:
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad


def make_loraplus_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, ratio: float
) -> list[dict[str, Any]]:
    """The trained parameters as groups for a torch optimiser.

    Args:
        model: a prepared model.
        learning_rate: of all but the B matrices.
        weight_decay: of matrices; vectors (biases, norms, DoRA's magnitudes) have none.
        ratio: B's learning rate over A's.
    """
    rates = {"rest": learning_rate, "B": learning_rate * ratio}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "B" if _is_lora_b(name) else "rest"
            groups.setdefault((kind, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[kind], "weight_decay": decay} for (kind, decay), parameters in groups.items()
    ]


def _is_lora_b(name: str) -> bool:
    return any(part in ("lora_B", "lora_embedding_B") for part in name.split("."))
