"""Training throughput and peak memory of several trainers: LoRA on the same rows, in interleaved runs.

    PYTHONPATH=src python benchmarks/training.py [--peers DIR] [--trainers NAME...] [--json OUT]

The model is a random ChatGLM3 of the reference shape with the published tokenizer; the rows are the first 64 of ADGEN.
README.md says what is measured and how the other trainers are installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import (
    MIB,
    add_assets_option,
    describe_environment,
    format_footer,
    format_median,
    format_table,
    make_parser,
    make_pythonpath,
    median,
    print_progress,
    report_result,
    run_interleaved,
    run_json,
    run_timed,
)
from task import LoraTask
from trainers import TRAINERS, TrainerContext, run_trainer

BASELINE = "trl fp32 packed"
"""The trainer that speeds are compared with; a second column compares with the fastest other trainer in fp32."""
OURS = ("glmtune", "bare")


def measure_trainers(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all trainers, interleaved."""
    task = LoraTask(dropout=args.dropout, rows=args.rows, held_out=args.held_out, same_order=args.same_order)
    adapters = folder / "adapters"
    adapters.mkdir()
    env = {"PYTHONPATH": make_pythonpath()}
    prepared = folder / "prepared.json"
    print_progress("writing the model and the rows")
    command = [sys.executable, __file__, "--prepare", prepared, "--assets", args.assets, "--shape", args.shape]
    command += ["--settings", json.dumps(task.as_dict()), "--scratch", folder]
    command += ["--model", args.model] if args.model else []
    command += ["--data", args.data] if args.data else []
    run_timed([*map(str, command)], prefix=args.prefix, env=env)
    facts = json.loads(prepared.read_text("utf-8"))
    print_progress("measuring the limits of the machine")
    machine = run_json("machine.py", "--child", "--device", facts["device"], prefix=args.prefix)
    context = TrainerContext(
        Path(facts["published"]), Path(facts["native"]), folder / "rows", task, args.peers, args.prefix, facts["family"]
    )
    results = run_interleaved(args.trainers, args.repeats, lambda name: run_trainer(name, context, adapters))
    print_progress("loss on the held-out rows")
    folders = sorted(adapters.iterdir())
    rows = folder / "rows" / "held_out_ids.json"
    losses = run_json("held_out.py", context.published, rows, *folders, prefix=args.prefix, env=env)["losses"]
    for name, entry in results.items():
        entry["held_out_loss"] = losses.get(str(adapters / name.replace(" ", "-")))
        for run in entry["runs"]:
            run.pop("adapter")
    return {
        **describe_environment("training.py"),
        "machine": machine,
        "work": task.as_dict(),
        "shape": facts["shape"],
        "flops_per_sample": facts["flops_per_sample"],
        "tokens": facts["tokens"],
        "targets": facts["targets"],
        "base_held_out_loss": losses[""],
        "contenders": results,
    }


def prepare_files(args: argparse.Namespace) -> dict[str, Any]:
    """Write the model and the rows for the trainers; in a process of its own, because it needs much memory."""
    import torch
    from models import find_cache, read_shape, write_native_folder, write_published_folder
    from task import count_mean_flops, write_rows

    task = LoraTask(**{**args.settings, "targets": tuple(args.settings["targets"])})
    published = args.model or write_published_folder(args.shape, args.assets)
    native = write_native_folder(
        published, args.scratch / "native" if args.model else find_cache() / f"{published.name}-native"
    )
    data = args.data or args.assets / "data" / "adgen" / "train.json"
    rows = write_rows(data, published, task, args.scratch / "rows")
    shape = read_shape(published)
    return {
        "published": str(published),
        "native": str(native),
        "family": shape.family,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "shape": dataclasses.asdict(shape),
        "flops_per_sample": count_mean_flops(shape, task, rows),
        "tokens": sum(row["tokens"] for row in rows),
        "targets": sum(row["targets"] for row in rows),
    }


def format_report(result: dict[str, Any]) -> str:
    """The figures as a markdown table: medians, half the spread, ratios of medians."""
    count = result["work"]["rows"]
    speeds = {
        name: [count / run["seconds"] for run in entry["runs"]]
        for name, entry in result["contenders"].items()
        if entry["runs"]
    }
    against = BASELINE if BASELINE in speeds else next(iter(speeds), "")
    peers = {name: median(values) for name, values in speeds.items() if "fp32" in name and not name.startswith(OURS)}
    best = max(peers, key=lambda name: peers[name], default=against)
    head = ["trainer", "samples/s", f"against {against}", f"against {best}, the fastest other trainer in fp32"]
    head += ["share of the limit", "whole command, s", "peak, MiB", "loss, last 4 steps", "loss, held-out rows"]
    ratios = [median(speeds[name]) for name in (against, best) if name]
    rows = [[name, *_format_figures(result, name, values, ratios)] for name, values in speeds.items()]
    lines = format_table(head, rows)
    lines += [
        "",
        *(f"{name}: {entry['failed']}" for name, entry in result["contenders"].items() if "failed" in entry),
        f"{count} rows, {result['tokens']:,} tokens, {result['targets']:,} targets; a sample needs "
        f"{result['flops_per_sample'] / 1e9:.1f} GFLOP at least. Loss of the base on the held-out rows: "
        f"{result['base_held_out_loss']:.5f}.",
        *format_footer(result),
    ]
    return "\n".join(lines)


def _format_figures(result: dict[str, Any], name: str, speeds: list[float], against: list[float]) -> list[str]:
    entry = result["contenders"][name]
    runs = entry["runs"]
    rate = result["machine"]["matmul_flops"]["bf16" if "bf16" in name else "fp32"]
    peaks = [run["device_peak_bytes"] or run["process"]["peak_bytes"] for run in runs]
    held_out = entry["held_out_loss"]
    return [
        format_median(speeds),
        *(f"{median(speeds) / other:.2f} x" for other in against),
        f"{median(speeds) * result['flops_per_sample'] / rate:.0%}",
        f"{median([run['process']['wall_s'] for run in runs]):.1f}",
        f"{median(peaks) / MIB:,.0f}",
        f"{median([sum(run['losses'][-4:]) / len(run['losses'][-4:]) for run in runs]):.4f}",
        "" if held_out is None else f"{held_out:.5f}",
    ]


def main() -> None:
    parser = make_parser(__doc__)
    add_assets_option(parser)
    parser.add_argument(
        "--trainers", "--contenders", nargs="+", choices=TRAINERS, default=list(TRAINERS), metavar="NAME"
    )
    parser.add_argument("--peers", type=Path, help="the folder given to benchmarks/peers/make_envs.sh")
    parser.add_argument("--shape", default="reference", help="a shape of benchmarks/models.py")
    parser.add_argument("--model", type=Path, help="a published folder, in place of a shape")
    parser.add_argument("--data", type=Path, help="rows of content and summary, in place of ADGEN's")
    parser.add_argument("--rows", type=int, default=LoraTask.rows, help="number of training rows")
    parser.add_argument(
        "--held-out", type=int, default=LoraTask.held_out, help="number of further rows for the held-out loss"
    )
    parser.add_argument("--dropout", type=float, default=LoraTask.dropout, help="of the adapters (default 0.1)")
    parser.add_argument(
        "--same-order", action="store_true", help="rows sorted by length, in that order for every trainer"
    )
    for name, kind in {"--prepare": Path, "--scratch": Path, "--settings": json.loads}.items():
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        args.prepare.write_text(json.dumps(prepare_files(args)), "utf-8")
        return
    for name in ("peers", "model", "data", "assets"):  # trainers run in other folders
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as folder:
        result = measure_trainers(args, Path(folder))
    report_result(result, args.json, format_report)


if __name__ == "__main__":
    main()
