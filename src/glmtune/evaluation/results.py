"""Results of evaluations, comparisons and forgetting probes: the dataclasses that their JSON files are written from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glmtune.errors import RunError
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.statistics import ScoreDifference, ScoreSummary
from glmtune.evaluation.win_rates import WinRate
from glmtune.utils.io import parse_dataclass, read_json_object

EVALUATION_FILE, COMPARISON_FILE, FORGETTING_FILE = "metrics.json", "comparison.json", "forgetting.json"
PAIRS_FILE, PAIR_ROWS_FILE = "pairs.json", "pairs.jsonl"
"""Beside metrics.json, of an evaluation on pairs of answers: the result, and a line per pair."""
_HINT = "Run the command that wrote it again."


@dataclass(frozen=True)
class DataInfo:
    """The rows of an evaluation."""

    path: Any
    """As `data.eval` names it: a text, or a list."""
    digest: str
    rows: int
    rules: dict[str, Any]
    counts: dict[str, Any]
    """What the length limits dropped and cut."""
    notes: list[str]


@dataclass(frozen=True)
class EvaluationResult:
    """metrics.json."""

    kind: str
    model: ModelInfo
    data: DataInfo
    scores: dict[str, ScoreSummary]
    variety: dict[str, float]
    """distinct_1 and distinct_2 in percent."""
    counts: dict[str, int]
    """Replies that are empty, truncated or end in a loop."""
    loss: float | None
    """Cross-entropy of the references in nats per token; None if it is not finite."""
    perplexity: float | None
    loss_tokens: int
    sampling: dict[str, Any]
    seconds: float
    tokens_per_second: float
    device: str
    versions: dict[str, str]
    command: str
    finished_at: str
    settings: dict[str, Any] | None = None
    """All that decides the replies, to recognise the same evaluation."""

    @classmethod
    def load(cls, path: Path) -> EvaluationResult:
        """Read metrics.json; see `load_result`."""
        result: EvaluationResult = load_result(cls, path)
        return result

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        tree = asdict(self)
        if self.settings is None:
            del tree["settings"]
        return tree


@dataclass(frozen=True)
class PairResult:
    """pairs.json: how a model rewards better and worse answers."""

    kind: str
    pairs: int
    dropped: int
    """Pairs that do not fit the length limits."""
    others: int
    """Rows that are no pairs."""
    reward: str
    """What a reward is, in words."""
    reference: ModelInfo | None
    """The model that log-probabilities are compared with; None: none."""
    scores: dict[str, ScoreSummary]
    """Of rewards and log-probabilities; accuracies in percent."""
    kl: ScoreSummary | None
    """Estimate of KL(model || reference) in nats per reply, from the model's replies; None without reference."""
    kl_per_token: float | None
    is_sampled: bool
    """Whether replies were drawn from the model as it is (temperature and top_p 1): the estimate is unbiased then."""
    command: str
    finished_at: str
    settings: dict[str, Any] | None = None

    @classmethod
    def load(cls, path: Path) -> PairResult:
        """Read pairs.json; see `load_result`."""
        result: PairResult = load_result(cls, path)
        return result


@dataclass(frozen=True)
class ScorePair:
    """A model `b` compared with a model `a` by one score."""

    a: int
    b: int
    score: str
    difference: ScoreDifference


@dataclass(frozen=True)
class ChangedRow:
    """A row with the replies of all models, in their order."""

    row: int
    where: str
    prompt: Any
    reference: Any
    replies: list[Any]
    scores: list[float]
    """ROUGE-L of each reply."""


@dataclass(frozen=True)
class BaseAndTuned:
    """A number of the base and of the tuned model; None if it is not finite."""

    base: float | None
    tuned: float | None


@dataclass(frozen=True)
class ProbeAccuracy:
    """Shares of right answers, from 0 to 1."""

    base: float
    tuned: float
    by_category: dict[str, BaseAndTuned]
    by_language: dict[str, BaseAndTuned]


@dataclass(frozen=True)
class Degeneration:
    """Numbers of replies by fault (loop, unk, empty)."""

    base: dict[str, int]
    tuned: dict[str, int]


@dataclass(frozen=True)
class ProbeExample:
    """A question that the tuned model answers in another way than its base."""

    id: str
    prompt: str
    base: str
    tuned: str
    base_right: bool
    tuned_right: bool


@dataclass(frozen=True)
class ForgettingResult:
    """forgetting.json."""

    kind: str
    base: ModelInfo
    tuned: ModelInfo
    items: int
    loss: BaseAndTuned
    """Of the questions' reference answers."""
    reply_loss: BaseAndTuned
    """Of the base's own replies."""
    kl: float | None
    """Mean KL(base || tuned) per token of the base's replies in nats."""
    accuracy: ProbeAccuracy
    degenerate: Degeneration
    verdict: str
    reasons: list[str]
    advice: list[str]
    thresholds: dict[str, Any]
    examples: list[ProbeExample]
    command: str = ""
    finished_at: str = ""

    @classmethod
    def load(cls, path: Path) -> ForgettingResult:
        """Read forgetting.json; see `load_result`."""
        result: ForgettingResult = load_result(cls, path)
        return result

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return asdict(self)


@dataclass(frozen=True)
class ComparisonResult:
    """comparison.json; the first model is the baseline."""

    kind: str
    data: DataInfo
    models: list[EvaluationResult]
    pairs: list[ScorePair]
    changed: list[ChangedRow]
    forgetting: list[ForgettingResult | None]
    command: str
    finished_at: str
    judge: str | None = None
    """The reward model of the win rates."""
    win_rates: list[WinRate] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> ComparisonResult:
        """Read comparison.json; see `load_result`."""
        result: ComparisonResult = load_result(cls, path)
        return result

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        tree = asdict(self)
        tree["models"] = [model.to_dict() for model in self.models]
        if self.judge is None:
            del tree["judge"], tree["win_rates"]
        return tree


def load_result(kind: Any, path: Path) -> Any:
    """Read a result of `kind`. A value that is missing or of another type is None or empty, so that results of other
    versions, and edited ones, can be shown.

    Raises:
        RunError: the file cannot be read or holds no JSON object.
    """
    return parse_dataclass(kind, read_json_object(path, RunError, _HINT))
