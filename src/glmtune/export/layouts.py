"""The two layouts of an exported folder: all files except the weights."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GlmConfig

from glmtune.export.published_config import make_published_config
from glmtune.export.shards import TensorPiece, list_native_pieces, list_published_pieces
from glmtune.families import FAMILY_KEY
from glmtune.models.tokenizers.tokenizer_files import write_published_tokenizer, write_tokenizer
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from glmtune.models.checkpoints import Checkpoint


def list_pieces(model: PreTrainedModel, layout: str) -> list[TensorPiece]:
    """The model's weights as they are to be written.

    Args:
        model: whole, no adapter on it.
        layout: `hf` or `official`.
    """
    state = model.state_dict()
    if layout == "official":
        # ChatGLM-6B's native model has the published names already.
        return list_published_pieces(state) if isinstance(model.config, GlmConfig) else list_native_pieces(state)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return list_native_pieces({name: value for name, value in state.items() if name not in tied})


def write_hf_files(model: PreTrainedModel, base: Checkpoint, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config.json, generation_config.json and the tokenizer of a folder that plain transformers loads."""
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = find_main_dtype(model)
    setattr(config, FAMILY_KEY, base.family.name)
    for key in ("auto_map", "quantization_bit", "pre_seq_len", "prefix_projection"):
        config.__dict__.pop(key, None)
    rope = getattr(config, "rope_parameters", None) or {}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:  # where transformers 4, which some engines bring, looks for it
            setattr(config, key, rope[key])
    config.save_pretrained(str(folder))
    generation: Any = copy.deepcopy(model.generation_config)
    generation.eos_token_id = base.family.get_stop_ids(tokenizer)
    generation.pad_token_id = tokenizer.pad_token_id
    # Written as it is: the library's own writer refuses some published files, such as a temperature without sampling.
    generation.to_json_file(str(folder / "generation_config.json"))
    write_tokenizer(base.folder, base.family.name, folder, tokenizer)


def write_official_files(
    model: PreTrainedModel, base: Checkpoint, tokenizer: PreTrainedTokenizerBase, bits: int | None, folder: Path
) -> None:
    """config.json, the tokenizer, and what the base has of generation_config.json and code (copied, never run)."""
    config = copy.copy(base.config)
    config.vocab_size = model.config.vocab_size  # it grows with tokens that were added
    published = make_published_config(base.folder, config, base.family, find_main_dtype(model), bits)
    write_json(folder / "config.json", published)
    write_published_tokenizer(base.folder, base.family.name, folder, tokenizer)
    for path in (base.folder / "generation_config.json", *sorted(base.folder.glob("*.py"))):
        if path.is_file():
            shutil.copyfile(require_readable(path), folder / path.name)


def find_main_dtype(model: PreTrainedModel) -> torch.dtype:
    """The precision of the weights that are not quantised."""
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.dtype
