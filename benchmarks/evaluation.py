"""Generate replies to evaluation prompts in batches and one by one: speed, and whether the replies agree.

    PYTHONPATH=src python benchmarks/evaluation.py [--model MODEL] [--json OUT]

The prompts are the 170 questions of ADGEN's dev.json in the assets, else as many synthetic ones; the model is the base
of `glmtune demo` unless another is given. In fp32 batching must not change a reply, which is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import (
    REPOSITORY,
    add_assets_option,
    describe_environment,
    format_footer,
    format_median,
    format_table,
    make_parser,
    make_pythonpath,
    median,
    report_result,
    run_interleaved,
    run_json,
)

BASE = REPOSITORY / "src" / "glmtune" / "demo" / "base"


def read_questions(assets: Path, count: int) -> tuple[str, list[str]]:
    """The name of the source, and the questions."""
    file = assets / "data" / "adgen" / "dev.json"
    if file.is_file():
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        return "ADGEN's dev.json", [json.loads(line)["content"] for line in lines[:count]]
    sys.path.append(str(REPOSITORY / "tools"))
    from demo_corpus.corpus import make_adgen_rows

    return "synthetic rows", [row["content"] for row in make_adgen_rows(count, seed=170)]


def generate_replies(args: argparse.Namespace) -> dict[str, Any]:
    """Generate all replies once, in batches of `--child`; loading is not timed, and the first question warms up.

    Returns:
        Seconds, and the ids of each reply.
    """
    from glmtune.generation.batched import generate_batched
    from glmtune.generation.load import load_for_generation
    from glmtune.generation.reply import Sampling

    opened = load_for_generation(str(args.model), dtype=args.precision)
    source, questions = read_questions(args.assets, args.prompts)
    prompts = [opened.family.encode_prompt([{"role": "user", "content": q}], opened.tokenizer) for q in questions]

    def generate_batches(prompts: list[list[int]], sampling: Sampling) -> Any:
        return generate_batched(opened.model, opened.tokenizer, opened.family, prompts, sampling, batch_size=args.child)

    generate_batches(prompts[:1], Sampling(max_new_tokens=2))
    start = time.perf_counter()
    replies = generate_batches(prompts, Sampling(max_new_tokens=args.max_new_tokens))
    seconds = time.perf_counter() - start
    tokens = sum(reply.tokens for reply in replies)
    device = str(opened.model.device)
    result = {"seconds": seconds, "tokens": tokens, "replies": [reply.ids for reply in replies]}
    return result | {"source": source, "prompts": len(prompts), "device": device}


def measure_batch_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Run all batch sizes, interleaved."""
    sizes = {str(size): size for size in sorted({1, *args.batch_sizes})}

    def run(name: str) -> dict[str, Any]:
        arguments = ["--child", name, "--model", args.model, "--assets", args.assets, "--precision", args.precision]
        arguments += ["--prompts", args.prompts, "--max-new-tokens", args.max_new_tokens]
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "replies.json"
            env = {"PYTHONPATH": make_pythonpath()}
            run_json("evaluation.py", *arguments, "--json", output, prefix=args.prefix, env=env)
            return json.loads(output.read_text("utf-8"))

    results = run_interleaved(list(sizes), args.repeats, run)
    reference = results["1"]["runs"][0]["replies"] if results["1"]["runs"] else []
    for entry in results.values():
        for one_run in entry["runs"]:
            replies = one_run.pop("replies")
            one_run["same_replies"] = sum(one == other for one, other in zip(replies, reference, strict=True))
    return {
        **describe_environment("evaluation.py"),
        "model": args.model.name if args.model != BASE else "the base of `glmtune demo`",
        "precision": args.precision,
        "batch_sizes": results,
    }


def format_report(result: dict[str, Any]) -> str:
    """The figures as a markdown table."""
    runs_by_size = {name: entry["runs"] for name, entry in result["batch_sizes"].items() if entry["runs"]}
    failed = [f"batch {name}: {entry['failed']}" for name, entry in result["batch_sizes"].items() if "failed" in entry]
    if "1" not in runs_by_size:
        return "\n".join([*failed, *format_footer(result)])
    one_by_one = median([run["seconds"] for run in runs_by_size["1"]])
    rows = []
    for name, runs in runs_by_size.items():
        seconds = [run["seconds"] for run in runs]
        rows.append(
            [
                "one by one" if name == "1" else f"batches of {name}",
                format_median(seconds),
                f"{one_by_one / median(seconds):.2f} x",
                f"{median([run['tokens'] / run['seconds'] for run in runs]):,.0f}",
                f"{min(run['same_replies'] for run in runs)} of {runs[0]['prompts']}",
            ]
        )
    head = ["generation", "seconds", "against one by one", "tokens/s", "same replies"]
    first = runs_by_size["1"][0]
    caption = f"{first['prompts']} questions of {first['source']}, {result['model']}, {result['precision']}"
    return "\n".join(
        [*format_table(head, rows), "", *failed, f"{caption}, on {first['device']}.", *format_footer(result)]
    )


def main() -> None:
    parser = make_parser(__doc__)
    add_assets_option(parser)
    parser.add_argument("--model", type=Path, default=BASE, help="a checkpoint or a run (default: the demo's base)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--prompts", type=int, default=170, help="maximum number of questions")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="maximum length of a reply")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.json.write_text(json.dumps(generate_replies(args)), "utf-8")
        print("{}")
        return
    result = measure_batch_sizes(args)
    report_result(result, args.json, format_report)
    changed = args.precision == "fp32" and any(
        run["same_replies"] < run["prompts"] for entry in result["batch_sizes"].values() for run in entry["runs"]
    )
    if changed:
        raise SystemExit("Batching changed a reply in fp32.")


if __name__ == "__main__":
    main()
