"""Reference log-probabilities on disk, beside the encoded rows: a resumed run, and one with another beta, read them.

They depend on the weights, the rows, the blocks (which decide how sums are rounded), the precision and the machine;
all of that is in the name of the file. A row takes 8 bytes, far less than its tokens beside it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from glmtune.data.batches import BlockDataset
from glmtune.data.cache import get_cache_dir
from glmtune.training.distributed import broadcast_object, count_processes, is_main_process
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import open_atomic

_VERSION = 2


def find_reference_file(identity: str, dataset: BlockDataset, batch_size: int, arguments: TrainingArguments) -> Path:
    """The file of the log-probabilities of a data set's rows.

    Args:
        identity: of the reference's weights and precision; not empty.
        dataset: blocks of rows.
        batch_size: blocks in a batch.
        arguments: of the training, for device and precision.
    """
    device = arguments.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [
        *(str(_VERSION), identity, torch.__version__, name, str(count_processes()), str(batch_size)),
        *(str(arguments.fp16), str(arguments.bf16), torch.get_float32_matmul_precision()),
        dataset.rows.digest,
        hashlib.sha256(repr(dataset.blocks).encode()).hexdigest(),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return get_cache_dir() / f"reference-{digest}.npy"


def load_reference(path: Path, rows: int) -> torch.Tensor | None:
    """The log-probabilities (rows,) in fp64; None where there are none, or the file is damaged. All processes call it
    and get the same, which the main process reads."""
    table: torch.Tensor | None = None
    if is_main_process():
        try:
            values = np.load(require_readable(path), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # no such file, none that may be read, or a damaged one
            values = np.zeros(0)
        if values.dtype == np.float64 and values.shape == (rows,) and np.isfinite(values).all():
            table = torch.from_numpy(values)
    return broadcast_object(table)


def save_reference(path: Path, table_R: torch.Tensor) -> None:
    """Keep log-probabilities; the main process writes. A disk that is full or read-only costs a later run its time."""
    if not is_main_process():
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another run that writes the same file at the same time writes the same numbers.
        with open_atomic(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, table_R.numpy(), allow_pickle=False)
