"""Peak memory and speed of training by method, length and gradient checkpointing, on random models.

    PYTHONPATH=src python benchmarks/memory.py [--shape reference] [--json OUT]
    PYTHONPATH=src python benchmarks/memory.py --device cuda --shape 6b

Needs no files: models are built on the device, rows are random ids, all of them as long as they may be. Each cell is a
process of its own that runs glmtune's method and trainer for a few steps. `--shape 6b` runs the settings that memory
figures were published for, and shows those beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import synchronize
from models import SHAPES, build, published_config
from sitting import MIB, circumstances, finish, in_turn, middle, parser, run_json, small_print, source_path, table
from work import Work, step_flops


@dataclass(frozen=True)
class Cell:
    """One combination; rows have `prompt` + `answer` tokens."""

    shape: str
    method: str
    quantization: str | None = None
    batch: int = 4
    accumulation: int = 1
    prompt: int = 64
    answer: int = 64
    checkpointing: bool = False
    precision: str = "fp32"
    published: str = ""
    """What others report for the same settings."""

    @property
    def name(self) -> str:
        held = f" on {self.quantization}" if self.quantization else ""
        batch = f"{self.batch}" if self.accumulation == 1 else f"{self.batch} x {self.accumulation}"
        rows = f"batch {batch}, {self.prompt}+{self.answer} tokens"
        return f"{self.shape}, {self.method}{held}, {rows}{', checkpointing' * self.checkpointing}"


def published_cells(precision: str) -> list[Cell]:
    """Settings with published figures: the repositories' own scripts on GPUs (ChatGLM3's finetune demo, its tables for
    LoRA and P-Tuning; ChatGLM-6B's ptuning README), and the card that QLoRA was shown to fit on."""
    demo: dict[str, Any] = {"batch": 4, "prompt": 256, "answer": 512, "checkpointing": True, "precision": precision}
    first: dict[str, Any] = {"batch": 1, "accumulation": 16, "prompt": 64, "answer": 64, "precision": precision}
    return [
        Cell("chatglm3-6b", "lora", **demo, published="14,082 MiB"),
        Cell("chatglm3-6b", "lora", **{**demo, "checkpointing": False}),
        Cell("chatglm3-6b", "lora", "nf4", **demo, published="a 12 GB card"),
        Cell("chatglm3-6b", "ptuning", **demo, published="18,426 MiB"),
        Cell("chatglm-6b", "ptuning", **first, published="13.5 GB"),
        Cell("chatglm-6b", "ptuning", "packed4", **first, published="6.7 GB"),
    ]


def grid(shape: str, lengths: list[int], precision: str) -> list[Cell]:
    """Every method by every length, with and without gradient checkpointing."""
    methods = (("lora", None), ("lora", "nf4"), ("ptuning", "packed4"), ("full", None))
    return [
        Cell(
            shape, method, held, prompt=length // 2, answer=length - length // 2, checkpointing=on, precision=precision
        )
        for (method, held), length, on in itertools.product(methods, lengths, (False, True))
    ]


# --- one cell, in a process of its own ---


def measure_cell(cell: Cell, device: str, steps: int) -> dict[str, Any]:
    """Train `steps` optimiser steps; the first warms up and is not timed.

    Returns:
        Bytes before and at the peak of training, tokens per second, and the last loss.
    """
    import torch

    from glmtune.models.packed_attention import separate_rows

    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[cell.precision]
    shape = SHAPES[cell.shape]
    with tempfile.TemporaryDirectory() as folder:
        arguments, method = _settings(cell, shape, precision, steps, Path(folder), device)
        load_in = method.load_dtype(precision)
        model = build(shape, load_in, device, cell.quantization)
        separate_rows(model)
        model = method.prepare(model)
        clock = _Clock(device)
        trainer = _trainer(model, method, arguments, _random_rows(cell, shape, steps), clock.callback(), shape.family)
        _reset_peak(device)
        before = _memory(device)["now"]
        trainer.train()
    seconds = clock.seconds()
    per_step = cell.batch * cell.accumulation
    tokens = per_step * (cell.prompt + cell.answer)
    flops = per_step * step_flops(shape, cell.method, Work(), cell.prompt + cell.answer, cell.answer)
    return {
        "before_bytes": before,
        **_memory(device),
        "tokens_per_second": tokens / middle(seconds),
        "flops_per_second": flops / middle(seconds),
        "step_seconds": seconds,
        "loss": next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry),
    }


def _settings(cell: Cell, shape: Any, precision: Any, steps: int, folder: Path, device: str) -> tuple[Any, Any]:
    """The trainer's arguments and the method, as `glmtune train` makes them from its config."""
    import torch

    from glmtune.config import RunConfig
    from glmtune.config_parsing import from_tree
    from glmtune.families import get_family
    from glmtune.methods import method_of
    from glmtune.run_dir import RunDir
    from glmtune.training.arguments import training_arguments

    tree = {
        "model": {"path": "random", "precision": cell.precision, "quantization": cell.quantization},
        "data": {"train": "random", "packing": False},
        "method": cell.method,
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": cell.batch,
            "gradient_accumulation_steps": cell.accumulation,
            "activation_checkpointing": cell.checkpointing,
            "train_sampling_strategy": "sequential",
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": device == "cpu",
        },
    }
    config = from_tree(RunConfig, tree, "benchmarks/memory.py")
    arguments = training_arguments(config, RunDir(folder / "run"), precision)
    mixed = precision if arguments.bf16 or arguments.fp16 else torch.float32
    return arguments, method_of(config, get_family(shape.family), mixed)


class _Rows:
    """Random rows, all of the same length, as the trainer wants a data set."""

    def __init__(self, rows: list[Any]):
        self._rows = rows
        self.lengths = [len(row.input_ids) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[tuple[int, Any]]:
        return [(index, self._rows[index])]


def _random_rows(cell: Cell, shape: Any, steps: int) -> _Rows:
    """Ids of no meaning. A prompt of ChatGLM-6B ends in [gMASK] and <sop>, for its model looks for them."""
    from glmtune.data.encoding import EncodedRow

    chance, config = random.Random(0), published_config(shape)
    marks = [config["gmask_token_id"], config["bos_token_id"]] if "gmask_token_id" in config else []
    made = []
    for number in range(cell.batch * cell.accumulation * steps):
        # Special tokens stand at the end of all published vocabularies.
        ids = [chance.randrange(10, min(shape.vocabulary, 60_000)) for _ in range(cell.prompt + cell.answer)]
        ids[cell.prompt - len(marks) : cell.prompt] = marks
        labels = [-100] * cell.prompt + ids[cell.prompt :]
        context = cell.prompt - 1 if marks else 0
        made.append(EncodedRow(ids, labels, context, number, f"row {number}"))
    return _Rows(made)


def _trainer(model: Any, method: Any, arguments: Any, rows: _Rows, callback: Any, family: str) -> Any:
    from glmtune.data.batches import Collate
    from glmtune.families import get_family
    from glmtune.methods.base_info import BaseNote
    from glmtune.training.trainer import GlmTrainer

    return GlmTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=Collate(get_family(family)),
        callbacks=[callback],
        describe_row=lambda row: f"row {row}",
        method=method,
        note=BaseNote("random", "", family),
    )


class _Clock:
    """When each optimiser step ended."""

    def __init__(self, device: str):
        self._device = device
        self._ends: list[float] = []

    def seconds(self) -> list[float]:
        """Of every step but the first."""
        return [after - before for before, after in itertools.pairwise(self._ends)]

    def callback(self) -> Any:
        from transformers import TrainerCallback

        def on_step_end(*_: Any, **__: Any) -> None:
            synchronize(self._device)
            self._ends.append(time.perf_counter())

        callback = TrainerCallback()
        callback.on_step_end = on_step_end  # type: ignore[method-assign]
        return callback


def _reset_peak(device: str) -> None:
    """Forget what building took."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is held now
    except OSError:
        print("the peak includes that of building the model", file=sys.stderr)


def _memory(device: str) -> dict[str, int]:
    """`now` and `peak_bytes`; on a GPU `reserved_bytes` as well, what the allocator took from the device at most."""
    if device == "cuda":
        import torch

        return {
            "now": torch.cuda.memory_allocated(),
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        facts = {key: value.split()[0] for key, _, value in (line.partition(":") for line in lines) if value.split()}
        return {"now": int(facts["VmRSS"]) * 1024, "peak_bytes": int(facts["VmHWM"]) * 1024}
    except OSError:  # no Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"now": peak, "peak_bytes": peak}


# --- the sitting ---


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All cells, one after the other, and the limits of the machine."""
    precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    cells = published_cells(precision) if args.shape == "6b" else grid(args.shape, args.lengths, precision)
    chosen = [cell for cell in cells if args.only is None or args.only in cell.name]
    if not chosen:
        raise SystemExit(f"--only {args.only}: no cell has that in its name: {'; '.join(c.name for c in cells)}")
    named = {cell.name: cell for cell in chosen}
    env = {"PYTHONPATH": source_path()}
    machine = run_json("machine.py", "--child", "--device", args.device, prefix=args.prefix)

    def run(name: str) -> dict[str, Any]:
        cell = json.dumps(asdict(named[name]))
        given = ["--cell", cell, "--device", args.device, "--steps", args.steps]
        return run_json("memory.py", *given, prefix=args.prefix, env=env)

    found = in_turn(list(named), args.repeats, run)
    for name, cell in named.items():
        found[name] |= asdict(cell)
    return {**circumstances("memory.py"), "machine": machine, "steps": args.steps, "cells": found}


def report(result: dict[str, Any]) -> str:
    """The figures as a markdown table; the last column is empty where nobody published any."""
    head = [
        "training",
        "peak, MiB",
        "of it before the first step",
        "tokens/s",
        "share of the matmul limit",
        "published",
    ]
    with_reserve = "cuda" in json.dumps(result["command"])
    if with_reserve:
        head.insert(2, "taken from the device")
    rows = []
    for name, cell in result["cells"].items():
        turns = cell["runs"]
        if not turns:
            continue
        rate = result["machine"]["matmul_flops"][cell["precision"]]
        row = [
            f"{name}, {cell['precision']}",
            f"{middle([t['peak_bytes'] for t in turns]) / MIB:,.0f}",
            f"{middle([t['before_bytes'] for t in turns]) / MIB:,.0f}",
            f"{middle([t['tokens_per_second'] for t in turns]):,.0f}",
            f"{middle([t['flops_per_second'] for t in turns]) / rate:.0%}",
            cell["published"],
        ]
        if with_reserve:
            row.insert(2, f"{middle([t['reserved_bytes'] for t in turns]) / MIB:,.0f}")
        rows.append(row)
    failed = [f"{name}: {cell['failed']}" for name, cell in result["cells"].items() if "failed" in cell]
    return "\n".join([*table(head, rows), "", *failed, *small_print(result)])


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(repeats=1)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--shape", choices=[*SHAPES, "6b"], default="reference", help="6b: what figures exist for")
    made.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens of a row")
    made.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, else fp32")
    made.add_argument("--steps", type=int, default=4, help="optimiser steps of a cell, the first of which is not timed")
    made.add_argument("--only", help="cells with this in their name")
    made.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.steps < 2:
        made.error("--steps: at least 2, for the first is not timed")
    if args.cell:
        print(json.dumps(measure_cell(Cell(**args.cell), args.device, args.steps)))
        return
    finish(measure(args), args.json, report)


if __name__ == "__main__":
    main()
