"""Replies of several models judged by a reward model (`stage: rm`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from glmtune.data.conversation import Conversation
from glmtune.evaluation.eval_folder import Record
from glmtune.evaluation.scoring import make_printable
from glmtune.evaluation.win_rates import WinRate, compute_win_rate
from glmtune.methods.tuned_model import resolve_target
from glmtune.methods.value_head_file import read_value_head
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.preference.reward_model import is_exported_reward_model, load_reward_model
from glmtune.utils.console import ProgressBar
from glmtune.utils.io import explain_write_errors, write_text

REWARDS_FILE = "rewards.jsonl"
"""Beside comparison.json: `row`, `where` and `rewards`, those of the replies of all models in their order."""


def require_reward_model(path: str) -> None:
    """Require that a path is a reward model, before anything is answered.

    Raises:
        ModelError: it has no value head.
        RunError: the run is unfinished, or its base gone.
    """
    if is_exported_reward_model(Path(path)):
        return
    target = resolve_target(path)
    checkpoint = inspect_checkpoint(target.base, family=target.family, hub=target.hub)
    read_value_head(target.adapter or checkpoint.folder)


def judge_replies(
    path: str,
    models: Sequence[Sequence[Record]],
    prefixes: Sequence[str],
    folder: Path,
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    device: str | None = None,
) -> list[WinRate]:
    """Score the replies of all models, write the rewards, and compare every later model with the first.

    Args:
        path: of the reward model.
        models: the records of each model, of the same rows.
        prefixes: the text that each model's prompts have before the first question; the reward model has its own.
        folder: of the comparison.
        batch_size: replies in a batch.
        dtype: precision of the reward model.
        device: that it runs on.

    Raises:
        DataError: a prompt does not fit the reward model's generation.
        ModelError: it cannot be loaded, or one reply alone does not fit into memory.
        RunError: the rewards cannot be written.
    """
    judge = load_reward_model(path, dtype=dtype, device=device)
    conversations = [
        make_conversation(record, prefix)
        for records, prefix in zip(models, prefixes, strict=True)
        for record in records
    ]
    with ProgressBar("rewards", len(conversations)) as progress:
        scores = judge.score_rows(conversations, batch_size, progress.add)
    size = len(models[0])
    rewards = [scores[start : start + size] for start in range(0, len(scores), size)]
    lines = [
        {"row": record["row"], "where": record["where"], "rewards": [each[i] for each in rewards]}
        for i, record in enumerate(models[0])
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with explain_write_errors(folder):
        write_text(folder / REWARDS_FILE, make_printable(text))
    lengths = [[len(record["prediction"]) for record in records] for records in models]
    return [compute_win_rate(0, b, (rewards[0], rewards[b]), (lengths[0], lengths[b])) for b in range(1, len(models))]


def make_conversation(record: Record, prefix: str) -> Conversation:
    """A prompt with the reply to it, without the prefix of the model that answered."""
    messages = [dict(message) for message in record["prompt"]]
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is not None and prefix and first["content"].startswith(prefix):
        first["content"] = first["content"].removeprefix(prefix)
    answer = {"role": "assistant", "content": record["prediction"]}
    return Conversation([*messages, answer], record["where"], record.get("tools"))
