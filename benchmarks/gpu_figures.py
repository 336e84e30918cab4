"""The other cells of `gpu.py`: limits, memory, speed."""

from __future__ import annotations

import dataclasses
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import decoding as decoding_benchmark
import memory as memory_benchmark
import torch
from gpu_results import DTYPES, MIB, Setup, figure, proof
from machine import CUBE, measure_matmul_rate, measure_read_rate, synchronize
from models import SHAPES, build_model, published_config

from glmtune.models.attention_kernels import (
    EFFICIENT,
    FLASH,
    MATH,
    find_card,
    find_kernel,
    plan_for_card,
    takes_varlen,
)

KERNEL_NAMES = {
    "FLASH_ATTENTION": FLASH,
    "CUDNN_ATTENTION": FLASH,  # the plan makes no difference
    "EFFICIENT_ATTENTION": EFFICIENT,
    "MATH": MATH,
}

# --- 0: what all figures are a share of ---


def limits(setup: Setup) -> None:
    """Matmul rates, bandwidth, and the attention kernel that torch takes."""
    on_gpu = setup.device == "cuda"
    size = CUBE if on_gpu else 128  # CPUs multiply fp16 a thousand times as slowly
    rates = {f"{name} TFLOP/s": measure_matmul_rate(dtype, setup.device, size) / 1e12 for name, dtype in DTYPES.items()}
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    figure("limits", device=device, **rates, **{"read GB/s": measure_read_rate(setup.device) / 1e9})
    for name, dtype in DTYPES.items():
        for case in ("causal", "causal, grouped queries", "mask"):
            kernel = find_attention_kernel(setup.device, dtype, case)
            figure(f"attention kernel, {name}, {case}", kernel=kernel)
            if on_gpu:
                card = find_card(torch.device("cuda"))
                assert card is not None
                planned = find_kernel(card, dtype, masked=case == "mask", grouped="grouped" in case)
                proof(
                    f"attention kernel, {name}, {case}: as planned",
                    KERNEL_NAMES.get(kernel) == planned,
                    planned=planned,
                )


def find_attention_kernel(device: str, dtype: torch.dtype, case: str) -> str:
    """The name of the backend that scaled-dot-product attention chooses."""
    from torch.nn.attention import SDPBackend

    query = torch.randn(1, 32, 256, 128, device=device, dtype=dtype)
    groups = 2 if "grouped" in case else 32
    key = torch.randn(1, groups, 256, 128, device=device, dtype=dtype)
    mask = torch.ones(256, 256, dtype=torch.bool, device=device).tril() if case == "mask" else None
    choice = torch._fused_sdp_choice(query, key, key, mask, 0.0, mask is None, enable_gqa=groups != 32)
    return SDPBackend(choice).name if choice in [b.value for b in SDPBackend.__members__.values()] else str(choice)


# --- 3, 4, 6, 7, 11: memory and speed of training ---


def memory(
    setup: Setup,
    method: str,
    quantization: str,
    batch: str,
    length: str,
    checkpointing: str,
    limit: str = "all",
    extra: str = "",
) -> None:
    """Peak memory and tokens per second of a few steps on random rows, next to the plan.

    Args:
        setup: where.
        method: of glmtune.
        quantization: of the base, or `none`.
        batch: rows of a micro-batch.
        length: tokens of a row, a third of them prompt.
        checkpointing: `checkpointing` or `plain`.
        limit: GB that the process may use of the GPU; `all`: no limit.
        extra: `old-card` for fp16 and attention without flash and cuDNN; or the name of a shape.
    """
    published = extra if extra in SHAPES else "chatglm-6b" if method == "ptuning" else "chatglm3-6b"
    tokens = int(length) if setup.shape == "published" else 48
    cell = memory_benchmark.Cell(
        setup.pick_shape(published),
        method,
        None if quantization == "none" else quantization,
        batch=int(batch),
        accumulation=4 if batch == "1" else 1,
        prompt=tokens // 3,
        answer=tokens - tokens // 3,
        checkpointing=checkpointing == "checkpointing",
        precision="fp32" if setup.device == "cpu" else "fp16" if extra == "old-card" else "bf16",
    )
    name = cell.name + (f", {limit} GB" if limit != "all" else "") + (f", {extra}" if extra else "")
    if setup.device != "cuda" and (cell.quantization == "nf4" or limit != "all" or extra == "old-card"):
        figure(name, note="on a GPU only")
        return
    if limit != "all":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(float(limit) * 1e9 / total, 1.0))
    if extra == "old-card":
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        measured = memory_benchmark.measure_cell(cell, setup.device, steps=3)
    except torch.OutOfMemoryError as error:
        figure(name, fits="no", reason=str(error).splitlines()[0][:160])
        return
    planned = plan_cell(cell, setup.device)
    figures = {
        "peak": measured["peak_bytes"] / MIB,
        "planned": planned / MIB,
        "tokens/s": measured["tokens_per_second"],
        "loss": measured["loss"],
    }
    if setup.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        figures |= {"reserved": measured["reserved_bytes"] / MIB, "in use on the device": (total - free) / MIB}
        if limit == "all":
            error = planned / (total - free) - 1
            proof(f"{name}: plan within 10 % of what is in use", abs(error) <= 0.1, error=error)
    figure(name, **figures)
    proof(f"{name}: the loss is a number", measured["loss"] == measured["loss"])


def plan_cell(cell: memory_benchmark.Cell, device: str) -> int:
    """Bytes that the plan gives for the same model, settings and rows."""
    from glmtune.training.plan.estimate import estimate_memory

    return estimate_memory(make_plan_request(cell, device)).total


def make_plan_request(cell: memory_benchmark.Cell, device: str) -> Any:
    """The plan's request for the same model, settings and rows."""

    from glmtune.config import RunConfig
    from glmtune.config_parsing import build_dataclass
    from glmtune.data.batches import BlockCollator
    from glmtune.families import get_family
    from glmtune.models.auto import read_published_config
    from glmtune.training.plan.device import pick_device
    from glmtune.training.plan.estimate import PlanRequest
    from glmtune.training.plan.model_spec import ModelSpec

    shape = SHAPES[cell.shape]
    family = get_family(shape.family)
    config: Any = read_published_config(published_config(shape), family)
    precision = DTYPES[cell.precision]
    with tempfile.TemporaryDirectory() as folder:
        arguments, _ = memory_benchmark.make_arguments_and_method(cell, shape, precision, 1, Path(folder), device)
    run = build_dataclass(
        RunConfig,
        {
            "model": {"path": "random", "precision": cell.precision, "quantization": cell.quantization},
            "data": {"train": "random", "packing": False},
            "method": cell.method,
        },
        "benchmarks/gpu.py",
    )
    rows = memory_benchmark.make_random_rows(cell, shape, 1)
    return PlanRequest(
        spec=ModelSpec(Path("random"), family, config, torch.float16, None, 0),
        run=run,
        arguments=arguments,
        precision=precision,
        collate=BlockCollator(family),
        batch=[rows[number] for number in range(cell.batch)],
        eval_batch=None,
        device=pick_device(None, device == "cpu"),
        num_processes=1,
    )


def profile(setup: Setup) -> None:
    """Launches, synchronisations and the largest kernels of a micro-batch of LoRA."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    cell = memory_benchmark.Cell(
        setup.pick_shape("chatglm3-6b"),
        "lora",
        prompt=256 if setup.shape == "published" else 16,
        answer=512 if setup.shape == "published" else 32,
        checkpointing=True,
        precision="bf16" if setup.device == "cuda" else "fp32",
    )
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.device == "cuda" else [])]
    with record(activities=activities) as recorded:
        memory_benchmark.measure_cell(cell, setup.device, steps=2)
    events = recorded.key_averages()
    counts = Counter({event.key: event.count for event in events})
    launches = sum(count for key, count in counts.items() if key.startswith("cudaLaunch"))
    syncs = sum(count for key, count in counts.items() if "Synchronize" in key)
    attribute = "self_device_time_total" if setup.device == "cuda" else "self_cpu_time_total"
    largest = sorted(events, key=lambda event: -getattr(event, attribute))[:10]
    figure("two LoRA steps", launches=launches, synchronisations=syncs)
    for event in largest:
        figure(f"kernel {event.key[:70]}", ms=getattr(event, attribute) / 1000, calls=event.count)


# --- 5: decoding ---


def decoding(setup: Setup, variant: str, compiled: str = "") -> None:
    """Tokens per second of glmtune's engine."""
    if setup.device != "cuda" and (variant == "nf4" or compiled):
        figure(f"decoding {variant} {compiled}".strip(), note="on a GPU only")
        return
    from glmtune.bench.measure import measure_model
    from glmtune.generation.compiled_step import compile_step

    shape = SHAPES[setup.pick_shape("chatglm3-6b")]
    quantization = None if variant == "bf16" else variant
    model = build_model(shape, torch.bfloat16, setup.device, quantization)
    if compiled:
        compile_step(model)
    for batch in (1, 8):
        measured = measure_model(
            model, prompt_tokens=32, new_tokens=64 if setup.device == "cuda" else 4, batch_size=batch
        )
        figure(
            f"decoding {variant}{' compiled' if compiled else ''}, batch {batch}",
            **{
                "tokens/s": measured.decode_tokens_per_s,
                "first token ms": measured.first_token_s * 1000,
                "share of the bandwidth": measured.limit_share,
            },
        )


def decoding_transformers(setup: Setup) -> None:
    """transformers' generate on the same model: its speed, and the same greedy tokens as glmtune's engine."""
    from glmtune.generation.engine import decode_tokens, pick_greedy

    model = build_model(SHAPES[setup.pick_shape("chatglm3-6b")], torch.bfloat16, setup.device)
    new = 64 if setup.device == "cuda" else 4
    with decoding_benchmark.use_transformers(model, setup.device) as reply:
        for batch in (1, 8):
            reply(batch, 32, 2)
            first, total = reply(batch, 32, new)
            figure(f"transformers bf16, batch {batch}", **{"tokens/s": batch * (new - 1) / (total - first)})
    ids = decoding_benchmark.make_random_ids(model, 2, 32)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, 32:].flatten().tolist()
    replies = decode_tokens(model, ids.tolist(), pick_greedy, max_new_tokens=8, stops=(), padding=0)
    tokens = [token for reply in replies for token in reply]
    same = sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True))
    # In 16 bits two kernels may round a near tie apart; what follows such a token differs too.
    figure("greedy tokens as transformers'", equal=same, of=16)


# --- 8, 9, 10 ---


def bare_loop(setup: Setup) -> None:
    """A loop of thirty lines around transformers and peft on the rows of the LoRA cell: the ratio to it."""
    import bare_loop as loop
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface

    name, precision = setup.pick_shape("chatglm3-6b"), "bf16" if setup.device == "cuda" else "fp32"
    tokens = 768 if setup.shape == "published" else 48
    cell = memory_benchmark.Cell(name, "lora", prompt=tokens // 3, answer=tokens - tokens // 3, precision=precision)
    model = build_model(SHAPES[name], DTYPES[precision], setup.device)
    AttentionInterface.register("by_row", loop.attend_per_row)
    model.set_attn_implementation("by_row")
    tuned: Any = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj"])).train()
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    rows = memory_benchmark.make_random_rows(cell, SHAPES[name], 4)
    seconds = []
    for step in range(4):
        items = [rows[step * cell.batch + i][0][1] for i in range(cell.batch)]
        batch = loop.pack_batch([{"input_ids": r.input_ids, "labels": r.labels} for r in items], setup.device)
        synchronize(setup.device)
        start = time.perf_counter()
        with torch.autocast(setup.device, torch.bfloat16, enabled=precision == "bf16"):
            loss = loop.compute_loss(tuned, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(setup.device)
        seconds.append(time.perf_counter() - start)
    bare = cell.batch * tokens / min(seconds[1:])
    del tuned, model, optimizer, trainable
    ours = memory_benchmark.measure_cell(cell, setup.device, steps=4)["tokens_per_second"]
    figure("LoRA, no checkpointing", **{"tokens/s": ours, "bare loop": bare, "ratio": ours / bare})


def loading(setup: Setup) -> None:
    """A checkpoint on disk loaded as nf4: peak of the GPU and of the host."""
    if setup.device != "cuda":
        figure("loading as nf4", note="on a GPU only")
        return
    from safetensors.torch import save_file

    import glmtune
    from glmtune.models.auto import open_published_state

    shape = SHAPES[setup.pick_shape("chatglm3-6b")]
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(shape, torch.float16, setup.device)
        state = {key: value.cpu().contiguous() for key, value in open_published_state(model).items()}
        save_file(state, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        Path(folder, "config.json").write_text(json.dumps(published_config(shape)), "utf-8")
        size = Path(folder, "model.safetensors").stat().st_size
        del model, state
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        model = glmtune.load_model(folder, quantization="nf4", device="cuda")  # kept while the peak is read
        synchronize(setup.device)
        peak = torch.cuda.max_memory_reserved()
        figure(
            "loading as nf4",
            **{
                "GB on disk": size / 1e9,
                "seconds": time.perf_counter() - start,
                "peak": peak / MIB,
                "host grew by": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
            },
        )
        assert model.device.type == "cuda"
        proof("loading as nf4: under 6 GB", peak < 6e9 or setup.shape != "published", peak=peak / MIB)


def attention(setup: Setup) -> None:
    """Rows laid end to end, with the functions that training calls: outputs, gradients and time of each way.

    Causal rows with grouped queries (ChatGLM2 and later), rows with a context (ChatGLM-6B), and both behind a prefix.
    """
    on_gpu = setup.device == "cuda"
    heads, size, prefix = (32, 128, 128) if on_gpu else (4, 16, 5)
    lengths = [768, 700, 512, 300, 128, 90, 64, 33] if on_gpu else [24, 17, 9]
    dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    for groups, contexts in ((2 if on_gpu else 1, [0] * len(lengths)), (heads, [length // 2 for length in lengths])):
        for virtual_tokens in (0, prefix):
            kind = "rows with a context" if contexts[0] else "causal rows"
            name = f"attention, {kind}{', prefix' if virtual_tokens else ''}"
            shape = heads, groups, size, virtual_tokens
            compare_attention(name, setup.device, lengths, contexts, shape, dtype if on_gpu else torch.float32)


def compare_attention(
    name: str,
    device: str,
    lengths: list[int],
    contexts: list[int],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> None:
    """Compare the ways to attend within rows with one masked call in fp32.

    Args:
        name: of the case.
        device: `cuda` or `cpu`.
        lengths: tokens of each row.
        contexts: tokens at the start of each that see each other in both directions.
        shape: query heads, key-value heads, size of a head, virtual tokens.
        dtype: of the ways that are compared.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from glmtune.methods import prefix_attention  # noqa: F401 (registers its functions)
    from glmtune.models.packed_attention import make_packed_rows

    heads, groups, size, prefix = shape
    total = sum(lengths)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, count, total, size, device=device, dtype=dtype, requires_grad=True)
        for count in (heads, groups, groups)
    )
    prefix_kv = torch.randn(1, 2, groups, max(prefix, 1), size, device=device, dtype=dtype, requires_grad=True)
    module = SimpleNamespace(is_causal=not contexts[0], layer_idx=0, num_key_value_groups=heads // groups)
    attend = ALL_ATTENTION_FUNCTIONS["prefix_rows_sdpa" if prefix else "rows_sdpa"]
    options: dict[str, Any] = {"scaling": size**-0.5} | ({"prefix_kv": prefix_kv} if prefix else {})

    counts = torch.tensor(lengths)
    row_T = torch.repeat_interleave(torch.arange(len(lengths)), counts).to(device)
    place_T = torch.cat([torch.arange(length) for length in lengths]).to(device)
    context_T = torch.tensor(contexts).to(device)[row_T]
    mask_TT = (row_T[:, None] == row_T) & ((place_T <= place_T[:, None]) | (place_T < context_T))
    mask_TS = torch.nn.functional.pad(mask_TT, (prefix, 0), value=True)

    def attend_masked(convert: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> torch.Tensor:
        parts = (
            (key, value)
            if not prefix
            else (torch.cat([p[None], x], 2) for p, x in zip(prefix_kv[0], (key, value), strict=True))
        )
        k, v = (convert(x).repeat_interleave(heads // groups, 1) for x in parts)
        output = torch.nn.functional.scaled_dot_product_attention(convert(query), k, v, attn_mask=mask_TS)
        return output.transpose(1, 2)

    def attend_rows(single: bool | None) -> torch.Tensor:
        rows = make_packed_rows(lengths, contexts, torch.device(device), single)
        output: torch.Tensor = attend(module, query, key, value, None, rows=rows, **options)[0]
        return output

    def attend_groups(single: bool = False) -> torch.Tensor:
        card = find_card(torch.device(device))
        with plan_for_card(card and dataclasses.replace(card, varlen=False)):
            return attend_rows(single)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "masked": attend_masked,
        "by row": lambda: attend_groups(True),
        "by class of length": attend_groups,
    }
    if takes_varlen(query, 0.0):
        ways["of varying length"] = lambda: attend_rows(None)
    inputs = [query, key, value, *([prefix_kv] if prefix else [])]
    weights = torch.randn(1, total, heads, size, device=device)

    def compute(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        output = function()
        return output, *torch.autograd.grad((output.float() * weights).sum(), inputs)

    expected = compute(lambda: attend_masked(torch.Tensor.float))
    allowed = 1e-5 if dtype == torch.float32 else 2e-2  # of the largest value: two roundings to 16 bits
    for way, function in ways.items():
        pairs = zip(compute(function), expected, strict=True)
        error = max(((a.float() - b.float()).abs().max() / b.float().abs().max()).item() for a, b in pairs)
        proof(f"{name} {way}", error <= allowed, error=error)
        figure(f"{name} {way}, forward and backward", ms=time_milliseconds(lambda f=function: compute(f), device))


def time_milliseconds(function: Callable[[], object], device: str) -> float:
    """The fastest of ten calls."""
    function()
    times = []
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times) * 1000
