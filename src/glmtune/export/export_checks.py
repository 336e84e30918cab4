"""Checks of an export by logits, and the sentences that report them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glmtune.errors import ModelError
from glmtune.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BUG_HINT = "This is a fault of glmtune; please report it. Nothing was written."

_CONVERSATIONS = (
    ("你好，请用一句话介绍一下你自己。", "你好！我是一个人工智能助手，很高兴为你服务。"),
    ("类型#上衣*颜色#白色*风格#简约", "这件白色上衣简约大方，穿着舒适。"),
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
)
_POSITIONS = 24
"""Last positions of each text that are compared: all 150,000 logits of each are in memory, in fp32."""

MERGE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Merged against base and adapter, by the merged weights' precision, in `LogitDifference.relative`."""
RELOAD_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""The written folder against the model in memory. The weights are the same; only the order of sums may differ."""


@dataclass(frozen=True)
class LogitDifference:
    """How far one set of logits is from another."""

    largest: float
    mean: float
    relative: float
    """Mean difference over the standard deviation of the reference; the largest difference varies more by chance."""
    agreement: float
    """Share of positions with the same likeliest token."""


def make_probe_rows(family: Family, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of the fixed texts as the family renders them."""
    conversations = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in _CONVERSATIONS]
    return [family.encode(conversation, tokenizer).input_ids for conversation in conversations]


@torch.no_grad()
def compute_logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits (N, V), in fp32 on the CPU, of the last positions of each row; rows one by one, so nothing is padded."""
    logits_rows = []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=_POSITIONS).logits
        logits_rows.append(logits[0].float().cpu())
    return torch.cat(logits_rows)


def compare_logits(logits: torch.Tensor, reference: torch.Tensor) -> LogitDifference:
    """Measure how far `logits` are from `reference`, both (N, V)."""
    difference = (logits - reference).abs()
    return LogitDifference(
        difference.max().item(),
        difference.mean().item(),
        (difference.mean() / reference.std()).item(),
        (logits.argmax(-1) == reference.argmax(-1)).float().mean().item(),
    )


def _compare_with_base(tuned: torch.Tensor, base: torch.Tensor) -> LogitDifference:
    """Over the tokens of the base: an adapter may add some."""
    return compare_logits(tuned[:, : base.shape[1]], base)


def require_effect(tuned: torch.Tensor, base: torch.Tensor, adapter: object) -> None:
    """Require that an adapter changes the logits.

    Raises:
        ModelError: base and adapter give the logits of the base alone.
    """
    if not _compare_with_base(tuned, base).largest:
        raise ModelError(
            f"{adapter}: does not change the output of the base, so there is nothing to export.",
            "Was it trained at all? A fresh adapter changes nothing.",
        )


def require_merged(merged: torch.Tensor, tuned: torch.Tensor, base: torch.Tensor, dtype: torch.dtype) -> list[str]:
    """Compare the merged model with base and adapter.

    Args:
        merged: logits of the merged model.
        tuned: logits of base and adapter.
        base: logits of the base.
        dtype: of the merged weights.

    Raises:
        ModelError: the merged model is another one than base and adapter, or is the base.
    """
    error, effect = compare_logits(merged, tuned), _compare_with_base(tuned, base)
    allowed = MERGE_TOLERANCE[dtype]
    if not error.relative <= allowed:
        raise ModelError(
            f"The merged model is not base and adapter: logits differ by {error.relative:.1e} of their spread, "
            f"{allowed:.0e} is allowed in {_name_dtype(dtype)}.",
            "Merge in a finer precision: --dtype fp32.",
        )
    if not _compare_with_base(merged, base).largest:
        raise ModelError(
            f"Merged into {_name_dtype(dtype)}, the adapter's change is lost by rounding.",
            "Merge in a finer precision: --dtype fp32. Or train longer.",
        )
    sentences = [
        f"Merged: logits differ from base and adapter by {error.relative:.1e} of their spread ({allowed:.0e} is "
        f"allowed in {_name_dtype(dtype)}; {error.largest:.2g} at most); the adapter changes them by "
        f"{effect.relative:.1e} ({effect.largest:.2g} at most)."
    ]
    if error.mean > effect.mean / 2:
        sentences.append(
            f"Rounding to {_name_dtype(dtype)} is more than half as large as what was trained: --dtype fp32 keeps more."
        )
    return sentences


def require_same_logits(logits: torch.Tensor, reference: torch.Tensor, allowed: float, name: str) -> str:
    """Compare what was read back with what was in memory.

    Args:
        logits: of the folder, loaded again.
        reference: logits of the model that was written.
        allowed: largest `LogitDifference.relative`.
        name: of the folder in sentences.

    Raises:
        ModelError: they differ by more than the order of sums explains.
    """
    difference = compare_logits(logits, reference)
    if not difference.relative <= allowed:
        raise ModelError(
            f"Loaded again, {name} is another model than the one in memory: logits differ by "
            f"{difference.relative:.1e} of their spread, {allowed:.0e} is allowed.",
            _BUG_HINT,
        )
    exactly = "exactly" if not difference.largest else f"within {difference.largest:.2g}"
    return f"Loaded again, {name}: the same logits {exactly}."


def describe_quantization_effect(logits: torch.Tensor, reference: torch.Tensor, name: str) -> str:
    """Describe how much quantisation changes the logits (N, V)."""
    difference = compare_logits(logits, reference)
    return (
        f"{name} against full precision: logits differ by {difference.mean:.2g} on average, {difference.largest:.2g} "
        f"at most; the likeliest token is the same at {difference.agreement:.0%} of {len(logits)} positions."
    )


def require_tokenizer(written: list[list[int]], rows: list[list[int]]) -> None:
    """Require that the written tokenizer gives the same ids.

    Raises:
        ModelError: the written tokenizer gives other ids.
    """
    if written != rows:
        raise ModelError("The written tokenizer gives other ids than the base's.", _BUG_HINT)


def _name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
