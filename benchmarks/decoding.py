"""Decoding by precision and batch size, next to transformers' own `generate` on the same random model.

    PYTHONPATH=src python benchmarks/decoding.py [--shape reference] [--json OUT]
    PYTHONPATH=src python benchmarks/decoding.py --device cuda --shape chatglm3-6b

What limits decoding at batch 1 is reading the weights: every token needs all matrices of the layers and the head, and
of the embedding one row. The share of the limit is those bytes over the time of a token, next to the read bandwidth
measured in turn with it (a shared machine's moves by half within minutes). Keys and values that are read
as well are left out of the count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from machine import read_rate, synchronize
from models import SHAPES, build
from sitting import circumstances, finish, in_turn, middle, parser, run_json, small_print, source_path, table

# How weights are held, and what is computed in. int8 and int4 are the published repositories' scheme.
VARIANTS = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "int8": ("bf16", "packed8"),
    "int4": ("bf16", "packed4"),
    "nf4": ("bf16", "nf4"),
}
ROUNDS = 5
_BANDWIDTH_S = 0.2
Reply = Callable[[int, int, int], tuple[float, float]]
"""From rows, tokens of a prompt and new ones to the seconds until the first and until the last of them."""

PLAIN = ("fp32", "bf16")
"""What transformers' `generate` is measured with: quantised layers are ours."""


@dataclass(frozen=True)
class Cell:
    """One process: a model is built once and decodes with every batch size."""

    who: str
    shape: str
    variant: str
    batch_sizes: tuple[int, ...]
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"{self.who} {self.variant}"


# --- one cell, in a process of its own ---


def measure_cell(cell: Cell, device: str) -> dict[str, Any]:
    """Build, warm up, decode.

    Returns:
        `weight_bytes` that a token reads, and per batch size `first_s` (latency of the first token), `token_s` (of
        each further step), `read_bytes` (bandwidth, the mean of right before and right after, bytes per second).
    """
    import torch

    precision, quantization = VARIANTS[cell.variant]
    model = build(SHAPES[cell.shape], {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], device, quantization)
    how = {"glmtune": by_glmtune, "transformers": by_transformers}[cell.who]
    with how(model, device) as reply:
        timings = {str(size): in_rounds(reply, size, cell, device) for size in cell.batch_sizes}
    return {"weight_bytes": read_bytes(model), "batch_sizes": timings}


def in_rounds(reply: Reply, batch: int, cell: Cell, device: str) -> dict[str, float]:
    """One of `ROUNDS` replies, the bandwidth measured between them: that whose share of it is the middle one."""
    reply(batch, cell.prompt, 2)
    rounds = []
    before = read_rate(device, least=_BANDWIDTH_S)
    for _ in range(ROUNDS):
        first, whole = reply(batch, cell.prompt, cell.new)
        after = read_rate(device, least=_BANDWIDTH_S)
        rounds.append(
            {"first_s": first, "token_s": (whole - first) / (cell.new - 1), "read_bytes": (before + after) / 2}
        )
        before = after
    # The round of the median share: its bandwidth belongs to its tokens.
    rounds.sort(key=lambda each: each["token_s"] * each["read_bytes"])
    return rounds[ROUNDS // 2]


def read_bytes(model: Any) -> int:
    """Bytes of everything but the embedding: what one token's forward pass reads."""
    held = [*model.parameters(), *model.buffers()]
    scales = [
        tensor
        for parameter in model.parameters()
        if (state := getattr(parameter, "quant_state", None)) is not None
        for tensor in (state.absmax, state.state2.absmax if state.nested else None)
        if tensor is not None
    ]
    return sum(t.nbytes for t in [*held, *scales]) - model.get_input_embeddings().weight.nbytes


@contextmanager
def by_transformers(model: Any, device: str) -> Iterator[Reply]:
    """`model.generate`, greedy, no early stop."""
    import torch

    def seconds(ids: Any, tokens: int) -> float:
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
        ids = random_ids(model, batch, prompt)
        return seconds(ids, 1), seconds(ids, new)

    yield reply


@contextmanager
def by_glmtune(model: Any, device: str) -> Iterator[Reply]:
    """The engine of chat, evaluation and serving, its weights arranged as it arranges them.

    Timed here rather than by `glmtune.bench.measure`, which takes the median step: of transformers' `generate`
    only the mean is to be had, and both contenders are measured alike.
    """
    from glmtune.generation.cpu_prepack import arranged
    from glmtune.generation.engine import decode, greedy

    def reply(batch: int, prompt: int, new: int) -> tuple[float, float]:
        prompts = random_ids(model, batch, prompt).tolist()
        ends: list[float] = []

        def on_step(_: dict[int, int]) -> None:
            synchronize(device)
            ends.append(time.perf_counter())

        synchronize(device)
        start = time.perf_counter()
        decode(model, prompts, greedy, max_new_tokens=new, stops=(), padding=0, on_step=on_step)
        return ends[0] - start, ends[-1] - start

    with arranged(model):
        yield reply


def random_ids(model: Any, batch: int, prompt: int) -> Any:
    """Ids of no meaning, (batch, prompt), none of them special."""
    import torch

    torch.manual_seed(0)
    return torch.randint(10, min(model.config.vocab_size, 60_000), (batch, prompt), device=model.device)


# --- the sitting ---


def cells(args: argparse.Namespace) -> list[Cell]:
    """Contenders: glmtune in every variant, transformers in the plain ones."""
    variants = args.variants or [name for name in VARIANTS if name != "nf4" or args.device == "cuda"]
    pairs = [("glmtune", name) for name in variants]
    pairs += [("transformers", name) for name in variants if name in PLAIN]
    return [Cell(who, args.shape, name, tuple(args.batch_sizes), args.prompt, args.new) for who, name in pairs]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All cells in turn."""
    named = {cell.name: cell for cell in cells(args)}
    machine = run_json("machine.py", "--child", "--device", args.device, prefix=args.prefix)

    def run(name: str) -> dict[str, Any]:
        given = ["--cell", json.dumps(asdict(named[name])), "--device", args.device]
        return run_json("decoding.py", *given, prefix=args.prefix, env={"PYTHONPATH": source_path()})

    found = in_turn(list(named), args.repeats, run)
    facts = {"shape": args.shape, "prompt": args.prompt, "new": args.new, "batch_sizes": args.batch_sizes}
    return {**circumstances("decoding.py"), "machine": machine, **facts, "contenders": found}


def report(result: dict[str, Any]) -> str:
    """The figures as a markdown table; ratios are to transformers in bf16 at the same batch size, else to the first."""
    contenders = {name: c["runs"] for name, c in result["contenders"].items() if c["runs"]}
    against = "transformers bf16" if "transformers bf16" in contenders else next(iter(contenders), "")
    rows = []
    for name, turns in contenders.items():
        for size in map(str, result["batch_sizes"]):
            token, first = (middle([t["batch_sizes"][size][key] for t in turns]) for key in ("token_s", "first_s"))
            other = middle([t["batch_sizes"][size]["token_s"] for t in contenders[against]])
            read = turns[0]["weight_bytes"]
            rates = [t["batch_sizes"][size] for t in turns]
            share = middle([read / rate["token_s"] / rate["read_bytes"] for rate in rates])
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
    failed = [f"{name}: {c['failed']}" for name, c in result["contenders"].items() if "failed" in c]
    said = f"{result['shape']} shape, {result['prompt']} tokens of prompt, {result['new']} new ones."
    return "\n".join([*table([*head, "share of the read bandwidth"], rows), "", *failed, said, *small_print(result)])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--shape", choices=SHAPES, default="reference")
    made.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all, nf4 on a GPU only")
    made.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    made.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    made.add_argument("--new", type=int, default=64, help="tokens of a reply")
    made.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.new < 2:
        made.error("--new: at least 2, for the first token is told apart")
    if args.cell:
        print(json.dumps(measure_cell(Cell(**args.cell), args.device)))
        return
    finish(measure(args), args.json, report)


if __name__ == "__main__":
    main()
