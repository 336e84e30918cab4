"""The forgetting probe: the same general questions to a base and to a model tuned from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from glmtune.config import ForgetConfig, RunConfig
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodedRow, EncodingCounts, EncodingRules, encode_conversations
from glmtune.errors import ConfigError
from glmtune.evaluation.evaluate import finite_or_none
from glmtune.evaluation.forgetting.kl import Trace, measure_divergence, trace_tokens
from glmtune.evaluation.forgetting.probe import ProbeItem, check_reply, find_degeneration
from glmtune.evaluation.forgetting.verdict import BothSides, judge_forgetting, suggest_remedies
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.reference_loss import compute_reference_loss
from glmtune.evaluation.results import BaseAndTuned, Degeneration, ForgettingResult, ProbeAccuracy, ProbeExample
from glmtune.evaluation.scoring import make_printable
from glmtune.generation.batched import GeneratedReply, generate_batched
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling
from glmtune.utils.console import ProgressBar, print_warning

_WHOLE = EncodingRules(max_source_length=1 << 20, max_target_length=1 << 20)
"""The probe's questions are short; nothing is cut."""
_KINDS = ("loop", "unk", "empty")
_EXAMPLES = 20


@dataclass(frozen=True)
class ProbeAnswers:
    """A model's answers to the probe."""

    model: ModelInfo
    texts: list[str]
    right: list[bool]
    broken: list[str | None]
    """What is broken about a reply, see `probe.degenerate`."""
    loss: float
    """Of the references, mean per target in nats."""


@dataclass(frozen=True)
class BaseAnswers:
    """Answers of the base, which `ForgettingProbe.ask_tuned` compares with."""

    answered: ProbeAnswers
    thoughts: Trace
    """On its own replies."""


class ForgettingProbe:
    """Questions for a base and for any number of models tuned from it, one in memory at a time.

    Questions are asked without a run's `data.prefix` and answered greedily: the probe measures whether the model can
    still do what it could before it was tuned.

    Args:
        items: the questions.
        limits: for the verdict, and the longest reply.
        batch_size: questions in a batch.

    Raises:
        ConfigError: no questions.
    """

    def __init__(self, items: Sequence[ProbeItem], limits: ForgetConfig, batch_size: int):
        if not items:
            raise ConfigError("The probe has no questions.", "Leave out --limit or --questions.")
        self._items, self._limits = items, limits
        self._batch_size = batch_size

    def ask_base(self, opened: LoadedModel, model: ModelInfo) -> BaseAnswers:
        """Ask the base, and store its hidden states on its own replies.

        Raises:
            ModelError: there is not even memory for one question.
        """
        replies = self._generate(opened, model)
        rows = [self._row(opened, item, reply) for item, reply in zip(self._items, replies, strict=True)]
        with self._progress(model, "own replies") as progress:
            thoughts = trace_tokens(
                *(opened.model, opened.tokenizer, opened.family, rows),
                batch_size=self._batch_size,
                on_done=progress.add,
            )
        return BaseAnswers(self._answered(opened, model, replies), thoughts)

    def ask_tuned(
        self,
        before: BaseAnswers,
        opened: LoadedModel,
        model: ModelInfo,
        run: RunConfig | None = None,
        steps: int | None = None,
    ) -> ForgettingResult:
        """Ask a tuned model and judge it.

        Args:
            before: answers of its base.
            opened: the tuned model; the base need not be in memory any more.
            model: how it is named.
            run: the run that tuned it, for advice; None where there was none.
            steps: that the run took.

        Returns:
            The result, without `command` and `finished_at`.

        Raises:
            ModelError: there is not even memory for one question, or it is no model of the base's vocabulary.
        """
        after = self._answered(opened, model, self._generate(opened, model))
        with self._progress(model, "base's replies") as progress:
            apart = measure_divergence(
                *(opened.model, opened.tokenizer, opened.family, before.thoughts),
                batch_size=self._batch_size,
                on_done=progress.add,
            )
        base = before.answered
        sides = BothSides(
            (base.right, after.right),
            ([kind is not None for kind in base.broken], [kind is not None for kind in after.broken]),
            (before.thoughts.loss, apart.loss),
            apart.kl,
        )
        verdict, reasons = judge_forgetting(sides, self._limits)
        shares = _compute_shares(*sides.right)
        by_category, by_language = self._share_by_kind(sides.right)
        return ForgettingResult(
            kind="forgetting",
            base=base.model,
            tuned=model,
            items=len(self._items),
            loss=_make_pair(base.loss, after.loss),
            reply_loss=_make_pair(*sides.reply_loss),
            kl=finite_or_none(apart.kl),
            accuracy=ProbeAccuracy(*shares, by_category, by_language),
            degenerate=Degeneration(_count_kinds(base.broken), _count_kinds(after.broken)),
            verdict=verdict,
            reasons=reasons,
            advice=suggest_remedies(verdict, run, steps),
            thresholds=asdict(self._limits),
            examples=self._examples(base, after),
        )

    def _generate(self, opened: LoadedModel, model: ModelInfo) -> list[GeneratedReply]:
        prompts = [self._prompt(opened, item) for item in self._items]
        with self._progress(model, "questions") as progress:
            return generate_batched(
                *(opened.model, opened.tokenizer, opened.family, prompts, Sampling(self._limits.max_new_tokens)),
                batch_size=self._batch_size,
                on_done=lambda batch: progress.add(len(batch)),
                warn=print_warning,
            )

    def _answered(self, opened: LoadedModel, model: ModelInfo, replies: Sequence[GeneratedReply]) -> ProbeAnswers:
        texts = [_decode_text(opened, reply) for reply in replies]
        conversations = [
            Conversation([_make_question(item), {"role": "assistant", "content": item.reference}], item.id)
            for item in self._items
        ]
        rows = list(encode_conversations(conversations, opened.family, opened.tokenizer, _WHOLE, EncodingCounts()))
        loss, _ = compute_reference_loss(
            opened.model, opened.tokenizer, opened.family, rows, batch_size=self._batch_size
        )
        right = [check_reply(item, text) for item, text in zip(self._items, texts, strict=True)]
        return ProbeAnswers(model, texts, right, [find_degeneration(text) for text in texts], loss)

    def _prompt(self, opened: LoadedModel, item: ProbeItem) -> list[int]:
        return opened.family.encode_prompt([_make_question(item)], opened.tokenizer)

    def _row(self, opened: LoadedModel, item: ProbeItem, reply: GeneratedReply) -> EncodedRow:
        """The question and the tokens of the reply; the stop token is a target if the model wrote it."""
        prompt = self._prompt(opened, item)
        end = opened.family.get_stop_ids(opened.tokenizer)[:1] if reply.stop == "stop" else []
        row = opened.family.build_row(prompt, [*reply.ids, *end])
        return EncodedRow(row.input_ids, row.labels, row.context, reply.index, item.id)

    def _progress(self, model: ModelInfo, what: str) -> ProgressBar:
        return ProgressBar(f"probe of {model.name}: {what}", len(self._items))

    def _share_by_kind(
        self, right: tuple[Sequence[bool], Sequence[bool]]
    ) -> tuple[dict[str, BaseAndTuned], dict[str, BaseAndTuned]]:
        """Shares of right answers by category and by language."""

        def share(kinds: list[str]) -> dict[str, BaseAndTuned]:
            shares = {}
            for name in dict.fromkeys(kinds):
                base, tuned = (
                    [flag for flag, kind in zip(flags, kinds, strict=True) if kind == name] for flags in right
                )
                shares[name] = BaseAndTuned(*_compute_shares(base, tuned))
            return shares

        return share([item.category for item in self._items]), share([item.lang for item in self._items])

    def _examples(self, base: ProbeAnswers, tuned: ProbeAnswers) -> list[ProbeExample]:
        """Questions with changed answers: those that became wrong first, then degenerate ones."""

        def order(i: int) -> tuple[bool, bool]:
            return not (base.right[i] and not tuned.right[i]), tuned.broken[i] is None

        changed = [i for i in range(len(self._items)) if base.texts[i] != tuned.texts[i]]
        return [
            ProbeExample(
                self._items[i].id,
                self._items[i].prompt,
                base.texts[i],
                tuned.texts[i],
                base.right[i],
                tuned.right[i],
            )
            for i in sorted(changed, key=order)[:_EXAMPLES]
        ]


def spread_items(items: Sequence[ProbeItem], limit: int | None) -> list[ProbeItem]:
    """So many of the items, evenly over all of them, so that every kind stays in."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def _make_question(item: ProbeItem) -> dict[str, str]:
    return {"role": "user", "content": item.prompt}


def _decode_text(opened: LoadedModel, reply: GeneratedReply) -> str:
    """The reply as chat shows it; a tool call, for which there was no tool, as it was written."""
    read = opened.family.parse_reply(reply.text)
    return make_printable(reply.text.strip() if read.tool_calls else read.content)


def _compute_shares(base: Sequence[bool], tuned: Sequence[bool]) -> tuple[float, float]:
    return sum(base) / len(base), sum(tuned) / len(tuned)


def _count_kinds(broken: Sequence[str | None]) -> dict[str, int]:
    counts = Counter(broken)
    return {kind: counts[kind] for kind in _KINDS}


def _make_pair(base: float, tuned: float) -> BaseAndTuned:
    return BaseAndTuned(finite_or_none(base), finite_or_none(tuned))
