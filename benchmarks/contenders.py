"""Who takes part in `training.py`: each contender does the reference work once, in a process of its own."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sitting import HERE, Failed, run_timed, source_path
from work import Work


@dataclass(frozen=True)
class Place:
    """What every contender is given."""

    published: Path
    """The model as it is published, for glmtune and the bare loop."""
    native: Path
    """The same as a transformers folder, for the peers."""
    rows: Path
    """The folder of `work.write_rows`."""
    work: Work
    peers: Path | None
    """Where `peers/make_envs.sh` has put its environments."""
    prefix: str
    template: str
    """The family's name, which LLaMA-Factory calls its template by."""


Run = dict[str, Any]
"""`seconds` of training, `losses` per step, `process` (see `timed.py`), `device_peak_bytes`, `adapter` (a folder)."""


def glmtune(place: Place, out: Path, precision: str, packing: bool = False) -> Run:
    """`glmtune train` as a user starts it, with progress, checks, report and an empty cache."""
    work = place.work
    config = {
        "model": {"path": str(place.published), "precision": precision},
        "data": {
            "train": str(place.rows / "train.jsonl"),
            "eval_fraction": 0,
            "max_length": work.length,
            "packing": packing,
        },
        "method": "lora",
        "lora": {"rank": work.rank, "alpha": work.alpha, "dropout": work.dropout, "targets": list(work.targets)},
        "training": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 1 if packing else work.batch,
            "gradient_accumulation_steps": 1,
            "learning_rate": work.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            **({"train_sampling_strategy": "sequential"} if work.same_order else {}),
        },
        "output": str(out / "run"),
    }
    file = out / "config.json"
    file.write_text(json.dumps(config), "utf-8")
    # FORCE_COLOR makes rich draw its progress bar, which it leaves out where nobody looks.
    env = {"PYTHONPATH": source_path(), "GLMTUNE_CACHE": str(out / "cache"), "FORCE_COLOR": "1"}
    command = [sys.executable, "-m", "glmtune", "train", str(file)]
    took, _ = run_timed(command, prefix=place.prefix, env=env)
    summary = json.loads((out / "run" / "summary.json").read_text("utf-8"))
    logged = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    on_gpu = not summary["device"].startswith("CPU")
    return {
        "seconds": summary["seconds"],
        "losses": [entry["loss"] for entry in logged if "loss" in entry],
        "device_peak_bytes": summary["peak_memory_bytes"] if on_gpu else None,
        "process": took,
        "adapter": str(out / "run" / "adapter"),
        "versions": {"glmtune": summary["versions"]["glmtune"], "transformers": summary["versions"]["transformers"]},
    }


def bare(place: Place, out: Path, precision: str) -> Run:
    """The loop of `bare.py`."""
    command = [sys.executable, HERE / "bare.py", place.published]
    return _looped(place, out, [*map(str, command)], precision, [], {"PYTHONPATH": source_path()})


def trl(place: Place, out: Path, precision: str, packing: bool = False) -> Run:
    """TRL's SFTTrainer."""
    command = [peer_python(place, "trl"), HERE / "peers" / "trl_train.py", place.native]
    return _looped(place, out, [*map(str, command)], precision, ["--packing"] * packing, {})


def llamafactory(place: Place, out: Path, precision: str, checkpointing: bool = False) -> Run:
    """LLaMA-Factory on the transformers folder, rendering the rows with its own template."""
    work, python = place.work, peer_python(place, "llamafactory")
    rows = [json.loads(line) for line in (place.rows / "train.jsonl").read_text("utf-8").splitlines()]
    alpaca = [{"instruction": row["content"], "input": "", "output": row["summary"]} for row in rows]
    (out / "rows.json").write_text(json.dumps(alpaca, ensure_ascii=False), "utf-8")
    (out / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), "utf-8")
    config = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(place.native),
        "template": place.template,
        "dataset_dir": str(out),
        "dataset": "rows",
        "cutoff_len": work.length,
        "finetuning_type": "lora",
        "lora_rank": work.rank,
        "lora_alpha": work.alpha,
        "lora_dropout": work.dropout,
        "lora_target": ",".join(work.targets),
        "output_dir": str(out / "run"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": work.batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "linear",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": not checkpointing,
        "bf16": precision == "bf16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
    }
    file = out / "config.yaml"  # any JSON is YAML
    file.write_text(json.dumps(config | {"use_cpu": not _has_gpu()}), "utf-8")
    command = [str(Path(python).with_name("llamafactory-cli")), "train", str(file)]
    took, _ = run_timed(command, prefix=place.prefix, cwd=out)
    state = json.loads((out / "run" / "trainer_state.json").read_text("utf-8"))
    return {
        "seconds": next(entry["train_runtime"] for entry in state["log_history"] if "train_runtime" in entry),
        "losses": [entry["loss"] for entry in state["log_history"] if "loss" in entry],
        "device_peak_bytes": None,
        "process": took,
        "adapter": str(out / "run"),
    }


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists()  # importing torch here would make this process large


def _looped(
    place: Place, out: Path, command: list[str], precision: str, options: list[str], env: dict[str, str]
) -> Run:
    """A script that takes ids and settings, and ends with a JSON object."""
    settings = json.dumps(place.work.as_dict())
    given = [str(place.rows / "train_ids.json"), str(out / "adapter"), "--settings", settings]
    took, printed = run_timed(
        [*command, *given, "--precision", precision, *options], prefix=place.prefix, cwd=out, env=env
    )
    return {**json.loads(printed.splitlines()[-1]), "process": took, "adapter": str(out / "adapter")}


def peer_python(place: Place, name: str) -> str:
    """The interpreter of a peer's environment.

    Raises:
        Failed: there is none, with the reason that pip gave where it was tried.
    """
    if place.peers is None:
        raise Failed("not run: no --peers")
    refused = place.peers / f"{name}.failed"
    if refused.is_file():
        raise Failed(f"cannot be installed: {' '.join(refused.read_text('utf-8').split())[:300]}")
    python = place.peers / name / "bin" / "python"
    if not python.is_file():
        raise Failed("not installed: run benchmarks/peers/make_envs.sh")
    return str(python)


CONTENDERS: dict[str, Callable[[Place, Path], Run]] = {
    "glmtune fp32": lambda place, out: glmtune(place, out, "fp32"),
    "glmtune fp32 packed": lambda place, out: glmtune(place, out, "fp32", packing=True),
    "glmtune bf16": lambda place, out: glmtune(place, out, "bf16"),
    "glmtune bf16 packed": lambda place, out: glmtune(place, out, "bf16", packing=True),
    "bare fp32": lambda place, out: bare(place, out, "fp32"),
    "bare bf16": lambda place, out: bare(place, out, "bf16"),
    "trl fp32": lambda place, out: trl(place, out, "fp32"),
    "trl fp32 packed": lambda place, out: trl(place, out, "fp32", packing=True),
    "trl bf16": lambda place, out: trl(place, out, "bf16"),
    "trl bf16 packed": lambda place, out: trl(place, out, "bf16", packing=True),
    "llamafactory fp32": lambda place, out: llamafactory(place, out, "fp32"),
    "llamafactory fp32 checkpointing": lambda place, out: llamafactory(place, out, "fp32", checkpointing=True),
    "llamafactory bf16": lambda place, out: llamafactory(place, out, "bf16"),
}
"""Name to what runs it. LLaMA-Factory checkpoints gradients unless it is told not to; the others are told not to."""


def run(name: str, place: Place, keep: Path) -> Run:
    """One turn of a contender; its files go afterwards, but for the adapter, which is copied to `keep`."""
    with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as folder:
        found = CONTENDERS[name](place, Path(folder))
        target = keep / name.replace(" ", "-")
        shutil.copytree(found["adapter"], target, dirs_exist_ok=True)
        return found | {"adapter": str(target)}
