"""`glmtune score`: the rewards of a data set by a reward model, and how good they are.

scores.jsonl       a JSON object per row, in the order of the data
metrics.json       accuracy, margins and calibration of pairs, and all that decides them
calibration.png    of pairs: how often the model is right at which probability
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from glmtune.evaluation.calibration import compute_auc, compute_calibration, save_reliability_chart
from glmtune.evaluation.model_info import find_run
from glmtune.evaluation.output_folders import require_result_folder
from glmtune.evaluation.reward_data import RewardData, describe_answer
from glmtune.utils.io import explain_write_errors, file_timestamp, iso_timestamp, slugify, write_json, write_text

SCORES_FILE, METRICS_FILE, CHART_FILE = "scores.jsonl", "metrics.json", "calibration.png"
_SUFFIXES = re.compile(r"(\.(jsonl?|csv|parquet|txt|gz|zst))+$")


def choose_score_folder(target: str, data: str) -> Path:
    """The default folder of rewards: in the run, or in `scores`."""
    name = slugify(_SUFFIXES.sub("", Path(data).name), "data")
    run = find_run(target)
    if run is not None:
        return run.root / "score" / name
    return Path("scores") / f"{slugify(Path(target).name, 'model')}-{name}-{file_timestamp()}"


def require_score_folder(folder: Path) -> None:
    """Require that a folder is new or empty, or holds rewards.

    Raises:
        RunError: it holds something else.
    """
    require_result_folder(folder, (SCORES_FILE,), "a file of rewards")


def summarize_rewards(data: RewardData, rewards: Sequence[float]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records of the rows, and numbers over all of them.

    Args:
        data: that was scored.
        rewards: of `data.encoded`.

    Returns:
        The lines of scores.jsonl, and the part of metrics.json that is computed from rewards.
    """
    if data.kind == "pairs":
        return _summarize_pairs(data, rewards)
    records: list[dict[str, Any]] = []
    for row, reward in zip(data.encoded, rewards, strict=True):
        conversation = data.conversations[row.conversation]
        question, answer = describe_answer(conversation)
        label = {} if conversation.is_desirable is None else {"label": conversation.is_desirable}
        place = {"row": row.conversation, "where": row.where}
        records.append({**place, "reward": reward, **label, "question": question, "answer": answer})
    metrics: dict[str, Any] = {"rows": len(records), **_describe_rewards(rewards)}
    if data.kind == "labels":
        good = [one["reward"] for one in records if one["label"]]
        bad = [one["reward"] for one in records if not one["label"]]
        metrics |= {"good_rows": len(good), "bad_rows": len(bad)}
        metrics |= {"mean_good_reward": _mean(good), "mean_bad_reward": _mean(bad)}
        metrics["auc"] = compute_auc(good, bad) if good and bad else None
    return records, metrics


def write_scores(
    folder: Path, data: RewardData, records: list[dict[str, Any]], metrics: dict[str, Any], info: dict[str, Any]
) -> None:
    """Write the files of a scoring.

    Args:
        folder: checked by `require_score_folder`.
        data: that was scored.
        records: from `summarize_rewards`.
        metrics: from `summarize_rewards`.
        info: what decided the rewards, for metrics.json: model, data and command.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        write_text(folder / SCORES_FILE, "\n".join(lines) + "\n")
        limits = {"counts": data.counts.as_dict(), "notes": data.notes, "digest": data.digest}
        write_json(
            folder / METRICS_FILE,
            {"kind": data.kind, **info, **metrics, **limits, "finished_at": iso_timestamp()},
        )
        if data.kind == "pairs":
            calibration = compute_calibration([one["margin"] for one in records])
            title = f"ECE {calibration.ece:.3f}, Brier {calibration.brier:.3f}, {calibration.pairs:,} pairs"
            save_reliability_chart(calibration, folder / CHART_FILE, title)
        else:  # of an earlier scoring of pairs
            (folder / CHART_FILE).unlink(missing_ok=True)


def _summarize_pairs(data: RewardData, rewards: Sequence[float]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    records: list[dict[str, Any]] = []
    longer_better = longer_preferred = unequal = 0
    for place in range(0, len(data.encoded), 2):
        row, other = data.encoded[place], data.encoded[place + 1]
        conversation = data.conversations[row.conversation]
        assert conversation.rejected is not None
        question, better_answer = describe_answer(conversation)
        better, worse = rewards[place], rewards[place + 1]
        records.append(
            {
                "row": row.conversation,
                "where": row.where,
                "better": better,
                "worse": worse,
                "margin": better - worse,
                "question": question,
                "better_answer": better_answer,
                "worse_answer": describe_answer(conversation.rejected)[1],
            }
        )
        difference = len(row.input_ids) - len(other.input_ids)
        unequal += difference != 0
        longer_better += difference > 0
        longer_preferred += difference * (better - worse) > 0
    margins = [one["margin"] for one in records]
    metrics = {**asdict(compute_calibration(margins)), **_describe_rewards(rewards)}
    # A model that has learnt lengths alone prefers the longer answer far more often than it is the better one.
    metrics["longer_is_better"] = longer_better / unequal if unequal else None
    metrics["longer_is_preferred"] = longer_preferred / unequal if unequal else None
    return records, metrics


def _describe_rewards(rewards: Sequence[float]) -> dict[str, float]:
    values = np.asarray(rewards, dtype=np.float64)
    return {
        "mean_reward": float(values.mean()),
        "reward_deviation": float(values.std()),
        "min_reward": float(values.min()),
        "max_reward": float(values.max()),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
