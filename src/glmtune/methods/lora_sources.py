"""LoRA weights as other tools have saved them since 2023: bare files, names with the adapter's name, merged matrices.

- `chatglm-lora.pt` of the first finetune.py (mymusise/ChatGLM-Tuning) and its successors: `torch.save` of the trainable
  parameters, without a config; and that script's checkpoints, which hold the whole model with its adapter.
- Names with the adapter's name (`lora_A.default.weight`), of code that saves parameters instead of peft's selection.
- `MergedLinear` of peft before 0.3 (`enable_lora`): only some thirds of the fused matrix have an update, each with its
  own A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import ModelError
from glmtune.methods.method import StateDict
from glmtune.models.weight_files import is_finite_tensor, read_bin

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
FIRST_WEIGHTS = "chatglm-lora.pt"
_WHOLE_WEIGHTS = "pytorch_model.bin"

BARE_SUFFIXES = (".pt", ".pth", ".bin")
"""Of files without a config; safetensors came when every adapter had one."""
ASSUMED_ALPHA = 32
"""Of a file without a config: the one that the scripts which wrote such files had."""

_ASSUMED_PARTS = (True, False, True)  # query and value: what those scripts left to peft, which chose it
_NAMED = re.compile(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save)\.([^.]+)(?=\.weight|\.bias|$)"
)
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."
_WRAPPERS = ("module.", "_forward_module.", "_orig_mod.")
_COPY_AGAIN = "Copy or download the adapter again."


def find_bare_weights(path: Path) -> Path | None:
    """The file of LoRA weights that no config describes; None where there is none.

    Args:
        path: a file of weights, or a folder that holds one.

    Raises:
        ModelError: several files in the folder could be meant.
    """
    if path.is_file():
        is_described = (path.parent / CONFIG).is_file() and path.name in (WEIGHTS, OLD_WEIGHTS)
        return path if path.suffix in BARE_SUFFIXES and not is_described else None
    # With a config.json it is a base, even if such a file lies in it.
    if not path.is_dir() or (path / CONFIG).is_file() or (path / "config.json").is_file():
        return None
    for name in (OLD_WEIGHTS, FIRST_WEIGHTS):
        if (path / name).is_file():
            return path / name
    whole = path / _WHOLE_WEIGHTS
    if whole.is_file():
        return whole if any("lora_" in name for name in read_bin(whole, "meta")) else None
    files = sorted(file for suffix in BARE_SUFFIXES for file in path.glob(f"*lora*{suffix}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise ModelError(f"{path}: holds several files of LoRA weights ({names}).", f"Give one: {files[-1]}.")
    return files[0] if files else None


def read_bare_weights(file: Path) -> StateDict:
    """The weights of a bare file by their names in it; of a whole model with an adapter, those of the adapter alone.

    Raises:
        ModelError: it is cut short, or holds something other than named tensors.
    """
    state = read_bin(file, "cpu")
    names = [name for name in state if "lora_" in name]
    holds_model = any("lora_" not in name and "modules_to_save" not in name and state[name].ndim > 1 for name in state)
    return {name: state[name].clone() for name in names} if names and holds_model else state


def make_assumed_config(file: Path, state: StateDict) -> dict[str, Any]:
    """The config of a bare file: rank and modules are in the weights, alpha is not.

    Args:
        file: for messages.
        state: its weights, from `normalize_names`.

    Raises:
        ModelError: it holds no LoRA weights.
    """
    paths = [name.removesuffix(_A) for name in state if name.endswith(_A)]
    columns = {state[f"{path}{_B}"].shape[1] for path in paths if f"{path}{_B}" in state}
    if not columns:
        raise ModelError(f"{file}: holds no LoRA weights (no lora_A with its lora_B).", "Give a LoRA adapter.")
    if len(columns) > 1:
        raise ModelError(
            f"{file}: its ranks differ ({', '.join(map(str, sorted(columns)))}), and there is no {CONFIG} beside it.",
            f"Copy the {CONFIG} that was saved with it.",
        )
    return {
        "peft_type": "LORA",
        "r": columns.pop(),
        "lora_alpha": ASSUMED_ALPHA,
        "lora_dropout": 0.1,
        "target_modules": sorted({path.rpartition(".")[2] for path in paths}),
        "enable_lora": list(_ASSUMED_PARTS),  # without effect on plain matrices, see expand_merged_matrices
        "bias": "none",
    }


def normalize_names(path: Path, state: StateDict) -> StateDict:
    """Weights under the names that peft writes today.

    Args:
        path: of the file, for messages.
        state: by the names in the file.

    Raises:
        ModelError: several adapters in one file.
    """
    matches = [match for match in map(_NAMED.search, state) if match]
    adapters = {match[2] for match in matches} - {"weight", "bias"}
    if len(adapters) > 1:
        raise ModelError(
            f"{path}: holds several adapters ({', '.join(sorted(adapters))}).",
            "Save the one to use by itself, with peft's save_pretrained(selected_adapters=[...]).",
        )
    return {_normalize_name(name): value for name, value in state.items()}


def _normalize_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    if "lora_" in name and not name.startswith(_PREFIX):
        name = f"{_PREFIX}{name.removeprefix('model.') if name.startswith('model.transformer.') else name}"

    def strip(match: re.Match[str]) -> str:
        if match[2] in ("weight", "bias"):
            return match[0]
        return "" if match[1] == "modules_to_save" else f".{match[1]}"

    return _NAMED.sub(strip, name).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def expand_merged_matrices(raw: dict[str, Any], state: StateDict) -> tuple[dict[str, Any], StateDict]:
    """An adapter of peft's former `MergedLinear` as a plain one: exact, with a higher rank.

    There, A stacks the A of each part that has an update, and B their B; the update of a part is its own product. As
    one product the B lie along a diagonal of blocks, and alpha grows with the rank, so that the scale stays.

    Args:
        raw: adapter_config.json, or `make_assumed_config`.
        state: its weights.

    Raises:
        ModelError: matrices that fit neither form.
    """
    parts = raw.get("enable_lora")
    if not isinstance(parts, list) or not any(parts):
        return raw, state
    plain = {key: value for key, value in raw.items() if key not in ("enable_lora", "merge_weights")}
    plain["fan_in_fan_out"] = False
    count, expanded = sum(map(bool, parts)), dict(state)
    is_merged = False
    for name, a in state.items():
        b_name = f"{name.removesuffix(_A)}{_B}"
        if not name.endswith(_A) or b_name not in state or len(a) == state[b_name].shape[1]:
            continue
        b = state[b_name]
        rank = b.shape[1]
        if len(a) != rank * count or len(b) % count:
            raise ModelError(
                f"{name} has {len(a)} rows and its B {tuple(b.shape)}; enable_lora {parts} takes {rank * count}.",
                _COPY_AGAIN,
            )
        rows = len(b) // count
        block = b.new_zeros((rows * len(parts), len(a)))
        for number, part in enumerate(index for index, is_enabled in enumerate(parts) if is_enabled):
            source = b[number * rows : (number + 1) * rows]
            block[part * rows : (part + 1) * rows, number * rank : (number + 1) * rank] = source
        expanded[b_name], is_merged = block, True
    if is_merged:
        plain |= {"r": raw["r"] * count, "lora_alpha": raw["lora_alpha"] * count}
    return plain, expanded


def require_finite_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse trained weights that are not finite.

    Raises:
        ModelError: names the first one.
    """
    for name, value in state.items():
        if not is_finite_tensor(value):
            raise ModelError(
                f"{path}: {name} holds a NaN or an infinity, so the training that saved it had failed.",
                "Use an earlier checkpoint, or train again with a lower learning rate.",
            )


def require_usable_scale(path: Path, raw: Mapping[str, Any]) -> None:
    """Refuse a rank or alpha of adapter_config.json that no weights can be used with.

    Raises:
        ModelError: names the key and its value.
    """
    values = {"r": raw.get("r", 8), "lora_alpha": raw.get("lora_alpha", 8)}
    for pattern in ("rank_pattern", "alpha_pattern"):
        if isinstance(raw.get(pattern), dict):
            values |= {f"{pattern}: {key}": value for key, value in raw[pattern].items()}
    for key, value in values.items():
        is_rank = key.startswith("r")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (is_rank and (value < 1 or value != int(value))):
            needs = "a whole number above 0" if is_rank else "a finite number"
            raise ModelError(f"{path}: {key} is {value!r}, not {needs}.", _COPY_AGAIN)


def has_no_effect(state: StateDict) -> bool:
    """Whether every B is zero and nothing else is stored, as in an adapter that was saved before its first step."""
    others = [name for name in state if not name.endswith((_A, _B))]
    zero = [not value.any() for name, value in state.items() if name.endswith(_B)]
    return bool(zero) and all(zero) and not others
