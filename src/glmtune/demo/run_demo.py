"""`glmtune demo`: the real commands on a tiny base and synthetic advertisements: tune, score, compare, report."""

from __future__ import annotations

import json
import os
import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glmtune.config import RunConfig, dump_yaml, load_config
from glmtune.config_parsing import from_tree
from glmtune.demo.corpus import adgen_splits
from glmtune.evaluation.candidates import open_contenders
from glmtune.evaluation.comparison import compare, read_entries
from glmtune.evaluation.comparison_tables import print_comparison
from glmtune.generation.reply import Sampling
from glmtune.report import write_report
from glmtune.run_dir import RunDir
from glmtune.training.run import train
from glmtune.utils.io import write_text

SHOWN = 4
SIZES = {"train": 3200, "dev": 64}
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


def run_demo(output: Path, console: Console | None = None) -> RunDir:
    """Tune the tiny base and show what changed.

    Args:
        output: folder for the base, the data, the config and the run; a number is added if it is taken.
        console: where everything is shown.
    """
    console = console or Console()
    start = time.monotonic()
    folder = _free(output)
    _write_files(folder)
    _say(console, f"A tiny ChatGLM3 and {SIZES['train']} synthetic advertisements lie in {folder}.")

    _say(console, f"\n[bold]$ glmtune train {folder / 'config.yaml'}[/]")
    outcome = train(load_config(folder / "config.yaml"), console=console)
    command = f"glmtune compare {folder / 'base'} {outcome.run.root} --data {folder / 'dev.json'} --no-forget"
    _say(console, f"\n[bold]$ {command}[/]")
    comparison = _compare(folder, outcome.run, command)
    print_comparison({**comparison, "changed": []}, console)

    console.print(_side_by_side(comparison["changed"][:SHOWN]))
    losses = [entry["loss"] for entry in outcome.run.read_metrics() if "loss" in entry]
    page = write_report(outcome.run.root, "zh" if _speaks_chinese() else "en")
    _say(console, f"Loss {losses[0]:.2f} {sparkline(losses)} {losses[-1]:.2f}   report: {page}")
    _say(console, f"Everything took {time.monotonic() - start:.0f} s and lies in {folder}. Next:\n")
    _say(console, f"  glmtune chat {outcome.run.root}\n  glmtune chat {folder / 'base'}")
    _say(console, "  glmtune train --model YOUR_CHATGLM_FOLDER --data YOUR_ROWS.json")
    return outcome.run


def sparkline(values: list[float], width: int = 40) -> str:
    """Numbers as a row of bars, thinned to `width`."""
    bars = "▁▂▃▄▅▆▇█"
    step = max(1, -(-len(values) // width))
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(bars[round((value - low) / span * (len(bars) - 1))] for value in means)


def _free(output: Path) -> Path:
    """`output`, or with the first number that makes it a new folder."""
    folder, number = output, 2
    while folder.exists():
        folder, number = output.with_name(f"{output.name}-{number}"), number + 1
    return folder


def _write_files(folder: Path) -> None:
    """Lay out base, rows and config; no training row has a prompt of the evaluation rows."""
    with as_file(files("glmtune.demo") / "base") as packaged:
        shutil.copytree(packaged, folder / "base")
    splits = adgen_splits(SIZES)
    for name, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"{name}.json", lines)
    tree = {**SETTINGS, "model": str(folder / "base"), "output": str(folder / "run")}
    tree["data"] = {"train": str(folder / "train.json"), "eval": str(folder / "dev.json"), **SETTINGS["data"]}
    write_text(folder / "config.yaml", dump_yaml(from_tree(RunConfig, tree, "demo")))


def _compare(folder: Path, run: RunDir, command: str) -> dict[str, Any]:
    """Base and tuned model on the rows that training has not seen."""
    quiet = Console(quiet=True)
    contenders = open_contenders([str(folder / "base"), str(run.root)])
    entries = read_entries(contenders, str(folder / "dev.json"), quiet)
    output = run.root / "eval" / "compare-dev"
    return compare(entries, output, Sampling(96), batch_size=32, device="cpu", console=quiet, command=command)


def _side_by_side(changed: list[dict[str, Any]]) -> Table:
    table = Table(title="The same prompts before and after", show_lines=True, expand=True)
    for heading, ratio in (("prompt", 3), ("base", 3), ("tuned", 5)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for row in changed:
        prompt = row["prompt"][-1]["content"]
        table.add_row(*(escape(cell) for cell in (prompt, *row["replies"])))
    return table


def _speaks_chinese() -> bool:
    return (os.environ.get("LC_ALL") or os.environ.get("LANG") or "").startswith("zh")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
