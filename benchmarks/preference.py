"""Preference tuning: DPO with LoRA on the same pairs with glmtune and with TRL's DPOTrainer, in interleaved runs.

    PYTHONPATH=src python benchmarks/preference.py [--peers DIR] [--candidates NAME...] [--json OUT]

The model is a random ChatGLM3 of the reference shape with the published tokenizer; a pair is a question of ADGEN, its
answer as the better one and the answer to another question as the worse one. README.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import (
    FOLDER,
    MIB,
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
    run_timed,
)
from task import LoraTask
from trainers import Run, TrainerContext, find_peer_python, make_glmtune_config, run_train_command

BASELINE = "trl"
BETA = 0.1


def run_glmtune(context: TrainerContext, output: Path, packing: bool = False) -> Run:
    """`glmtune train` with stage dpo; the pass of the reference counts."""
    config = make_glmtune_config(context, "pairs.jsonl", "fp32", packing)
    config |= {"stage": "dpo", "preference": {"beta": BETA}}
    if packing:  # a block has about as many tokens as the pairs of a batch
        config["data"]["max_length"] = 4 * context.task.length
    config["training"] |= {
        "per_device_eval_batch_size": 1 if packing else context.task.batch,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
    }
    result, summary = run_train_command(context, output, config)
    return {**result, "seconds": summary["seconds"] + summary["reference_seconds"]}


def run_trl(context: TrainerContext, output: Path, precomputed: bool = False) -> Run:
    """TRL's DPOTrainer; `precomputed`: the reference log-probabilities before the first step, as here."""
    command = [find_peer_python(context, "trl"), str(FOLDER / "peers" / "trl_preference.py"), str(context.native)]
    command += [str(context.rows / "pairs.jsonl"), str(output / "adapter"), "--beta", str(BETA)]
    command += ["--settings", json.dumps(context.task.as_dict()), *(["--precomputed"] * precomputed)]
    usage, text = run_timed(command, prefix=context.prefix, cwd=output, env={"TQDM_DISABLE": "1"})
    return {**json.loads(text.splitlines()[-1]), "process": usage}


CANDIDATES: dict[str, Callable[[TrainerContext, Path], Run]] = {
    "glmtune": run_glmtune,
    "glmtune packed": lambda context, output: run_glmtune(context, output, packing=True),
    "trl": run_trl,
    "trl precomputed": lambda context, output: run_trl(context, output, precomputed=True),
}


def prepare_files(args: argparse.Namespace) -> dict[str, str]:
    """Write model and pairs; in a process of its own, because it needs much memory."""
    from models import find_cache, write_native_folder, write_published_folder

    from glmtune import load_tokenizer

    published = write_published_folder(args.shape, args.assets)
    native = write_native_folder(published, find_cache() / f"{published.name}-native")
    lines = (args.assets / "data" / "adgen" / "train.json").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: args.pairs]]
    others = [row["summary"] for row in rows[1:] + rows[:1]]
    tokenizer = load_tokenizer(published)
    sizes = [
        [len(tokenizer(text, add_special_tokens=False).input_ids) for text in (row["content"], row["summary"], other)]
        for row, other in zip(rows, others, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: sum(sizes[i]))  # batches of similar lengths, the same for all
    pairs = [
        {
            "prompt": [{"role": "user", "content": rows[i]["content"]}],
            "chosen": [{"role": "assistant", "content": rows[i]["summary"]}],
            "rejected": [{"role": "assistant", "content": others[i]}],
        }
        for i in order
    ]
    folder = args.scratch / "rows"
    folder.mkdir()
    text = "".join(f"{json.dumps(pair, ensure_ascii=False)}\n" for pair in pairs)
    (folder / "pairs.jsonl").write_text(text, "utf-8")
    return {"published": str(published), "native": str(native)}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all candidates, interleaved."""
    task = LoraTask(dropout=0, rows=args.pairs)
    prepared = folder / "prepared.json"
    command = [sys.executable, __file__, "--prepare", prepared, "--assets", args.assets, "--scratch", folder]
    command += ["--shape", args.shape, "--pairs", args.pairs]
    run_timed([*map(str, command)], env={"PYTHONPATH": make_pythonpath()})
    facts = json.loads(prepared.read_text("utf-8"))
    folders = Path(facts["published"]), Path(facts["native"]), folder / "rows"
    context = TrainerContext(*folders, task, args.peers, args.prefix, "chatglm3")

    def run(name: str) -> Run:
        with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as output:
            return CANDIDATES[name](context, Path(output))

    results = run_interleaved(args.candidates, args.repeats, run)
    return {**describe_environment("preference.py"), "work": task.as_dict(), "candidates": results}


def format_report(result: dict[str, Any]) -> str:
    """The figures as a markdown table: medians, half the spread, ratios of medians."""
    count = result["work"]["rows"]
    entries = {name: entry["runs"] for name, entry in result["candidates"].items() if entry["runs"]}
    speeds = {name: [count / run["seconds"] for run in runs] for name, runs in entries.items()}
    baseline = median(speeds[BASELINE]) if BASELINE in speeds else 0.0
    head = ["trainer", "pairs/s", f"against {BASELINE}", "whole command, s", "peak, MiB", "first loss", "last 4 steps"]
    rows = []
    for name, runs in entries.items():
        losses = runs[-1]["losses"]
        rows.append(
            [
                name,
                format_median(speeds[name]),
                f"{median(speeds[name]) / baseline:.2f} x" if baseline else "",
                f"{median([run['process']['wall_s'] for run in runs]):.1f}",
                f"{median([run['process']['peak_bytes'] for run in runs]) / MIB:,.0f}",
                f"{losses[0]:.4f}",
                f"{sum(losses[-4:]) / len(losses[-4:]):.4f}",
            ]
        )
    lines = format_table(head, rows)
    lines += ["", *(f"{name}: {entry['failed']}" for name, entry in result["candidates"].items() if "failed" in entry)]
    return "\n".join([*lines, f"{count} pairs.", *format_footer(result)])


def main() -> None:
    parser = make_parser(__doc__)
    add_assets_option(parser)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--peers", type=Path, help="the folder given to benchmarks/peers/make_envs.sh")
    parser.add_argument("--shape", default="reference", help="a shape of benchmarks/models.py")
    parser.add_argument("--pairs", type=int, default=32, help="number of pairs")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.assets = args.assets.resolve()
    if args.prepare:
        args.prepare.write_text(json.dumps(prepare_files(args)), "utf-8")
        return
    args.peers = args.peers and args.peers.resolve()
    with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as folder:
        result = measure(args, Path(folder))
    report_result(result, args.json, format_report)


if __name__ == "__main__":
    main()
