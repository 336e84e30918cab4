"""Speed and memory of the way from a JSON file to packed blocks of ids, on one core.

    python benchmarks/data.py --assets DIR [--rows 114600] [--json OUT]

DIR holds `assets/chatglm3-6b` and `assets/chatglm-6b` (the published tokenizers) and `data/adgen/train.json`, which
this repository does not contain; `GLMTUNE_ASSETS` names it as well. Every figure is taken in a process of its own, so
that nothing is warm but the files. The ground is what the official code cannot do without: one call of
`sentencepiece.encode` per row over its question and answer together, no prompt, no labels, nothing written.
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

from sitting import add_assets, circumstances, finish, installed, run_json, say

ADGEN_ROWS = 114_600  # about as many as the whole of ADGEN's training file has
FAMILIES = ("chatglm3", "chatglm")
TITLES = {"chatglm3": "ChatGLM3-6B", "chatglm": "ChatGLM-6B"}
PACKAGES = ("tokenizers", "sentencepiece", "transformers", "pyarrow", "numpy")
LIMIT = 512  # tokens of a prompt and of an answer at most, glmtune's defaults


# --- the file ---


def write_file(path: Path, rows: list[dict[str, str]], count: int, as_is: bool) -> int:
    """Write `count` rows made of `rows`, over and over.

    A fast tokenizer (that of a folder with a tokenizer.json) keeps the ids of up to 10,000 short texts that it has
    seen, so plain repetition could measure that instead. From the second pass on the parts of a question and the
    clauses of an answer are shuffled: the same characters, another text.

    Returns:
        How many different questions and answers there are.
    """
    chance = random.Random(0)
    different = set()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            if number >= len(rows) and not as_is:
                row = {
                    "content": _shuffled(row["content"], "*", chance),
                    "summary": _shuffled(row["summary"], "，", chance),
                }
            different.update(map(hash, row.values()))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(different)


def _shuffled(text: str, separator: str, chance: random.Random) -> str:
    parts = text.split(separator)
    chance.shuffle(parts)
    return separator.join(parts)


# --- what is measured, each in a fresh process ---


def measure_ground(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """SentencePiece alone, and our way to the ids of a text alone, over texts that are already in memory."""
    import sentencepiece

    from glmtune import load_tokenizer
    from glmtune.data.sources import open_source
    from glmtune.families.family import text_ids

    folder = _folder(assets, family)
    name = "ice_text.model" if family == "chatglm" else "tokenizer.model"
    official = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
    tokenizer = load_tokenizer(folder)
    texts = [(row.messages[0]["content"], row.messages[1]["content"]) for row in open_source(file)]

    def run_official() -> None:
        for question, answer in texts:
            official.encode(question + answer)

    def run_ours() -> None:
        for question, answer in texts:
            text_ids(tokenizer, question)
            text_ids(tokenizer, answer)

    return {"rows": len(texts), "ground": _timed(run_official), "tokenizer": _timed(run_ours)}


def measure_read(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """Reading rows to conversations, the look through the file included; the generation does not matter."""
    from glmtune.data.sources import open_source

    found: list[int] = []
    timing = _timed(lambda: found.append(sum(1 for _ in open_source(file))))
    return {"rows": found[0], "read": timing}


def measure_encode(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """Reading, encoding and writing an Arrow file that is not there yet; what memory that takes."""
    encode, before = _opened(family, file, assets), _peak_mib()
    found: list[Any] = []
    timing = _timed(lambda: found.append(encode()))
    data = found[0]
    return {
        "rows": len(data.rows),
        "encode": timing,
        "peak_mib": _peak_mib(),
        "peak_before_mib": before,
        "tokens": data.meta.counts["tokens"],
        "targets": data.meta.counts["targets"],
        "cache_mib": data.rows.path.stat().st_size / 2**20,
    }


def measure_again(family: str, file: Path, assets: Path) -> dict[str, Any]:
    """A second start: import, open the tokenizer, find the Arrow file by its content, map it, pack."""
    started = time.perf_counter()
    import transformers  # noqa: F401

    import glmtune.data.cache
    import glmtune.data.packing
    import glmtune.models.tokenizers

    imported = time.perf_counter()
    encode = _opened(family, file, assets)
    loaded = time.perf_counter()
    data = encode()
    opened = time.perf_counter()
    capacity = max(2 * LIMIT, int(max(data.rows.lengths)))
    blocks = glmtune.data.packing.pack(data.rows.lengths, capacity)
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


STAGES = {"ground": measure_ground, "read": measure_read, "encode": measure_encode, "again": measure_again}


def _opened(family: str, file: Path, assets: Path) -> Callable[[], Any]:
    """What encodes the file, with the tokenizer loaded and the file not yet touched."""
    from glmtune import load_tokenizer
    from glmtune.data.cache import encode_sources
    from glmtune.data.encoding import EncodingRules
    from glmtune.data.sources import open_sources
    from glmtune.families import get_family

    tokenizer = load_tokenizer(_folder(assets, family))
    return lambda: encode_sources(open_sources(str(file)), get_family(family), tokenizer, EncodingRules(LIMIT, LIMIT))


def _folder(assets: Path, family: str) -> Path:
    return assets / "assets" / f"{family}-6b"


def _timed(work: Callable[[], object]) -> dict[str, float]:
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - busy}


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


# --- the sitting ---


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one sitting. The ground is measured right next to the encoding, `--repeats` times in turn."""
    source = args.assets / "data" / "adgen" / "train.json"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    whole, part = folder / "rows.json", folder / "part.json"
    different = write_file(whole, rows, args.rows, args.as_is)
    write_file(part, rows, args.rows // 4, args.as_is)
    result: dict[str, Any] = {
        **circumstances("data.py"),
        "versions": installed(PACKAGES),
        "pinned_to": args.core,
        "rows": args.rows,
        "as_is": args.as_is,
        "made_from": len(rows),
        "different_texts": different,
        "file_mib": whole.stat().st_size / 2**20,
        "read": [],
        "families": {family: {"ground": [], "encode": [], "encode_part": [], "again": []} for family in args.families},
    }
    for number in range(args.repeats):
        result["read"].append(_stage("read", args.families[0], whole, args, folder))
        for family in args.families:
            found = result["families"][family]
            cache = folder / f"{family}-{number}"
            found["ground"].append(_stage("ground", family, whole, args, cache))
            found["encode_part"].append(_stage("encode", family, part, args, cache))
            found["encode"].append(_stage("encode", family, whole, args, cache))
            found["again"].append(_stage("again", family, whole, args, cache))
    return result


def _stage(name: str, family: str, file: Path, args: argparse.Namespace, cache: Path) -> dict[str, Any]:
    say(f"{name} {family} {file.name}")
    given = ["--stage", name, "--families", family, "--assets", args.assets, "--file", file]
    return run_json("data.py", *given, env={"GLMTUNE_CACHE": str(cache)})


def _one_core(core: int | None) -> int | None:
    """Keep this process and its children to one core and to one thread of each library."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not hasattr(os, "sched_setaffinity"):
        return None
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


# --- what is said of it ---


def report(result: dict[str, Any]) -> str:
    """The figures as a markdown table.

    The best of the repeats is shown, and rates are per second of CPU time: what else runs on a machine only ever
    makes a figure worse.
    """
    families = list(result["families"])
    lines = [
        f"| {result['rows']:,} rows | {' | '.join(TITLES[f] for f in families)} |",
        f"|---|{'---:|' * len(families)}",
    ]
    for label, show in _figures(result):
        lines.append(f"| {label} | {' | '.join(show(result['families'][family]) for family in families)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    pinned = "one core" if result["pinned_to"] is None else f"pinned to core {result['pinned_to']}"
    made = "repeated as they are" if result["as_is"] else "repeated with their parts shuffled"
    texts = f"{result['different_texts']:,} of their {2 * result['rows']:,} texts different"
    lines += [
        "",
        f"{result['date']}, {result['cpu']}, {result['cores']} cores, {pinned}; Python {result['python']}, {versions}.",
        f"`{result['command']}`: {result['made_from']:,} rows of ADGEN, {made}: {result['rows']:,} rows, {texts} "
        f"({result['file_mib']:.1f} MiB); best of {len(result['read'])}.",
        f"Rates are per second of CPU time, of which the measurement had {_busy(result):.0%} of its core.",
    ]
    return "\n".join(lines)


def _figures(result: dict[str, Any]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    def rate(runs: list[dict[str, Any]], key: str) -> float:
        return max(run["rows"] / run[key]["cpu_s"] for run in runs)

    def least(runs: list[dict[str, Any]], key: str) -> float:
        return min(run[key] for run in runs)

    def most(runs: list[dict[str, Any]]) -> float:
        return max(run["peak_mib"] for run in runs)

    part = result["rows"] // 4
    yield "ground: `sentencepiece.encode` alone, rows/s", lambda f: f"{rate(f['ground'], 'ground'):,.0f}"
    yield "ids of the same texts alone, our way, rows/s", lambda f: f"{rate(f['ground'], 'tokenizer'):,.0f}"
    yield "reading rows, rows/s", lambda f: f"{rate(result['read'], 'read'):,.0f}"
    yield "reading, encoding, writing the cache, rows/s", lambda f: f"{rate(f['encode'], 'encode'):,.0f}"
    yield (
        "the same against the ground",
        lambda f: f"{rate(f['encode'], 'encode') / rate(f['ground'], 'ground'):.2f} x",
    )
    yield "tokens of a row, mean", lambda f: f"{f['encode'][0]['tokens'] / f['encode'][0]['rows']:.0f}"
    yield "size of the cache, MiB", lambda f: f"{f['encode'][0]['cache_mib']:.0f}"
    yield "second start: finding and mapping the cache, s", lambda f: f"{least(f['again'], 'open_s'):.2f}"
    yield "second start: loading the tokenizer, s", lambda f: f"{least(f['again'], 'tokenizer_s'):.2f}"
    yield "second start: imports, s", lambda f: f"{least(f['again'], 'import_s'):.2f}"
    yield "packing, s", lambda f: f"{least(f['again'], 'pack_s'):.2f}"
    yield (
        "blocks, and how full they are",
        lambda f: f"{f['again'][0]['blocks']:,} of {f['again'][0]['capacity']:,}, {f['again'][0]['fill']:.2%}",
    )
    yield "peak memory before the file is opened, MiB", lambda f: f"{least(f['encode'], 'peak_before_mib'):.0f}"
    yield f"peak memory, {part:,} rows, MiB", lambda f: f"{most(f['encode_part']):.0f}"
    yield f"peak memory, {result['rows']:,} rows, MiB", lambda f: f"{most(f['encode']):.0f}"


def _busy(result: dict[str, Any]) -> float:
    """CPU time over wall time: below 1 something else ran on the core, and the seconds are too many by that."""
    timings = [run["read"] for run in result["read"]]
    for found in result["families"].values():
        timings += [run[key] for run in found["ground"] for key in ("ground", "tokenizer")]
        timings += [run["encode"] for run in [*found["encode"], *found["encode_part"]]]
    return sum(t["cpu_s"] for t in timings) / sum(t["wall_s"] for t in timings)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_assets(parser)
    parser.add_argument("--rows", type=int, default=ADGEN_ROWS, help="rows of the file")
    parser.add_argument("--repeats", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--core", type=int, help="which core (default: the last one)")
    parser.add_argument("--as-is", action="store_true", help="repeat the rows without shuffling their parts")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:  # a child; it has the parent's core and threads
        print(json.dumps(STAGES[args.stage](args.families[0], args.file, args.assets)))
        return
    source = args.assets / "data" / "adgen" / "train.json"
    if not source.is_file():
        parser.error(f"{source} is missing; name the folder with --assets or GLMTUNE_ASSETS")
    args.core = _one_core(args.core)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    finish(result, args.json, report)


if __name__ == "__main__":
    main()
