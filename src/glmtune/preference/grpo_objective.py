"""What a step of GRPO minimises: losses of the model's own answers, weighted by how good they are.

Shapes: N targets of a part, R rows (answers) of it, Q questions of a step and process, G answers to each, F rewards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.config import DataConfig, GrpoConfig, RunConfig, list_rewards
from glmtune.config_parsing import suggest_key
from glmtune.data.batches import Block, RowBatch, pack_rows
from glmtune.data.encoding import EncodedRow
from glmtune.data.prompt_rows import REFERENCE
from glmtune.errors import ConfigError
from glmtune.preference.answer_scoring import AnswerScorer, ScoredAnswer, open_rewards
from glmtune.preference.group_losses import compute_advantages, compute_answer_weights, compute_token_losses
from glmtune.preference.reference_weights import ReferenceWeights
from glmtune.preference.rollouts import CompletionMaker, Prompt, make_seed
from glmtune.training.best_metric import get_metric_name
from glmtune.training.distributed import any_rank, count_processes, is_main_process
from glmtune.training.generated import extract_last_turn
from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.objective import BatchHooks, ObjectiveContext, StepDataError
from glmtune.training.training_data import TrainingData
from glmtune.utils.console import print_message, print_warning

# Answers of an evaluation that are kept as samples.
_EVAL_SAMPLES = 8
# Steps in a row without any advantage after which a warning says so.
_IDLE_STEPS = 20


class RolloutBatch(RowBatch):
    """The answers of a micro-batch, in parts that are computed one after the other.

    Attributes:
        parts: batches of the collator with `advantages` and `weights` of their rows, (R,), and perhaps `old_logps` and
            `reference_logps` of their targets, (N,).
    """

    parts: list[RowBatch]


class GrpoObjective(BatchHooks):
    """The loss of generated answers; implements `glmtune.training.objective.Objective`.

    Args:
        config: of the run; its stage is `grpo`.

    Raises:
        ConfigError: a reward that cannot be loaded, or the best checkpoint is to be chosen by one that there is not.
    """

    stops_at_zero_loss = False  # equal rewards: nothing to learn from these answers
    evaluates_losses = False
    needs_reference = False  # the reference is needed for answers that do not exist yet

    def __init__(self, config: RunConfig):
        self._config, self._options = config, config.grpo
        self._rewards = open_rewards(list_rewards(config))
        weights = config.grpo.reward_weights or [1.0] * len(self._rewards)
        self._scorer = AnswerScorer(self._rewards, weights, config.data.prefix)
        metric, rewards = get_metric_name(config), [n for n in self._scorer.metric_names if n.startswith("reward")]
        if metric.startswith("reward") and metric not in rewards:  # others are refused with the rest of the config
            raise ConfigError(f"training.metric_for_best_model: there is no {metric}.", suggest_key(metric, rewards))
        self.extra_updates = config.grpo.num_iterations - 1
        divergence = ("kl",) if config.grpo.beta else ()
        clipping = ("clip_ratio",) if self.extra_updates else ()
        self.metric_names = (*self._scorer.metric_names, "reward_std", "zero_advantage", *divergence, *clipping)
        self._sums: dict[str, list[Any]] = {}  # of metrics, with their counts
        self._step = self._idle_steps = 0
        self._context: ObjectiveContext
        self._maker: CompletionMaker
        self._reference: ReferenceWeights | None = None

    # --- before the first step ---

    def compute_reference(
        self, model: nn.Module, data: TrainingData, arguments: TrainingArguments, identity: str = ""
    ) -> None:
        """There are no answers yet."""

    def start(self, context: ObjectiveContext) -> None:
        """Keep what rollouts need, and check that the rows have what the rewards read.

        Raises:
            ConfigError: a reward function needs a column that there is not.
            DataError: a question that is as long as the context window.
        """
        self._context, options = context, self._options
        questions = context.data.questions
        assert questions is not None
        columns = {name for question in questions.train.values() for name in question.columns or ()} | {REFERENCE}
        for reward in self._rewards:
            reward.check(columns)
            reward.load(context.arguments.device)
            print_message(f"Reward: {reward.describe()}.")
        print_message("Answers are sampled and trained on without dropout; those of the data are passed as reference.")
        self._report_idle_options()
        self._maker = CompletionMaker(
            context.model,
            context.tokenizer,
            context.family,
            max_new_tokens=options.max_completion_length,
            temperature=options.temperature,
            top_p=options.top_p,
            max_batch=options.max_batch,
        )
        for blocks in (context.data.train, context.data.eval):
            if blocks is not None:
                longest = max(range(len(blocks)), key=blocks.lengths.__getitem__)
                row = blocks[longest][0][1]
                self._maker.require_room(len(_get_prompt(row)), row.where)
        if options.beta:
            self._reference = ReferenceWeights(context.model, is_new=not self._config.adapter)

    def _report_idle_options(self) -> None:
        """Name options that are set and have no effect."""
        defaults, data, options = GrpoConfig(), self._config.data, self._options
        if not self.extra_updates and (options.epsilon, options.epsilon_high) != (defaults.epsilon, None):
            print_message("grpo.epsilon and epsilon_high have no effect: with one update per step nothing is clipped.")
        if data.max_target_length != DataConfig().max_target_length:
            print_message("data.max_target_length has no effect: grpo.max_completion_length limits answers.")

    # --- a step ---

    def generate_batches(self, batches: list[Any], step: int, writes_samples: bool) -> list[Any]:
        """Answer the questions of a step, score the answers, and make micro-batches of them.

        Raises:
            StepDataError: a reward function fails, or an answer cannot be generated; in all processes if in one.
        """
        context = self._context
        assert context.data.questions is not None
        self._step = step
        rows = [[row for row in batch["rows"].tolist() if row >= 0] for batch in batches]
        error: StepDataError | None = None
        groups: list[list[list[ScoredAnswer]]] = []
        try:
            groups = self._answer_questions(rows)
        except StepDataError as failure:
            error = failure
        self._raise_together(error)
        self._set_advantages([group for batch in groups for group in batch])
        if writes_samples and is_main_process() and any(groups):
            place = context.samples, step, "training"
            self._scorer.write_samples(
                *place, context.data.train.rows, context.data.questions.train, next(filter(None, groups))[0]
            )
        return self._make_batches(batches, groups)

    def split_batch(self, batch: Any) -> list[Any]:
        """The parts of a micro-batch."""
        return batch.parts if isinstance(batch, RolloutBatch) else [batch]

    def compute_losses(self, model: nn.Module, batch: dict[str, Any], settings: LossSettings | None) -> torch.Tensor:
        """Losses (R,) of the answers of a part, whose mean over the answers of the step is minimised."""
        logps_N = self._compute_logps(model, batch)
        if "advantages" not in batch:
            return logps_N  # an idle block, without targets
        ends_R = batch["row_lengths"].to(logps_N.device).cumsum(0)
        rows_N = torch.bucketize(batch["target_positions"], ends_R, right=True)
        result = compute_token_losses(
            logps_N,
            batch.get("old_logps"),
            batch.get("reference_logps"),
            batch["advantages"][rows_N],
            self._options,
        )
        if result.divergences_N is not None:
            self._add("kl", result.divergences_N.double().sum(), len(logps_N))
        if self.extra_updates:
            self._add("clip_ratio", result.is_clipped_N.double().sum(), len(logps_N))
        sums_R = torch.zeros(len(ends_R), dtype=torch.float64, device=logps_N.device)
        sums_R = sums_R.index_add(0, rows_N, result.losses_N.double())
        return sums_R * batch["weights"]

    def find_rows(self, batch: dict[str, Any], is_bad_R: torch.Tensor) -> torch.Tensor:
        """The numbers of the questions of the answers that a mask selects."""
        rows_R: torch.Tensor = batch["rows"].cpu()
        return rows_R[is_bad_R.cpu()]

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of answers of a micro-batch."""
        count: torch.Tensor = (batch["rows"] >= 0).sum()
        return count

    def pop_metrics(self, is_evaluation: bool) -> torch.Tensor:
        """See `Objective.pop_metrics`; evaluations have none."""
        pairs = [self._sums.get(name, [0.0, 0]) for name in self.metric_names]
        self._sums = {}
        device = self._context.arguments.device
        values = [
            torch.as_tensor(value, dtype=torch.float64, device=device)
            for total, count in pairs
            for value in (total, count)
        ]
        return torch.stack(values).view(-1, 2)

    # --- evaluation ---

    def evaluate(self) -> dict[str, float]:
        """Mean rewards of one answer to each evaluation question, with the same random numbers every time."""
        context, arguments = self._context, self._context.arguments
        assert context.data.eval is not None
        assert context.data.questions is not None
        store, table = context.data.eval.rows, context.data.questions.eval
        rows = sorted(row for block in context.data.eval.blocks for row in block)
        rows = rows[arguments.process_index :: count_processes()]
        error: StepDataError | None = None
        answers: list[ScoredAnswer] = []
        try:
            prompts = [_make_prompt(store[row], make_seed(arguments.seed, 0, row, 0)) for row in rows]
            answers = self._scorer.score(store, table, rows, self._maker.complete(prompts))
        except StepDataError as failure:
            error = failure
        self._raise_together(error)
        sums = {name: [0.0, 0.0] for name in self._scorer.metric_names}
        for answer in answers:
            for name, value in self._scorer.measure(answer).items():
                sums[name] = [sums[name][0] + value, sums[name][1] + 1]
        totals = self._sum_processes(*(number for pair in sums.values() for number in pair))
        if is_main_process():
            self._scorer.write_samples(context.samples, self._step, "evaluation", store, table, answers[:_EVAL_SAMPLES])
        named = zip(sums, totals[::2], totals[1::2], strict=True)
        return {name: total / count for name, total, count in named if count}

    # --- parts of a step ---

    def _raise_together(self, error: StepDataError | None) -> None:
        """Raise an error of this process or of another one; all must call it.

        Raises:
            StepDataError: there is one.
        """
        if any_rank(error is not None, self._context.arguments.device):
            raise error or StepDataError("Another process could not generate and score its answers.")

    def _answer_questions(self, rows: list[list[int]]) -> list[list[list[ScoredAnswer]]]:
        """The scored answers to the questions of each micro-batch, in groups."""
        context, count = self._context, self._options.num_generations
        assert context.data.questions is not None
        store, seed = context.data.train.rows, context.arguments.seed
        numbers = [row for batch in rows for row in batch for _ in range(count)]
        prompts = [
            _make_prompt(store[row], make_seed(seed, self._step, row, place % count))
            for place, row in enumerate(numbers)
        ]
        completions = self._maker.complete(prompts)
        answers = self._scorer.score(store, context.data.questions.train, numbers, completions)
        groups = iter([answers[start : start + count] for start in range(0, len(answers), count)])
        return [[next(groups) for _ in batch] for batch in rows]

    def _set_advantages(self, groups: list[list[ScoredAnswer]]) -> None:
        """Compare the answers of each group, and count the metrics of the step."""
        rewards_QG = torch.tensor([[a.reward for a in group] for group in groups], dtype=torch.float64)
        rewards_QG = rewards_QG.view(len(groups), self._options.num_generations)
        scale = self._options.scale_rewards
        batch_std = self._compute_batch_std(rewards_QG) if scale == "batch" else 0.0
        advantages = compute_advantages(rewards_QG, scale, batch_std)
        for group, values in zip(groups, advantages.values_QG.tolist(), strict=True):
            for answer, value in zip(group, values, strict=True):
                answer.advantage = value
                for name, number in self._scorer.measure(answer).items():
                    self._add(name, number, 1)
        zeros = int((advantages.stds_Q == 0).sum())
        self._add("reward_std", float(advantages.stds_Q.sum()), len(groups))
        self._add("zero_advantage", zeros, len(groups))
        self._idle_steps = self._idle_steps + 1 if groups and zeros == len(groups) else 0
        if self._idle_steps == _IDLE_STEPS:
            print_warning(
                f"For {_IDLE_STEPS} steps, all answers to a question had the same reward: nothing is learnt from them. "
                "Rewards that tell the answers apart, a higher grpo.temperature or more grpo.num_generations help."
            )

    def _compute_batch_std(self, rewards_QG: torch.Tensor) -> float:
        """The standard deviation of the rewards of a step in all processes."""
        present = rewards_QG[~rewards_QG.isnan()]
        count, total = self._sum_processes(len(present), float(present.sum()))
        mean = total / max(count, 1)
        (squares,) = self._sum_processes(float((present - mean).square().sum()))
        return math.sqrt(squares / max(count - 1, 1))

    def _sum_processes(self, *values: float) -> list[float]:
        """Sums over the processes; all must call it."""
        if count_processes() == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._context.arguments.device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def _make_batches(self, batches: list[Any], groups: list[list[list[ScoredAnswer]]]) -> list[RolloutBatch]:
        """Micro-batches of the answers that have an effect; of each at least one part, for the gradient's sake."""
        options = self._options
        lengths = [
            [0 if a.completion.is_cut and options.mask_truncated_completions else len(a.completion.ids) for a in batch]
            for batch in ([answer for group in batch for answer in group] for batch in groups)
        ]
        answers, tokens, used = self._sum_processes(
            sum(map(len, lengths)), sum(map(sum, lengths)), sum(any(batch) for batch in lengths)
        )
        weights = compute_answer_weights(lengths, options, round(answers), round(tokens), round(used))
        return [
            self._make_batch(batch, [answer for group in batch_groups for answer in group], batch_weights, sum(length))
            for batch, batch_groups, batch_weights, length in zip(batches, groups, weights, lengths, strict=True)
        ]

    def _make_batch(self, batch: Any, answers: list[ScoredAnswer], weights: list[float], tokens: int) -> RolloutBatch:
        context = self._context
        result = RolloutBatch(rows=batch["rows"], tokens=batch["tokens"], input_ids=batch["input_ids"])
        if not answers:  # an idle block
            result.parts = [batch]
            return result
        encoded = [self._encode(answer) for answer in answers]
        total = sum(len(row.input_ids) for row in encoded)
        result["rows"] = torch.tensor([answer.row for answer in answers])
        result["tokens"] = torch.tensor([total])
        result["input_ids"] = torch.zeros(1, total, dtype=torch.long)
        # Without an advantage and without a reference, a loss is 0 whatever the model is.
        chosen = [i for i, a in enumerate(answers) if weights[i] and (a.advantage or self._options.beta)]
        if not chosen:
            chosen = [min(range(len(answers)), key=lambda i: len(encoded[i].input_ids))]
        sizes = [len(encoded[i].input_ids) for i in chosen]
        # Without packing an answer is a part; with it, a part has as many tokens as in supervised training.
        capacity = max(self._capacity, *sizes)
        blocks = pack_rows(sizes, capacity) if self._config.data.packing else [[place] for place in range(len(sizes))]
        if self.extra_updates:
            skipped = tokens - sum(len(answers[i].completion.ids) for i in chosen)
            self._add("clip_ratio", 0.0, skipped * self._options.num_iterations)
        result.parts = []
        for block in blocks:
            places = sorted(chosen[i] for i in block)
            rows: Block = [(answers[i].row, encoded[i]) for i in places]
            part = context.data.collate([rows])
            part["advantages"] = torch.tensor([answers[i].advantage for i in places], dtype=torch.float32)
            part["weights"] = torch.tensor([weights[i] for i in places], dtype=torch.float64)
            self._add_logps(part)
            result.parts.append(part)
        return result

    @property
    def _capacity(self) -> int:
        """Tokens of a part: as many as in supervised training of rows of these lengths."""
        data, size = self._config.data, self._context.arguments.per_device_train_batch_size
        return size * ((data.max_length or data.max_source_length) + self._options.max_completion_length)

    def _encode(self, answer: ScoredAnswer) -> EncodedRow:
        """The row of a question and a generated answer."""
        row = self._context.data.train.rows[answer.row]
        sequence = self._context.family.build_row(_get_prompt(row), answer.completion.ids)
        return EncodedRow(sequence.input_ids, sequence.labels, sequence.context, row.conversation, row.where)

    @torch.no_grad()
    def _add_logps(self, part: RowBatch) -> None:
        """Log-probabilities of the tokens now, if they are trained on more than once, and under the reference."""
        if not self.extra_updates and self._reference is None:
            return
        model = self._context.model
        on_device = part.to(self._context.arguments.device)
        was_training = model.training
        model.eval()
        if self.extra_updates:
            part["old_logps"] = self._compute_logps(model, on_device)
        if self._reference is not None:
            with self._reference.use():
                part["reference_logps"] = self._compute_logps(model, on_device)
        model.train(was_training)

    def _compute_logps(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities (N,) of the targets at the temperature that they were sampled with."""
        return -step_loss(model, batch, settings=LossSettings(temperature=self._options.temperature))

    def _add(self, name: str, value: Any, count: int) -> None:
        total = self._sums.setdefault(name, [0.0, 0])
        total[0] = total[0] + value
        total[1] += count


def _make_prompt(row: EncodedRow, seed: int) -> Prompt:
    return Prompt(_get_prompt(row), seed, row.where)


def _get_prompt(row: EncodedRow) -> list[int]:
    """The ids of a question; what follows them in its row is an empty answer."""
    question = extract_last_turn(row)
    assert question is not None
    return question.prompt_ids
