"""The file that makes the folder of an adapter or a model a reward model: the weight of its value head.

Shapes: H hidden size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glmtune.errors import ModelError, RunError
from glmtune.methods.lora_sources import require_finite_weights
from glmtune.utils.file_access import require_readable
from glmtune.utils.shell_words import quote_word

VALUE_HEAD_FILE = "value_head.safetensors"
WEIGHT_NAME = "score.weight"
_COPY_AGAIN = "Copy the whole folder of the reward model again."


def is_reward_folder(folder: Path) -> bool:
    """Whether the folder of an adapter or a model holds a value head."""
    return (folder / VALUE_HEAD_FILE).is_file()


def read_value_head(folder: Path) -> torch.Tensor:
    """The weight of a value head, (1, H) in fp32.

    Raises:
        ModelError: there is none, or a broken one.
    """
    path = folder / VALUE_HEAD_FILE
    if not path.is_file():
        raise ModelError(f"{folder}: no reward model (it has no {VALUE_HEAD_FILE}).", "Train one: --stage rm")
    try:
        state = load_file(require_readable(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cut short or corrupt ({error}).", _COPY_AGAIN) from None
    if set(state) != {WEIGHT_NAME} or state[WEIGHT_NAME].ndim != 2 or len(state[WEIGHT_NAME]) != 1:
        raise ModelError(
            f"{path}: holds {', '.join(list(state)[:4])}; one row {WEIGHT_NAME} was expected.", _COPY_AGAIN
        )
    require_finite_weights(path, state)
    return state[WEIGHT_NAME].float()


def write_value_head(folder: Path, weight_1H: torch.Tensor) -> None:
    """Write a value head beside an adapter or a model."""
    weight_1H = weight_1H.detach().to("cpu", torch.float32).contiguous()
    save_file({WEIGHT_NAME: weight_1H}, folder / VALUE_HEAD_FILE, metadata={"format": "pt"})


def require_generating(folder: Path) -> None:
    """Refuse a reward model where text is to be generated.

    Args:
        folder: of an adapter or a model.

    Raises:
        RunError: it holds a value head.
    """
    if is_reward_folder(folder):
        raise RunError(
            f"{folder}: a reward model (stage rm): it gives answers a reward and writes none itself.",
            f"Use it: glmtune score {quote_word(str(folder))} --data FILE",
        )
