"""The keys of a GGUF file that describe the model (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError
from glmtune.export.gguf_vocabulary import GgufVocabulary
from glmtune.utils.file_access import require_readable
from glmtune.utils.optional_packages import import_extra

if TYPE_CHECKING:
    from glmtune.models.checkpoints import Checkpoint

ARCHITECTURES = {"glm": "chatglm", "glm4": "glm4"}
"""transformers' model type to llama.cpp's architecture."""

FINGERPRINT_KEY = "glmtune.base_fingerprint"


def require_architecture(base: Checkpoint) -> str:
    """llama.cpp's name of the base's architecture.

    Raises:
        ModelError: llama.cpp cannot compute such a model.
    """
    config: Any = base.config
    name = ARCHITECTURES.get(config.model_type)
    if name is None:
        title = base.known_family.title if base.known_family else config.model_type
        raise ModelError(
            f"{base.folder}: llama.cpp has no architecture for {title} ({config.model_type}), so no GGUF file can "
            "hold it.",
            "Use --format hf, or --format official for chatglm.cpp.",
        )
    _require_computable(base, config)
    return name


def _require_computable(base: Checkpoint, config: Any) -> None:
    reasons = []
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        reasons.append(f"{config.num_attention_heads} heads of {config.head_dim} are not {config.hidden_size} wide")
    if config.hidden_act not in ("silu", "swish"):
        reasons.append(f"its activation is {config.hidden_act}, not silu")
    rope = _read_rope(config)
    if rope.get("rope_type", "default") not in ("default", "linear"):
        reasons.append(f"its positions are scaled by {rope['rope_type']}")
    if reasons:
        raise ModelError(
            f"{base.folder}: llama.cpp computes such a model otherwise: {'; '.join(reasons)}.", "Use --format hf."
        )


def _read_rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def add_model_keys(writer: Any, base: Checkpoint, name: str) -> None:
    """Add sizes, positions, name, licence and origin.

    Args:
        writer: a `gguf.GGUFWriter` of the base's architecture.
        base: whose config the model has.
        name: of the model for people.
    """
    gguf = import_extra("gguf")
    config: Any = base.config
    rope = _read_rope(config)
    writer.add_type("model")
    add_origin_keys(writer, base, name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(config.head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(int(config.max_position_embeddings / rope["factor"]))


def add_origin_keys(writer: Any, base: Checkpoint, name: str) -> None:
    """Add the name, the licence and the base that it comes from."""
    writer.add_name(name)
    for key, add in (
        ("license", writer.add_license),
        ("license_name", writer.add_license_name),
        ("license_link", writer.add_license_link),
    ):
        value = _read_card(base.folder).get(key)
        if value:
            add(value)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.folder.name)
    writer.add_string(FINGERPRINT_KEY, base.fingerprint)


def _read_card(folder: Path) -> dict[str, str]:
    """The one-line keys at the head of the repository's README.md."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    head = re.match(
        r"---\s*\n(.*?)\n---\s*(?:\n|$)", require_readable(path).read_text("utf-8", errors="replace"), re.DOTALL
    )
    lines = re.findall(r"^(\w+):[ \t]*(\S.*?)[ \t]*$", head[1], re.MULTILINE) if head else []
    return {key: value.strip("'\"") for key, value in lines}


def add_vocabulary_keys(writer: Any, vocabulary: GgufVocabulary) -> None:
    """Add the vocabulary, the tokens that end a reply, and the chat template."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(False)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    # llama.cpp stops at each of these: the end of the text, of a turn, and of a message (a tool's turn).
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, index in zip(adders, vocabulary.stop_ids, strict=False):
        add(index)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(False)  # the template writes both tokens at the start
    writer.add_add_eos_token(False)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
