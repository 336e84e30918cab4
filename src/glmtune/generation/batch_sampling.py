"""The next tokens of a batch whose rows choose by different settings.

Each row's choice depends on its own logits, settings and random numbers alone. The formulas are those of transformers'
logits processors and of `sampling.py`, so that a row gets the tokens that it would get there.

Shapes: B rows, V vocabulary, A rows that are sampled, P rows that want log probabilities.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from glmtune.generation.batch_requests import BatchRequest, TokenLogprob


class RowSampler:
    """What a row keeps between its tokens: random numbers, and the tokens it has, where its settings look at them.

    Args:
        request: with the settings.
        vocabulary: number of logits.
        device: of the logits.
    """

    def __init__(self, request: BatchRequest, vocabulary: int, device: torch.device):
        self.request = request
        self.generator: torch.Generator | None = None
        if request.temperature > 0:
            seed = random.getrandbits(31) if request.seed is None else request.seed
            self.generator = torch.Generator(device).manual_seed(seed)
        self._penalizes = bool(request.presence_penalty or request.frequency_penalty)
        self.edits_logits = self._penalizes or request.repetition_penalty != 1 or bool(request.logit_bias)
        self.edits_logits = self.edits_logits or request.constraint is not None
        self._seen_V: torch.Tensor | None = None
        self._counts_V: torch.Tensor | None = None
        if request.repetition_penalty != 1:
            self._seen_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen_V[torch.tensor(request.input_ids, device=device)] = True
        if self._penalizes:
            self._counts_V = torch.zeros(vocabulary, device=device)
        bias = request.logit_bias
        self._bias_ids = torch.tensor(list(bias), dtype=torch.long, device=device) if bias else None
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float32, device=device) if bias else None

    def edit_logits(self, logits_V: torch.Tensor) -> None:
        """Apply penalties, biases and the constraint, in place."""
        request = self.request
        if self._bias is not None:
            logits_V[self._bias_ids] += self._bias
        if self._seen_V is not None:
            penalty = request.repetition_penalty
            penalized_V = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
            logits_V.copy_(torch.where(self._seen_V, penalized_V, logits_V))
        if self._counts_V is not None:
            logits_V -= request.frequency_penalty * self._counts_V
            logits_V -= request.presence_penalty * (self._counts_V > 0)
        allowed = request.constraint.list_allowed() if request.constraint is not None else None
        if allowed is not None:  # for the tokenizer's tokens; the model may have more outputs
            allowed_V = torch.from_numpy(allowed).to(logits_V.device)
            logits_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
            logits_V[len(allowed_V) :] = -torch.inf

    def add_token(self, token: int) -> None:
        """Take note of a generated token."""
        if self.request.constraint is not None:
            self.request.constraint.advance(token)
        if self._seen_V is not None:
            self._seen_V[token] = True
        if self._counts_V is not None:
            self._counts_V[token] += 1


class BatchSampler:
    """Chooses a token for each row of a batch.

    Args:
        rows: their samplers, in order.
        device: of the logits.
    """

    def __init__(self, rows: Sequence[RowSampler], device: torch.device):
        self._edited = [(place, row) for place, row in enumerate(rows) if row.edits_logits]
        sampled = [(place, row) for place, row in enumerate(rows) if row.generator is not None]
        self._sampled = [row for _, row in sampled]
        requests = [row.request for row in self._sampled]
        self._sampled_A = torch.tensor([place for place, _ in sampled], device=device)
        self._temperature_A1 = torch.tensor([[r.temperature] for r in requests], device=device)
        self._top_p_A1 = torch.tensor([[r.top_p] for r in requests], device=device)
        self._has_top_p = any(r.top_p < 1 for r in requests)
        self._top_k = [r.top_k for r in requests]
        wanted = [(place, row.request.logprobs) for place, row in enumerate(rows) if row.request.logprobs is not None]
        self._wanted = wanted
        self._wanted_P = torch.tensor([place for place, _ in wanted], dtype=torch.long, device=device)
        self._is_all_sampled = len(sampled) == len(rows)

    def choose(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, list[int], dict[int, TokenLogprob]]:
        """Choose the next tokens.

        Args:
            logits_BV: fp32; they may be changed.

        Returns:
            The ids on the device, (B,); the same as a list, with -1 for rows whose logits are not finite; and the log
            probabilities by place of a row, for those that want them.
        """
        is_finite_B = logits_BV.sum(-1).isfinite()
        logprobs_PV = logits_BV[self._wanted_P].log_softmax(-1) if self._wanted else None
        for place, row in self._edited:
            row.edit_logits(logits_BV[place])
        if self._is_all_sampled:
            next_B = self._sample(logits_BV)
        else:
            next_B = logits_BV.argmax(-1)
            if self._sampled:
                next_B[self._sampled_A] = self._sample(logits_BV[self._sampled_A])
        ids = torch.where(is_finite_B, next_B, -1).tolist()
        return next_B, ids, self._read_logprobs(logprobs_PV, next_B) if logprobs_PV is not None else {}

    def _sample(self, scores_AV: torch.Tensor) -> torch.Tensor:
        """A draw from each row's softmax, as in `sampling.py`: the largest of logits plus Gumbel noise."""
        scores_AV = scores_AV / self._temperature_A1
        for scores_V, top_k in zip(scores_AV, self._top_k, strict=True):
            if 0 < top_k < len(scores_V):
                scores_V.masked_fill_(scores_V < scores_V.topk(top_k).values[-1], -torch.inf)
        if self._has_top_p:
            scores_AV = _keep_top_p(scores_AV, self._top_p_A1)
        noise_AV = torch.empty_like(scores_AV)
        for noise_V, row in zip(noise_AV, self._sampled, strict=True):
            noise_V.exponential_(generator=row.generator)
        return (scores_AV - noise_AV.clamp_(min=1e-30).log_()).argmax(-1)

    def _read_logprobs(self, logprobs_PV: torch.Tensor, next_B: torch.Tensor) -> dict[int, TokenLogprob]:
        chosen_P = next_B[self._wanted_P]
        own = logprobs_PV.gather(1, chosen_P[:, None])[:, 0].tolist()
        most = min(max(int(count or 0) for _, count in self._wanted), logprobs_PV.shape[-1])
        top = logprobs_PV.topk(most) if most else None
        values, ids = (top.values.tolist(), top.indices.tolist()) if top else ([], [])
        found = {}
        for number, ((place, count), token) in enumerate(zip(self._wanted, chosen_P.tolist(), strict=True)):
            best = list(zip(ids[number], values[number], strict=True))[:count] if top else []
            found[place] = TokenLogprob(token, own[number], best)
        return found


def _keep_top_p(scores_AV: torch.Tensor, top_p_A1: torch.Tensor) -> torch.Tensor:
    """Scores with -inf for what is not among the likeliest tokens that together have a share of `top_p`."""
    sorted_AV, order_AV = scores_AV.sort(descending=False)
    is_removed_AV = (sorted_AV.softmax(-1).cumsum(-1) <= 1 - top_p_A1) & (top_p_A1 < 1)
    is_removed_AV[:, -1] = False
    return scores_AV.masked_fill(is_removed_AV.scatter(1, order_AV, is_removed_AV), -torch.inf)
