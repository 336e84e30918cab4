"""How the next token is chosen.

Shapes: B unfinished rows, S tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from glmtune.generation.engine import Choose


@dataclass
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy: the same reply every time."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.8
    repetition_penalty: float = 1.0


def make_sampler(sampling: Sampling, seeds: Sequence[int], device: torch.device) -> Choose:
    """Make the function that chooses the next tokens for `decode_tokens`.

    Args:
        sampling: how tokens are chosen.
        seeds: one per row; all that its draws depend on.
        device: of the logits.
    """
    steps: Any = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    draws = None
    if sampling.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
        draws = _SeededDraws(seeds, device)

    def choose(ids_BS: torch.Tensor, logits_BV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        scores_BV = steps(ids_BS, logits_BV)
        return (draws(scores_BV, rows) if draws else scores_BV).argmax(-1)

    return choose


class _SeededDraws:
    """Sampling with random numbers of each row's own, so that its neighbours do not change what it draws.

    The largest of logits plus Gumbel noise is a draw from their softmax (Maddison et al., arXiv 1411.0030).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, scores_BV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        noise_BV = torch.empty(scores_BV.shape, dtype=torch.float32, device=scores_BV.device)
        for noise_V, row in zip(noise_BV, rows, strict=True):
            noise_V.exponential_(generator=self._generators[row])
        return scores_BV - noise_BV.clamp_(min=1e-30).log_()
