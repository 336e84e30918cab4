"""ChatGLM-6B, the first generation, as a native transformers model."""

from .configuration import ChatGLMConfig
from .modeling import ChatGLMForCausalLM, ChatGLMModel, ChatGLMPreTrainedModel
from .prefix_lm import prefix_attention_mask, prefix_position_ids

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForCausalLM",
    "ChatGLMModel",
    "ChatGLMPreTrainedModel",
    "prefix_attention_mask",
    "prefix_position_ids",
]
