"""`glmtune eval`: a model's replies to every turn of a data set, their scores, and the loss of the references."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import ConfigError
from glmtune.evaluation.dataset import EvalData, EvalRow
from glmtune.evaluation.eval_folder import EvalFolder, Record, find_unfinished
from glmtune.evaluation.metrics import measure_variety
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.reference_loss import compute_reference_loss
from glmtune.evaluation.scoring import score_reply
from glmtune.evaluation.statistics import summarize_scores
from glmtune.generation.batched import GeneratedReply, generate_batched
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling
from glmtune.training.summary import collect_versions
from glmtune.utils.console import ProgressBar, print_message, print_warning

_COUNTED = ("empty", "truncated", "repeated_tail")
_EVALS = Path("evals")
# Nats beyond which a perplexity fits into no float.
_MOST = 700
_SUFFIXES = re.compile(r"(\.(json|jsonl|csv|parquet|txt))?(\.gz)?$")


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
) -> dict[str, Any]:
    """Answer every row, score the replies, take the loss of the references, and write the evaluation's folder.

    A folder that holds a part of the same evaluation is continued; one that holds all of it is read.

    Args:
        opened: the model, in eval mode.
        model: how it is named.
        data: rendered for this model's family and tokenizer.
        output: the folder.
        sampling: how tokens are chosen.
        seed: of sampling. A row's random draws depend on it and on the row's number alone.
        batch_size: rows at once.
        command: what repeats the evaluation.

    Returns:
        The content of metrics.json.

    Raises:
        RunError: the folder holds other replies, or cannot be written.
        ModelError: there is not even memory for one row.
    """
    folder = EvalFolder(output, describe_settings(model, data, sampling, seed))
    with folder.lock():
        finished = folder.read_finished()
        if finished is not None:
            print_message(f"{output}: evaluated before, read from there.")
            return finished
        folder.begin()
        if answered := len(folder.records):
            print_message(f"{output}: {answered} of {len(data.rows)} rows are answered already.")
        _answer_rows(opened, data, folder, sampling, seed, batch_size)
        metrics = {
            "kind": "eval",
            "model": model.as_dict(),
            **_described(data, folder.records),
            **_losses(opened, data, batch_size),
            "sampling": {**asdict(sampling), "seed": seed},
            **_speed(folder),
            "device": _device(opened.model.device),
            "versions": {**collect_versions(), **{name: version(name) for name in ("jieba", "rouge-chinese", "nltk")}},
            "command": command,
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        folder.write_results(metrics)
    return metrics


def _described(data: EvalData, records: Sequence[Record]) -> dict[str, Any]:
    """The part of metrics.json that tells of the data and of the replies."""
    return {
        "data": {
            "path": data.path,
            "digest": data.digest,
            "rows": len(records),
            "rules": asdict(data.rules),
            "counts": data.counts.as_dict(),
            "notes": data.notes,
        },
        **summarize_records(records),
    }


def _losses(opened: LoadedModel, data: EvalData, batch_size: int) -> dict[str, Any]:
    with ProgressBar("loss", len(data.encoded)) as progress:
        loss, targets = compute_reference_loss(
            *(opened.model, opened.tokenizer, opened.family, data.encoded),
            batch_size=batch_size,
            on_done=progress.add,
            warn=print_warning,
        )
    perplexity = math.exp(loss) if loss < _MOST else math.inf
    return {"loss": _finite(loss), "perplexity": _finite(perplexity), "loss_tokens": targets}


def _speed(folder: EvalFolder) -> dict[str, float]:
    tokens = sum(record["tokens"] for record in folder.records)
    return {
        "seconds": round(folder.seconds, 3),
        "tokens_per_second": round(tokens / max(folder.seconds, 1e-9), 2),
    }


def summarize_records(records: Sequence[Record]) -> dict[str, Any]:
    """The part of metrics.json that records alone decide: `scores`, `variety` and `counts`."""
    scores = [record["scores"] for record in records]
    return {
        "scores": {name: asdict(score) for name, score in summarize_scores(scores).scores.items()},
        "variety": measure_variety(record["prediction"] for record in records),
        "counts": {name: sum(row[name] > 0 for row in scores) for name in _COUNTED},
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
        "rows": f"{len(data.rows)} ({rows})",
        "rules": asdict(data.rules),
        "model": model.identity(),
        "sampling": {**chosen, "seed": seed},
    }


def default_output(target: str, data: str, run: Path | None, settings: dict[str, Any]) -> Path:
    """Where an evaluation goes unless told otherwise: into the run, or to `evals`, where a killed one is found again.

    Args:
        target: what is evaluated.
        data: what on.
        run: the run, if the target is one.
        settings: from `settings_of`.
    """
    name = _plain(_SUFFIXES.sub("", Path(data).name))
    if run is not None:
        return run / "eval" / name
    start = f"{_plain(Path(target).name)}-{name}-"
    earlier = find_unfinished(sorted(_EVALS.glob(f"{glob.escape(start)}*")), settings)
    return earlier or _EVALS / f"{start}{time.strftime('%Y%m%d-%H%M%S')}"


def check_sampling(sampling: Sampling, batch_size: int) -> None:
    """Raises:
    ConfigError: a number out of its range.
    """
    wanted = {
        "max_new_tokens": (sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
        "temperature": (sampling.temperature, sampling.temperature >= 0, "at least 0"),
        "top_p": (sampling.top_p, 0 <= sampling.top_p <= 1, "from 0 to 1"),
        "batch_size": (batch_size, batch_size >= 1, "at least 1"),
    }
    for name, (value, fits, wish) in wanted.items():
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
) -> None:
    """Fill the folder with the replies that it lacks, batch by batch."""
    done = {record["row"] for record in folder.records}
    rows = [row for row in data.rows if row.row not in done]
    with ProgressBar("replies", len(data.rows), len(done)) as progress:
        last = time.monotonic()

        def keep(batch: list[GeneratedReply]) -> None:
            nonlocal last
            seconds = time.monotonic() - last
            folder.add([make_record(rows[reply.index], reply, opened) for reply in batch], seconds)
            progress.add(len(batch))
            last = time.monotonic()

        generate_batched(
            *(opened.model, opened.tokenizer, opened.family, [row.prompt_ids for row in rows], sampling),
            batch_size=batch_size,
            seeds=[make_row_seed(seed, row.row) for row in rows],
            on_done=keep,
            warn=print_warning,
        )


def make_record(row: EvalRow, generated: GeneratedReply, opened: LoadedModel) -> Record:
    """A line of predictions.jsonl."""
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
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def _finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
