"""Count what a micro-batch and a decoded token ask of a GPU, without one: launches, waits of the host, bytes moved.

    python benchmarks/fake_counts.py FAKE_CUDA [--only decode,train] [--where]

FAKE_CUDA is the folder of the simulated CUDA device: `build.sh` and `fakecuda.py`. It is compiled by g++ at the start.
Models are small and random, with the layers of each generation; a launch is an operation that is no view, and a wait
is an operation whose result the host needs before it continues. Sizes of the published models change bytes, not counts.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
FAMILIES = ("chatglm", "chatglm2")
NEW_TOKENS = 8  # fewer than a recording of the step takes; some of the first are timed for it


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one micro-batch or token."""

    launches: collections.Counter[str]
    waits: collections.Counter[str]
    places: collections.Counter[str]
    """Where the waits are."""
    moved: int
    """Bytes read and written."""

    def __str__(self) -> str:
        waits = ", ".join(f"{name} {count}" for name, count in self.waits.items())
        return f"| {self.launches.total()} | {self.waits.total()}{f' ({waits})' if waits else ''} | {self.moved:,} |"


def start_fake_device(folder: Path) -> Any:
    """Compile and import the simulated device; torch must not be imported yet."""
    out = Path(tempfile.mkdtemp(prefix="fake-cuda-"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(folder / "build.sh"), str(out)], env=environment, check=True, capture_output=True)
    os.environ |= {"FAKE_CUDA_HOOKS": str(out / "libhooks.so"), "HF_DEACTIVATE_ASYNC_LOAD": "1"}
    sys.path.insert(0, str(folder))
    import fakecuda

    return fakecuda


def take_counts(fake: Any) -> Counts:
    """The counts since the last call."""
    sync = fake.SYNC
    maps = (collections.Counter(value) for value in (sync.ops, sync.syncs, sync.where))
    counts = Counts(*maps, sum(sync.bytes.values()))
    sync.reset()
    return counts


def count_decoding(fake: Any, family: str, quantization: str | None, dtype: str, method: str = "base") -> Counts:
    """Counts of a later token of a greedy reply to one prompt, before its step would be recorded as a CUDA graph."""
    import glmtune
    from glmtune.config import PTuningConfig
    from glmtune.generation.engine import decode_tokens, pick_greedy
    from glmtune.methods.ptuning import PTuning

    model: Any = glmtune.load_model(GOLDEN / family, quantization=quantization, dtype=dtype, device="cuda")
    if method == "ptuning":
        model = PTuning(PTuningConfig(16, False, 0.0)).prepare(model)
    model.eval()
    counts: list[Counts] = []
    take_counts(fake)
    decode_tokens(
        *(model, [list(range(20, 32))], pick_greedy),
        max_new_tokens=NEW_TOKENS,
        stops=(),
        padding=3,
        on_step=lambda _: counts.append(take_counts(fake)),
    )
    return counts[NEW_TOKENS - 2]


class RandomBlocks:
    """The same block of rows, as often as needed."""

    def __init__(self, rows: list[Any]):
        self._block = list(enumerate(rows))
        self.lengths = [sum(len(row.input_ids) for row in rows)] * 64

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Any:
        return self._block


def count_training(
    fake: Any,
    family: str,
    method: str,
    precision: str,
    quantization: str | None = None,
    *,
    steps: int = 2,
    logging: int = 100,
) -> tuple[Counts, Counts]:
    """Counts of a micro-batch of three rows, forward and backward, and of an optimiser step; nothing is logged."""
    import memory as memory_benchmark
    import torch
    from models import read_shape
    from transformers import TrainingArguments

    import glmtune
    from glmtune.config import load_config
    from glmtune.data.batches import BlockCollator
    from glmtune.families import get_family
    from glmtune.methods import make_method
    from glmtune.models.packed_attention import set_packed_attention
    from glmtune.training.objective import TokenObjective
    from glmtune.training.trainer import GlmTrainer

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model: Any = glmtune.load_model(GOLDEN / family, quantization=quantization, dtype=precision, device="cuda")
    trained = make_method(load_config(None, [f"method={method}", "data=x"]), get_family(family), dtype)
    model = trained.prepare(model)
    set_packed_attention(model)
    shape = read_shape(GOLDEN / family)
    rows = []
    for length in (20, 7, 33):
        cell = memory_benchmark.Cell("tiny", "lora", batch=1, prompt=length, answer=15)
        rows.append(memory_benchmark.make_random_rows(cell, shape, 1)[0][0][1])
    counts: list[tuple[str, Counts]] = []

    class CountedTrainer(GlmTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            take_counts(fake)
            return super().get_batch_samples(*args, **kwargs)

        def _track_num_input_tokens(self, inputs: Any) -> None:
            super()._track_num_input_tokens(inputs)
            counts.append(("micro-batch", take_counts(fake)))

        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            counts.append(("step", take_counts(fake)))
            super()._maybe_log_save_evaluate(*args, **kwargs)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            logging_steps=logging,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
            fp16=precision == "fp16",
            bf16=precision == "bf16",
        )
        trainer = CountedTrainer(
            model=model,
            args=arguments,
            train_dataset=RandomBlocks(rows),
            data_collator=BlockCollator(get_family(family)),
            method=trained,
            base_info=None,
            objective=TokenObjective(),
            describe_row=str,
            describe_eval_row=str,
        )
        trainer.train()
    names = [name for name, _ in counts]
    second = names.index("step") + 1
    return counts[second][1], counts[second + 2][1]


def count_norms_once(fake: Any) -> None:
    """Count an RMSNorm as the one kernel that torch has for a real GPU (`_fused_rms_norm`): the simulated device, which
    torch does not know, gets its parts."""
    from torch.nn import functional as F

    original = F.rms_norm

    def rms_norm(x: Any, *args: Any, **kwargs: Any) -> Any:
        is_counted, fake.SYNC.on = fake.SYNC.on, False
        result = original(x, *args, **kwargs)
        fake.SYNC.on = is_counted
        fake.SYNC.ops["_fused_rms_norm"] += 1
        fake.SYNC.bytes["_fused_rms_norm"] += 2 * x.numel() * x.element_size()
        return result

    F.rms_norm = rms_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fake_cuda", type=Path, help="folder of the simulated device")
    parser.add_argument("--only", default="decode,train", help="decode, train or both")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--where", action="store_true", help="list launches by operation, and the places of waits")
    options = parser.parse_args()
    fake = start_fake_device(options.fake_cuda)
    warnings.simplefilter("ignore")
    import bitsandbytes  # noqa: F401  (before the device appears: it looks for its libraries)
    import peft  # noqa: F401
    import torch

    import glmtune
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    count_norms_once(fake)
    for family in FAMILIES:
        glmtune.load_model(GOLDEN / family, device="cpu")

    def show(what: str, counts: Counts) -> None:
        print(f"| {what} {counts}", flush=True)
        if options.where:
            print("  ", dict(counts.launches.most_common()), dict(counts.places), flush=True)

    with fake.world((8, 6)):
        for family in options.families.split(","):
            if "decode" in options.only:
                for quantization, dtype, method in (
                    (None, "fp16", "base"),
                    ("packed4", "fp16", "base"),
                    ("packed8", "fp16", "base"),
                    (None, "fp16", "ptuning"),
                ):
                    torch.manual_seed(0)
                    name = f"{family}, {quantization or dtype}, {method}: a token"
                    show(name, count_decoding(fake, family, quantization, dtype, method))
            if "train" in options.only:
                for method, precision, quantization in (
                    ("lora", "bf16", None),
                    ("lora", "fp16", None),
                    ("ptuning", "fp16", "packed4"),
                ):
                    torch.manual_seed(0)
                    batch, step = count_training(fake, family, method, precision, quantization)
                    name = f"{family}, {method}, {quantization or precision}"
                    show(f"{name}: a micro-batch", batch)
                    show(f"{name}: an optimiser step", step)


if __name__ == "__main__":
    main()
