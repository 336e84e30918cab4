"""Let transformers' Auto classes open published folders with our models, without a question and without their code.

Imported in the middle of transformers' own import, so everything else is imported when a folder is opened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from glmtune.run_dir import is_run

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")


def open_published_models(auto_class: Any) -> None:
    """Replace `from_pretrained` of an Auto class of models."""
    original = auto_class.from_pretrained.__func__
    gives_inner_model = auto_class.__name__ == "AutoModel"

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        path = _find_run_checkpoint(pretrained_model_name_or_path)
        is_ours = is_published(path, kwargs) or (gives_inner_model and _is_own_export(path))
        # `load_base` asks for loading information: it has inspected the folder and gives its config.
        if is_ours and not args and "output_loading_info" not in kwargs:
            from glmtune.auto_classes.published_loading import load_published_model

            return load_published_model(path, **kwargs)
        return original(cls, path, *args, **kwargs)

    _replace_method(auto_class, from_pretrained, original)


def open_published_tokenizers(auto_class: Any) -> None:
    """Replace `from_pretrained` of `AutoTokenizer`."""
    original = auto_class.from_pretrained.__func__

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        path = _find_run_checkpoint(pretrained_model_name_or_path)
        if is_published(path, kwargs) and not _has_fast_tokenizer(path):
            from glmtune.auto_classes.published_loading import load_published_tokenizer

            return load_published_tokenizer(path, **kwargs)
        return original(cls, path, *args, **kwargs)

    _replace_method(auto_class, from_pretrained, original)


def open_adapter_configs_of_runs(config_class: Any) -> None:
    """Replace `from_pretrained` of peft's configs, so that a run means its adapter."""
    original = config_class.from_pretrained.__func__

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(cls, _find_run_adapter(pretrained_model_name_or_path), *args, **kwargs)

    _replace_method(config_class, from_pretrained, original)


def open_foreign_adapters(peft_model: Any) -> None:
    """Replace `from_pretrained` of peft's `PeftModel`, for runs and adapters that peft alone does not load."""
    original = peft_model.from_pretrained.__func__

    def from_pretrained(
        cls: Any,
        model: Any,
        model_id: Any,
        adapter_name: str = "default",
        is_trainable: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        model_id = _find_run_adapter(model_id)
        if hasattr(type(model), "stream_chat"):
            from glmtune.auto_classes.peft_adapters import load_foreign_adapter

            loaded = load_foreign_adapter(model, model_id, adapter_name, is_trainable)
            if loaded is not None:
                return loaded
        return original(cls, model, model_id, adapter_name, is_trainable, *args, **kwargs)

    _replace_method(peft_model, from_pretrained, original)


def is_published(path: Any, options: dict[str, Any]) -> bool:
    """Whether a path is a run, a prefix, or a checkpoint with `"model_type": "chatglm"`.

    Anything unreadable is left to transformers.

    Args:
        path: what `from_pretrained` was given.
        options: its keywords; those of the hub are used for a hub id.
    """
    if options.get("gguf_file") or options.get("subfolder") or not isinstance(path, str | os.PathLike):
        return False
    if os.path.isdir(path):
        if _is_trained_folder(Path(path)):
            return True
        config: Any = _read_json(Path(path) / "config.json")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        from transformers import PreTrainedConfig

        hub_options = {key: options[key] for key in HUB_OPTIONS if key in options}
        try:
            config, _ = PreTrainedConfig.get_config_dict(path, **hub_options)
        except Exception:  # no such repository, no network, no config: transformers says it in its own words
            return False
    else:
        return False
    return isinstance(config, dict) and config.get("model_type") == "chatglm"


def _find_run_adapter(path: Any) -> Any:
    """The adapter of a run, where older scripts had it in the output folder itself; other paths as they are."""
    if not isinstance(path, str | os.PathLike):
        return path
    path = _find_run_checkpoint(path)
    folder, adapter = Path(path), Path(path) / "adapter"
    is_described = is_run(folder) and (adapter / "adapter_config.json").is_file()
    return str(adapter) if is_described and not (folder / "adapter_config.json").is_file() else path


def _find_run_checkpoint(path: Any) -> Any:
    """`RUN/checkpoints/checkpoint-N` for `RUN/checkpoint-N`, where older scripts saved it; other paths as they are."""
    if not isinstance(path, str | os.PathLike) or os.path.exists(path):
        return path
    folder = Path(path)
    place = folder.parent / "checkpoints" / folder.name
    is_named = folder.name.startswith("checkpoint-") and place.is_dir() and is_run(folder.parent)
    return str(place) if is_named else path


def _is_own_export(path: Any) -> bool:
    """Whether it is a model that this project wrote in transformers' layout.

    There `AutoModel` would give a model without its head, where that of the published folder can `chat`.
    """
    config = _read_json(Path(path) / "config.json") if isinstance(path, str | os.PathLike) else None
    return isinstance(config, dict) and "glmtune_family" in config


def _is_trained_folder(folder: Path) -> bool:
    """Whether it is a run of this project, a checkpoint of one, or a prefix that one trained.

    Another adapter of peft is transformers' matter.
    """
    is_ours = is_run(folder) and not (folder / "config.json").is_file()  # another tool's model may have both
    is_checkpoint = folder.parent.name == "checkpoints" and is_run(folder.parent.parent)
    return is_ours or is_checkpoint or (folder / "prefix_config.json").is_file()


def _has_fast_tokenizer(path: Any) -> bool:
    """Whether transformers opens the tokenizer by itself: tokenizer.json, and no code named for it."""
    folder = Path(path)
    settings = _read_json(folder / "tokenizer_config.json")
    return (folder / "tokenizer.json").is_file() and isinstance(settings, dict) and "auto_map" not in settings


def _read_json(path: Path) -> Any:
    from glmtune.utils.documents import DocumentError, parse_json, read_document

    try:
        return parse_json(read_document(path))
    except DocumentError:
        return None


def _replace_method(auto_class: Any, function: Any, original: Any) -> None:
    function.__doc__ = original.__doc__
    function.__qualname__ = original.__qualname__
    auto_class.from_pretrained = classmethod(function)
