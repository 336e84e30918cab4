"""The trainers that `training.py` compares: each does the reference task once, in a process of its own."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import FOLDER, BenchmarkError, make_pythonpath, run_timed
from task import LoraTask


@dataclass(frozen=True)
class TrainerContext:
    """What every trainer is given."""

    published: Path
    """The model in the published layout, for glmtune and the bare loop."""
    native: Path
    """The same as a transformers folder, for the other trainers."""
    rows: Path
    """The folder of `task.write_rows`."""
    task: LoraTask
    peers: Path | None
    """The folder of the environments of `peers/make_envs.sh`."""
    prefix: str
    template: str
    """The family's name, which is LLaMA-Factory's name of its template."""


Run = dict[str, Any]
"""`seconds` of training, `losses` per step, `process` (`time_command.py`), `device_peak_bytes`, `adapter` (folder)."""


def make_glmtune_config(context: TrainerContext, rows: str, precision: str, packing: bool) -> dict[str, Any]:
    """The reference task as a config of `glmtune train`.

    Args:
        context: model, rows and task.
        rows: name of the file of rows.
        precision: of the model.
        packing: rows are packed into blocks.
    """
    task = context.task
    return {
        "model": {"path": str(context.published), "precision": precision},
        "data": {
            "train": str(context.rows / rows),
            "eval_fraction": 0,
            "max_length": task.length,
            "packing": packing,
        },
        "method": "lora",
        "lora": {"rank": task.rank, "alpha": task.alpha, "dropout": task.dropout, "targets": list(task.targets)},
        "training": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 1 if packing else task.batch,
            "gradient_accumulation_steps": 1,
            "learning_rate": task.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            **({"train_sampling_strategy": "sequential"} if task.same_order else {}),
        },
    }


def run_train_command(context: TrainerContext, output: Path, config: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """`glmtune train` as a user starts it, with progress, checks, report and an empty cache.

    Args:
        context: of the run.
        output: folder; the run is in `run` there.
        config: without `output`.

    Returns:
        The run, and its summary.json.
    """
    file = output / "config.json"
    file.write_text(json.dumps({**config, "output": str(output / "run")}), "utf-8")
    # With FORCE_COLOR rich draws its progress bar although the output is not a terminal.
    env = {"PYTHONPATH": make_pythonpath(), "GLMTUNE_CACHE": str(output / "cache"), "FORCE_COLOR": "1"}
    command = [sys.executable, "-m", "glmtune", "train", str(file)]
    usage, _ = run_timed(command, prefix=context.prefix, env=env)
    summary = json.loads((output / "run" / "summary.json").read_text("utf-8"))
    metrics = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [entry["loss"] for entry in metrics if "loss" in entry]
    return {"seconds": summary["seconds"], "losses": losses, "process": usage}, summary


def run_glmtune(context: TrainerContext, output: Path, precision: str, packing: bool = False) -> Run:
    """The reference task with glmtune."""
    config = make_glmtune_config(context, "train.jsonl", precision, packing)
    result, summary = run_train_command(context, output, config)
    on_gpu = not summary["device"].startswith("CPU")
    return {
        **result,
        "device_peak_bytes": summary["peak_memory_bytes"] if on_gpu else None,
        "adapter": str(output / "run" / "adapter"),
        "versions": {"glmtune": summary["versions"]["glmtune"], "transformers": summary["versions"]["transformers"]},
    }


def run_bare_loop(context: TrainerContext, output: Path, precision: str) -> Run:
    """The loop of `bare_loop.py`."""
    command = [sys.executable, str(FOLDER / "bare_loop.py"), str(context.published)]
    return _run_script(context, output, command, precision, [], {"PYTHONPATH": make_pythonpath()})


def run_trl(context: TrainerContext, output: Path, precision: str, packing: bool = False) -> Run:
    """TRL's SFTTrainer."""
    command = [find_peer_python(context, "trl"), str(FOLDER / "peers" / "trl_train.py"), str(context.native)]
    return _run_script(context, output, command, precision, ["--packing"] * packing, {})


def run_llamafactory(context: TrainerContext, output: Path, precision: str, checkpointing: bool = False) -> Run:
    """LLaMA-Factory on the transformers folder; it renders the rows with its own template."""
    task, python = context.task, find_peer_python(context, "llamafactory")
    rows = [json.loads(line) for line in (context.rows / "train.jsonl").read_text("utf-8").splitlines()]
    alpaca = [{"instruction": row["content"], "input": "", "output": row["summary"]} for row in rows]
    (output / "rows.json").write_text(json.dumps(alpaca, ensure_ascii=False), "utf-8")
    (output / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), "utf-8")
    config = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(context.native),
        "template": context.template,
        "dataset_dir": str(output),
        "dataset": "rows",
        "cutoff_len": task.length,
        "finetuning_type": "lora",
        "lora_rank": task.rank,
        "lora_alpha": task.alpha,
        "lora_dropout": task.dropout,
        "lora_target": ",".join(task.targets),
        "output_dir": str(output / "run"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": task.batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "linear",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": not checkpointing,
        "bf16": precision == "bf16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
        # Importing torch to find a GPU would make this process large.
        "use_cpu": not Path("/proc/driver/nvidia").exists(),
    }
    file = output / "config.yaml"  # any JSON is YAML
    file.write_text(json.dumps(config), "utf-8")
    command = [str(Path(python).with_name("llamafactory-cli")), "train", str(file)]
    usage, _ = run_timed(command, prefix=context.prefix, cwd=output)
    state = json.loads((output / "run" / "trainer_state.json").read_text("utf-8"))
    return {
        "seconds": next(entry["train_runtime"] for entry in state["log_history"] if "train_runtime" in entry),
        "losses": [entry["loss"] for entry in state["log_history"] if "loss" in entry],
        "device_peak_bytes": None,
        "process": usage,
        "adapter": str(output / "run"),
    }


def _run_script(
    context: TrainerContext,
    output: Path,
    command: list[str],
    precision: str,
    options: list[str],
    env: dict[str, str],
) -> Run:
    """Run a script that takes ids and settings and whose last line of output is a JSON object."""
    arguments = [str(context.rows / "train_ids.json"), str(output / "adapter")]
    arguments += ["--settings", json.dumps(context.task.as_dict()), "--precision", precision, *options]
    usage, text = run_timed([*command, *arguments], prefix=context.prefix, cwd=output, env=env)
    return {**json.loads(text.splitlines()[-1]), "process": usage, "adapter": str(output / "adapter")}


def find_peer_python(context: TrainerContext, name: str) -> str:
    """The Python interpreter of another trainer's environment.

    Raises:
        BenchmarkError: it is missing; with pip's reason if the installation failed.
    """
    if context.peers is None:
        raise BenchmarkError("not run: no --peers")
    reason = context.peers / f"{name}.failed"
    if reason.is_file():
        raise BenchmarkError(f"cannot be installed: {' '.join(reason.read_text('utf-8').split())[:300]}")
    python = context.peers / name / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError("not installed: run benchmarks/peers/make_envs.sh")
    return str(python)


TRAINERS: dict[str, Callable[[TrainerContext, Path], Run]] = {
    "glmtune fp32": lambda context, output: run_glmtune(context, output, "fp32"),
    "glmtune fp32 packed": lambda context, output: run_glmtune(context, output, "fp32", packing=True),
    "glmtune bf16": lambda context, output: run_glmtune(context, output, "bf16"),
    "glmtune bf16 packed": lambda context, output: run_glmtune(context, output, "bf16", packing=True),
    "bare fp32": lambda context, output: run_bare_loop(context, output, "fp32"),
    "bare bf16": lambda context, output: run_bare_loop(context, output, "bf16"),
    "trl fp32": lambda context, output: run_trl(context, output, "fp32"),
    "trl fp32 packed": lambda context, output: run_trl(context, output, "fp32", packing=True),
    "trl bf16": lambda context, output: run_trl(context, output, "bf16"),
    "trl bf16 packed": lambda context, output: run_trl(context, output, "bf16", packing=True),
    "llamafactory fp32": lambda context, output: run_llamafactory(context, output, "fp32"),
    "llamafactory fp32 checkpointing": lambda context, output: run_llamafactory(
        context, output, "fp32", checkpointing=True
    ),
    "llamafactory bf16": lambda context, output: run_llamafactory(context, output, "bf16"),
}
"""By name. LLaMA-Factory checkpoints gradients unless it is told not to; the others are told not to."""


def run_trainer(name: str, context: TrainerContext, adapters: Path) -> Run:
    """Run a trainer once; its files are deleted afterwards, except the adapter, which is copied into `adapters`."""
    with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as folder:
        result = TRAINERS[name](context, Path(folder))
        target = adapters / name.replace(" ", "-")
        shutil.copytree(result["adapter"], target, dirs_exist_ok=True)
        return result | {"adapter": str(target)}
