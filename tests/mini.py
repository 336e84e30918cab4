"""Small random weights for a published config and tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from glmtune.families import family_from_config
from glmtune.models.auto import read_published_config
from glmtune.models.glm import PublishedGlmConfig
from glmtune.models.weight_names import convert_to_published

HIDDEN, LAYERS, HEADS, FFN = 64, 2, 4, 128


def make_mini(published: Path, folder: Path) -> Path:
    """Copy the small files of a published folder, reduce the sizes in its config and add random weights."""
    shutil.copytree(published, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_attention_heads": HEADS, "torch_dtype": "float32"}
    config |= (
        {"inner_hidden_size": FFN} if "inner_hidden_size" in config else {"ffn_hidden_size": FFN, "kv_channels": 16}
    )
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    native = read_published_config(config, family_from_config(config, names=[config["_name_or_path"]]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(native)
    state = convert_to_published(model.state_dict()) if isinstance(native, PublishedGlmConfig) else model.state_dict()
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors")
    return folder
