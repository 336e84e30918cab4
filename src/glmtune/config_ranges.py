"""Ranges of numbers: of the config's fields, of `training:` keys, and of the options that several commands share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from glmtune.errors import ConfigError
from glmtune.utils.documents import shorten_value

MAX_TOKENS = 2_000_000
"""Twice the context window of GLM-4-9B-1M, the longest that was published."""
MAX_SEED = 2**32 - 1
"""NumPy's limit, which transformers' `set_seed` has too."""


@dataclass(frozen=True)
class NumberRange:
    """The numbers that a setting may be. NaN and the infinities never are among them."""

    low: float
    high: float
    excludes_low: bool = False
    excludes_high: bool = False
    special: float | None = None
    """A number outside the range that means something of its own: 0 or -1 for "off"."""

    def contains(self, value: float) -> bool:
        """Whether a setting may be `value`."""
        if self.special is not None and value == self.special:
            return True
        if value != value or value in (math.inf, -math.inf):
            return False
        above = value > self.low if self.excludes_low else value >= self.low
        return above and (value < self.high if self.excludes_high else value <= self.high)

    def __str__(self) -> str:
        low = f"above {format_number(self.low)}" if self.excludes_low else f"from {format_number(self.low)}"
        to = " and " if self.excludes_low else " to "
        high = f"{to}below {format_number(self.high)}" if self.excludes_high else f"{to}{format_number(self.high)}"
        if self.excludes_low and not self.excludes_high:
            high = f" and at most {format_number(self.high)}"
        special = "" if self.special is None else f", or {format_number(self.special)}"
        return low + high + special


def format_number(value: float) -> str:
    """A limit as people read it: 2,000,000 and 0.5."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:g}"


def check_number(value: Any, allowed: NumberRange, key: str, where: str = "") -> None:
    """Require that a number is in its range; anything else than a number is not looked at.

    Args:
        value: of the setting.
        allowed: its range.
        key: the setting's name, for the message.
        where: the file or option it comes from.

    Raises:
        ConfigError: names key, value and range in one line.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or allowed.contains(value):
        return
    place = f"{where}: " if where else ""
    raise ConfigError(f"{place}{key} is {shorten_value(value)}; it must be {allowed}.")


TOKENS = NumberRange(1, MAX_TOKENS)
TEMPERATURE = NumberRange(0, 100)
PROBABILITY = NumberRange(0, 1)
SEED = NumberRange(0, MAX_SEED)
DROPOUT = NumberRange(0, 1, excludes_high=True)
PERCENT = NumberRange(0, 100)
NATS = NumberRange(0, 10**6)
ROWS = NumberRange(0, 10**9)
COUNT = NumberRange(1, 10**9)
BATCH_SIZE = NumberRange(1, 10**6)
_BETA = NumberRange(0, 1, excludes_high=True)
_STEPS = NumberRange(0, 10**9, excludes_low=True)

# Of `TrainingArguments`; keys that are absent here have no range of their own.
TRAINING_RANGES: dict[str, NumberRange] = {
    "per_device_train_batch_size": BATCH_SIZE,
    "per_device_eval_batch_size": BATCH_SIZE,
    "gradient_accumulation_steps": NumberRange(1, 10**6),
    "eval_accumulation_steps": NumberRange(1, 10**6),
    "num_train_epochs": NumberRange(0, 10**6),
    "max_steps": NumberRange(-1, 10**9),
    "learning_rate": NumberRange(0, 100),
    "warmup_steps": NumberRange(0, 10**9),
    "warmup_ratio": NumberRange(0, 1),
    "weight_decay": NumberRange(0, 100),
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": NumberRange(0, 1),
    "max_grad_norm": NumberRange(0, 10**9),
    "label_smoothing_factor": NumberRange(0, 1, excludes_high=True),
    "neftune_noise_alpha": NumberRange(0, 1000),
    "torch_empty_cache_steps": NumberRange(1, 10**9),
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_delay": NumberRange(0, 10**9),
    "save_total_limit": NumberRange(0, 10**6),
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": NumberRange(0, 256),
    "dataloader_prefetch_factor": NumberRange(1, 1024),
    "ddp_bucket_cap_mb": NumberRange(1, 10**5),
    "ddp_timeout": NumberRange(1, 10**9),  # LLaMA-Factory gives 180,000,000
    "local_rank": NumberRange(-1, 10**5),
}
