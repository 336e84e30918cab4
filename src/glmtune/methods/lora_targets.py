"""Resolve the target modules of a config to the modules of one model.

A module can be given by its own name or by its published one (`query_key_value` is q, k and v of a model that keeps
them apart), by the full name or its end, as in peft.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from glmtune.config_parsing import suggest_key
from glmtune.errors import ConfigError
from glmtune.models.embedding_and_head import HostEmbedding
from glmtune.models.weight_names import group_by_published

ALL_LINEAR = "all-linear"
"""Stands for every linear module but the head."""


def resolve_targets(model: Any, names: list[str]) -> list[str]:
    """The names under which peft finds the linear modules that `names` means.

    Args:
        model: a base without adapters.
        names: own or published names, ends of names, or `all-linear`.

    Raises:
        ConfigError: a name that means no linear module of this model.
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings()
    matches: set[str] = set()
    for name in names:
        if name == ALL_LINEAR:
            matches |= {path for path in linear if model.get_submodule(path) is not head}
        else:
            matches |= _find_modules(name, linear, "lora.targets")
    return shorten_names(matches, linear)


def resolve_modules_to_save(model: Any, names: list[str], targets: list[str]) -> list[str]:
    """Full paths of the modules that are trained whole.

    Args:
        model: a base without adapters.
        names: own or published names, or ends of names.
        targets: from `resolve_targets`.

    Raises:
        ConfigError: an unknown name, a module that has an adapter already, or one that cannot be trained whole.
    """
    on_host = [path for path, module in model.named_modules() if isinstance(module, HostEmbedding)]
    for path in on_host:
        if any(_is_or_ends(path, name) or group_by_published([path]).keys() & {name} for name in names):
            raise ConfigError(
                f"lora.modules_to_save: {path} is kept on the host, so it cannot be trained.",
                "Leave out model.embedding_on_host.",
            )
    paths = [path for path, module in model.named_modules() if dict(module.named_parameters(recurse=False))]
    matches = sorted({path for name in names for path in _find_modules(name, paths, "lora.modules_to_save")})
    for path in matches:
        if any(_is_or_ends(path, target) for target in targets):
            raise ConfigError(
                f"lora.modules_to_save: {path} is in lora.targets too.",
                "A module is adapted or trained whole, not both.",
            )
        _require_trainable(model, path)
    return matches


def _require_trainable(model: Any, path: str) -> None:
    module = model.get_submodule(path)
    if not all(parameter.is_floating_point() for parameter in module.parameters()):
        raise ConfigError(
            f"lora.modules_to_save: {path} is quantised, so it cannot be trained whole.",
            "Name it in lora.targets, or leave out model.quantization and model.head_quantization.",
        )
    tied = getattr(model.config, "tie_word_embeddings", False)
    if tied and module in (model.get_input_embeddings(), model.get_output_embeddings()):
        raise ConfigError(
            f"lora.modules_to_save: this model's embeddings and head are one matrix; {path} alone would untie them.",
            "Leave it out.",
        )


def shorten_names(paths: Collection[str], known: Collection[str]) -> list[str]:
    """Names that mean exactly `paths` among `known`: their last parts where that is enough, else the whole paths."""
    last = {path.rpartition(".")[2] for path in paths}
    covered = {path for path in known if path.rpartition(".")[2] in last}
    return sorted(last) if covered == set(paths) else sorted(paths)


def _find_modules(name: str, paths: list[str], key: str) -> set[str]:
    own = {path for path in paths if _is_or_ends(path, name)}
    if own:
        return own
    published = group_by_published(paths)
    matches = {native for path, natives in published.items() if _is_or_ends(path, name) for native in natives}
    if not matches:
        natives = sorted({path.rpartition(".")[2] for path in paths})
        choices = sorted({*natives, *(path.rpartition(".")[2] for path in published)})
        hint = suggest_key(name, choices)
        more = "" if hint.startswith("Known") else f" Modules here: {', '.join(natives)}."
        raise ConfigError(f"{key}: no module {name!r} in this model.", hint + more)
    return matches


def _is_or_ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
