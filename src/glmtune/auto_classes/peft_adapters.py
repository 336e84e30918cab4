"""Adapters that peft alone cannot put on our models: those of the published code, of old releases, and prefixes.

Other adapters are left to peft.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from peft import PeftConfig

from glmtune.methods.lora import list_module_rows, load_adapter
from glmtune.methods.lora_files import list_stored_names, read_config, read_weights
from glmtune.methods.lora_official import convert_to_native
from glmtune.methods.lora_sources import CONFIG
from glmtune.methods.lora_tokens import list_trained_ids
from glmtune.methods.ptuning import is_prefix_folder, load_prefix


def load_foreign_adapter(model: Any, path: Any, adapter_name: str, is_trainable: bool) -> Any | None:
    """Load an adapter as `PeftModel.from_pretrained` is asked to, if peft would not load all of it.

    Args:
        model: one of our models.
        path: what peft was given; hub ids are left to it.
        adapter_name: what peft is to call it.
        is_trainable: train it further.

    Returns:
        The model with the adapter; None for an adapter that peft can load.

    Raises:
        ModelError: the adapter is broken or for another model.
    """
    if not isinstance(path, str | os.PathLike) or not (Path(path) / CONFIG).is_file():
        return None
    folder = Path(path)
    if is_prefix_folder(folder):
        load_prefix(model, folder)
        # What callers read of a wrapped model; in __dict__, for it is no module.
        model.__dict__["peft_config"] = {adapter_name: PeftConfig.from_pretrained(str(folder))}
        return model.eval()
    raw = read_config(folder)
    _, native = convert_to_native(raw, read_weights(folder), list_module_rows(model))
    has_rows = list_trained_ids(raw)[-1:] < [model.config.vocab_size]  # else embedding and head must grow
    if has_rows and set(native) == set(list_stored_names(folder)):
        return None
    wrapped = load_adapter(model, folder, name=adapter_name, trainable=is_trainable)
    return wrapped if is_trainable else wrapped.eval()
