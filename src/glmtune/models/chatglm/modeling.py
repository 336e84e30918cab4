"""ChatGLM-6B for transformers 5: the model, its head, and what `generate` needs to know.

Architecture: GLM (arXiv 2103.10360) with GLM-130B's changes for stable training (arXiv 2210.02414), as published
in THUDM/ChatGLM-6B. Parameters have the published names, so checkpoints load and are saved without renaming.

Shapes: B batch, T new positions, S key positions (cached and new), H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmtune.models.attention_kernels import find_card, find_compute_dtype, make_additive_mask

from ..shared_head import separate_state
from .configuration import ChatGLMConfig
from .layers import ChatGLMAttention, ChatGLMBlock, ChatGLMRotaryEmbedding
from .prefix_lm import answer_flags, prefix_attention_mask, prefix_position_ids, widen_keys

NO_FLASH = (
    "ChatGLM-6B's context attends in both directions and its answer causally; {name} cannot take that mask. "
    'Use attn_implementation="sdpa" (the default) or "eager".'
)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What all ChatGLM-6B models share: loading, precision and attention settings."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # Published checkpoints store the rotary frequencies of every layer, which are computed here; the earliest ones of
    # P-Tuning v2 hold the prefix beside the model, which is read by itself.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"attention\.rotary_emb\.inv_freq$",
        r"^transformer\.prefix_encoder\.",
    ]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": ChatGLMBlock,
        "attentions": ChatGLMAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ChatGLMRotaryEmbedding):
            # Buffers outside the checkpoint are empty after a load through the meta device.
            init.copy_(module.inv_freq_bits, module.compute_inv_freq_bits())

    def _flash_attn_can_dispatch(self, flash_attn_version: int, is_init_check: bool = False) -> NoReturn:
        raise ValueError(NO_FLASH.format(name=f"FlashAttention {flash_attn_version}"))

    def _flex_attn_can_dispatch(self, is_init_check: bool = False) -> NoReturn:
        raise ValueError(NO_FLASH.format(name="FlexAttention, as transformers calls it,"))


class ChatGLMModel(ChatGLMPreTrainedModel):
    """ChatGLM-6B without its head."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = ChatGLMRotaryEmbedding(config)
        self.layers = nn.ModuleList([ChatGLMBlock(config, index) for index in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers.

        Args:
            input_ids: (B, T). Whole rows, or with a filled cache the one new token of each.
            attention_mask: None (no padding); (B, S) with 1 for tokens and 0 for padding on either side; or a
                finished (B or 1, 1, T, S) mask, bool with True for "may look", or additive. The first two become
                the prefix-LM mask of `prefix_attention_mask`.
            position_ids: (B or 1, 2, T), `position` and `block`; derived by `prefix_position_ids` if None.
            past_key_values: keys and values of the tokens before these.
            inputs_embeds: (B, T, H) in place of `input_ids`; positions and a finished mask must be given then.

        Raises:
            ValueError: a shape is wrong, or what is missing cannot be derived: positions next to a finished mask
                or after a filled cache, the mask of several tokens after a filled cache, either of embeddings.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if is_flash_attention_requested(self.config):
            raise ValueError(NO_FLASH.format(name=self.config._attn_implementation))
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        length, dtype = inputs_embeds.shape[1], inputs_embeds.dtype
        position_ids_B2T, mask = self._derive_positions_and_mask(
            input_ids, attention_mask, position_ids, past_key_values, length
        )
        if mask is not None and mask.is_floating_point():
            # A mask written in fp32 overflows to -inf in fp16, and a row of nothing but -inf is NaN.
            mask = mask.clamp(min=torch.finfo(dtype).min).to(dtype)
        elif mask is not None and find_card(mask.device) is not None:
            mask = make_additive_mask(mask, find_compute_dtype(inputs_embeds))
        position_embeddings = self.rotary_emb(position_ids_B2T, dtype)

        hidden_states_BTH = inputs_embeds
        for layer in self.layers:
            hidden_states_BTH = layer(
                hidden_states_BTH, position_embeddings, mask, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states_BTH), past_key_values=past_key_values
        )

    def _derive_positions_and_mask(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        length: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Positions (B, 2, T) and mask (B, 1, T, S), derived where they are not given. No mask: all keys are seen."""
        if position_ids is not None and (position_ids.ndim != 3 or position_ids.shape[1:] != (2, length)):
            raise ValueError(
                f"position_ids have shape {tuple(position_ids.shape)}; "
                f"ChatGLM-6B has two positions per token: (batch, 2, {length})"
            )
        finished = attention_mask is not None and attention_mask.ndim == 4
        if finished and position_ids is not None:
            assert attention_mask is not None
            return (
                position_ids,
                attention_mask if attention_mask.is_floating_point() else attention_mask.bool(),
            )
        if finished:
            raise ValueError(
                "a 4-D attention_mask does not say where padding is: give position_ids (batch, 2, tokens) too"
            )
        if input_ids is None:
            raise ValueError(
                "inputs_embeds do not say where the context ends: give position_ids (batch, 2, tokens) "
                "and a 4-D attention_mask too"
            )
        if cache is not None and cache.is_compileable:
            raise ValueError("a cache of fixed size needs position_ids and a 4-D attention_mask; generate() makes both")

        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is not None and attention_mask.shape[1] != past + length:
            raise ValueError(
                f"attention_mask covers {attention_mask.shape[1]} tokens; the cache holds {past} and {length} are new"
            )
        if past == 0:
            if position_ids is None:
                position_ids = prefix_position_ids(input_ids, attention_mask, self.config)
            return position_ids, prefix_attention_mask(input_ids, attention_mask, self.config)
        if position_ids is None:
            raise ValueError(
                "new tokens alone do not say where [gMASK] and <sop> were: with a filled cache give "
                "position_ids (batch, 2, tokens); prefix_position_ids() makes them from the whole rows"
            )
        if length > 1:
            raise ValueError("several new tokens after a filled cache need a 4-D attention_mask")
        # One new token sees everything before it, context and answer alike: only padding is left to hide.
        return position_ids, None if attention_mask is None else attention_mask[:, None, None, :].bool()


class ChatGLMForCausalLM(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its head."""

    # Only if the configuration has it; published checkpoints are untied.
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012
    writes_shared_head = True
    """As of `glmtune.models.shared_head`."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers', which would leave out a head that shares the embedding's matrix; the config says that there
        are two."""
        if len(args) < 3 and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = separate_state(self, self.state_dict())
        super().save_pretrained(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, kept, V), and the loss if `labels` are given.

        Args:
            labels: (B, T), -100 where there is no target; shifted here, so `labels` are aligned with `input_ids`.
            logits_to_keep: number of last positions to apply the head to (0: all), or a 1-D tensor of positions.
            kwargs: handed to the layers and to the loss (`num_items_in_batch`, `shift_labels`).

        The other arguments and the errors are those of `ChatGLMModel.forward`.
        """
        outputs: BaseModelOutputWithPast = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states_BTH = outputs.last_hidden_state
        assert hidden_states_BTH is not None
        logits = self.lm_head(_select_positions(hidden_states_BTH, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
        """None: `generate` would keep one-dimensional positions and count them up, to no use here."""

    def prepare_inputs_for_generation(  # type: ignore[override]  # no inputs_embeds: their ids are needed
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of one step: positions from the whole rows, and the mask where `forward` cannot derive it.

        Args:
            input_ids: the rows so far, (B, S); the last `next_sequence_length` of them are new (None: all).
            attention_mask: (B, S) or None.

        Raises:
            ValueError: explicit positions; a cache that ends inside the context, whose keys were computed from a
                part of it.
        """
        if position_ids is not None and position_ids.ndim == 3:
            raise ValueError("generate() derives position_ids from input_ids and attention_mask: leave them out")
        total = input_ids.shape[1]
        new = total if next_sequence_length is None else next_sequence_length
        past = total - new
        # With only the new tokens as input, `generate` passes None, 0 or fewer as their number.
        whole_rows = past_key_values is None or (next_sequence_length is not None and new > 0)
        if not whole_rows and past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError(
                "to continue from a filled cache, give generate() complete rows as input_ids and no prefill_chunk_size"
            )

        # Contiguous: a compiled step would be compiled again for the strides of each longer row.
        positions_B2T = prefix_position_ids(input_ids, attention_mask, self.config)[..., past:].contiguous()
        fixed_size = past_key_values is not None and past_key_values.is_compileable
        if past > 0 and (new > 1 or is_first_iteration):
            answer_BS = answer_flags(input_ids, attention_mask, self.config)
            if (answer_BS[:, -1] & ~answer_BS[:, past - 1]).any():
                raise ValueError(
                    "the cache ends inside the context, and a longer context changes all of its keys: "
                    "start with an empty cache"
                )
        if fixed_size or (new > 1 and past > 0):
            if new == 1:
                seen_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                attention_mask = seen_BS[:, None, None, :].bool()
            else:
                attention_mask = prefix_attention_mask(input_ids, attention_mask, self.config)[:, :, past:]
            if fixed_size:
                assert past_key_values is not None
                attention_mask = widen_keys(attention_mask, past_key_values.get_mask_sizes(new, 0)[0])
        return GenerationMixin.prepare_inputs_for_generation(
            self,  # type: ignore[arg-type]
            input_ids,  # type: ignore[arg-type]
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,  # type: ignore[arg-type]
            position_ids=positions_B2T,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )


def _select_positions(hidden_states_BTH: torch.Tensor, positions: int | torch.Tensor) -> torch.Tensor:
    """The states that logits are computed of: `slice_logits_to_keep` of transformers, which has it since 5.21.

    Args:
        hidden_states_BTH: of the last layer.
        positions: the number of last positions (0: all), positions of all rows, of each row, or a mask of each row.
    """
    if isinstance(positions, torch.Tensor) and positions.ndim == 2:
        if positions.dtype == torch.bool:
            return hidden_states_BTH[positions]
        return torch.take_along_dim(hidden_states_BTH, positions[..., None], dim=1)
    return hidden_states_BTH[:, slice(-positions, None) if isinstance(positions, int) else positions]
