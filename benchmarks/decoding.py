"""Decoding speed by precision and batch size, compared with transformers' `generate` on the same random model.

    PYTHONPATH=src python benchmarks/decoding.py [--shape reference] [--json OUT]
    PYTHONPATH=src python benchmarks/decoding.py --device cuda --shape chatglm3-6b

What limits decoding at batch 1 is reading the weights: every token needs all matrices of the layers and the head, and
one row of the embedding. The share of the limit is those bytes over the time of a token, by the read bandwidth measured
between the replies (that of a shared machine changes by half within minutes). Keys and values, which are read too, are
not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from harness import (
    describe_environment,
    format_footer,
    format_table,
    make_parser,
    make_pythonpath,
    median,
    print_progress,
    report_result,
    run_interleaved,
    run_json,
)
from machine import measure_read_rate, synchronize
from models import SHAPES, build_model

# Precision of the products, and quantisation. packed8 and packed4 are the scheme of the published int8 and int4 models.
VARIANTS = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "packed8": ("bf16", "packed8"),
    "packed4": ("bf16", "packed4"),
    "nf4": ("bf16", "nf4"),
}
OLD_VARIANTS = {"int8": "packed8", "int4": "packed4"}
ROUNDS = 5
_BANDWIDTH_S = 0.2
Reply = Callable[[int, int, int], tuple[float, float]]
"""(batch size, prompt tokens, new tokens) -> seconds until the first and until the last new token."""

UNQUANTIZED = ("fp32", "bf16")
"""Variants that transformers' `generate` is measured in: the quantised layers are glmtune's."""


@dataclass(frozen=True)
class Cell:
    """One process: a model is built once and decodes with every batch size."""

    engine: str
    shape: str
    variant: str
    batch_sizes: tuple[int, ...]
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"{self.engine} {self.variant}"


# --- one cell, in a process of its own ---


def measure_cell(cell: Cell, device: str) -> dict[str, Any]:
    """Build a model and measure replies of every batch size.

    Returns:
        `weight_bytes` that a token reads, and per batch size `first_s` (latency of the first token), `token_s` (of
        each further step), `read_bytes` (bandwidth, the mean of right before and right after, bytes per second).
    """
    import torch

    precision, quantization = VARIANTS[cell.variant]
    model = build_model(
        SHAPES[cell.shape], {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], device, quantization
    )
    engine = {"glmtune": use_glmtune, "transformers": use_transformers}[cell.engine]
    with engine(model, device) as reply:
        timings = {str(size): measure_rounds(reply, size, cell, device) for size in cell.batch_sizes}
    return {"weight_bytes": count_read_bytes(model), "batch_sizes": timings}


def measure_rounds(reply: Reply, batch: int, cell: Cell, device: str) -> dict[str, float]:
    """Measure `ROUNDS` replies with the bandwidth between them; the reply of the median share of the bandwidth."""
    reply(batch, cell.prompt, 2)
    rounds = []
    before = measure_read_rate(device, least=_BANDWIDTH_S)
    for _ in range(ROUNDS):
        first, total = reply(batch, cell.prompt, cell.new)
        after = measure_read_rate(device, least=_BANDWIDTH_S)
        rounds.append(
            {"first_s": first, "token_s": (total - first) / (cell.new - 1), "read_bytes": (before + after) / 2}
        )
        before = after
    # The round of the median share: its bandwidth belongs to its tokens.
    rounds.sort(key=lambda each: each["token_s"] * each["read_bytes"])
    return rounds[ROUNDS // 2]


def count_read_bytes(model: Any) -> int:
    """Bytes of all weights and buffers but the embedding: what the forward pass of a token reads."""
    tensors = [*model.parameters(), *model.buffers()]
    scales = [
        tensor
        for parameter in model.parameters()
        if (state := getattr(parameter, "quant_state", None)) is not None
        for tensor in (state.absmax, state.state2.absmax if state.nested else None)
        if tensor is not None
    ]
    return sum(t.nbytes for t in [*tensors, *scales]) - model.get_input_embeddings().weight.nbytes


@contextmanager
def use_transformers(model: Any, device: str) -> Iterator[Reply]:
    """`model.generate`, greedy, no early stop."""
    import torch

    def time_generate(ids: Any, tokens: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        synchronize(device)
        return time.perf_counter() - start

    def reply(batch: int, prompt: int, new: int) -> tuple[float, float]:
        ids = make_random_ids(model, batch, prompt)
        return time_generate(ids, 1), time_generate(ids, new)

    yield reply


@contextmanager
def use_glmtune(model: Any, device: str) -> Iterator[Reply]:
    """The engine of chat, evaluation and serving, with prepacked weights.

    Not timed by `glmtune.bench.measure`, which takes the median step: of transformers' `generate` only the mean can be
    measured, and both engines are measured in the same way.
    """
    from glmtune.generation.cpu_prepack import prepacked
    from glmtune.generation.engine import decode_tokens, pick_greedy

    def reply(batch: int, prompt: int, new: int) -> tuple[float, float]:
        prompts = make_random_ids(model, batch, prompt).tolist()
        ends: list[float] = []

        def on_step(_: dict[int, int]) -> None:
            synchronize(device)
            ends.append(time.perf_counter())

        synchronize(device)
        start = time.perf_counter()
        decode_tokens(model, prompts, pick_greedy, max_new_tokens=new, stops=(), padding=0, on_step=on_step)
        return ends[0] - start, ends[-1] - start

    with prepacked(model):
        yield reply


def make_random_ids(model: Any, batch: int, prompt: int) -> Any:
    """Random ids, (batch, prompt), without special ones."""
    import torch

    torch.manual_seed(0)
    return torch.randint(10, min(model.config.vocab_size, 60_000), (batch, prompt), device=model.device)


# --- all cells ---


def list_cells(args: argparse.Namespace) -> list[Cell]:
    """glmtune in every variant, transformers in those without quantisation."""
    variants = args.variants or [name for name in VARIANTS if name != "nf4" or args.device == "cuda"]
    pairs = [("glmtune", name) for name in variants]
    pairs += [("transformers", name) for name in variants if name in UNQUANTIZED]
    return [Cell(engine, args.shape, name, tuple(args.batch_sizes), args.prompt, args.new) for engine, name in pairs]


def measure_cells(args: argparse.Namespace) -> dict[str, Any]:
    """Run all cells, interleaved."""
    cells = {cell.name: cell for cell in list_cells(args)}
    machine = run_json("machine.py", "--child", "--device", args.device, prefix=args.prefix)

    def run(name: str) -> dict[str, Any]:
        arguments = ["--cell", json.dumps(asdict(cells[name])), "--device", args.device]
        return run_json("decoding.py", *arguments, prefix=args.prefix, env={"PYTHONPATH": make_pythonpath()})

    results = run_interleaved(list(cells), args.repeats, run)
    settings = {"shape": args.shape, "prompt": args.prompt, "new": args.new, "batch_sizes": args.batch_sizes}
    return {**describe_environment("decoding.py"), "machine": machine, **settings, "contenders": results}


def format_report(result: dict[str, Any]) -> str:
    """The figures as a markdown table; ratios are to transformers in bf16 at the same batch size, else to the first."""
    candidates = {name: entry["runs"] for name, entry in result["contenders"].items() if entry["runs"]}
    against = "transformers bf16" if "transformers bf16" in candidates else next(iter(candidates), "")
    rows = []
    for name, runs in candidates.items():
        for size in map(str, result["batch_sizes"]):
            token, first = (median([t["batch_sizes"][size][key] for t in runs]) for key in ("token_s", "first_s"))
            other = median([t["batch_sizes"][size]["token_s"] for t in candidates[against]])
            read = runs[0]["weight_bytes"]
            rates = [t["batch_sizes"][size] for t in runs]
            share = median([read / rate["token_s"] / rate["read_bytes"] for rate in rates])
            rows.append(
                [
                    f"{name}, batch {size}",
                    f"{int(size) / token:,.1f}",
                    f"{other / token:.2f} x",
                    f"{1000 * token:.2f}",
                    f"{1000 * first:.0f}",
                    f"{read / 2**20:,.0f}",
                    f"{share:.0%}",
                ]
            )
    head = ["decoding", "tokens/s", f"against {against}", "ms a step", "first token, ms", "MiB read a step"]
    failed = [f"{name}: {entry['failed']}" for name, entry in result["contenders"].items() if "failed" in entry]
    caption = f"{result['shape']} shape, {result['prompt']} tokens of prompt, {result['new']} new ones."
    return "\n".join(
        [*format_table([*head, "share of the read bandwidth"], rows), "", *failed, caption, *format_footer(result)]
    )


def parse_variant(name: str) -> str:
    """A name of `VARIANTS`; names of earlier versions are replaced, with a notice."""
    if name in OLD_VARIANTS:
        print_progress(f"--variants: {name} is now called {OLD_VARIANTS[name]}")
    return OLD_VARIANTS.get(name, name)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument(
        "--variants", nargs="+", type=parse_variant, choices=VARIANTS, help="default: all, nf4 on a GPU only"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of a reply")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.new < 2:
        parser.error("--new: at least 2, because the first token is measured separately")
    if args.cell:
        print(json.dumps(measure_cell(Cell(**args.cell), args.device)))
        return
    report_result(measure_cells(args), args.json, format_report)


if __name__ == "__main__":
    main()
