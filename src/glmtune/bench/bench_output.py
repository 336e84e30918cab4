"""Measurements as a table, as bench.json and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from glmtune.evaluation.output_folders import require_result_folder
from glmtune.html.plots import new_figure, save_figure
from glmtune.utils.console import count_noun, get_console
from glmtune.utils.io import explain_write_errors, file_timestamp, write_json
from glmtune.utils.operating_system import read_cpu_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = ("#0a66ad", "#c24e00", "#00735a", "#8a8f98", "#9cc6e6")
_GB = 1e9


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """Print a table with a row per form and batch size."""
    first = results[0]["measured"][0]
    table = Table(
        "form",
        title=f"{first['prompt_tokens']} prompt tokens, {first['new_tokens']} new, medians of {first['repeats']}; "
        "ms, tokens/s of all rows, share of the bandwidth limit, GB",
    )
    on_gpu = any(result.get("peak_on_device") for result in results)
    for heading in ("rows", "first", "prefill", "decode", "limit", "weights", "peak", *(["on device"] * on_gpu)):
        table.add_column(heading, justify="right")
    for result in results:
        for measurement in result["measured"]:
            table.add_row(
                *(_format_label(result, results), str(measurement["batch_size"])),
                f"{measurement['first_token_s'] * 1000:.0f}",
                f"{measurement['prefill_tokens_per_s']:.0f}",
                f"{measurement['decode_tokens_per_s']:.1f}",
                f"{measurement['limit_share']:.0%}",
                f"{result['weights'] / _GB:.2f}",
                f"{result['peak'] / _GB:.2f}",
                *([f"{result['peak_on_device'] / _GB:.2f}"] if on_gpu else []),
            )
    console = get_console()
    console.print(table)
    for result in results:
        for measurement in result["measured"]:
            label = f"{_format_label(result, results)}, batch size {measurement['batch_size']}"
            for text in measurement.get("paths", {}).values():
                console.print(f"{label}: {text}", highlight=False, markup=False)


def describe_results(results: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """The content of bench.json: all figures, the command and the machine."""
    on_gpu = results[0]["device"].startswith("cuda")
    machine = (
        torch.cuda.get_device_name()
        if on_gpu
        else f"{read_cpu_name()}, {count_noun(torch.get_num_threads(), 'thread')}"
    )
    return {"command": command, "machine": machine, "torch": torch.__version__, "results": list(results)}


def choose_bench_folder(output: Path | None) -> Path:
    """Choose the folder of a benchmark: the one that is asked for, or a new one.

    Raises:
        RunError: the folder that is asked for is not empty.
    """
    if output is None:
        folder = Path("glmtune-bench")
        return folder if _is_new(folder) else Path(f"glmtune-bench-{file_timestamp()}")
    require_result_folder(output, (), "a benchmark")
    return output


def _is_new(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def write_results(folder: Path, figures: dict[str, Any]) -> list[Path]:
    """Write bench.json and bench.png.

    Raises:
        RunError: the folder cannot be written.
    """
    paths = [folder / "bench.json", folder / "bench.png"]
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(paths[0], figures)
        save_figure(_draw_results(figures["results"]), paths[1])
    return paths


def _draw_results(results: Sequence[dict[str, Any]]) -> Figure:
    """Bars of decoding speed by batch size, with the share of the limit; bars of memory."""
    sizes = [measurement["batch_size"] for measurement in results[0]["measured"]]
    figure = new_figure((11, 1.6 + 0.3 * len(results) * (len(sizes) + 1)))
    speed, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    height = 0.8 / len(sizes)
    for i, size in enumerate(sizes):
        places = [row + (i - (len(sizes) - 1) / 2) * height for row in range(len(results))]
        rates = [result["measured"][i]["decode_tokens_per_s"] for result in results]
        bars = speed.barh(places, rates, height * 0.9, color=_COLORS[i % len(_COLORS)], label=f"batch {size}")
        labels = [f" {r:.1f} ({q['measured'][i]['limit_share']:.0%})" for r, q in zip(rates, results, strict=True)]
        speed.bar_label(bars, labels, fontsize=8)
    for offset, key, color, label in ((-0.2, "weights", _COLORS[4], "weights"), (0.2, "peak", _COLORS[3], "peak")):
        values = [result[key] / _GB for result in results]
        bars = memory.barh([row + offset for row in range(len(results))], values, 0.36, color=color, label=label)
        memory.bar_label(bars, [f" {value:.2f}" for value in values], fontsize=8)
    speed.set_yticks(range(len(results)), [_format_label(result, results) for result in results])
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


def _format_label(result: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Name, form and variant: in Latin letters, as a machine may lack Chinese fonts; no name of a single model."""
    names = list(dict.fromkeys(each["name"] for each in results))
    name = result["name"] if result["name"].isascii() else f"model {names.index(result['name']) + 1}"
    parts = [
        *([name] if len(names) > 1 else []),
        *([result["form"]] if result["form"] != "base" else []),
        result["variant"],
        *(["compiled"] if result.get("compiled") else []),
    ]
    return ", ".join(parts)
