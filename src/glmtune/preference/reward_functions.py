"""Rewards of generated answers: functions of a user's Python files."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from glmtune.config_parsing import suggest_key
from glmtune.data.conversation import Conversation
from glmtune.errors import ConfigError, join_lines
from glmtune.training.objective import StepDataError
from glmtune.utils.file_access import require_code_allowed, require_readable


@dataclass
class Answer:
    """An answer to be scored.

    Attributes:
        question: as it was read from its row, which the model answers.
        messages: of the prompt, as functions get them.
        text: of the answer.
        ids: its tokens, without the end token.
        columns: of the question's row, and its reference.
        where: the file and line of the question.
    """

    question: Conversation
    messages: list[dict[str, Any]]
    text: str
    ids: list[int]
    columns: dict[str, Any]
    where: str


class Reward(Protocol):
    """Scores answers."""

    name: str
    """In metrics and samples."""

    def load(self, device: torch.device) -> None:
        """Load what it needs, before the first step."""

    def describe(self) -> str:
        """What it is, for a message when a run starts."""

    def check(self, columns: set[str]) -> None:
        """Check that the rows have what it reads.

        Raises:
            ConfigError: they do not.
        """

    def score(self, answers: Sequence[Answer]) -> list[float | None]:
        """A number for every answer, or None: this reward does not apply.

        Raises:
            StepDataError: it fails.
        """


class FunctionReward:
    """A function `f(prompts, completions, **columns) -> list of numbers or None` of a Python file.

    Arguments are passed by keyword, each a list with an entry per answer, and only those that the function has:
    `prompts` (lists of messages), `completions` (texts), `completion_ids` (lists of token ids), `reference` and the
    columns of the rows.

    Args:
        entry: `FILE.py:FUNCTION`.

    Raises:
        ConfigError: no such file or function, or the file cannot be imported.
    """

    def __init__(self, entry: str):
        path, _, name = entry.rpartition(":")
        self.name, self._path = name, Path(path).expanduser().resolve()
        self._function = _import_function(self._path, name, entry)
        parameters = inspect.signature(self._function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._names = {p.name for p in named}
        self._required = [p.name for p in named if p.default is p.empty]
        if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
            raise ConfigError(
                f"reward {entry}: its arguments are passed by keyword, and one of its parameters is positional only.",
                "Write: def " + name + "(prompts, completions, **columns)",
            )

    def load(self, device: torch.device) -> None:
        """The function is there already."""

    def describe(self) -> str:
        """The file and the function."""
        return f"{self.name} in {self._path}, which is run as your own code"

    def check(self, columns: set[str]) -> None:
        """Check that every parameter without a default is a column of the rows."""
        for name in self._required:
            if name not in columns | {"prompts", "completions", "completion_ids"}:
                known = sorted(columns)
                raise ConfigError(
                    f"{self._path}: {self.name} needs {name!r}, which no row has (there are {', '.join(known)}).",
                    suggest_key(name, known) if known else None,
                )

    def score(self, answers: Sequence[Answer]) -> list[float | None]:
        """Call the function once with all answers."""
        try:
            result = self._call(answers)
        except (Exception, SystemExit) as error:
            raise self._explain(error, answers) from None
        return self._read_scores(result, answers)

    def _call(self, answers: Sequence[Answer]) -> Any:
        names = dict.fromkeys(name for answer in answers for name in answer.columns)
        arguments: dict[str, list[Any]] = {name: [a.columns.get(name) for a in answers] for name in names}
        arguments |= {
            "prompts": [answer.messages for answer in answers],
            "completions": [answer.text for answer in answers],
            "completion_ids": [answer.ids for answer in answers],
        }
        if not self._takes_all:
            arguments = {name: values for name, values in arguments.items() if name in self._names}
        for name in self._required:  # a column that none of these rows has
            arguments.setdefault(name, [None] * len(answers))
        return self._function(**arguments)

    def _read_scores(self, result: Any, answers: Sequence[Answer]) -> list[float | None]:
        where = f"{self._path}: {self.name}"
        if inspect.isawaitable(result):
            result.close()  # type: ignore[attr-defined]
            raise StepDataError(f"{where} is an async function.", "Write it with def: it is called and waited for.")
        try:
            values = list(result)
        except TypeError:
            raise StepDataError(
                f"{where} returned {type(result).__name__}; a list with a number for every answer is needed."
            ) from None
        if len(values) != len(answers):
            raise StepDataError(
                f"{where} returned {len(values)} numbers for {len(answers)} answers.",
                "Return a list with one number (or None) for every answer, in their order.",
            )
        return [self._read_score(value, answer) for value, answer in zip(values, answers, strict=True)]

    def _read_score(self, value: Any, answer: Answer) -> float | None:
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise StepDataError(
                f"{self._path}: {self.name} returned {value!r:.80} for an answer to {answer.where}; rewards are finite "
                "numbers, or None.",
            )
        return number

    def _explain(self, error: BaseException, answers: Sequence[Answer]) -> StepDataError:
        """The error with its line, and the first row whose answer alone raises one."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if Path(frame.filename) == self._path]
        place = f"{self._path}:{own[-1]}" if own else str(self._path)
        where = f"{len(answers)} answers"
        for answer in answers:
            try:
                self._call([answer])
            except (Exception, SystemExit):
                where = f"an answer to {answer.where}: {answer.text[:60]!r}"
                break
        return StepDataError(f"{place}: {self.name} failed with {type(error).__name__}: {join_lines(error)} ({where}).")


def _import_function(path: Path, name: str, entry: str) -> Callable[..., Any]:
    require_readable(path)
    if not path.is_file():
        raise ConfigError(f"reward {entry}: there is no file {path}.", "Give the path of a Python file.")
    require_code_allowed(path)
    module_name = f"glmtune_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look there
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends itself
        if isinstance(error, SyntaxError):
            line = error.lineno
        else:
            own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
            line = own[-1] if own else None
        place = f"{path}:{line}" if line else str(path)
        raise ConfigError(f"{place}: cannot be imported ({type(error).__name__}: {join_lines(error)}).") from None
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(f"{path}: has no function {name!r}.", suggest_key(name, known) if known else None)
    return function
