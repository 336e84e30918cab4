"""`glmtune demo`: train a tiny model on synthetic advertisements, compare it with its base and write the report."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from glmtune.config import RunConfig, dump_yaml, load_config
from glmtune.config_parsing import build_dataclass
from glmtune.demo.next_steps import format_command, format_next_steps
from glmtune.errors import RunError, summarize_error
from glmtune.evaluation.candidates import open_candidates
from glmtune.evaluation.comparison import compare_models, read_entries
from glmtune.evaluation.terminal_tables import print_comparison
from glmtune.generation.reply import Sampling
from glmtune.report import write_report
from glmtune.run_dir import RunDir
from glmtune.training.run import train
from glmtune.utils.console import get_console, print_message, use_quiet_console
from glmtune.utils.io import write_text
from glmtune.utils.operating_system import count_idle_processors
from glmtune.utils.shell_words import join_words

REPLIES_SHOWN = 4
_MOST_THREADS = 4
SETTINGS: dict[str, Any] = {
    "data": {"max_source_length": 64, "max_target_length": 96},
    "lora": {
        "rank": 16,
        "alpha": 32,
        "dropout": 0.0,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"],
    },
    "training": {
        "max_steps": 200,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 6,
        "logging_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 50,
        "save_strategy": "steps",
        "save_steps": 100,
    },
}


def run_demo(output: Path) -> RunDir:
    """Train the tiny base and print what changed.

    Args:
        output: folder for the base, the data, the config and the run; a number is added to its name if it exists.

    Returns:
        The run.
    """
    start = time.monotonic()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count_free_threads())
    folder = find_free_folder(output)
    try:
        row_count = _write_files(folder)
    except OSError as error:
        other = format_command("demo", "--output", str(Path(tempfile.gettempdir()) / "glmtune-demo"))
        raise RunError(
            f"{folder}: the demo's files cannot be written ({error.strerror or summarize_error(error)}).",
            f"Give another folder: {other}",
        ) from None
    _print_step(1, f"A tiny ChatGLM3 (3 million parameters) and {row_count:,} rows: attributes, and an advertisement")
    first = json.loads((folder / "train.json").read_bytes().splitlines()[0])
    print_message(f"{first['content']}\n→ {first['summary']}")

    _print_step(2, "Training: LoRA, 200 steps")
    _print_command("train", str(folder / "config.yaml"))
    run = train(load_config(folder / "config.yaml")).run
    losses = [entry["loss"] for entry in run.read_metrics() if entry.get("loss") is not None]
    print_message(f"Loss {losses[0]:.2f} {draw_sparkline(losses)} {losses[-1]:.2f}")

    _print_step(3, "Rows it has not seen, before and after")
    command = _print_command(
        *("compare", str(folder / "base"), str(run.root), "--data", str(folder / "dev.json"), "--no-forget")
    )
    with use_quiet_console():
        candidates = open_candidates([str(folder / "base"), str(run.root)])
        entries = read_entries(candidates, str(folder / "dev.json"))
        comparison = compare_models(
            *(entries, run.root / "eval" / "compare-dev", Sampling(96)),
            batch_size=32,
            device="cpu",
            command=command,
        )
    print_comparison(replace(comparison, changed=[]))

    table = Table(title="The same prompts before and after", show_lines=True, expand=True)
    for heading, ratio in (("prompt", 3), ("base", 3), ("tuned", 5)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for row in comparison.changed[:REPLIES_SHOWN]:
        table.add_row(*(escape(cell) for cell in (row.prompt[-1]["content"], *row.replies)))
    get_console().print(table, soft_wrap=False)
    print_message(f"Curves, scores and replies as a page: {write_report(run.root)}")
    print_message(f"Ask it yourself: {format_command('chat', str(run.root))}")

    _print_step(4, f"Now your own rows (the demo took {time.monotonic() - start:.0f} s)")
    for line in format_next_steps(Path.cwd()):
        print_message(f"  {line}")
    return run


def _print_step(number: int, text: str) -> None:
    print_message(f"\n{number}/4  {text}", "bold")


def _print_command(*words: str) -> str:
    """Print a command as the user would type it; returns its usual form for reports."""
    print_message(f"$ {format_command(*words)}", "cyan")
    return f"glmtune {join_words(words)}"


def count_free_threads() -> int:
    """Threads for a model as small as the demo's: as many as processors are idle, at most four.

    Its operations are so short that a thread which waits for a processor holds up all others: on a busy machine, two
    threads take ten times as long as one.
    """
    return min(_MOST_THREADS, count_idle_processors())


def draw_sparkline(values: list[float], width: int = 40) -> str:
    """Draw numbers as a row of bars.

    Args:
        values: the numbers; neighbours are averaged if there are more than `width`.
        width: the most characters.
    """
    bars = "▁▂▃▄▅▆▇█"
    step = max(1, -(-len(values) // width))
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(bars[round((value - low) / span * (len(bars) - 1))] for value in means)


def find_free_folder(output: Path) -> Path:
    """Return `output`, or with the first number that makes it a new folder."""
    folder, number = output, 2
    while folder.exists():
        folder, number = output.with_name(f"{output.name}-{number}"), number + 1
    return folder


def _write_files(folder: Path) -> int:
    """Write base, rows and config; returns the number of training rows."""
    with as_file(files("glmtune.demo")) as package:
        shutil.copytree(package / "base", folder / "base")
        for name in ("train", "dev"):
            shutil.copyfile(package / "data" / f"{name}.jsonl", folder / f"{name}.json")
    tree = {**SETTINGS, "model": str(folder / "base"), "output": str(folder / "run")}
    tree["data"] = {"train": str(folder / "train.json"), "eval": str(folder / "dev.json"), **SETTINGS["data"]}
    write_text(folder / "config.yaml", dump_yaml(build_dataclass(RunConfig, tree, "demo")))
    return (folder / "train.json").read_bytes().count(b"\n")
