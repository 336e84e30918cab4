"""One table of weight names: the published layout of ChatGLM2, ChatGLM3 and GLM-4, and transformers' `glm`.

Everything that crosses between the two reads this table: loading (through transformers' own conversion, shard by
shard), the check of a folder's weights, fingerprints, and writing the published layout.
ChatGLM-6B needs no table: its native model keeps the published names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers.core_model_loading import WeightConverter, WeightRenaming

# (published, transformers). Each pair is a part of a name; several may apply to one name.
RENAMES: tuple[tuple[str, str], ...] = (
    ("transformer.embedding.word_embeddings", "model.embed_tokens"),
    ("transformer.encoder.final_layernorm", "model.norm"),
    ("transformer.encoder.layers", "model.layers"),
    ("transformer.output_layer", "lm_head"),
    ("self_attention.dense", "self_attn.o_proj"),
    ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),  # gate rows, then up rows, in both
    ("mlp.dense_4h_to_h", "mlp.down_proj"),
)
# (published, the native parts whose rows it stacks, in this order)
FUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("self_attention.query_key_value", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
)
# Published buffers that are computed from the config instead of read.
COMPUTED = (r"rotary_pos_emb\.inv_freq$", r"rotary_emb\.inv_freq$")
# What the names of a P-Tuning v2 prefix begin with; the earliest published checkpoints hold it beside the whole model.
PREFIX_ENCODER = "transformer.prefix_encoder."


def make_conversions() -> list[WeightConverter | WeightRenaming]:
    """The table in the form that transformers applies while it loads: rename, then split by the model's own sizes."""
    from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

    renames = [WeightRenaming(published.replace(".", r"\."), native) for published, native in RENAMES]
    splits = [WeightConverter(published, list(parts), [Split(dim=0)]) for published, parts in FUSED]
    return [*renames, *splits]


def find_published_name(native: str) -> tuple[str, int]:
    """The published name that contains the native weight `native`, and its index in it (0 if it is the only one)."""
    name, place = native, 0
    for published, parts in FUSED:
        for i, part in enumerate(parts):
            if part in name:
                name, place = name.replace(part, published), i
    for published, native_part in RENAMES:
        name = name.replace(native_part, published) if _has_part(name, native_part) else name
    return name, place


def group_by_published(native_names: Iterable[str]) -> dict[str, list[str]]:
    """Published name to the native names stacked in it, in order."""
    places: dict[str, dict[int, str]] = {}
    for native in native_names:
        published, place = find_published_name(native)
        places.setdefault(published, {})[place] = native
    return {published: [parts[i] for i in sorted(parts)] for published, parts in places.items()}


def list_published_shapes(native_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the published weights of a model whose native ones have `native_shapes`."""
    shapes = {}
    for published, natives in group_by_published(native_shapes).items():
        rows = sum(native_shapes[name][0] for name in natives)
        shapes[published] = (rows, *native_shapes[natives[0]][1:])
    return shapes


def convert_to_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Native weights under their published names, bit for bit: the inverse of loading.

    Args:
        state: a complete native state dict, from `GlmForCausalLM.state_dict()`.
    """
    import torch

    published: dict[str, Any] = {}
    for name, natives in group_by_published(state).items():
        parts = [state[native] for native in natives]
        published[name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=0)
    return published


def _has_part(name: str, part: str) -> bool:
    """Whether `part` is made of complete dotted components of `name`, so that `lm_head` does not match `lm_head2`."""
    return f".{part}." in f".{name}."
