"""Peak memory and speed of training by method, length and gradient checkpointing, on random models.

    PYTHONPATH=src python benchmarks/memory.py [--shape reference] [--json OUT]
    PYTHONPATH=src python benchmarks/memory.py --device cuda --shape 6b

Needs no files: models are built on the device, rows are random ids of maximum length. Each cell is a process of its own
that runs glmtune's method and trainer for a few steps. `--shape 6b` runs the settings of published memory figures, and
shows those too.
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

from harness import (
    MIB,
    describe_environment,
    format_footer,
    format_table,
    make_parser,
    make_pythonpath,
    median,
    report_result,
    run_interleaved,
    run_json,
)
from machine import synchronize
from models import SHAPES, build_model, published_config
from task import LoraTask, count_step_flops


@dataclass(frozen=True)
class Cell:
    """One combination of settings; rows have `prompt` + `answer` tokens."""

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
    """The published figure for the same settings."""

    @property
    def name(self) -> str:
        base = f" on {self.quantization}" if self.quantization else ""
        batch = f"{self.batch}" if self.accumulation == 1 else f"{self.batch} x {self.accumulation}"
        rows = f"batch {batch}, {self.prompt}+{self.answer} tokens"
        return f"{self.shape}, {self.method}{base}, {rows}{', checkpointing' * self.checkpointing}"


def list_published_cells(precision: str) -> list[Cell]:
    """Settings with published figures.

    They are of the repositories' own scripts on GPUs (tables of ChatGLM3's finetune demo for LoRA and P-Tuning,
    ChatGLM-6B's ptuning README), and of the GPU that QLoRA was shown to fit.
    """
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


def make_grid(shape: str, lengths: list[int], precision: str) -> list[Cell]:
    """Every method with every length, with and without gradient checkpointing."""
    methods = (("lora", None), ("lora", "nf4"), ("ptuning", "packed4"), ("full", None))
    return [
        Cell(
            shape,
            method,
            quantization,
            prompt=length // 2,
            answer=length - length // 2,
            checkpointing=checkpointing,
            precision=precision,
        )
        for (method, quantization), length, checkpointing in itertools.product(methods, lengths, (False, True))
    ]


# --- one cell, in a process of its own ---


def measure_cell(cell: Cell, device: str, steps: int) -> dict[str, Any]:
    """Train `steps` optimiser steps; the first warms up and is not timed.

    Returns:
        Bytes before and at the peak of training, tokens per second, and the last loss.
    """
    import torch

    from glmtune.models.packed_attention import set_packed_attention

    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[cell.precision]
    shape = SHAPES[cell.shape]
    with tempfile.TemporaryDirectory() as folder:
        arguments, method = make_arguments_and_method(cell, shape, precision, steps, Path(folder), device)
        load_dtype = method.load_dtype(precision)
        model = build_model(shape, load_dtype, device, cell.quantization)
        set_packed_attention(model)
        model = method.prepare(model)
        clock = _StepClock(device)
        trainer = _make_trainer(
            model, method, arguments, make_random_rows(cell, shape, steps), clock.make_callback(), shape.family
        )
        _reset_peak(device)
        before = _read_memory(device)["now"]
        trainer.train()
    seconds = clock.read_seconds()
    per_step = cell.batch * cell.accumulation
    tokens = per_step * (cell.prompt + cell.answer)
    flops = per_step * count_step_flops(shape, cell.method, LoraTask(), cell.prompt + cell.answer, cell.answer)
    return {
        "before_bytes": before,
        **_read_memory(device),
        "tokens_per_second": tokens / median(seconds),
        "flops_per_second": flops / median(seconds),
        "step_seconds": seconds,
        "loss": next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry),
    }


def make_arguments_and_method(
    cell: Cell, shape: Any, precision: Any, steps: int, folder: Path, device: str
) -> tuple[Any, Any]:
    """The trainer's arguments and the method, as `glmtune train` makes them from a config."""
    import torch

    from glmtune.config import RunConfig
    from glmtune.config_parsing import build_dataclass
    from glmtune.families import get_family
    from glmtune.methods import make_method
    from glmtune.run_dir import RunDir
    from glmtune.training.arguments import make_arguments

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
    config = build_dataclass(RunConfig, tree, "benchmarks/memory.py")
    arguments = make_arguments(config, RunDir(folder / "run"), precision)
    mixed = precision if arguments.bf16 or arguments.fp16 else torch.float32
    return arguments, make_method(config, get_family(shape.family), mixed)


class _RandomRows:
    """Random rows of the same length, with the interface of `BlockDataset`."""

    def __init__(self, rows: list[Any]):
        self._rows = rows
        self.lengths = [len(row.input_ids) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[tuple[int, Any]]:
        return [(index, self._rows[index])]


def make_random_rows(cell: Cell, shape: Any, steps: int) -> _RandomRows:
    """Random ids. A prompt of ChatGLM-6B ends in [gMASK] and <sop>, which its model looks for."""
    from glmtune.data.encoding import EncodedRow

    generator, config = random.Random(0), published_config(shape)
    marks = [config["gmask_token_id"], config["bos_token_id"]] if "gmask_token_id" in config else []
    rows = []
    for number in range(cell.batch * cell.accumulation * steps):
        # Special tokens are at the end of all published vocabularies.
        ids = [generator.randrange(10, min(shape.vocabulary, 60_000)) for _ in range(cell.prompt + cell.answer)]
        ids[cell.prompt - len(marks) : cell.prompt] = marks
        labels = [-100] * cell.prompt + ids[cell.prompt :]
        context = cell.prompt - 1 if marks else 0
        rows.append(EncodedRow(ids, labels, context, number, f"row {number}"))
    return _RandomRows(rows)


def _make_trainer(model: Any, method: Any, arguments: Any, rows: _RandomRows, callback: Any, family: str) -> Any:
    from glmtune.data.batches import BlockCollator
    from glmtune.families import get_family
    from glmtune.methods.base_info import BaseInfo
    from glmtune.training.objective import TokenObjective
    from glmtune.training.trainer import GlmTrainer

    return GlmTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=BlockCollator(get_family(family)),
        callbacks=[callback],
        describe_row=lambda row: f"row {row}",
        describe_eval_row=lambda row: f"row {row}",
        method=method,
        base_info=BaseInfo("random", "", family),
        objective=TokenObjective(),
    )


class _StepClock:
    """Records the end of each optimiser step."""

    def __init__(self, device: str):
        self._device = device
        self._ends: list[float] = []

    def read_seconds(self) -> list[float]:
        """Seconds of every step but the first."""
        return [after - before for before, after in itertools.pairwise(self._ends)]

    def make_callback(self) -> Any:
        from transformers import TrainerCallback

        def on_step_end(*_: Any, **__: Any) -> None:
            synchronize(self._device)
            self._ends.append(time.perf_counter())

        callback = TrainerCallback()
        callback.on_step_end = on_step_end  # type: ignore[method-assign]
        return callback


def _reset_peak(device: str) -> None:
    """Reset the peak memory, so that building the model does not count."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current value
    except OSError:
        print("the peak includes that of building the model", file=sys.stderr)


def _read_memory(device: str) -> dict[str, int]:
    """`now` and `peak_bytes`; on a GPU also `reserved_bytes`, the peak that the allocator reserved on the device."""
    if device == "cuda":
        import torch

        return {
            "now": torch.cuda.memory_allocated(),
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = {key: value.split()[0] for key, _, value in (line.partition(":") for line in lines) if value.split()}
        return {"now": int(fields["VmRSS"]) * 1024, "peak_bytes": int(fields["VmHWM"]) * 1024}
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"now": peak, "peak_bytes": peak}


# --- all cells ---


def measure_cells(args: argparse.Namespace) -> dict[str, Any]:
    """Run all cells and measure the limits of the machine."""
    precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    grid = list_published_cells(precision) if args.shape == "6b" else make_grid(args.shape, args.lengths, precision)
    cells = {cell.name: cell for cell in grid if args.only is None or args.only in cell.name}
    if not cells:
        raise SystemExit(f"--only {args.only}: no cell has that in its name: {'; '.join(c.name for c in grid)}")
    env = {"PYTHONPATH": make_pythonpath()}
    machine = run_json("machine.py", "--child", "--device", args.device, prefix=args.prefix)

    def run(name: str) -> dict[str, Any]:
        cell = json.dumps(asdict(cells[name]))
        arguments = ["--cell", cell, "--device", args.device, "--steps", args.steps]
        return run_json("memory.py", *arguments, prefix=args.prefix, env=env)

    results = run_interleaved(list(cells), args.repeats, run)
    for name, cell in cells.items():
        results[name] |= asdict(cell)
    return {**describe_environment("memory.py"), "machine": machine, "steps": args.steps, "cells": results}


def format_report(result: dict[str, Any]) -> str:
    """The figures as a markdown table; the last column is empty where there is no published figure."""
    head = [
        "training",
        "peak, MiB",
        "before the first step",
        "tokens/s",
        "share of the matmul limit",
        "published",
    ]
    with_reserve = "cuda" in json.dumps(result["command"])
    if with_reserve:
        head.insert(2, "reserved on the device")
    rows = []
    for name, cell in result["cells"].items():
        runs = cell["runs"]
        if not runs:
            continue
        rate = result["machine"]["matmul_flops"][cell["precision"]]
        row = [
            f"{name}, {cell['precision']}",
            f"{median([t['peak_bytes'] for t in runs]) / MIB:,.0f}",
            f"{median([t['before_bytes'] for t in runs]) / MIB:,.0f}",
            f"{median([t['tokens_per_second'] for t in runs]):,.0f}",
            f"{median([t['flops_per_second'] for t in runs]) / rate:.0%}",
            cell["published"],
        ]
        if with_reserve:
            row.insert(2, f"{median([t['reserved_bytes'] for t in runs]) / MIB:,.0f}")
        rows.append(row)
    failed = [f"{name}: {cell['failed']}" for name, cell in result["cells"].items() if "failed" in cell]
    return "\n".join([*format_table(head, rows), "", *failed, *format_footer(result)])


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(repeats=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape", choices=[*SHAPES, "6b"], default="reference", help="6b: the settings of published figures"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens of a row")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, else fp32")
    parser.add_argument(
        "--steps", type=int, default=4, help="optimiser steps of a cell, the first of which is not timed"
    )
    parser.add_argument("--only", help="cells with this in their name")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps: at least 2, because the first is not timed")
    if args.cell:
        print(json.dumps(measure_cell(Cell(**args.cell), args.device, args.steps)))
        return
    report_result(measure_cells(args), args.json, format_report)


if __name__ == "__main__":
    main()
