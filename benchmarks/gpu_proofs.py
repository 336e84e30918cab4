"""Cells 1 and 2 of `gpu.py`: numbers that must be right on any device."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memory as memory_benchmark
import torch
from gpu_results import DTYPES, Setup, figure, proof
from models import read_shape

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
# Largest difference from the fp32 logits of the golden files, which are around 1: in 16 bits 40 roundings.
TOLERANCES = {"fp32": 1e-4, **{name: 40 * torch.finfo(DTYPES[name]).eps for name in ("fp16", "bf16")}}


# --- 1: the numbers of the official code ---


def golden_parity(setup: Setup) -> None:
    """Logits, losses and greedy tokens of the official code, in every precision."""
    from safetensors.torch import load_file

    import glmtune

    for family in ("chatglm", "chatglm2"):
        expected = load_file(GOLDEN / family / "expected.safetensors")
        for name in DTYPES:
            model = glmtune.load_model(GOLDEN / family, dtype=name, device=setup.device)
            ids, labels = (expected[f"single_{key}"].to(setup.device) for key in ("ids", "labels"))
            with torch.no_grad():
                output = model(input_ids=ids, labels=labels)
            error = (output.logits.float().cpu() - expected["single_logits"]).abs().max().item()
            loss_error = abs(output.loss.item() - expected["single_loss"].item())
            ok = error <= TOLERANCES[name] and loss_error <= TOLERANCES[name]
            proof(f"{family} {name}: official logits and loss", ok, logits=error, loss=loss_error)


def packed_parity(setup: Setup) -> None:
    """Packed layers against their own unpacked matrices, and which kernels were chosen."""
    from torch import nn
    from torch.nn import functional as F

    from glmtune.quantization.device_kernels import pick_path
    from glmtune.quantization.packed import quantize
    from glmtune.quantization.packed_linear import PackedLinear

    torch.manual_seed(0)
    size = 4096 if setup.shape == "published" else 256
    linear = nn.Linear(size, size + 64, device=setup.device)
    for bits in (4, 8):
        packed, scale = quantize(linear.weight, bits)
        host_packed, host_scale = quantize(linear.weight.cpu(), bits)
        same = torch.equal(packed.cpu(), host_packed) and torch.equal(scale.cpu(), host_scale)
        proof(f"packed{bits}: quantised as on the CPU", same)
        layer = PackedLinear.from_linear(linear, bits)
        exact_OI = layer.dequantize_weight(torch.float32)
        for name, dtype in DTYPES.items():
            for rows in (1, 8, 64):
                inputs = torch.randn(rows, size, device=setup.device).to(dtype).requires_grad_(rows == 64)
                product = layer(inputs).float()
                reference = F.linear(inputs.float(), exact_OI, linear.bias)
                # One rounding of weights and product: relative to the sum of absolute terms.
                scale_MO = F.linear(inputs.float().abs(), exact_OI.abs(), linear.bias.abs())
                error = ((product - reference).abs() / scale_MO).max().item()
                proof(f"packed{bits} {name}, {rows} rows", error <= 2 * torch.finfo(dtype).eps, error=error)
            if setup.device == "cuda":
                figure(f"packed{bits} {name}: kernels", path=pick_path(torch.device("cuda", 0), bits, dtype).reason)


def bitsandbytes_parity(setup: Setup) -> None:
    """nf4 against the matrix that bitsandbytes itself unpacks."""
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(0)
    size = 1024 if setup.device == "cuda" else 128
    dense = torch.randn(size, size) * 0.02
    for name, dtype in DTYPES.items():
        layer = bitsandbytes.nn.Linear4bit(size, size, bias=False, compute_dtype=dtype, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(dense.to(dtype), requires_grad=False, quant_type="nf4")
        layer = layer.to(setup.device)
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        inputs = torch.randn(3, size, device=setup.device, dtype=dtype)
        reference = inputs.float() @ weight.T
        error = ((layer(inputs).float() - reference).abs() / (inputs.float().abs() @ weight.abs().T)).max().item()
        proof(f"nf4 {name}", error <= 4 * torch.finfo(dtype).eps, error=error)


def row_parity(setup: Setup) -> None:
    """Rows end to end against the same rows alone: losses and gradients."""
    import glmtune
    from glmtune.data.batches import BlockCollator
    from glmtune.families import get_family
    from glmtune.models.packed_attention import set_packed_attention

    for family in ("chatglm2", "chatglm"):
        shape = read_shape(GOLDEN / family)
        for name in DTYPES:
            model = glmtune.load_model(GOLDEN / family, dtype=name, device=setup.device)
            set_packed_attention(model)
            cell = memory_benchmark.Cell("tiny", "lora", batch=1, prompt=20, answer=15)
            lengths = (20, 7, 33, 12)
            rows = [
                memory_benchmark.make_random_rows(dataclasses.replace(cell, prompt=length), shape, 1)[0][0][1]
                for length in lengths
            ]
            collate = BlockCollator(get_family(family))
            alone = [compute_gradient(model, collate([[(0, row)]])) for row in rows]
            loss, gradient = compute_gradient(model, collate([list(enumerate(rows))]))
            total = sum(value for value, _ in alone)
            gradients = torch.stack([value for _, value in alone]).sum(0)
            loss_error = abs(loss - total) / total
            error = ((gradient - gradients).abs().max() / gradients.abs().max()).item()
            allowed = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}[name]
            ok = loss_error <= allowed and error <= allowed
            proof(f"{family} {name}: rows together as alone", ok, loss=loss_error, gradient=error)


def compute_gradient(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """The sum of the losses of a batch, and the gradient of the embedding, fp32."""
    from glmtune.training.loss import step_loss

    model.zero_grad()
    losses = step_loss(model, {key: value.to(model.device) for key, value in batch.items()})
    losses.sum().backward()
    return losses.sum().item(), model.get_input_embeddings().weight.grad.float().clone()


# --- 2: training through the public function ---


def training_parity(setup: Setup) -> None:
    """Methods and precisions on the demo's base, next to the CPU in fp32."""
    precisions = ["fp32"]
    if setup.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.append("bf16")
    if setup.device == "cuda":
        precisions.append("fp16")
    for method in ("lora", "ptuning", "freeze", "full"):
        prove_training(setup.device, method, precisions)


def prove_training(device: str, method: str, precisions: Sequence[str]) -> None:
    """Compare the losses of four steps with those of the CPU in fp32."""
    expected = train_demo("cpu", method, "fp32")
    for precision in precisions:
        losses = train_demo(device, method, precision)
        error = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        allowed = {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05}[precision]
        proof(f"{method} {precision}: losses as on the CPU", error <= allowed, error=error, last=losses[-1])


def checkpointing_parity(setup: Setup) -> None:
    """Losses with gradient checkpointing equal those without."""
    plain = train_demo(setup.device, "lora", "fp32")
    checkpointed = train_demo(setup.device, "lora", "fp32", "training.gradient_checkpointing=true")
    error = max(abs(a - b) for a, b in zip(plain, checkpointed, strict=True))
    proof("checkpointing: the same losses", error <= 1e-4, error=error)


def resume_parity(setup: Setup) -> None:
    """A run that stopped after two of four steps, resumed: the losses of one that did not stop."""
    plain = train_demo(setup.device, "lora", "fp32")
    with tempfile.TemporaryDirectory() as folder:
        saving = ("training.save_steps=2", "training.save_strategy=steps")
        train_demo(setup.device, "lora", "fp32", *saving, "training.max_steps=2", folder=folder)
        resumed = train_demo(setup.device, "lora", "fp32", *saving, folder=folder, resume=True)
    error = max(abs(a - b) for a, b in zip(plain, resumed, strict=True))
    proof("resumed: the same losses", error <= (1e-4 if setup.device == "cuda" else 0), error=error)


def train_demo(
    device: str, method: str, precision: str, *overrides: str, folder: str | None = None, resume: bool = False
) -> list[float]:
    """Train four steps on the demo's base; the loss of every step."""
    import glmtune
    from glmtune.config import load_config
    from glmtune.training.run import train

    package = Path(glmtune.__file__).parent / "demo"
    with tempfile.TemporaryDirectory() as temporary:
        output, rows = Path(folder or temporary, "run"), Path(folder or temporary, "rows.jsonl")
        lines = (package / "data" / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[:64]), "utf-8")
        config = load_config(
            None,
            [
                f"model={package / 'base'}",
                f"data={rows}",
                f"method={method}",
                f"model.precision={precision}",
                f"output={output}",
                f"training.use_cpu={'true' if device == 'cpu' else 'false'}",
                "data.eval_fraction=0",
                "data.max_length=256",  # short blocks of several rows: a simulated device is slow
                "lora.dropout=0",  # masks of different devices differ
                "ptuning.dropout=0",
                "training.max_steps=4",
                "training.logging_steps=1",
                "training.lr_scheduler_type=constant",
                "training.warmup_steps=0",
                "training.report_to=none",
                *([] if any("save_strategy" in setting for setting in overrides) else ["training.save_strategy=no"]),
                *overrides,
            ],
        )
        train(config, resume=resume)
        metrics = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, metrics) if "loss" in entry]
