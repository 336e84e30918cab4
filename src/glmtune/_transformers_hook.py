"""Opens the published folders through transformers' Auto classes once transformers is imported.

Registering at `import glmtune` would import transformers and torch, which takes seconds; so it is done when the module
that is to be extended has been imported.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _RegisteringLoader:
    """Runs a module's own loader, then extends the module."""

    def __init__(self, inner: Any, extend: Callable[[ModuleType], None]):
        self._inner = inner
        self._extend = extend

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        self._extend(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Finder:
    """A meta path finder; not a subclass of importlib.abc, whose import would cost --help ten milliseconds."""

    def __init__(self, targets: dict[str, Callable[[ModuleType], None]]):
        self.targets = targets

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        extend = self.targets.pop(fullname, None)  # once is enough, and the search below must not come back here
        if extend is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, extend)  # type: ignore[assignment]
        return spec


def install() -> None:
    """Watch for the imports of the modules to extend; those that have happened are extended at once."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    waiting = {}
    for name, extend in _EXTENSIONS.items():
        if name in sys.modules:
            extend(sys.modules[name])
        else:
            waiting[name] = extend
    sys.meta_path.insert(0, _Finder(waiting))


def _register_config(module: ModuleType) -> None:
    import logging

    from glmtune.models.auto_config import ChatGLMAutoConfig

    # At its import it advises to install kernels that nothing here calls.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    module.AutoConfig.register("chatglm", ChatGLMAutoConfig, exist_ok=True)


def _extend_auto_models(module: ModuleType) -> None:
    from glmtune.auto_classes.entry_points import open_published_models

    # The three that the published config.json files name for their language model.
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        open_published_models(getattr(module, name))


def _extend_auto_tokenizer(module: ModuleType) -> None:
    from glmtune.auto_classes.entry_points import open_published_tokenizers

    open_published_tokenizers(module.AutoTokenizer)


def _extend_peft_config(module: ModuleType) -> None:
    from glmtune.auto_classes.entry_points import open_adapter_configs_of_runs

    open_adapter_configs_of_runs(module.PeftConfigMixin)


def _extend_peft(module: ModuleType) -> None:
    from glmtune.auto_classes.entry_points import open_foreign_adapters

    open_foreign_adapters(module.PeftModel)


def _extend_glm(module: ModuleType) -> None:
    from glmtune.auto_classes.model_methods import add_published_methods, keep_rotary_precision

    add_published_methods(module.GlmForCausalLM)
    keep_rotary_precision(module.GlmRotaryEmbedding)


def _extend_glm4(module: ModuleType) -> None:
    from glmtune.auto_classes.model_methods import add_published_methods, keep_rotary_precision

    add_published_methods(module.Glm4ForCausalLM)
    keep_rotary_precision(module.Glm4RotaryEmbedding)


def _extend_chatglm(module: ModuleType) -> None:
    from glmtune.auto_classes.model_methods import add_published_methods

    add_published_methods(module.ChatGLMForCausalLM)


_EXTENSIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _extend_auto_models,
    "transformers.models.auto.tokenization_auto": _extend_auto_tokenizer,
    "transformers.models.glm.modeling_glm": _extend_glm,
    "transformers.models.glm4.modeling_glm4": _extend_glm4,
    "glmtune.models.chatglm.modeling": _extend_chatglm,
    "peft.config": _extend_peft_config,
    "peft.peft_model": _extend_peft,
}
