"""Answering evaluation prompts in batches against one by one: how many times as fast, and whether the replies agree.

    PYTHONPATH=src python benchmarks/evaluation.py [--model MODEL] [--json OUT]

The prompts are the 170 questions of ADGEN's dev.json among the assets, else as many synthetic ones; the model is the
base of `glmtune demo` unless another is named. In fp32 batching must not change a reply, which is checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sitting import (
    REPOSITORY,
    add_assets,
    circumstances,
    finish,
    in_turn,
    middle,
    parser,
    run_json,
    small_print,
    source_path,
    table,
    with_spread,
)

BASE = REPOSITORY / "src" / "glmtune" / "demo" / "base"


def questions(assets: Path, count: int) -> tuple[str, list[str]]:
    """Where the questions are from, and the questions."""
    file = assets / "data" / "adgen" / "dev.json"
    if file.is_file():
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        return "ADGEN's dev.json", [json.loads(line)["content"] for line in lines[:count]]
    from glmtune.demo.corpus import adgen_rows

    return "synthetic rows", [row["content"] for row in adgen_rows(count, seed=170)]


def answer(args: argparse.Namespace) -> dict[str, Any]:
    """Answer all questions once, in batches of `--child`; loading is not timed, and a first question warms up.

    Returns:
        Seconds, and the ids of each reply.
    """
    from glmtune.generation.batched import generate
    from glmtune.generation.load import open_model
    from glmtune.generation.reply import Sampling

    opened = open_model(str(args.model), dtype=args.precision)
    source, asked = questions(args.assets, args.prompts)
    prompts = [opened.family.encode_prompt([{"role": "user", "content": q}], opened.tokenizer) for q in asked]

    def run(some: list[list[int]], sampling: Sampling) -> Any:
        return generate(opened.model, opened.tokenizer, opened.family, some, sampling, batch_size=args.child)

    run(prompts[:1], Sampling(max_new_tokens=2))
    start = time.perf_counter()
    replies = run(prompts, Sampling(max_new_tokens=args.max_new_tokens))
    seconds = time.perf_counter() - start
    tokens = sum(reply.tokens for reply in replies)
    device = str(opened.model.device)
    found = {"seconds": seconds, "tokens": tokens, "replies": [reply.ids for reply in replies]}
    return found | {"source": source, "prompts": len(prompts), "device": device}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All batch sizes in turn."""
    sizes = {str(size): size for size in sorted({1, *args.batch_sizes})}

    def run(name: str) -> dict[str, Any]:
        given = ["--child", name, "--model", args.model, "--assets", args.assets, "--precision", args.precision]
        given += ["--prompts", args.prompts, "--max-new-tokens", args.max_new_tokens]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "answers.json"
            run_json("evaluation.py", *given, "--json", out, prefix=args.prefix, env={"PYTHONPATH": source_path()})
            return json.loads(out.read_text("utf-8"))

    found = in_turn(list(sizes), args.repeats, run)
    alone = found["1"]["runs"][0]["replies"] if found["1"]["runs"] else []
    for contender in found.values():
        for turn in contender["runs"]:
            turn["same_replies"] = sum(one == other for one, other in zip(turn.pop("replies"), alone, strict=True))
    return {
        **circumstances("evaluation.py"),
        "model": args.model.name if args.model != BASE else "the base of `glmtune demo`",
        "precision": args.precision,
        "batch_sizes": found,
    }


def report(result: dict[str, Any]) -> str:
    """The figures as a markdown table."""
    found = {name: c["runs"] for name, c in result["batch_sizes"].items() if c["runs"]}
    failed = [f"batch {name}: {c['failed']}" for name, c in result["batch_sizes"].items() if "failed" in c]
    if "1" not in found:
        return "\n".join([*failed, *small_print(result)])
    alone = middle([turn["seconds"] for turn in found["1"]])
    rows = []
    for name, turns in found.items():
        seconds = [turn["seconds"] for turn in turns]
        rows.append(
            [
                "one by one" if name == "1" else f"batches of {name}",
                with_spread(seconds),
                f"{alone / middle(seconds):.2f} x",
                f"{middle([turn['tokens'] / turn['seconds'] for turn in turns]):,.0f}",
                f"{min(turn['same_replies'] for turn in turns)} of {turns[0]['prompts']}",
            ]
        )
    head = ["answering", "seconds", "against one by one", "tokens/s", "same replies"]
    first = found["1"][0]
    said = f"{first['prompts']} questions of {first['source']}, {result['model']}, {result['precision']}"
    return "\n".join([*table(head, rows), "", *failed, f"{said}, on {first['device']}.", *small_print(result)])


def main() -> None:
    made = parser(__doc__)
    add_assets(made)
    made.add_argument("--model", type=Path, default=BASE, help="a checkpoint or a run (default: the demo's base)")
    made.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32])
    made.add_argument("--prompts", type=int, default=170, help="how many questions at most")
    made.add_argument("--max-new-tokens", type=int, default=128, help="longest reply")
    made.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    made.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.child:
        args.json.write_text(json.dumps(answer(args)), "utf-8")
        print("{}")
        return
    result = measure(args)
    finish(result, args.json, report)
    changed = args.precision == "fp32" and any(
        turn["same_replies"] < turn["prompts"] for c in result["batch_sizes"].values() for turn in c["runs"]
    )
    if changed:
        raise SystemExit("Batching changed a reply in fp32.")


if __name__ == "__main__":
    main()
