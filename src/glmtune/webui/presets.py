"""Settings by goal: a quick try, the usual, a careful training."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "training.max_steps": "60",
        "training.learning_rate": "",
        "training.per_device_train_batch_size": "1",
        "training.gradient_accumulation_steps": "8",
        "data.max_source_length": "256",
        "data.max_target_length": "256",
        "training.eval_strategy": "no",
    },
    "usual": {},
    "careful": {
        "training.num_train_epochs": "3",
        "training.max_steps": "-1",
        "training.eval_strategy": "steps",
        "training.load_best_model_at_end": True,
        "data.eval_fraction": "0.05",
        "generate.rows": "16",
    },
}
"""Values of the form by preset; `usual` is all defaults."""
CARDS = ("6GB", "8GB", "12GB", "16GB", "24GB", "40GB", "48GB", "80GB")
"""Sizes of GPU memory that a plan can be made for."""
