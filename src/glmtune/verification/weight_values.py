"""Values of a weight file: every one finite, no matrix of zeros."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def list_tensor_names(path: Path) -> list[str]:
    """Names of the tensors of a file.

    Raises:
        ModelError: it holds something else.
    """
    from safetensors import safe_open

    from glmtune.models.weight_files import read_bin

    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as source:
            return list(source.keys())
    return list(read_bin(path, "meta"))


def find_weights_problem(path: Path, on_bytes: Callable[[int], None], allow_zeros: bool = False) -> str:
    """The first weight that is not finite, or a matrix that is zero throughout; empty if there is none.

    Args:
        path: of a weight file in good form.
        on_bytes: called with the size of each tensor once it is read.
        allow_zeros: of an adapter, whose matrices may be zero.
    """
    with closing(_read_tensors(path)) as tensors:
        for name, value in tensors:
            problem = _find_problem(value)
            on_bytes(value.numel() * value.element_size())
            if problem and not (allow_zeros and problem == _ZEROS):
                return f"{name} {problem}"
    return ""


def _find_problem(value: torch.Tensor) -> str:
    if not value.numel():
        return ""
    if not value.is_floating_point():
        is_zero = value.dim() > 1 and not bool(value.any())
        return _ZEROS if is_zero else ""
    if value.element_size() == 1:  # float8 has no aminmax
        value = value.float()
    least, most = value.aminmax()  # either is NaN if any element is
    if not bool(least.isfinite() & most.isfinite()):
        return "holds a NaN or an infinity"
    return _ZEROS if value.dim() > 1 and float(least) == 0 == float(most) else ""


_ZEROS = "is zero throughout, as in a file whose space was reserved and not filled"


def _read_tensors(path: Path) -> Generator[tuple[str, torch.Tensor], None, None]:
    from safetensors import safe_open

    from glmtune.models.weight_files import read_bin

    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as source:
            for name in source.keys():  # noqa: SIM118 (not a dict)
                yield name, source.get_tensor(name)
    else:
        yield from read_bin(path, "cpu").items()
