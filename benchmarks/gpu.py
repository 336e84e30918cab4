"""Prove and measure glmtune on a GPU: a line of JSON per result as soon as it is known, then a table.

    PYTHONPATH=src python benchmarks/gpu.py [--budget 480] [--out DIR] [--cells limits,parity]
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --shape tiny        # the same code where there is no GPU
    benchmarks/gpu_wheels.sh WHEELS; python benchmarks/gpu.py --wheels WHEELS  # on a machine without network

No network and no files: models have random weights, made on the device. Each part of a cell is a process of its own. A
part that raises is a line, and the next one runs; what does not fit the budget is a line too. Wrong numbers ("proof")
fail the command, slow ones ("figure") never do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import (
    FOLDER,
    REPOSITORY,
    describe_environment,
    format_footer,
    format_table,
    make_pythonpath,
    print_progress,
)
from models import SHAPES

sys.path.append(str(REPOSITORY / "src"))


@dataclass(frozen=True)
class Part:
    """A process of a cell."""

    cell: str
    function: str
    """Of `gpu_cells.py`."""
    seconds: int
    """Expected on a data centre's GPU with the published shapes; with less left of the budget it is not started."""
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join((self.function, *self.arguments))


PARTS = [
    Part("limits", "limits", 10),
    Part("limits", "software", 3),
    Part("parity", "golden_parity", 15),
    Part("parity", "packed_parity", 15),
    Part("parity", "bitsandbytes_parity", 10),
    Part("parity", "row_parity", 10),
    Part("training", "training_parity", 45),
    Part("training", "checkpointing_parity", 5),
    Part("training", "resume_parity", 10),
    Part("lora", "memory", 15, ("lora", "none", "4", "768", "checkpointing")),
    Part("lora", "profile", 15),
    Part("qlora", "memory", 15, ("lora", "nf4", "4", "768", "checkpointing")),
    *(Part("qlora", "memory", 10, ("lora", "nf4", "4", "768", "checkpointing", size)) for size in ("12", "8", "6")),
    *(
        Part("decoding", "decoding", 9, (variant, *compiled))
        for variant in ("bf16", "packed8", "packed4", "nf4")
        for compiled in ((), ("compiled",))
    ),
    Part("decoding", "decoding_transformers", 9),
    *(
        Part("ptuning", "memory", 12, ("ptuning", "packed4", "1", "128", "plain", *size))
        for size in ((), ("6",), ("4.8",))
    ),
    Part("old card", "memory", 15, ("lora", "none", "4", "768", "checkpointing", "all", "old-card")),
    Part("loading", "loading", 45),
    Part("peers", "bare_loop", 40),
    Part("peers", "trl", 45),
    Part("attention", "attention", 15),
    *(
        Part("full", "memory", 12, ("full", "none", "4", "512", "plain", "all", shape))
        for shape in ("reference", "1.5b")
    ),
]
"""In the order in which they are worth running where time is short."""


def run_parts(parts: list[Part], budget: float, device: str, shape: str, lines: Path) -> list[dict[str, Any]]:
    """Run the parts and append each result to a file.

    Args:
        parts: in their order.
        budget: seconds for all of them.
        device: `cuda` or `cpu`.
        shape: `published`, or a name of `SHAPES` that stands for all models.
        lines: the file of results.

    Returns:
        The results: cell, part, and either `kind`, `name`, `ok` and `figures`, or `skipped` or `error`.
    """
    end = time.monotonic() + budget
    results = []
    with lines.open("a", encoding="utf-8") as file:
        for part in parts:
            print_progress(f"{part.cell}: {part.name}")
            left = end - time.monotonic()
            expected = part.seconds if device == "cuda" else 1
            if left < expected:
                outcomes: Iterator[dict[str, Any]] = iter([{"skipped": f"{left:.0f} s of the budget left"}])
            else:
                outcomes = run_part(part, device, shape, timeout=left)
            for outcome in outcomes:
                result = {"cell": part.cell, "part": part.name, **outcome}
                results.append(result)
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(json.dumps(result), flush=True)
    return results


def run_part(part: Part, device: str, shape: str, timeout: float) -> Iterator[dict[str, Any]]:
    """Run one process and yield its lines; a process that fails ends in a line with its error."""
    command = [sys.executable, str(FOLDER / "gpu_cells.py"), part.function, *part.arguments]
    from glmtune.utils.gpu_allocator import set_allocator_defaults

    environment = {**os.environ, "PYTHONPATH": make_pythonpath()}
    set_allocator_defaults(environment)  # as the command `glmtune` does
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, "--device", device, "--shape", shape],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        errors += f"\nstopped after {timeout:.0f} s: the budget is used up"
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
    seconds = round(time.monotonic() - start, 1)
    if process.returncode:
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
        yield {"error": last[:300], "exit": process.returncode, "seconds": seconds}
    else:
        yield {"seconds": seconds}


def use_wheels(folder: Path) -> None:
    """Install wheels beside this machine's packages, for the processes that are started later.

    Raises:
        subprocess.CalledProcessError: pip cannot install them; its message is printed.
    """
    target = Path(tempfile.mkdtemp(prefix="gpu-wheels-"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*command, *map(str, sorted(folder.glob("*.whl")))], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH", "")]))


def format_report(results: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """A markdown table of the lines."""
    rows = []
    for result in results:
        if "figures" in result:
            verdict = {"figure": "", "proof": "ok" if result["ok"] else "WRONG"}[result["kind"]]
            figures = ", ".join(f"{key} {_format_figure(value)}" for key, value in result["figures"].items())
            rows.append([result["cell"], result["name"], verdict, figures])
        elif "error" in result or "skipped" in result:
            why = result.get("skipped") or result["error"]
            rows.append([result["cell"], result["part"], "not run" if "skipped" in result else "ERROR", why])
    lines = format_table(["cell", "what", "proof", "figures"], rows)
    return "\n".join([*lines, "", *format_footer(environment)])


def _format_figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def is_failure(result: dict[str, Any]) -> bool:
    """Whether a proof is wrong, or a process failed."""
    return "error" in result or (result.get("kind") == "proof" and not result["ok"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cells = list(dict.fromkeys(part.cell for part in PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("published", *SHAPES), default="published", help="of all models")
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything (default 480)")
    parser.add_argument("--cells", default=",".join(cells), help=f"default: {','.join(cells)}")
    parser.add_argument("--wheels", type=Path, help="folder of gpu_wheels.sh, whose packages are used")
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"), help="folder of results.jsonl and table.md")
    args = parser.parse_args()
    chosen = [name.strip() for name in args.cells.split(",")]
    unknown = [name for name in chosen if name not in cells]
    if unknown:
        parser.error(f"--cells: no cell {', '.join(unknown)}; there are {', '.join(cells)}")
    if args.wheels:
        use_wheels(args.wheels)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = args.out / "results.jsonl"
    lines.write_text("", "utf-8")
    parts = [part for part in PARTS if part.cell in chosen]
    results = run_parts(parts, args.budget, args.device, args.shape, lines)
    device = next((r["figures"]["device"] for r in results if "device" in r.get("figures", {})), args.device)
    environment = describe_environment("gpu.py")
    table = f"Device: {device}.\n\n" + format_report(results, environment)
    (args.out / "table.md").write_text(table + "\n", "utf-8")
    print(table)
    sys.exit(any(is_failure(result) for result in results))


if __name__ == "__main__":
    main()
