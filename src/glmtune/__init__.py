"""Fine-tune ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4 on today's libraries.

Importing this package is cheap: torch and transformers are imported by the first function that needs them.
Once it is imported, transformers' Auto classes open the published folders with our models, with `chat` as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmtune._transformers_hook import install as _install_hook
from glmtune.utils.console import silence_advice as _silence_advice

if TYPE_CHECKING:
    from glmtune.families import detect_family
    from glmtune.methods.tuned_model import load_model
    from glmtune.models.tokenizers import load_tokenizer

    __version__: str

__all__ = ["__version__", "detect_family", "load_model", "load_tokenizer"]

_LAZY_IMPORTS = {
    "detect_family": "glmtune.families",
    "load_model": "glmtune.methods.tuned_model",
    "load_tokenizer": "glmtune.models.tokenizers",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from glmtune.utils.installation import read_version

        return read_version()
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY_IMPORTS[name]), name)


_silence_advice()  # before the libraries are imported that give it
_install_hook()
