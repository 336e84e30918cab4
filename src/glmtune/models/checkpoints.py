"""Everything that is known of a checkpoint folder before its weights are loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from glmtune.errors import ModelError, join_lines
from glmtune.families import Family, family_from_folder, get_family
from glmtune.hub import resolve_checkpoint
from glmtune.models.auto import find_family, make_native_config, read_packed_bits
from glmtune.models.glm import PublishedGlmConfig
from glmtune.models.vocabulary_rows import fit_vocabulary_size
from glmtune.models.weight_files import WeightInventory, check_shapes, compute_fingerprint, read_inventory
from glmtune.models.weight_names import PREFIX_ENCODER, list_published_shapes
from glmtune.quantization.quantizer import replace_linears
from glmtune.utils.io import read_json_object
from glmtune.utils.optional_packages import require_extra
from glmtune.utils.shell_words import quote_word

_SCORE = "score.weight"
"""Weight of transformers' `...ForSequenceClassification`."""


@dataclass
class Checkpoint:
    """What is known of a checkpoint folder before its weights are loaded. It is inspected once and handed on."""

    folder: Path
    known_family: Family | None
    config: PreTrainedConfig
    inventory: WeightInventory
    native_shapes: dict[str, tuple[int, ...]]
    packed_bits: int = 0
    """4 or 8 if the weights are in the official quantised layout, else 0."""
    stored_quantization: str | None = None
    """`nf4` or `int8` if a transformers folder was saved in bitsandbytes' form."""
    has_prefix: bool = False
    """Whether the folder holds a P-Tuning prefix beside the model, as the earliest published checkpoints do; it is no
    part of what is loaded."""

    @property
    def family(self) -> Family:
        """The generation.

        Raises:
            ModelError: ChatGLM2 or ChatGLM3 cannot be decided; such a checkpoint can be loaded, but not prompted.
        """
        return self.known_family or family_from_folder(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights in any layout on disk."""
        return compute_fingerprint(self.inventory, self.native_shapes)


def inspect_checkpoint(
    path: str | os.PathLike[str], *, family: str | None = None, hub: str = "huggingface"
) -> Checkpoint:
    """Inspect a checkpoint: its generation, its config, and whether its weights fit it. Reads headers, no values.

    Raises:
        ModelError: the folder cannot be loaded as it is; the message lists what is wrong with it.
    """
    folder = resolve_checkpoint(path, hub)
    known_family = get_family(family) if family else find_family(folder, name=str(path))
    config = make_native_config(folder, known_family)
    if (folder / "generation_config.json").exists():  # transformers reads it while loading, and trusts its content
        read_json_object(folder / "generation_config.json", ModelError, "Download the file again, or remove it.")
    inventory = read_inventory(folder)
    prefix = [name for name in inventory.weights if name.startswith(PREFIX_ENCODER)]
    for name in prefix:
        del inventory.weights[name]
    if prefix and not inventory.weights:
        raise ModelError(
            f"{folder}: holds a P-Tuning prefix alone, not a model.",
            "Give the base that it was trained on as the model; the prefix is an adapter.",
        )
    if _SCORE in inventory.weights:
        raise ModelError(
            f"{folder}: a reward model in transformers' layout (sequence classification): it gives answers a reward "
            "and writes none itself.",
            f"Use it: glmtune score {quote_word(str(folder))} --data FILE",
        )
    bits = read_packed_bits(config)
    check_packing(inventory, bits)
    fit_vocabulary_size(config, inventory, known_family.name if known_family else None)
    native = _list_native_shapes(config)
    expected = list_published_shapes(native) if isinstance(config, PublishedGlmConfig) else native
    stored = None if bits else read_stored_quantization(config)
    if stored is None:  # bitsandbytes' weights have shapes of their own, which its loading checks
        check_shapes(inventory, expected)
    return Checkpoint(folder, known_family, config, inventory, native, bits, stored, bool(prefix))


def check_packing(inventory: WeightInventory, bits: int) -> None:
    """Require that config.json and the files agree about packed weights.

    Args:
        inventory: the files' weights.
        bits: the config's `quantization_bit`; 0 for none.

    Raises:
        ModelError: packed weights that the config does not announce, or none where it does.
    """
    packed = [name for name in inventory.weights if name.endswith(".weight_scale")]
    if bits and not packed:
        raise ModelError(
            f"{inventory.folder}: config.json says quantization_bit {bits}, but no weight there is packed.",
            'Set "quantization_bit": 0 in config.json to load them; '
            f"--set model.quantization=packed{bits} then packs them while loading.",
        )
    if packed and not bits:
        raise ModelError(
            f"{inventory.folder}: the weights are packed ({packed[0]}), but config.json has no quantization_bit.",
            'Add "quantization_bit": 4 or 8 to config.json, as its repository has it.',
        )
    for name in packed:
        weight = inventory.weights.get(name.removesuffix("_scale"))
        if weight and weight.dtype != "int8":
            raise ModelError(
                f"{weight.file}: {name} belongs to a packed weight, but the weight is {weight.dtype}, not int8.",
                "It was not quantised by the official code; use the full-precision repository of the same model.",
            )
    embeddings = [name for name in packed if name.endswith("word_embeddings.weight_scale")]
    if embeddings:
        raise ModelError(
            f"{inventory.folder}: the embeddings are packed too ({embeddings[0]}), which cannot be loaded.",
            "Use a repository whose embeddings are not, such as THUDM/chatglm-6b-int4, or the full-precision one.",
        )


def read_stored_quantization(config: PreTrainedConfig) -> str | None:
    """Read whether a transformers folder was saved in bitsandbytes' form: `nf4`, `int8`, or None.

    Raises:
        ModelError: it was saved by another quantiser, or bitsandbytes is missing.
    """
    value = getattr(config, "quantization_config", None)
    if value is None:
        return None
    settings = value if isinstance(value, dict) else value.to_dict()
    if settings.get("quant_method") != "bitsandbytes":
        raise ModelError(
            f"config.json: quantised by {settings.get('quant_method')}, which is not supported.",
            "Use the full-precision repository of the same model.",
        )
    quantization = "nf4" if settings.get("load_in_4bit") else "int8"
    require_bitsandbytes(quantization)
    return quantization


def require_bitsandbytes(quantization: str) -> None:
    """Require that bitsandbytes is installed.

    Raises:
        ModelError: it is not.
    """
    require_extra(
        *("qlora", f"quantization {quantization}", "or use packed4 or packed8, which need nothing more."), ModelError
    )


def _list_native_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the model that a config describes, built on the meta device."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            if read_packed_bits(config):
                replace_linears(model, read_packed_bits(config))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, KeyError, AttributeError) as error:
        raise ModelError(
            f"config.json: no model can be built from it ({join_lines(error)}).",
            "Download config.json again.",
        ) from None
    tied = getattr(model, "all_tied_weights_keys", {}) or {}
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
