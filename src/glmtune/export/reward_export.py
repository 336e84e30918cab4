"""Export of a reward model as a folder that transformers' `AutoModelForSequenceClassification` loads: one label."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from glmtune.errors import ConfigError, ModelError
from glmtune.export.export_checks import MERGE_TOLERANCE, RELOAD_TOLERANCE, make_probe_rows, require_tokenizer
from glmtune.export.export_request import ExportRequest, ExportSource
from glmtune.export.layouts import find_main_dtype, list_pieces, write_hf_files
from glmtune.export.shards import TensorPiece, parse_shard_size, write_shards
from glmtune.methods.lora import load_adapter
from glmtune.methods.lora_merge import merge_adapter
from glmtune.methods.value_head_file import WEIGHT_NAME, read_value_head
from glmtune.models.devices import parse_device
from glmtune.models.loading import load_base
from glmtune.utils.io import find_json_object, write_json

_PADDING = ("[MASK]", "[sMASK]")
"""Tokens of the published vocabularies that no row contains."""
_ROUNDING_TOLERANCE = {**MERGE_TOLERANCE, torch.float32: RELOAD_TOLERANCE[torch.float32]}
"""Rewards as transformers computes them, the value head and they in the model's precision, against ours in fp32."""


def require_reward_export(source: ExportSource, request: ExportRequest) -> None:
    """Refuse what a reward model cannot be written as.

    Raises:
        ConfigError: a form that has no place for a value head.
        ModelError: a base for which transformers has no such class.
    """
    folder = source.adapter or source.base.folder
    if request.layout != "hf" or request.bits != 16 or request.adapter_only:
        asked = "--adapter-only" if request.adapter_only else f"--format {request.layout} --bits {request.bits}"
        raise ConfigError(
            f"{folder}: a reward model; {asked} has no place for its value head.",
            "Use --format hf --bits 16, without --adapter-only.",
        )
    if source.is_prefix:
        raise ConfigError(
            f"{folder}: a reward model with a P-Tuning prefix, for which transformers' sequence classification has no "
            "place.",
            "Use it as it is: glmtune score, or glmtune.preference.load_reward_model in Python.",
        )
    if _find_class(source) is None:
        raise ModelError(
            f"{folder}: transformers has no sequence classification for {source.base.family.title}.",
            "Use it as it is: glmtune score, or glmtune.preference.load_reward_model in Python.",
        )


def write_reward_model(source: ExportSource, request: ExportRequest, folder: Path, steps: Any) -> list[str]:
    """Write a reward model, load it with transformers and compare rewards.

    Args:
        source: checked by `require_reward_export`.
        request: the form.
        folder: to fill.
        steps: says what is done.

    Returns:
        Sentences about what was compared.

    Raises:
        ModelError: the written model gives other rewards.
    """
    weight_1H = read_value_head(source.adapter or source.base.folder)
    rows = make_probe_rows(source.base.family, source.tokenizer)
    steps.begin("Loading the model")
    model: Any = load_base(source.base, dtype=request.dtype, device=parse_device(request.device))
    messages = []
    if source.base_quantization:
        messages.append(f"Trained on the base in {source.base_quantization}; here the base is unquantised.")
    if source.adapter is not None:
        wrapped = load_adapter(model, source.adapter).eval()
        tuned = _compute_rewards(wrapped, weight_1H, rows)
        steps.begin("Merging the adapter")
        model = merge_adapter(wrapped).eval()
        merged = _compute_rewards(model, weight_1H, rows)
        messages.append(_compare(merged, tuned, MERGE_TOLERANCE[find_main_dtype(model)], "Merged"))
    rewards = _compute_rewards(model, weight_1H, rows)
    dtype = find_main_dtype(model)

    pieces = [piece for piece in list_pieces(model, "hf") if piece.name.startswith(f"{model.base_model_prefix}.")]
    pieces.append(TensorPiece(WEIGHT_NAME, (weight_1H,)))
    steps.begin("Writing", sum(piece.size for piece in pieces))
    write_shards(pieces, folder, parse_shard_size(request.max_shard_size), steps.advance)
    write_hf_files(model, source.base, source.tokenizer, folder)
    (folder / "generation_config.json").unlink()
    end_id, pad_id = _write_config(source, folder)
    rounded = _round_rewards(model, weight_1H, rows, pad_id)
    messages.append(_compare(rounded, rewards, _ROUNDING_TOLERANCE[dtype], "As transformers computes"))
    del model
    gc.collect()

    steps.begin("Loading what was written")
    written: Any = AutoModelForSequenceClassification.from_pretrained(folder, device_map={"": request.device or "cpu"})
    messages.append(_compare(_read_rewards(written.eval(), rows, pad_id), rounded, RELOAD_TOLERANCE[dtype], "Written"))
    require_tokenizer(make_probe_rows(source.base.family, AutoTokenizer.from_pretrained(folder)), rows)
    end = source.tokenizer.convert_ids_to_tokens(end_id)
    messages.append(f"Its input is a conversation with the end token {end} (id {end_id}) after the answer.")
    return messages


def _find_class(source: ExportSource) -> type | None:
    """transformers' class for the base's config, or for the config that it is derived from."""
    classes: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return next((classes[kind] for kind in type(source.base.config).__mro__ if kind in classes), None)


def _write_config(source: ExportSource, folder: Path) -> tuple[int, int]:
    """Make config.json that of a sequence classification with one label; returns the ids of end and padding.

    transformers takes the reward at the last token that is not padding, so the two must differ: in GLM-4 they are the
    same token.
    """
    tokenizer = source.tokenizer
    end_id = source.base.family.get_stop_ids(tokenizer)[0]
    pad_id: Any = tokenizer.pad_token_id
    if pad_id is None or pad_id == end_id:
        vocabulary = tokenizer.get_vocab()
        padding = next(token for token in _PADDING if token in vocabulary)
        pad_id = vocabulary[padding]
        path = folder / "tokenizer_config.json"
        write_json(path, {**(find_json_object(path) or {}), "pad_token": padding})
    kind = _find_class(source)
    assert kind is not None
    config = find_json_object(folder / "config.json") or {}
    changes = {"architectures": [kind.__name__], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    write_json(folder / "config.json", {**config, **changes, "pad_token_id": pad_id})
    return end_id, pad_id


@torch.no_grad()
def _compute_rewards(model: Any, weight_1H: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    """Rewards (R,) of a language model's layers with a value head, row by row."""
    rewards = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        hidden_1TH = base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        weight = weight_1H.to(hidden_1TH.device)
        rewards.append(nn.functional.linear(hidden_1TH[0, -1].float(), weight)[0].cpu())
    return torch.stack(rewards)


@torch.no_grad()
def _round_rewards(model: Any, weight_1H: torch.Tensor, rows: list[list[int]], pad_id: int) -> torch.Tensor:
    """`_compute_rewards` with the roundings of the written model: a padded batch, the head in the model's precision."""
    ids, mask = _pad_rows(rows, pad_id, model.device)
    hidden_RTH = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    logits_RT = nn.functional.linear(hidden_RTH, weight_1H.to(hidden_RTH))[..., 0]
    return torch.stack([logits_T[len(row) - 1] for logits_T, row in zip(logits_RT, rows, strict=True)]).float().cpu()


@torch.no_grad()
def _read_rewards(model: Any, rows: list[list[int]], pad_id: int) -> torch.Tensor:
    """Rewards (R,) of the written model, all rows in one padded batch, as its users compute them."""
    ids, mask = _pad_rows(rows, pad_id, model.device)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[:, 0].float().cpu()


def _pad_rows(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask (R, T) of rows padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def _compare(rewards: torch.Tensor, reference: torch.Tensor, allowed: float, what: str) -> str:
    """Require that rewards agree, by their own size.

    Raises:
        ModelError: they do not.
    """
    difference = (rewards - reference).abs().max().item()
    size = reference.abs().max().clamp(min=1).item()
    if not difference <= allowed * size:
        raise ModelError(
            f"{what}, the reward model gives other rewards: they differ by {difference:.1e}.",
            "Export in a finer precision: --dtype fp32.",
        )
    return f"{what}: the same rewards within {difference:.1e}."
