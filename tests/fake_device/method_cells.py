"""Methods on the simulated CUDA device, through the command line: training with evaluation and checkpoints, resuming,
evaluation with replies, and a chat, compared with the CPU.

A cell is a method, a stage, a precision and a quantisation of one generation.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from command import interrupt_run
from simulated_gpu import simulate_gpu

import glmtune
from demo_corpus.corpus import make_adgen_rows
from glmtune.cli import main as cli
from glmtune.run_dir import RunDir
from tiny import make_tiny

STEPS = 4
RATES = {"lora": "5e-3", "qlora": "5e-3", "ptuning": "0.1", "freeze": "3e-3", "full": "3e-3"}
# Largest difference of a loss, which is around 8, from the CPU's in fp32.
TOLERANCES = {"fp32": 2e-3, "fp16": 0.05, "bf16": 0.15}


class CellError(Exception):
    """What is wrong with a cell."""


@dataclasses.dataclass(frozen=True)
class Device:
    """The module `fakecuda`, and a compute capability."""

    fake: Any
    capability: tuple[int, int]


def run_cells(device: Device, family: str, cells: list[dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """Run cells of one generation.

    Args:
        device: where.
        family: the generation.
        cells: a dict each with `method`, `stage`, `precision` and `quantization`.
        work: a new folder.

    Yields:
        A cell with `family`, `ok`, `measured` or `error`, and `seconds`.
    """
    base = make_tiny(family, work / "base", hidden=64)  # bitsandbytes computes multiples of 64 on the CPU
    write_rows(work)
    glmtune.load_model(base, device="cpu")

    expected: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for cell in cells:
        key = (cell["method"], cell["stage"], cell["quantization"])
        if key not in expected:
            reference = work / f"cpu-{len(expected)}"
            train(base, work, reference, cell | {"precision": "fp32"})
            expected[key] = read_losses(reference)

    for number, cell in enumerate(cells):
        start = time.perf_counter()
        losses = expected[cell["method"], cell["stage"], cell["quantization"]]
        try:
            with simulate_gpu(device.fake, device.capability):
                measured = run_cell(device.fake, cell, base, work, work / f"cell-{number}", losses)
            result = {"ok": True, "measured": measured}
        except Exception as error:  # the next cell is run
            traceback.print_exc()
            result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        yield {"family": family, **cell, **result, "seconds": time.perf_counter() - start}


def write_rows(folder: Path) -> None:
    """Write rows with an answer, and pairs with two."""
    rows = make_adgen_rows(10, seed=1)
    pairs = [
        {"prompt": row["content"], "chosen": row["summary"], "rejected": other["summary"]}
        for row, other in zip(rows, reversed(rows), strict=True)
    ]
    for name, objects in (("sft", rows), ("pairs", pairs)):
        lines = [json.dumps(one, ensure_ascii=False) for one in objects]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def run_cell(
    fake: Any, cell: dict[str, Any], base: Path, data: Path, work: Path, expected: dict[str, list[float]]
) -> dict[str, float]:
    """Train, evaluate, save, resume, load and decode on the device.

    Returns:
        Differences from the CPU, and of the resumed run from the other.

    Raises:
        CellError: a number is wrong.
    """
    allowed = TOLERANCES[cell["precision"]]
    fake.SYNC.reset()
    train(base, data, work / "run", cell)
    run = RunDir(work / "run")
    losses = read_losses(run.root)
    error = check_losses("training", losses, expected, allowed)
    summary = json.loads(run.summary.read_text("utf-8"))
    if summary["device"] != "Fake" or fake.SYNC.ops.total() < 300 * STEPS:
        raise CellError(f"trained on {summary['device']}, {fake.SYNC.ops.total()} operations on the device")
    if not summary.get("memory_plan"):
        raise CellError("no memory plan")

    half = interrupt_run(run, STEPS // 2, work / "half")
    run_command("train", "--resume", "--output", half.root)
    resumed = check_losses("resumed", read_losses(half.root), losses, 0.0)

    if cell["stage"] == "rm":
        score_pairs(fake, half.root, data / "pairs.jsonl", work, cell["precision"], allowed)
        return {"training": error, "resumed": resumed}
    rows = data / "sft.jsonl"
    loss, replies = evaluate(half.root, rows, work / "eval-cuda", cell["precision"], "cuda")
    if cell["precision"] == "fp32":
        cpu_loss, cpu_replies = evaluate(half.root, rows, work / "eval-cpu", "fp32", "cpu")
        if not abs(loss - cpu_loss) <= allowed or replies != cpu_replies:
            raise CellError(f"evaluation: loss {loss} and {replies}, on the CPU {cpu_loss} and {cpu_replies}")
    elif not 4 < loss < 11:
        raise CellError(f"evaluation: loss {loss} of a model that is nearly random")

    fake.SYNC.reset()
    run_command("chat", half.root, "--prompt", "类型#裙", "--max-new-tokens", 4, "--dtype", cell["precision"])
    if not fake.SYNC.ops.total():
        raise CellError("the chat ran on the CPU")
    return {"training": error, "resumed": resumed}


def score_pairs(fake: Any, run: Path, pairs: Path, work: Path, precision: str, allowed: float) -> None:
    """Score pairs with a reward model on the device and on the CPU.

    Raises:
        CellError: the rewards differ.
    """
    fake.SYNC.reset()
    rewards = {}
    for device, name in (("cuda", precision), ("cpu", "fp32")):
        folder = work / f"score-{device}"
        run_command("score", run, "--data", pairs, "--output", folder, "--dtype", name, "--device", device)
        lines = (folder / "scores.jsonl").read_text("utf-8").splitlines()
        rewards[device] = [json.loads(line)[side] for line in lines for side in ("better", "worse")]
    if not fake.SYNC.ops.total():
        raise CellError("the rewards were computed on the CPU")
    error = max(abs(a - b) for a, b in zip(rewards["cuda"], rewards["cpu"], strict=True))
    if not error <= max(allowed, 1e-4) * 10:
        raise CellError(f"rewards differ by {error}: {rewards}")


def run_command(*arguments: object) -> None:
    """A command of glmtune in this process, which has the device.

    Raises:
        CellError: it failed.
    """
    print("\n$ glmtune", *arguments, flush=True)
    sys.argv = ["glmtune", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as exit:
        if exit.code:
            raise CellError(f"glmtune {arguments[0]} ended with code {exit.code}") from None


def train(base: Path, data: Path, output: Path, cell: dict[str, Any]) -> None:
    """Train a cell, with an evaluation and a checkpoint in the middle."""
    settings = {
        "stage": cell["stage"],
        "model.precision": cell["precision"],
        "model.quantization": cell["quantization"],
        "training.learning_rate": RATES[cell["method"]],
        "training.lr_scheduler_type": "constant",
        "training.warmup_steps": 0,
        "training.max_steps": STEPS,
        "training.save_steps": STEPS // 2,
        "training.eval_steps": STEPS // 2,
        "training.logging_steps": 1,
        "training.gradient_accumulation_steps": 2,
        "training.report_to": "none",
        "data.eval_fraction": 0.2,
        "data.max_source_length": 48,
        "data.max_target_length": 24,
        # Masks of different devices differ.
        "lora.dropout": 0,
        "ptuning.dropout": 0,
        "ptuning.num_virtual_tokens": 4,
        "freeze.trainable_layers": 1,
    }
    options = [part for key, value in settings.items() if value is not None for part in ("--set", f"{key}={value}")]
    rows = data / ("sft.jsonl" if cell["stage"] == "sft" else "pairs.jsonl")
    run_command("train", "--model", base, "--data", rows, "--method", cell["method"], "--output", output, *options)


def read_losses(run: Path) -> dict[str, list[float]]:
    """Losses of steps and of evaluations."""
    entries = RunDir(run).read_metrics()
    return {name: [entry[name] for entry in entries if name in entry] for name in ("loss", "eval_loss")}


def check_losses(what: str, losses: dict[str, list[float]], expected: dict[str, list[float]], allowed: float) -> float:
    """The largest difference between the losses of two runs.

    Raises:
        CellError: it is larger than allowed, or their numbers differ.
    """
    worst = 0.0
    for name, values in expected.items():
        if len(losses[name]) != len(values) or not values:
            raise CellError(f"{what}: {len(losses[name])} values of {name}, {len(values)} expected")
        worst = max(worst, *(abs(a - b) for a, b in zip(losses[name], values, strict=True)))
    if not worst <= allowed:
        raise CellError(f"{what}: losses differ by {worst}: {losses}, expected {expected}")
    return worst


def evaluate(run: Path, rows: Path, folder: Path, precision: str, device: str) -> tuple[float, list[str]]:
    """The loss and the replies of an evaluation."""
    options = ("--max-new-tokens", 4, "--limit", 3, "--dtype", precision, "--device", device)
    run_command("eval", run, "--data", rows, "--output", folder, *options)
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    lines = (folder / "predictions.jsonl").read_text("utf-8").splitlines()
    return metrics["loss"], [json.loads(line)["prediction"] for line in lines]
