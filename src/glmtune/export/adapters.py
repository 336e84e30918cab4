"""Write adapters without their base: LoRA and P-Tuning v2, for the native models or for the published code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.lora_files import make_peft_config, read_config, read_weights, write_files
from glmtune.methods.lora_official import convert_to_native, write_official_adapter
from glmtune.methods.prefix_encoder import PrefixEncoder, PrefixShape
from glmtune.methods.prefix_files import make_published_state, read_prefix, write_official, write_prefix
from glmtune.models.checkpoints import Checkpoint
from glmtune.models.tokenizers import load_tokenizer
from glmtune.models.tokenizers.added_tokens import list_added_tokens
from glmtune.models.tokenizers.new_tokens import NewTokens, write_added_tokens
from glmtune.utils.shell_words import quote_word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX_FOLDER = "ptuning"
"""Folder of the prefix inside the folder of its base."""


def write_lora(adapter: Path, base: Checkpoint, tokenizer: PreTrainedTokenizerBase, layout: str, folder: Path) -> None:
    """Write a LoRA adapter of either naming for the native model (`hf`) or for the published code (`official`).

    Args:
        adapter: the folder to copy.
        base: that it belongs to.
        tokenizer: of base and adapter; the tokens that the base does not have are listed beside the adapter.
        layout: `hf` or `official`.
        folder: where to.

    Raises:
        ModelError: it is broken, or cannot be written under the published names.
    """
    if layout == "official":
        write_official_adapter(adapter, base.native_shapes, folder)
    else:
        names = base.native_shapes.items()
        rows = {name.removesuffix(".weight"): shape[0] for name, shape in names if name.endswith(".weight")}
        raw, state = convert_to_native(read_config(adapter), read_weights(adapter), rows)
        write_files(folder, make_peft_config(raw, trainable=False), state)
    write_base_info(folder, make_base_info(base, base.folder))
    own = load_tokenizer(base.folder, family=base.family.name)
    write_added_tokens(folder, NewTokens(list_added_tokens(tokenizer.get_vocab(), own.get_vocab())))


def write_prefix_folder(
    adapter: Path, base: Checkpoint, layout: str, folder: Path, published: dict[str, Any], place: BaseInfo
) -> None:
    """Write a P-Tuning v2 prefix in our layout (`hf`) or that of the published scripts (`official`).

    Args:
        adapter: of either kind.
        base: that it belongs to.
        layout: `hf` or `official`.
        folder: made if it is not there.
        published: the base's published config.json, which the published layout repeats.
        place: path of its base.

    Raises:
        ModelError: the prefix is broken or belongs to another model.
    """
    shape = PrefixShape.from_config(base.config)
    prefix = read_prefix(adapter)
    encoder = PrefixEncoder.from_state(prefix.state, shape, prefix.dropout)
    if layout == "official":
        write_official(encoder, folder, published)
    else:
        write_prefix(make_published_state(encoder.state_dict()), encoder, folder)
    write_base_info(folder, place)


def make_base_info(base: Checkpoint, place: Path) -> BaseInfo:
    """Describe the base at `place`, which may not exist yet."""
    return BaseInfo(str(place.absolute()), base.fingerprint, base.family.name)


def describe_prefix_loading(prefix: Path, layout: str) -> list[str]:
    """Sentences for the screen and for the text file next to the prefix."""
    lines = [
        "A P-Tuning prefix cannot be merged: its keys and values come before those of every layer.",
        f"Load base and prefix together: glmtune chat {quote_word(str(prefix))}",
        f"In Python: glmtune.load_model(BASE, adapter={str(prefix)!r})",
    ]
    if layout == "official":
        lines.append(
            "With the published code: set pre_seq_len (and prefix_projection) of the config, then load "
            "pytorch_model.bin into model.transformer.prefix_encoder, as the published ptuning scripts do."
        )
    return lines
