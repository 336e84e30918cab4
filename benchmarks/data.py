"""Speed and memory of encoding a JSON file to packed blocks of ids, on one core.

    python benchmarks/data.py --assets DIR [--rows 114600] [--json OUT]

DIR (or `GLMTUNE_ASSETS`) has `assets/chatglm3-6b` and `assets/chatglm-6b` (the published tokenizers) and
`data/adgen/train.json`, which this repository does not contain. Every figure is measured in a process of its own, so
that only the files are in a cache. The baseline is the minimum of the official code: one call of `sentencepiece.encode`
per row over its question and answer together, no prompt, no labels, nothing written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import add_assets_option, describe_environment, find_versions, print_progress, report_result, run_json

ADGEN_ROWS = 114_600  # about as many as the whole of ADGEN's training file has
FAMILIES = ("chatglm3", "chatglm")
TITLES = {"chatglm3": "ChatGLM3-6B", "chatglm": "ChatGLM-6B"}
PACKAGES = ("tokenizers", "sentencepiece", "transformers", "pyarrow", "numpy")
MAX_LENGTH = 512  # tokens of a prompt and of an answer, glmtune's defaults


# --- the file ---


def write_file(path: Path, rows: list[dict[str, str]], count: int, as_is: bool) -> int:
    """Write `count` rows by repeating `rows`.

    A fast tokenizer (of a folder with a tokenizer.json) caches the ids of up to 10,000 short texts, so repeating rows
    unchanged could measure that cache. From the second pass on the parts of a question and the clauses of an answer are
    shuffled: the same characters, another text.

    Returns:
        Number of different questions and answers.
    """
    generator = random.Random(0)
    different_texts = set()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            if number >= len(rows) and not as_is:
                row = {
                    "content": _shuffle_parts(row["content"], "*", generator),
                    "summary": _shuffle_parts(row["summary"], "，", generator),
                }
            different_texts.update(map(hash, row.values()))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(different_texts)


def _shuffle_parts(text: str, separator: str, generator: random.Random) -> str:
    parts = text.split(separator)
    generator.shuffle(parts)
    return separator.join(parts)


# --- stages, each in a new process ---


def measure_baseline(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """SentencePiece alone, and glmtune's tokenization alone, of texts that are in memory."""
    import sentencepiece

    from glmtune import load_tokenizer
    from glmtune.data.sources import open_source
    from glmtune.families.family import tokenize_text

    folder = _checkpoint_folder(assets, family)
    name = "ice_text.model" if family == "chatglm" else "tokenizer.model"
    official = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
    tokenizer = load_tokenizer(folder)
    texts = [(row.messages[0]["content"], row.messages[1]["content"]) for row in open_source(file)]

    def run_official() -> None:
        for question, answer in texts:
            official.encode(question + answer)

    def run_glmtune() -> None:
        for question, answer in texts:
            tokenize_text(tokenizer, question)
            tokenize_text(tokenizer, answer)

    return {"rows": len(texts), "ground": _time_call(run_official), "tokenizer": _time_call(run_glmtune)}


def measure_read(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """Read rows as conversations, including the detection of the format; the family does not matter."""
    from glmtune.data.sources import open_source

    counts: list[int] = []
    timing = _time_call(lambda: counts.append(sum(1 for _ in open_source(file))))
    return {"rows": counts[0], "read": timing}


def measure_encode(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """Read, encode and write a new Arrow file; time and peak memory."""
    encode, before = _make_encoder(family, file, assets), _read_peak_mib()
    results: list[Any] = []
    timing = _time_call(lambda: results.append(encode()))
    data = results[0]
    return {
        "rows": len(data.rows),
        "encode": timing,
        "peak_mib": _read_peak_mib(),
        "peak_before_mib": before,
        "tokens": data.meta.counts["tokens"],
        "targets": data.meta.counts["targets"],
        "cache_mib": data.rows.path.stat().st_size / 2**20,
    }


def measure_second_start(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """A second start: imports, tokenizer, finding the Arrow file by its content, mapping it, packing."""
    started = time.perf_counter()
    import transformers  # noqa: F401

    import glmtune.data.batches
    import glmtune.data.cache
    import glmtune.models.tokenizers

    imported = time.perf_counter()
    encode = _make_encoder(family, file, assets)
    loaded = time.perf_counter()
    data = encode()
    opened = time.perf_counter()
    capacity = max(2 * MAX_LENGTH, int(max(data.rows.lengths)))
    blocks = glmtune.data.batches.pack_rows(data.rows.lengths, capacity)
    packed = time.perf_counter()
    return {
        "rows": len(data.rows),
        "import_s": imported - started,
        "tokenizer_s": loaded - imported,
        "open_s": opened - loaded,
        "pack_s": packed - opened,
        "blocks": len(blocks),
        "capacity": capacity,
        "fill": float(data.rows.lengths.sum()) / (len(blocks) * capacity),
    }


STAGES = {"ground": measure_baseline, "read": measure_read, "encode": measure_encode, "again": measure_second_start}


def _make_encoder(family: str, file: Path, assets: Path) -> Callable[[], Any]:
    """A function that encodes the file; the tokenizer is loaded, the file is not read yet."""
    from glmtune import load_tokenizer
    from glmtune.data.cache import encode_sources
    from glmtune.data.encoding import EncodingRules
    from glmtune.data.sources import open_sources
    from glmtune.families import get_family

    tokenizer = load_tokenizer(_checkpoint_folder(assets, family))
    return lambda: encode_sources(
        open_sources(str(file)), get_family(family), tokenizer, EncodingRules(MAX_LENGTH, MAX_LENGTH)
    )


def _checkpoint_folder(assets: Path, family: str) -> Path:
    return assets / "assets" / f"{family}-6b"


def _time_call(function: Callable[[], object]) -> dict[str, float]:
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    function()
    return {"wall_s": time.perf_counter() - wall_start, "cpu_s": time.process_time() - cpu_start}


def _read_peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


# --- all stages ---


def measure_stages(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all stages, interleaved: the baseline is measured next to the encoding, `--repeats` times."""
    source = args.assets / "data" / "adgen" / "train.json"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    full_file, quarter_file = folder / "rows.json", folder / "part.json"
    different = write_file(full_file, rows, args.rows, args.as_is)
    write_file(quarter_file, rows, args.rows // 4, args.as_is)
    result: dict[str, Any] = {
        **describe_environment("data.py"),
        "versions": find_versions(PACKAGES),
        "pinned_to": args.core,
        "rows": args.rows,
        "as_is": args.as_is,
        "made_from": len(rows),
        "different_texts": different,
        "file_mib": full_file.stat().st_size / 2**20,
        "read": [],
        "families": {family: {"ground": [], "encode": [], "encode_part": [], "again": []} for family in args.families},
    }
    for number in range(args.repeats):
        result["read"].append(_run_stage("read", args.families[0], full_file, args, folder))
        for family in args.families:
            stages = result["families"][family]
            cache = folder / f"{family}-{number}"
            stages["ground"].append(_run_stage("ground", family, full_file, args, cache))
            stages["encode_part"].append(_run_stage("encode", family, quarter_file, args, cache))
            stages["encode"].append(_run_stage("encode", family, full_file, args, cache))
            stages["again"].append(_run_stage("again", family, full_file, args, cache))
    return result


def _run_stage(name: str, family: str, file: Path, args: argparse.Namespace, cache: Path) -> dict[str, Any]:
    print_progress(f"{name} {family} {file.name}")
    arguments = ["--stage", name, "--families", family, "--assets", args.assets, "--file", file]
    return run_json("data.py", *arguments, env={"GLMTUNE_CACHE": str(cache)})


def _pin_to_core(core: int | None) -> int | None:
    """Limit this process and its children to one core and one thread of each library."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not hasattr(os, "sched_setaffinity"):
        return None
    pinned = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {pinned})
    return pinned


# --- the report ---


def format_report(result: dict[str, Any]) -> str:
    """The figures as a markdown table.

    It shows the best of the repeats, and rates per second of CPU time: other processes can only make a figure worse.
    """
    families = list(result["families"])
    lines = [
        f"| {result['rows']:,} rows | {' | '.join(TITLES[f] for f in families)} |",
        f"|---|{'---:|' * len(families)}",
    ]
    for label, show in _list_figures(result):
        lines.append(f"| {label} | {' | '.join(show(result['families'][family]) for family in families)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    pinned = "one core" if result["pinned_to"] is None else f"pinned to core {result['pinned_to']}"
    repetition = "repeated unchanged" if result["as_is"] else "repeated with their parts shuffled"
    texts = f"{result['different_texts']:,} of their {2 * result['rows']:,} texts different"
    lines += [
        "",
        f"{result['date']}, {result['cpu']}, {result['cores']} cores, {pinned}; Python {result['python']}, {versions}.",
        f"`{result['command']}`: {result['made_from']:,} rows of ADGEN, {repetition}: {result['rows']:,} rows, {texts} "
        f"({result['file_mib']:.1f} MiB); best of {len(result['read'])}.",
        f"Rates are per second of CPU time, of which the measurement had {_cpu_share(result):.0%} of its core.",
    ]
    return "\n".join(lines)


def _list_figures(result: dict[str, Any]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    def rate(runs: list[dict[str, Any]], key: str) -> float:
        return max(run["rows"] / run[key]["cpu_s"] for run in runs)

    def least(runs: list[dict[str, Any]], key: str) -> float:
        return min(run[key] for run in runs)

    def most(runs: list[dict[str, Any]]) -> float:
        return max(run["peak_mib"] for run in runs)

    part = result["rows"] // 4
    yield "baseline: `sentencepiece.encode` alone, rows/s", lambda f: f"{rate(f['ground'], 'ground'):,.0f}"
    yield "ids of the same texts alone, glmtune, rows/s", lambda f: f"{rate(f['ground'], 'tokenizer'):,.0f}"
    yield "reading rows, rows/s", lambda f: f"{rate(result['read'], 'read'):,.0f}"
    yield "reading, encoding, writing the cache, rows/s", lambda f: f"{rate(f['encode'], 'encode'):,.0f}"
    yield (
        "the same against the baseline",
        lambda f: f"{rate(f['encode'], 'encode') / rate(f['ground'], 'ground'):.2f} x",
    )
    yield "tokens of a row, mean", lambda f: f"{f['encode'][0]['tokens'] / f['encode'][0]['rows']:.0f}"
    yield "size of the cache, MiB", lambda f: f"{f['encode'][0]['cache_mib']:.0f}"
    yield "second start: finding and mapping the cache, s", lambda f: f"{least(f['again'], 'open_s'):.2f}"
    yield "second start: loading the tokenizer, s", lambda f: f"{least(f['again'], 'tokenizer_s'):.2f}"
    yield "second start: imports, s", lambda f: f"{least(f['again'], 'import_s'):.2f}"
    yield "packing, s", lambda f: f"{least(f['again'], 'pack_s'):.2f}"
    yield (
        "blocks, and the share of tokens that are not padding",
        lambda f: f"{f['again'][0]['blocks']:,} of {f['again'][0]['capacity']:,}, {f['again'][0]['fill']:.2%}",
    )
    yield "peak memory before the file is opened, MiB", lambda f: f"{least(f['encode'], 'peak_before_mib'):.0f}"
    yield f"peak memory, {part:,} rows, MiB", lambda f: f"{most(f['encode_part']):.0f}"
    yield f"peak memory, {result['rows']:,} rows, MiB", lambda f: f"{most(f['encode']):.0f}"


def _cpu_share(result: dict[str, Any]) -> float:
    """CPU time over wall time: below 1, another process ran on the core."""
    timings = [run["read"] for run in result["read"]]
    for stages in result["families"].values():
        timings += [run[key] for run in stages["ground"] for key in ("ground", "tokenizer")]
        timings += [run["encode"] for run in [*stages["encode"], *stages["encode_part"]]]
    return sum(t["cpu_s"] for t in timings) / sum(t["wall_s"] for t in timings)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_assets_option(parser)
    parser.add_argument("--rows", type=int, default=ADGEN_ROWS, help="number of rows of the file")
    parser.add_argument("--repeats", type=int, default=5, help="runs of every stage")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--core", type=int, help="number of the core (default: the last one)")
    parser.add_argument("--as-is", action="store_true", help="repeat the rows without shuffling their parts")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:  # a child process: its core and threads are the parent's
        print(json.dumps(STAGES[args.stage](args.families[0], args.file, args.assets)))
        return
    source = args.assets / "data" / "adgen" / "train.json"
    if not source.is_file():
        parser.error(f"{source} is missing; name the folder with --assets or GLMTUNE_ASSETS")
    args.core = _pin_to_core(args.core)
    with tempfile.TemporaryDirectory() as folder:
        result = measure_stages(args, Path(folder))
    report_result(result, args.json, format_report)


if __name__ == "__main__":
    main()
