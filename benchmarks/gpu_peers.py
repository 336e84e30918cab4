"""Cell 9 of `gpu.py`: other trainers on the rows of the LoRA cell. The bare loop is in `gpu_figures.py`."""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any

import memory as memory_benchmark
from gpu_results import DTYPES, Setup, figure
from harness import median
from models import SHAPES, build_model

_STEPS = 4


def trl(setup: Setup) -> None:
    """TRL's SFTTrainer with peft: its tokens per second, the ratio to them, and the peak of memory."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        figure("TRL, LoRA", note=f"not run: {' and '.join(missing)} cannot be imported (gpu_wheels.sh has them)")
        return
    import torch

    name, precision = setup.pick_shape("chatglm3-6b"), "bf16" if setup.device == "cuda" else "fp32"
    tokens = 768 if setup.shape == "published" else 48
    cell = memory_benchmark.Cell(name, "lora", prompt=tokens // 3, answer=tokens - tokens // 3, precision=precision)
    ours = memory_benchmark.measure_cell(cell, setup.device, _STEPS)
    if setup.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    theirs = _train_with_trl(cell, setup.device)
    speed = cell.batch * tokens / median(theirs)
    figures = {"tokens/s": ours["tokens_per_second"], "TRL": speed, "ratio": ours["tokens_per_second"] / speed}
    if setup.device == "cuda":
        figures |= {"peak": ours["peak_bytes"] / 2**20, "TRL's peak": torch.cuda.max_memory_allocated() / 2**20}
    figure("LoRA, no checkpointing, against TRL", **figures)


def _train_with_trl(cell: memory_benchmark.Cell, device: str) -> list[float]:
    """Seconds of every step but the first."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model = build_model(SHAPES[cell.shape], DTYPES[cell.precision], device)
    rows = memory_benchmark.make_random_rows(cell, SHAPES[cell.shape], _STEPS)
    encoded = [rows[number][0][1] for number in range(len(rows))]
    clock = memory_benchmark._StepClock(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            processing_class=_make_tokenizer(),
            train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in encoded]),
            peft_config=LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"),
            callbacks=[clock.make_callback()],
            args=SFTConfig(
                output_dir=folder,
                max_steps=_STEPS,
                per_device_train_batch_size=cell.batch,
                max_length=cell.prompt + cell.answer,
                train_sampling_strategy="sequential",
                save_strategy="no",
                report_to="none",
                use_cpu=device == "cpu",
                bf16=cell.precision == "bf16",
                gradient_checkpointing=False,  # on by default; here it only costs time
            ),
        )
        trainer.train()
    return clock.read_seconds()


def _make_tokenizer() -> Any:
    """A tokenizer that SFTTrainer asks for special tokens; the rows are ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 2, "<unk>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
