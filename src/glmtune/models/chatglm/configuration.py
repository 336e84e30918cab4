"""The configuration of ChatGLM-6B: the keys of the published `config.json`, as they are."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ChatGLMConfig(PreTrainedConfig):
    """Configuration of ChatGLM-6B, the first generation (repository THUDM/chatglm-6b).

    Fields keep the names of the published file, so a loaded configuration is saved as it was read;
    transformers' usual names (`num_hidden_layers`, `intermediate_size`, `max_position_embeddings`) are
    aliases. Keys not listed here (`pre_seq_len`, `quantization_bit`, ...) are kept as attributes.

    Args:
        inner_hidden_size: width between the two linears of the MLP; four times `hidden_size` when absent.
        max_sequence_length: the length the checkpoint was trained with; nothing in the model enforces it.
        bos_token_id: `<sop>`, the token that ends the context and begins the answer.
        eos_token_id: `<eop>`, the token that ends the answer.
        gmask_token_id: `[gMASK]`; when absent, three below `bos_token_id`, its place in both published
            vocabularies.
        mask_token_id: `[MASK]`; when absent, four below `bos_token_id`.

    Raises:
        ValueError: one-dimensional positions (no published checkpoint has them), or a head size that cannot be
            cut into two position streams of an even size.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "layer_norm_eps": "layernorm_epsilon",
    }
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "word_embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "final_layernorm": "keep_full_weight",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    inner_hidden_size: int | None = None
    num_layers: int = 28
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    # The published head equals the embedding but is stored, and trained, on its own.
    tie_word_embeddings: bool = False
    bos_token_id: int = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    gmask_token_id: int | None = None
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.inner_hidden_size is None:
            self.inner_hidden_size = 4 * self.hidden_size
        # The earliest published files name neither; the special tokens of both vocabularies have the same order:
        # [MASK], [gMASK], [sMASK], <unused>, <sop>, <eop>.
        if self.gmask_token_id is None:
            self.gmask_token_id = self.bos_token_id - 3
        if self.mask_token_id is None:
            self.mask_token_id = self.bos_token_id - 4
        if not self.position_encoding_2d:
            raise ValueError("position_encoding_2d is false: only ChatGLM-6B's two-dimensional positions are known")
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 4 x num_attention_heads "
                f"({self.num_attention_heads}): a head holds two position streams, each rotated in halves"
            )
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def prefix_embedding_size(self) -> int:
        """Width of P-Tuning v2's embedding when a network makes the prefix out of it; later generations differ."""
        return self.hidden_size
