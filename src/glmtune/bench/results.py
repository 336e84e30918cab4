"""What was measured, as a table, as bench.json and as a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from glmtune.errors import RunError
from glmtune.utils.io import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0a66ad", "#c24e00", "#00735a", "#8a8f98", "#9cc6e6")
_GB = 1e9


def print_table(results: Sequence[dict[str, Any]], console: Console) -> None:
    """A row per form and batch size."""
    first = results[0]["measured"][0]
    table = Table(
        "form",
        title=f"{first['prompt_tokens']} prompt tokens, {first['new_tokens']} new, medians of {first['repeats']}; "
        "ms, tokens/s of all rows, share of the bandwidth limit, GB",
    )
    for heading in ("rows", "first", "prefill", "decode", "limit", "weights", "peak"):
        table.add_column(heading, justify="right")
    for result in results:
        for measured in result["measured"]:
            table.add_row(
                *(_label(result, results), str(measured["batch_size"])),
                f"{measured['first_token_s'] * 1000:.0f}",
                f"{measured['prefill_tokens_per_s']:.0f}",
                f"{measured['decode_tokens_per_s']:.1f}",
                f"{measured['limit_share']:.0%}",
                f"{result['weights'] / _GB:.2f}",
                f"{result['peak'] / _GB:.2f}",
            )
    console.print(table)


def as_json(results: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """All figures, with what they were made by."""
    on_gpu = results[0]["device"].startswith("cuda")
    machine = torch.cuda.get_device_name() if on_gpu else f"{_processor()}, {torch.get_num_threads()} threads"
    return {"command": command, "machine": machine, "torch": torch.__version__, "results": list(results)}


def write(folder: Path, figures: dict[str, Any]) -> list[Path]:
    """Write bench.json and bench.png.

    Raises:
        RunError: the folder cannot be written.
    """
    paths = [folder / "bench.json", folder / "bench.png"]
    temporary = folder / "bench.tmp.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(paths[0], json.dumps(figures, ensure_ascii=False, indent=2) + "\n")
        _draw(figures["results"]).savefig(temporary)
        temporary.replace(paths[1])
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}).", "Free some space, or choose another --out."
        ) from None
    return paths


def _draw(results: Sequence[dict[str, Any]]) -> Figure:
    """Bars of decoding speed by batch size, with the share of the limit; bars of memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = [measured["batch_size"] for measured in results[0]["measured"]]
    figure = Figure(figsize=(11, 1.6 + 0.3 * len(results) * (len(sizes) + 1)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    height = 0.8 / len(sizes)
    for i, size in enumerate(sizes):
        places = [row + (i - (len(sizes) - 1) / 2) * height for row in range(len(results))]
        rates = [result["measured"][i]["decode_tokens_per_s"] for result in results]
        bars = speed.barh(places, rates, height * 0.9, color=_COLOURS[i % len(_COLOURS)], label=f"batch {size}")
        shares = [f" {r:.1f} ({q['measured'][i]['limit_share']:.0%})" for r, q in zip(rates, results, strict=True)]
        speed.bar_label(bars, shares, fontsize=8)
    for offset, key, colour, label in ((-0.2, "weights", _COLOURS[4], "weights"), (0.2, "peak", _COLOURS[3], "peak")):
        values = [result[key] / _GB for result in results]
        bars = memory.barh([row + offset for row in range(len(results))], values, 0.36, color=colour, label=label)
        memory.bar_label(bars, [f" {value:.2f}" for value in values], fontsize=8)
    speed.set_yticks(range(len(results)), [_label(result, results) for result in results])
    speed.invert_yaxis()
    speed.set_xlabel("decoded tokens/s (share of the bandwidth limit)")
    memory.set_xlabel("memory, GB")
    for axes in (speed, memory):
        axes.margins(x=0.22)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.25 / len(results)), ncols=4
        )
    return figure


def _label(result: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Latin letters, since not every machine has Chinese fonts; no name where there is one model alone."""
    names = list(dict.fromkeys(each["name"] for each in results))
    name = result["name"] if result["name"].isascii() else f"model {names.index(result['name']) + 1}"
    parts = [
        *([name] if len(names) > 1 else []),
        *([result["form"]] if result["form"] != "base" else []),
        result["variant"],
        *(["compiled"] if result.get("compiled") else []),
    ]
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
