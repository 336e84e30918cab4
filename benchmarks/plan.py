"""Memory plans compared with runs: what `glmtune train` plans, and the peak memory of its process.

    GLMTUNE_ASSETS=FOLDER PYTHONPATH=src python benchmarks/plan.py [--cells 0-3] [--json OUT]

On a CPU, with random weights under the published configs and tokenizers (`FOLDER/assets/chatglm3-6b` and so on), of 20
to 200 million parameters. Each cell is a `glmtune train` of two steps in a process of its own; its peak is the
system's high-water mark of that process. The constants of `glmtune.training.plan.device` come from this table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """A model's sizes and a run's settings."""

    family: str
    hidden: int
    layers: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        settings = " ".join(setting.removeprefix("training.") for setting in self.settings)
        return f"{self.family} {self.layers} x {self.hidden}: {settings}"


_CHECKPOINTING, _NO_CHECKPOINTING = "training.gradient_checkpointing=true", "training.gradient_checkpointing=false"
_BATCH_4 = "training.per_device_train_batch_size=4"
CELLS = [
    Cell("chatglm3", 512, 8, ("method=lora", _NO_CHECKPOINTING)),
    Cell("chatglm3", 512, 8, ("method=lora", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("method=lora", _CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("method=full", _NO_CHECKPOINTING)),
    Cell("chatglm3", 512, 8, ("method=full", _CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("method=ptuning", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("method=freeze", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("method=lora", _NO_CHECKPOINTING, _BATCH_4, "data.packing=false")),
    Cell("chatglm3", 512, 8, ("method=lora", _NO_CHECKPOINTING, _BATCH_4, "model.precision=bf16")),
    Cell("chatglm3", 512, 8, ("method=qlora", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 768, 12, ("method=lora", _NO_CHECKPOINTING, "training.per_device_train_batch_size=2")),
    Cell("chatglm2", 512, 8, ("method=ptuning", "model.quantization=packed4", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm", 512, 6, ("method=lora", _NO_CHECKPOINTING, "training.per_device_train_batch_size=2")),
    Cell("chatglm", 512, 6, ("method=full", _NO_CHECKPOINTING)),
    Cell("chatglm", 512, 6, ("method=ptuning", _CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("stage=dpo", "method=lora", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm3", 512, 8, ("stage=dpo", "method=lora", _CHECKPOINTING, _BATCH_4, "data.packing=false")),
    Cell("chatglm3", 512, 8, ("stage=dpo", "method=full", _NO_CHECKPOINTING)),
    Cell("chatglm3", 512, 8, ("stage=orpo", "method=lora", _NO_CHECKPOINTING, "data.packing=false")),
    Cell("chatglm2", 512, 8, ("stage=simpo", "method=ptuning", _NO_CHECKPOINTING, _BATCH_4)),
    Cell("chatglm", 512, 6, ("stage=dpo", "method=ptuning", _CHECKPOINTING, _BATCH_4)),
    Cell("chatglm", 512, 6, ("stage=dpo", "method=lora", _NO_CHECKPOINTING)),
]


def write_model(cell: Cell, folder: Path) -> Path:
    """A random checkpoint in the published layout."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from glmtune.families import family_from_config
    from glmtune.models.auto import open_published_state, read_published_config

    source = Path(os.environ["GLMTUNE_ASSETS"]) / "assets" / f"{cell.family}-6b"
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads, ffn = cell.hidden // 64, cell.hidden * 10 // 3 // 64 * 64
    config |= {"hidden_size": cell.hidden, "num_layers": cell.layers, "num_attention_heads": heads}
    config |= {"inner_hidden_size": ffn} if "inner_hidden_size" in config else {"ffn_hidden_size": ffn}
    config |= {"kv_channels": 64} if "kv_channels" in config else {}
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.manual_seed(0)
    native: Any = read_published_config(config, family_from_config(config, names=[str(config["_name_or_path"])]))
    state = open_published_state(AutoModelForCausalLM.from_config(native, dtype=torch.float32))
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors")
    return folder


def measure_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train two steps; the planned and the measured bytes."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
    from demo_corpus.corpus import make_adgen_rows

    model = write_model(cell, folder / "model")
    data, run = folder / "rows.json", folder / "run"
    rows = make_adgen_rows(300, seed=1)
    if any(setting.startswith("stage=") for setting in cell.settings):
        answers = [row["summary"] for row in rows]
        # Few, because the reference is computed for all of them.
        pairs = list(zip(rows, answers[1:] + answers[:1], strict=True))[:40]
        rows = [{"prompt": row["content"], "chosen": row["summary"], "rejected": other} for row, other in pairs]
    data.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    command = [sys.executable, "-m", "glmtune", "train", "--model", str(model), "--data", str(data)]
    command += ["--output", str(run), "--force", "--set", "training.max_steps=2"]
    for setting in cell.settings:
        command += ["--set", setting]
    environment = {**os.environ, "GLMTUNE_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    plan = json.loads((run / "summary.json").read_text("utf-8"))["memory_plan"]
    peak = usage.ru_maxrss * 1024
    return {
        "cell": cell.name,
        "planned": plan["bytes"],
        "seen": peak,
        "error": plan["bytes"] / peak - 1,
        "moment": plan["moment"],
        "parts": plan["parts"],
    }


def main() -> None:
    """Measure the chosen cells and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default=f"0-{len(CELLS) - 1}", help="first-last, from 0")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    first, _, last = arguments.cells.partition("-")
    results = []
    print(f"{'cell':88} {'planned':>8} {'peak':>8} {'error':>7}   MiB")
    for cell in CELLS[int(first) : int(last or first) + 1]:
        with tempfile.TemporaryDirectory() as folder:
            result = measure_cell(cell, Path(folder))
        results.append(result)
        planned, peak = result["planned"] / MIB, result["seen"] / MIB
        print(
            f"{cell.name:88} {planned:8.0f} {peak:8.0f} {100 * result['error']:6.1f}%  {result['moment']}", flush=True
        )
        print("   ", {name: round(size / MIB) for name, size in result["parts"].items()}, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
