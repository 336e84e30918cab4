"""Registers the published folders with transformers' `AutoConfig` when transformers imports it.

Registering at `import glmtune` would import transformers and torch, which takes seconds.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TARGET = "transformers.models.auto.configuration_auto"


class _RegisteringLoader:
    """Runs a module's own loader, then registers."""

    def __init__(self, inner: Any):
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _register(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Finder:
    """A meta path finder; not a subclass of importlib.abc, whose import would cost --help ten milliseconds."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != _TARGET:
            return None
        sys.meta_path.remove(self)  # once is enough, and the search below must not come back here
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)  # type: ignore[assignment]
        return spec


def install() -> None:
    """Watch for the import of `AutoConfig`; register at once if it has happened."""
    if _TARGET in sys.modules:
        _register(sys.modules[_TARGET])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(auto: ModuleType) -> None:
    from glmtune.models.auto_config import ChatGLMAutoConfig

    auto.AutoConfig.register("chatglm", ChatGLMAutoConfig, exist_ok=True)
