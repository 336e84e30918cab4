"""A reward model as a reward of generated answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from glmtune.data.conversation import Conversation
from glmtune.errors import ConfigError, DataError, ModelError
from glmtune.preference.reward_functions import Answer
from glmtune.preference.reward_model import RewardModel, load_reward_model
from glmtune.training.objective import StepDataError


class ModelReward:
    """The reward that a reward model gives.

    Args:
        entry: of `reward`: a run of stage rm, or another folder that `load_reward_model` takes.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, entry: str):
        self.name, self._path = "reward_model", Path(entry).expanduser()
        self._model: RewardModel | None = None
        if not self._path.is_dir():
            raise ConfigError(
                f"reward {entry}: no folder of a reward model, and not FILE.py:FUNCTION.",
                "For example: --set reward=rewards.py:score, or --set reward=runs/rm",
            )

    def load(self, device: torch.device) -> None:
        """Load the model beside the one that is trained.

        Raises:
            ModelError: there is no value head, or the base cannot be loaded.
            RunError: the run is unfinished, or its base is gone or another one.
        """
        self._model = load_reward_model(self._path, device=device)

    def describe(self) -> str:
        """The folder, and what base the model has."""
        assert self._model is not None
        return f"reward model {self._path} ({self._model.family.title})"

    def check(self, columns: set[str]) -> None:
        """Every row has what it reads: a question."""

    def score(self, answers: Sequence[Answer]) -> list[float | None]:
        """The rewards of all answers. One that was cut gets the end token that the reward model knows."""
        assert self._model is not None
        rows = []
        for answer in answers:
            messages = [*answer.question.messages[:-1], {"role": "assistant", "content": answer.text}]
            rows.append(Conversation(messages, answer.where, answer.question.tools))
        # Its own precision, not that of the training step around.
        try:
            with torch.autocast(self._device_type, enabled=False):
                return list(self._model.score_rows(rows))
        except (DataError, ModelError) as error:
            raise StepDataError(f"{self._path}: the reward model cannot score: {error.message}", error.hint) from None

    @property
    def _device_type(self) -> str:
        assert self._model is not None
        return next(self._model.model.parameters()).device.type
