"""Models prepared for P-Tuning v2, prompts, and prefixes in the published format."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

import glmtune
from glmtune.config import PTuningConfig
from glmtune.families import get_family
from glmtune.methods.ptuning import PTuning

OFFICIAL = ("chatglm", "chatglm2")
KINDS = ("plain", "proj")


def write_published_prefix(name, kind, golden, folder):
    """Write a prefix of the golden files as the published training scripts do."""
    folder.mkdir()
    torch.save(load_file(golden / name / f"prefix_{kind}.safetensors"), folder / "pytorch_model.bin")
    config = {"_name_or_path": f"THUDM/{name}-6b", "pre_seq_len": 6, "prefix_projection": kind == "proj"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def prepare_ptuning(folder, attention="sdpa", seed=1, tokens=5, projection=False, dropout=0.0, **load):
    """Load a model and prepare it for method ptuning, with random prefix values from a seed."""
    model = glmtune.load_model(folder, **load)
    model.set_attn_implementation(attention)
    torch.manual_seed(seed)
    return PTuning(PTuningConfig(tokens, projection, dropout)).prepare(model)


def compute_logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def make_prompts(name, folder, count=3):
    """Return encoded prompts of different lengths, one tensor each, and the same prompts as a left-padded batch."""
    tokenizer = glmtune.load_tokenizer(folder)
    questions = ["白色上衣", "裙", "牛仔裤和白色裙子都要"][:count]
    rows = [get_family(name).encode_prompt([{"role": "user", "content": q}], tokenizer) for q in questions]
    length = max(map(len, rows))
    padded = torch.tensor([[tokenizer.pad_token_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return [torch.tensor([row]) for row in rows], {"input_ids": padded, "attention_mask": mask}
