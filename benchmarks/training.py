"""Training throughput and peak memory next to other trainers: LoRA on the same rows, contenders taking turns.

    PYTHONPATH=src python benchmarks/training.py [--peers DIR] [--contenders NAME...] [--json OUT]

The model is a random ChatGLM3 of the reference shape under the published tokenizer, the rows are the first 64 of
ADGEN, in the same order for everybody. See README.md beside this file for what is measured and how peers are set up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Place, run
from sitting import (
    MIB,
    add_assets,
    circumstances,
    finish,
    in_turn,
    middle,
    parser,
    run_json,
    run_timed,
    say,
    small_print,
    source_path,
    table,
    with_spread,
)
from work import Work

BASELINE = "trl fp32 packed"
"""What ratios are taken to in every sitting; a second column takes them to whichever peer was fastest in fp32."""
OURS = ("glmtune", "bare")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one sitting."""
    work = Work(dropout=args.dropout, rows=args.rows, held_out=args.held_out, same_order=args.same_order)
    keep = folder / "adapters"
    keep.mkdir()
    env = {"PYTHONPATH": source_path()}
    prepared = folder / "prepared.json"
    say("model and rows")
    command = [sys.executable, __file__, "--prepare", prepared, "--assets", args.assets, "--shape", args.shape]
    command += ["--settings", json.dumps(work.as_dict()), "--scratch", folder]
    command += ["--model", args.model] if args.model else []
    command += ["--data", args.data] if args.data else []
    run_timed([*map(str, command)], prefix=args.prefix, env=env)
    facts = json.loads(prepared.read_text("utf-8"))
    say("limits of the machine")
    machine = run_json("machine.py", "--child", "--device", facts["device"], prefix=args.prefix)
    place = Place(
        Path(facts["published"]), Path(facts["native"]), folder / "rows", work, args.peers, args.prefix, facts["family"]
    )
    found = in_turn(args.contenders, args.repeats, lambda name: run(name, place, keep))
    say("loss on rows that nobody learnt")
    adapters = sorted(keep.iterdir())
    rows = folder / "rows" / "held_out_ids.json"
    losses = run_json("held_out.py", place.published, rows, *adapters, prefix=args.prefix, env=env)["losses"]
    for name, contender in found.items():
        contender["held_out_loss"] = losses.get(str(keep / name.replace(" ", "-")))
        for turn in contender["runs"]:
            turn.pop("adapter")
    return {
        **circumstances("training.py"),
        "machine": machine,
        "work": work.as_dict(),
        "shape": facts["shape"],
        "flops_per_sample": facts["flops_per_sample"],
        "tokens": facts["tokens"],
        "targets": facts["targets"],
        "base_held_out_loss": losses[""],
        "contenders": found,
    }


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Write model and rows where contenders find them, in a process that may be large."""
    import torch
    from models import cache, native_folder, published_folder, shape_of
    from work import mean_flops, write_rows

    work = Work(**{**args.settings, "targets": tuple(args.settings["targets"])})
    published = args.model or published_folder(args.shape, args.assets)
    native = native_folder(published, args.scratch / "native" if args.model else cache() / f"{published.name}-native")
    data = args.data or args.assets / "data" / "adgen" / "train.json"
    rows = write_rows(data, published, work, args.scratch / "rows")
    shape = shape_of(published)
    return {
        "published": str(published),
        "native": str(native),
        "family": shape.family,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "shape": dataclasses.asdict(shape),
        "flops_per_sample": mean_flops(shape, work, rows),
        "tokens": sum(row["tokens"] for row in rows),
        "targets": sum(row["targets"] for row in rows),
    }


def report(result: dict[str, Any]) -> str:
    """The figures as a markdown table: medians, half the spread, ratios of medians."""
    count = result["work"]["rows"]
    speeds = {
        name: [count / turn["seconds"] for turn in contender["runs"]]
        for name, contender in result["contenders"].items()
        if contender["runs"]
    }
    against = BASELINE if BASELINE in speeds else next(iter(speeds), "")
    peers = {name: middle(found) for name, found in speeds.items() if "fp32" in name and not name.startswith(OURS)}
    best = max(peers, key=lambda name: peers[name], default=against)
    head = ["contender", "samples/s", f"against {against}", f"against {best}, the fastest peer in fp32"]
    head += ["share of the limit", "whole command, s", "peak, MiB", "loss, last 4 steps", "loss, held-out rows"]
    ratios = [middle(speeds[name]) for name in (against, best) if name]
    rows = [[name, *_figures(result, name, found, ratios)] for name, found in speeds.items()]
    lines = table(head, rows)
    lines += [
        "",
        *(f"{name}: {found['failed']}" for name, found in result["contenders"].items() if "failed" in found),
        f"{count} rows, {result['tokens']:,} tokens, {result['targets']:,} targets; a sample needs "
        f"{result['flops_per_sample'] / 1e9:.1f} GFLOP at the least. Loss of the base on the held-out rows: "
        f"{result['base_held_out_loss']:.5f}.",
        *small_print(result),
    ]
    return "\n".join(lines)


def _figures(result: dict[str, Any], name: str, speeds: list[float], against: list[float]) -> list[str]:
    contender = result["contenders"][name]
    turns = contender["runs"]
    rate = result["machine"]["matmul_flops"]["bf16" if "bf16" in name else "fp32"]
    peaks = [turn["device_peak_bytes"] or turn["process"]["peak_bytes"] for turn in turns]
    held_out = contender["held_out_loss"]
    return [
        with_spread(speeds),
        *(f"{middle(speeds) / other:.2f} x" for other in against),
        f"{middle(speeds) * result['flops_per_sample'] / rate:.0%}",
        f"{middle([turn['process']['wall_s'] for turn in turns]):.1f}",
        f"{middle(peaks) / MIB:,.0f}",
        f"{middle([sum(turn['losses'][-4:]) / len(turn['losses'][-4:]) for turn in turns]):.4f}",
        "" if held_out is None else f"{held_out:.5f}",
    ]


def main() -> None:
    made = parser(__doc__)
    add_assets(made)
    made.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    made.add_argument("--peers", type=Path, help="the folder given to benchmarks/peers/make_envs.sh")
    made.add_argument("--shape", default="reference", help="a shape of benchmarks/models.py")
    made.add_argument("--model", type=Path, help="a published folder, in place of a shape")
    made.add_argument("--data", type=Path, help="rows of content and summary, in place of ADGEN's")
    made.add_argument("--rows", type=int, default=Work.rows, help="how many rows are learnt")
    made.add_argument("--held-out", type=int, default=Work.held_out, help="how many further rows losses are taken on")
    made.add_argument("--dropout", type=float, default=Work.dropout, help="of the adapters (default 0.1)")
    made.add_argument("--same-order", action="store_true", help="rows sorted by length, in that order for everybody")
    for name, kind in {"--prepare": Path, "--scratch": Path, "--settings": json.loads}.items():
        made.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.prepare:
        args.prepare.write_text(json.dumps(prepare(args)), "utf-8")
        return
    for name in ("peers", "model", "data", "assets"):  # contenders run in folders of their own
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as folder:
        result = measure(args, Path(folder))
    finish(result, args.json, report)


if __name__ == "__main__":
    main()
