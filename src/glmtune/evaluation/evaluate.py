"""`glmtune eval`: a model's replies to every turn of a data set, their scores, and the loss of the references."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glmtune.data.sources import READING_RULES
from glmtune.errors import ConfigError, ModelError
from glmtune.evaluation.dataset import EvalData, EvalRow
from glmtune.evaluation.eval_folder import EvalFolder, Record, find_unfinished
from glmtune.evaluation.metrics import measure_variety
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.reference_loss import compute_reference_loss
from glmtune.evaluation.results import DataInfo, EvaluationResult
from glmtune.evaluation.scoring import score_reply
from glmtune.evaluation.statistics import summarize_scores
from glmtune.generation.batched import GeneratedReply, generate_batched
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling
from glmtune.models.devices import describe_device
from glmtune.utils.console import ProgressBar, count_noun, print_message, print_warning
from glmtune.utils.installation import collect_versions
from glmtune.utils.io import file_timestamp, iso_timestamp, slugify

_FAULTS = ("empty", "truncated", "repeated_tail")
_EVALS = Path("evals")
# Loss in nats from which on the perplexity exceeds a float.
_MAX_LOSS = 700
_SUFFIXES = re.compile(r"(\.(json|jsonl|csv|tsv|parquet|arrow|txt))?(\.gz)?$")


def evaluate(
    opened: LoadedModel,
    model: ModelInfo,
    data: EvalData,
    output: Path,
    sampling: Sampling,
    *,
    seed: int = 0,
    batch_size: int = 8,
    command: str = "",
    with_ids: bool = False,
) -> EvaluationResult:
    """Answer every row, score the replies, compute the loss of the references, and write the evaluation's folder.

    A folder with a part of the same evaluation is continued; a complete one is read.

    Args:
        opened: the model, in eval mode.
        model: how it is named.
        data: rendered for this model's family and tokenizer.
        output: the folder.
        sampling: how tokens are chosen.
        seed: of sampling. A row's random draws depend on it and on the row's number alone.
        batch_size: rows in a batch.
        command: that repeats the evaluation.
        with_ids: whether the tokens of replies are written too, with the one that ends them.

    Raises:
        RunError: the folder contains other replies, or cannot be written.
        ModelError: there is not even memory for one row, or replies or loss are not finite.
    """
    questions = {row.row: (row.prompt, row.reference) for row in data.rows}
    folder = EvalFolder(output, describe_settings(model, data, sampling, seed), questions)
    with folder.lock():
        finished = folder.read_finished()
        if finished is not None:
            print_message(f"{output}: evaluated before; its results are used.")
            return finished
        folder.begin()
        if answered := len(folder.records):
            print_message(
                f"{output}: {answered} of {count_noun(len(data.rows), 'row is', 'rows are')} answered already."
            )
        _answer_rows(opened, data, folder, sampling, seed, batch_size, with_ids)

        with ProgressBar("loss", len(data.encoded)) as progress:
            loss, targets = compute_reference_loss(
                *(opened.model, opened.tokenizer, opened.family, data.encoded),
                batch_size=batch_size,
                on_done=progress.add,
                warn=print_warning,
            )
        _require_finite_loss(loss, targets, data.path, opened)
        records, device = folder.records, opened.model.device
        tokens = sum(record["tokens"] for record in records)
        result = EvaluationResult(
            kind="eval",
            model=model,
            data=DataInfo(data.path, data.digest, len(records), asdict(data.rules), data.counts.as_dict(), data.notes),
            **summarize_records(records),
            loss=finite_or_none(loss),
            perplexity=finite_or_none(math.exp(loss) if loss < _MAX_LOSS else math.inf),
            loss_tokens=targets,
            sampling={**asdict(sampling), "seed": seed},
            seconds=round(folder.seconds, 3),
            tokens_per_second=round(tokens / max(folder.seconds, 1e-9), 2),
            device=describe_device(device),
            versions=collect_versions() | {name: version(name) for name in ("jieba", "rouge-chinese", "nltk")},
            command=command,
            finished_at=iso_timestamp(),
        )
        folder.write_results(result)
    return result


def _require_finite_loss(loss: float, targets: int, path: Any, opened: LoadedModel) -> None:
    """Raise if the loss of the references is NaN or infinite; no targets at all are no such loss."""
    if math.isfinite(loss) or not targets:
        return
    half = opened.model.dtype is torch.float16
    raise ModelError(
        f"{path}: the loss of the references is not finite ({loss}): the model computes NaN or infinity.",
        "It overflows in fp16: try --dtype bf16 or fp32."
        if half
        else "Its weights are damaged, or were trained with too high a learning rate.",
    )


def summarize_records(records: Sequence[Record]) -> dict[str, Any]:
    """Summarize what records alone decide: `scores`, `variety` and `counts` of an `EvaluationResult`."""
    scores = [record["scores"] for record in records]
    return {
        "scores": summarize_scores(scores).scores,
        "variety": measure_variety(record["prediction"] for record in records),
        "counts": {name: sum(row[name] > 0 for row in scores) for name in _FAULTS},
    }


def describe_settings(model: ModelInfo, data: EvalData, sampling: Sampling, seed: int) -> dict[str, Any]:
    """All that decides the replies; the batch size does not, but for rounding."""
    chosen = asdict(sampling)
    if sampling.temperature == 0:  # then these change nothing
        seed, chosen["top_p"] = 0, 1.0
    rows = hashlib.sha256(json.dumps([row.row for row in data.rows]).encode()).hexdigest()[:16]
    return {
        "data": data.path,
        "digest": data.digest,
        "reading": READING_RULES,
        "rows": f"{len(data.rows)} ({rows})",
        "rules": asdict(data.rules),
        "model": model.identity(),
        "sampling": {**chosen, "seed": seed},
    }


def default_output(target: str, data: str, run: Path | None, settings: dict[str, Any]) -> Path:
    """The default folder of an evaluation: in the run, or in `evals`, where a killed one is found again.

    Args:
        target: the model.
        data: the data set.
        run: the run, if the target is one.
        settings: from `settings_of`.
    """
    name = slugify(_SUFFIXES.sub("", Path(data).name), "data")
    if run is not None:
        return run / "eval" / name
    start = f"{slugify(Path(target).name, 'data')}-{name}-"
    earlier = find_unfinished(sorted(_EVALS.glob(f"{glob.escape(start)}*")), settings)
    return earlier or _EVALS / f"{start}{file_timestamp()}"


def check_sampling(sampling: Sampling, batch_size: int) -> None:
    """Check the options of sampling.

    Raises:
        ConfigError: a number out of its range.
    """
    ranges = {
        "max_new_tokens": (sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
        "temperature": (sampling.temperature, sampling.temperature >= 0, "at least 0"),
        "top_p": (sampling.top_p, 0 <= sampling.top_p <= 1, "from 0 to 1"),
        "batch_size": (batch_size, batch_size >= 1, "at least 1"),
    }
    for name, (value, fits, wish) in ranges.items():
        if not fits:
            raise ConfigError(f"{name} is {value}; it must be {wish}.")


def make_row_seed(seed: int, row: int) -> int:
    """The seed of a row's draws. Mixed into 32 bits, for torch's generator on CPUs takes no more of it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row}".encode()).digest()[:4], "little")


def _answer_rows(
    opened: LoadedModel,
    data: EvalData,
    folder: EvalFolder,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    with_ids: bool,
) -> None:
    """Fill the folder with the replies that it lacks, batch by batch."""
    answered = {record["row"] for record in folder.records}
    rows = [row for row in data.rows if row.row not in answered]
    with ProgressBar("replies", len(data.rows), len(answered)) as progress:
        last = time.monotonic()

        def keep(batch: list[GeneratedReply]) -> None:
            nonlocal last
            seconds = time.monotonic() - last
            folder.add([make_record(rows[reply.index], reply, opened, with_ids) for reply in batch], seconds)
            progress.add(len(batch))
            last = time.monotonic()

        generate_batched(
            *(opened.model, opened.tokenizer, opened.family, [row.prompt_ids for row in rows], sampling),
            batch_size=batch_size,
            seeds=[make_row_seed(seed, row.row) for row in rows],
            on_done=keep,
            warn=print_warning,
        )


def make_record(row: EvalRow, generated: GeneratedReply, opened: LoadedModel, with_ids: bool = False) -> Record:
    """A line of predictions.jsonl."""
    ids = [*generated.ids, *([] if generated.end is None else [generated.end])]
    prediction, scores = score_reply(generated, row.reference, row.calls, opened.family, tools=bool(row.tools))
    return {
        "row": row.row,
        "where": row.where,
        "prompt": row.prompt,
        "tools": row.tools,
        "reference": row.reference,
        "prediction": prediction,
        "scores": scores,
        "tokens": generated.tokens,
        "prompt_tokens": len(row.prompt_ids),
        "stop": generated.stop,
        **({"ids": ids} if with_ids else {}),
    }


def finite_or_none(value: float) -> float | None:
    """The value if it is finite; JSON has no other numbers."""
    return value if math.isfinite(value) else None
