"""How well a model tells better from worse answers, and how far it is from the model that its tuning started from.

`pairs.json` beside an evaluation's `metrics.json` has the numbers, `pairs.jsonl` a line per pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from glmtune.config import PreferenceConfig, RunConfig
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError, ModelError
from glmtune.evaluation.candidates import Candidate, open_candidates
from glmtune.evaluation.dataset import EvalRow
from glmtune.evaluation.eval_folder import Record, read_predictions
from glmtune.evaluation.forgetting.forget import require_same_vocabulary
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.model_switcher import ModelSwitcher
from glmtune.evaluation.pair_data import EvalPair, PairData, make_reply_rows
from glmtune.evaluation.results import PAIR_ROWS_FILE, PAIRS_FILE, PairResult
from glmtune.evaluation.scoring import make_printable
from glmtune.evaluation.statistics import ScoreSummary, summarize_scores
from glmtune.generation.batched import run_in_batches
from glmtune.generation.load import LoadedModel
from glmtune.models.packed_attention import set_packed_attention
from glmtune.preference.answer_logps import sum_by_row
from glmtune.preference.losses import AnswerScores, compute_pair_losses
from glmtune.training.loss import step_loss
from glmtune.utils.console import ProgressBar, print_warning
from glmtune.utils.io import explain_write_errors, find_json_object, iso_timestamp, parse_dataclass, write_text


@dataclass(frozen=True)
class RewardRule:
    """What the reward of an answer is.

    Attributes:
        stage: whose reward: `dpo` (beta times the difference of the answer's log-probability from the reference's),
            `orpo` or `simpo` (beta times the log-probability per token).
        options: beta, and whether it is per token.
    """

    stage: str
    options: PreferenceConfig

    def describe(self) -> str:
        """In the words of the config."""
        options = self.options
        per_token = self.stage != "dpo" or options.length_normalized or options.loss == "ipo"
        what = "log-probability" if self.stage != "dpo" else "log-ratio to the reference"
        return f"{options.beta:g} × {what}{' per token' if per_token else ''}"


def choose_rule(config: RunConfig, has_reference: bool) -> RewardRule:
    """The reward that a model was trained by; that of DPO for other models, or without a reference SimPO's with beta 1:
    the log-probability per token."""
    if config.stage in ("orpo", "simpo"):
        return RewardRule(config.stage, config.preference)
    if has_reference:
        return RewardRule("dpo", config.preference)
    return RewardRule("simpo", replace(PreferenceConfig(), beta=1.0))


def open_reference(tuned: Candidate, reference: str | None, **options: Any) -> Candidate | None:
    """The model that log-probabilities are compared with, looked at but not loaded.

    Args:
        tuned: the model that is evaluated.
        reference: what the user named; None: what the run started from: its `adapter`, or its base.
        options: those of `open_candidates`.

    Returns:
        None for a model that nothing says the base of.

    Raises:
        ConfigError: what the run started from is not there any more.
        RunError: the reference does not read the same ids.
    """
    start = tuned.config.adapter if tuned.run else ""
    if reference is None and start and not Path(start).expanduser().exists():
        raise ConfigError(
            f"{start}: not there any more; {tuned.name} was trained from it, and rewards compare with it.",
            "Give its new place: --reference PATH",
        )
    quantization = options.pop("quantization", None) or tuned.target.quantization
    if reference:
        found = open_candidates([reference], quantization=quantization, **options)[0]
    elif start:  # an adapter of the same base, which may have been moved
        found = open_candidates([start], base=tuned.target.base, quantization=quantization, **options)[0]
    elif tuned.target.adapter is not None:
        return tuned.bare()
    elif tuned.run is not None:
        found = open_candidates([tuned.config.model.path], quantization=quantization, **options)[0]
    else:
        return None
    require_same_vocabulary(found, tuned)
    return found


@torch.no_grad()
def compute_row_logps(
    opened: LoadedModel, rows: Sequence[EncodedRow], *, batch_size: int = 8, title: str = "log-probabilities"
) -> list[tuple[float, int]]:
    """The log-probability of the targets of each row, and their number.

    Args:
        opened: the model, in eval mode.
        rows: encoded rows, each with a target.
        batch_size: rows in a batch; halved if memory is not sufficient.
        title: of the progress bar.

    Raises:
        ModelError: there is not even memory for one row, or a log-probability is not finite.
    """
    model, family = opened.model, opened.family
    set_packed_attention(model)
    collate = BlockCollator(family)
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)

    def compute(batch: Sequence[int]) -> tuple[Sequence[int], list[float], list[float]]:
        tensors = {name: value.to(model.device) for name, value in collate([[(i, rows[i])] for i in batch]).items()}
        sums_R, counts_R = sum_by_row(-step_loss(model, tensors), tensors)
        return batch, sums_R.tolist(), counts_R.tolist()

    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
    with ProgressBar(title, len(rows)) as progress:
        for batch, sums, counts in run_in_batches(order, batch_size, compute, print_warning):
            for i, total, count in zip(batch, sums, counts, strict=True):
                if not abs(total) < float("inf"):
                    raise ModelError(
                        f"{rows[i].where}: the log-probability is not finite ({total}).",
                        "The model overflows in fp16 (try --dtype bf16 or fp32), or its weights are damaged.",
                    )
                results[i] = total, int(count)
            progress.add(len(batch))
    return results


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities and numbers of tokens under one model: of the pairs, (better, worse), and of replies."""

    better: list[tuple[float, int]]
    worse: list[tuple[float, int]]
    replies: list[tuple[float, int]]


def measure_pairs(
    opened: LoadedModel, pairs: Sequence[EvalPair], replies: Sequence[EncodedRow], *, batch_size: int, name: str
) -> PairLogps:
    """Compute the log-probabilities of both answers of all pairs, and of replies; `name` says whose."""
    rows = [row for pair in pairs for row in pair.rows]
    logps = compute_row_logps(opened, [*rows, *replies], batch_size=batch_size, title=f"log-probabilities, {name}")
    return PairLogps(logps[: len(rows) : 2], logps[1 : len(rows) : 2], logps[len(rows) :])


def score_pairs(rule: RewardRule, tuned: PairLogps, reference: PairLogps | None) -> list[dict[str, float]]:
    """The scores of each pair: whether it is right (100; 50 for equal rewards), rewards, and log-probabilities.

    Args:
        rule: what a reward is.
        tuned: of the model.
        reference: of what it is compared with.
    """
    sides = []
    for name in ("better", "worse"):
        sums, counts = zip(*getattr(tuned, name), strict=True)
        base = None if reference is None else torch.tensor([total for total, _ in getattr(reference, name)]).double()
        lengths = torch.tensor(counts, dtype=torch.float64)
        sides.append(AnswerScores(torch.tensor(sums, dtype=torch.float64), lengths, base))
    losses = compute_pair_losses(rule.stage, sides[0], sides[1], rule.options)
    rewards = [losses.better_rewards_P.tolist(), losses.worse_rewards_P.tolist()]
    rows = []
    for i, (better, worse) in enumerate(zip(*rewards, strict=True)):
        is_right = 100.0 if better > worse else 50.0 if better == worse else 0.0
        row = {"accuracy": is_right}
        difference = float(sides[0].lengths_P[i] - sides[1].lengths_P[i])
        if difference:
            row["accuracy_longer" if difference > 0 else "accuracy_shorter"] = is_right
        row |= {"margin": better - worse, "better_reward": better, "worse_reward": worse}
        for name, side in zip(("better", "worse"), sides, strict=True):
            row[f"{name}_logp"] = float(side.sums_P[i])
            row[f"{name}_logp_per_token"] = float(side.means_P[i])
            if side.reference_P is not None:
                row[f"{name}_reference_logp"] = float(side.reference_P[i])
        rows.append(row)
    return rows


def estimate_kl(tuned: PairLogps, reference: PairLogps) -> tuple[ScoreSummary | None, float | None]:
    """Estimate KL(tuned || reference) from the tuned model's own replies: the mean over replies y to prompts x of
    log tuned(y|x) - log reference(y|x).

    The mean is unbiased where replies are drawn from the tuned model (temperature 1, top_p 1). Greedy replies give the
    log-ratio of what it most probably says.

    Returns:
        Nats per reply with its interval, and nats per token; None without replies.
    """
    if not tuned.replies:
        return None, None
    differences = [ours - theirs for (ours, _), (theirs, _) in zip(tuned.replies, reference.replies, strict=True)]
    tokens = sum(count for _, count in tuned.replies)
    summary = summarize_scores([{"kl": value} for value in differences]).scores["kl"]
    return summary, sum(differences) / tokens


def make_pair_result(
    rule: RewardRule,
    data: PairData,
    scores: Sequence[Mapping[str, float]],
    reference: ModelInfo | None,
    kl: tuple[ScoreSummary | None, float | None],
    settings: dict[str, Any],
    command: str,
) -> PairResult:
    """The content of pairs.json."""
    sampling = settings.get("sampling") or {}
    return PairResult(
        kind="pairs",
        pairs=len(data.pairs),
        dropped=data.dropped,
        others=data.others,
        reward=rule.describe(),
        reference=reference,
        scores=summarize_scores(scores).scores,
        kl=kl[0],
        kl_per_token=kl[1],
        is_sampled=sampling.get("temperature") == 1 and sampling.get("top_p") == 1,
        command=command,
        finished_at=iso_timestamp(),
        settings=settings,
    )


def describe_pair_settings(
    settings: dict[str, Any], rule: RewardRule, reference: Candidate | None, pairs: Sequence[EvalPair]
) -> dict[str, Any]:
    """All that decides the result: settings of the evaluation, reward, reference and number of pairs."""
    identity = None if reference is None else list(reference.identity)
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return {**plain, "reward": [rule.stage, asdict(rule.options)], "reference": identity, "pairs": len(pairs)}


def find_pair_result(folder: Path, settings: dict[str, Any]) -> PairResult | None:
    """The result in a folder, if it was made with the same settings."""
    tree = find_json_object(folder / PAIRS_FILE)
    if tree is None or tree.get("settings") != settings:
        return None
    result: PairResult = parse_dataclass(PairResult, tree)
    return result


def write_pairs(
    folder: Path, result: PairResult, pairs: Sequence[EvalPair], scores: Sequence[Mapping[str, float]]
) -> None:
    """Write pairs.jsonl, then pairs.json.

    Raises:
        RunError: they cannot be written.
    """
    lines = [
        {"where": pair.where, "prompt": pair.prompt, "better": pair.better, "worse": pair.worse, **row}
        for pair, row in zip(pairs, scores, strict=True)
    ]
    with explain_write_errors(folder):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(folder / PAIR_ROWS_FILE, make_printable(text))
        write_text(folder / PAIRS_FILE, make_printable(json.dumps(asdict(result), ensure_ascii=False, indent=2)) + "\n")


def has_reply_ids(records: Sequence[Record]) -> bool:
    """Whether the tokens of all replies are known: evaluations of earlier versions have their texts only."""
    return bool(records) and all(isinstance(record.get("ids"), list) for record in records)


def evaluate_pairs(
    switcher: ModelSwitcher,
    tuned: Candidate,
    reference: Candidate | None,
    data: PairData,
    rows: Sequence[EvalRow],
    folder: Path,
    *,
    settings: dict[str, Any],
    batch_size: int = 8,
    command: str = "",
) -> PairResult:
    """Score pairs with a model and its reference, and write both files beside the replies of a finished evaluation.

    Args:
        switcher: shows the two models one after the other.
        tuned: the model.
        reference: what log-probabilities are compared with, see `open_reference`.
        data: the pairs, at least one.
        rows: the prompts of the replies in the folder.
        folder: of the evaluation.
        settings: of the evaluation; a result with the same ones, and the same reference, is read, not computed.
        batch_size: rows in a batch.
        command: that repeats the evaluation.

    Raises:
        RunError: the files cannot be written.
        ModelError: a model cannot be loaded, or a log-probability is not finite.
    """
    rule = choose_rule(tuned.config, reference is not None)
    settings = describe_pair_settings(settings, rule, reference, data.pairs)
    earlier = find_pair_result(folder, settings)
    if earlier is not None:
        return earlier
    records = read_predictions(folder) if reference is not None else []
    if records and not has_reply_ids(records):
        print_warning(
            f"{folder}: its replies were written without their tokens, so the KL from the reference is not computed. "
            "Remove the folder to answer again."
        )
        records = []
    opened, _ = switcher.load(tuned)
    replies = make_reply_rows(opened.model, rows, records)
    ours = measure_pairs(opened, data.pairs, replies, batch_size=batch_size, name="model")
    del opened  # one model in memory at a time
    theirs, info = None, None
    kl: tuple[ScoreSummary | None, float | None] = (None, None)
    if reference is not None:
        other, info = switcher.load(reference)
        theirs = measure_pairs(other, data.pairs, replies, batch_size=batch_size, name="reference")
        kl = estimate_kl(ours, theirs)
    scores = score_pairs(rule, ours, theirs)
    result = make_pair_result(rule, data, scores, info, kl, settings, command)
    write_pairs(folder, result, data.pairs, scores)
    return result
