"""Packages of the extras: the only place that imports them, and the error that names the line that installs one."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from glmtune.errors import ConfigError, GlmtuneError, summarize_error
from glmtune.utils.installation import format_install

EXTRAS: dict[str, tuple[str, ...]] = {
    "qlora": ("bitsandbytes",),
    "ui": ("fastapi", "uvicorn", "markdown_it"),
    "serve": ("fastapi", "uvicorn"),
    "deepspeed": ("deepspeed",),
    "gguf": ("gguf",),
    "hub": ("datasets",),
    "modelscope": ("modelscope", "datasets"),
}
"""Modules of each extra of pyproject.toml."""


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require_extra(
    extra: str, purpose: str, alternative: str = "", error_class: type[GlmtuneError] = ConfigError
) -> None:
    """Require the packages of an extra.

    Args:
        extra: a key of `EXTRAS`.
        purpose: what needs them, the start of the message: `glmtune ui`.
        alternative: what to do without them, the end of the hint.
        error_class: of the error.

    Raises:
        GlmtuneError: one is not installed; the hint is the command that installs the extra for this Python.
    """
    missing = [module for module in EXTRAS[extra] if not is_installed(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise error_class(
            f"{purpose} needs {' and '.join(missing)}, which {verb} not installed.",
            _describe_install(extra, alternative),
        )


def import_extra(
    module: str, purpose: str = "", alternative: str = "", error_class: type[GlmtuneError] = ConfigError
) -> Any:
    """Import a module of an extra.

    Args:
        module: its name with dots: `modelscope.msdatasets`.
        purpose: what needs it, the start of the message; empty where the command has required the extra before.
        alternative: what to do without it, the end of the hint.
        error_class: of the error.

    Raises:
        GlmtuneError: it, or a module that it imports, is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # any other ImportError is of a native library: the doctor's part
        extra = next(name for name, modules in EXTRAS.items() if package in modules)
        start = f"{purpose} needs {package}, which" if purpose else package
        if is_installed(package):
            problem = f"{start} is not complete: {summarize_error(error, 200)}."
        else:
            problem = f"{start} is not installed."
        raise error_class(problem, _describe_install(extra, alternative)) from error


def _describe_install(extra: str, alternative: str) -> str:
    command = "Install it: " + format_install(f"glmtune[{extra}]")
    return f"{command}; {alternative}" if alternative else command
