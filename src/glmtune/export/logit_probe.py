"""What a model says to a few fixed texts, to be compared before and after it is written.

Shapes: N positions of all texts together, V columns of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glmtune.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TALKS = (
    ("你好，请用一句话介绍一下你自己。", "你好！我是一个人工智能助手，很高兴为你服务。"),
    ("类型#上衣*颜色#白色*风格#简约", "这件白色上衣简约大方，穿着舒适。"),
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
)
_POSITIONS = 24
"""Last positions of each text: every logit of a vocabulary of 150,000 is kept, in fp32."""

MERGE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Merged against base and adapter, by the merged weights' precision, in `Difference.relative`."""
RELOAD_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""The written folder against the model in memory. The weights are the same; only the order of sums may differ."""


@dataclass(frozen=True)
class LogitDifference:
    """How far one set of logits is from another."""

    largest: float
    mean: float
    relative: float
    """The mean difference over the standard deviation of the reference: a largest one says more of chance."""
    agreement: float
    """Share of positions with the same likeliest token."""


def make_probe_rows(family: Family, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of the fixed texts as the family renders them."""
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in _TALKS]
    return [family.encode(talk, tokenizer).input_ids for talk in talks]


@torch.no_grad()
def compute_logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Logits (N, V), in fp32 on the CPU, of the last positions of each row; rows one by one, so nothing is padded."""
    found = []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=_POSITIONS).logits
        found.append(logits[0].float().cpu())
    return torch.cat(found)


def compare_logits(found: torch.Tensor, reference: torch.Tensor) -> LogitDifference:
    """How far `found` is from `reference`, both (N, V)."""
    apart = (found - reference).abs()
    return LogitDifference(
        apart.max().item(),
        apart.mean().item(),
        (apart.mean() / reference.std()).item(),
        (found.argmax(-1) == reference.argmax(-1)).float().mean().item(),
    )
