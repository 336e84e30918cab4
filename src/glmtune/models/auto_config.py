"""The class of `"model_type": "chatglm"` in transformers' `AutoConfig`.

All three ChatGLM generations carry that one name; this class hands back the config of the right one. It must stay
light: it is imported in the middle of transformers' own import.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class ChatGLMAutoConfig(PreTrainedConfig):
    """Never instantiated: `from_dict` gives a `ChatGLMConfig` or a `GlmConfig`."""

    model_type = "chatglm"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # This import registers the models too: an Auto class may need the model of this config next.
        from glmtune.models.auto import make_config_from_dict

        return make_config_from_dict(config_dict, **kwargs)
