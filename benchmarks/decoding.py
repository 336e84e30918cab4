"""Decoding by precision and batch size, next to transformers' own `generate` on the same random model.

    PYTHONPATH=src python benchmarks/decoding.py [--shape reference] [--json OUT]
    PYTHONPATH=src python benchmarks/decoding.py --device cuda --shape chatglm3-6b

What limits decoding at batch 1 is reading the weights: every token needs all matrices of the layers and the head, and
of the embedding one row. The share of the limit is those bytes over the time of a token, next to the read bandwidth
measured right before and right after (a shared machine's moves by half within minutes). Keys and values that are read
as well are left out of the count.
"""

from __future__ import annotations

import argparse
import json
import time
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
        each further step), `read_bytes` (the better of the bandwidths before and after, bytes per second).
    """
    import torch

    precision, quantization = VARIANTS[cell.variant]
    model = build(SHAPES[cell.shape], {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], device, quantization)
    how = {"glmtune": by_glmtune, "transformers": by_transformers}[cell.who]
    timings = {}
    before = read_rate(device)
    for size in cell.batch_sizes:
        found = how(model, size, cell.prompt, cell.new, device)
        after = read_rate(device)
        timings[str(size)] = {**found, "read_bytes": max(before, after)}
        before = after
    return {"weight_bytes": read_bytes(model), "batch_sizes": timings}


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


def by_transformers(model: Any, batch: int, prompt: int, new: int, device: str) -> dict[str, float]:
    """`model.generate`, greedy, no early stop."""
    import torch

    ids = random_ids(model, batch, prompt)

    def seconds(tokens: int) -> float:
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

    seconds(2)
    first = middle([seconds(1) for _ in range(3)])
    return {"first_s": first, "token_s": (seconds(new) - first) / (new - 1)}


def by_glmtune(model: Any, batch: int, prompt: int, new: int, device: str) -> dict[str, float]:
    """The engine of chat, evaluation and serving, its weights arranged as it arranges them.

    Timed here rather than by `glmtune.evaluation.benchmark`, which takes the median step: of transformers' `generate`
    only the mean is to be had, and both contenders are measured alike.
    """
    from glmtune.generation.arrange import arranged
    from glmtune.generation.engine import decode, greedy

    prompts = random_ids(model, batch, prompt).tolist()
    ends: list[float] = []

    def on_step(_: dict[int, int]) -> None:
        synchronize(device)
        ends.append(time.perf_counter())

    def run(tokens: int) -> list[float]:
        ends.clear()
        synchronize(device)
        start = time.perf_counter()
        decode(model, prompts, greedy, max_new_tokens=tokens, stops=(), padding=0, on_step=on_step)
        return [end - start for end in ends]

    with arranged(model):
        run(2)
        first = middle([run(1)[0] for _ in range(3)])
        times = run(new)
    return {"first_s": first, "token_s": (times[-1] - times[0]) / (new - 1)}


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
