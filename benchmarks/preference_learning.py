"""What DPO teaches the demo's base, on preferences that a program can judge: short answers, polite answers.

    PYTHONPATH=src python benchmarks/preference_learning.py [--preferences NAME...] [--json OUT]

Each preference is learnt twice: by a new adapter, and by an adapter that was trained on answers before (SFT, then DPO).
Pairs and questions are synthetic; the questions of the replies are held out. Needs no files and no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import (
    REPOSITORY,
    describe_environment,
    format_footer,
    format_table,
    make_pythonpath,
    print_progress,
    report_result,
)

BASE = REPOSITORY / "src" / "glmtune" / "demo" / "base"
Row = dict[str, str]
_GREETING, _REFUSAL = "您好，很高兴为您介绍。", "自己看吧。"


@dataclass(frozen=True)
class Preference:
    """A better and a worse answer from an advertisement, and which of two replies is the better one."""

    better: Callable[[str], str]
    worse: Callable[[str], str]
    wins: Callable[[str, str], float]
    """1, 0.5 or 0: whether the first reply is better than the second."""


def shorten(text: str) -> str:
    """The first clause."""
    return text.split("。")[0].split("，")[0] + "。"


def compare_lengths(ours: str, theirs: str) -> float:
    """Whether our reply is the shorter one, unless it says nothing."""
    if len(ours) == len(theirs):
        return 0.5
    return float(5 <= len(ours) < len(theirs))


def compare_greetings(ours: str, theirs: str) -> float:
    """Whether our reply alone greets."""
    return 0.5 + 0.5 * (ours.startswith("您好") - theirs.startswith("您好"))


PREFERENCES = {
    "short": Preference(shorten, str, compare_lengths),
    "polite": Preference(lambda text: _GREETING + text, lambda text: _REFUSAL + text, compare_greetings),
}


def make_pairs(rows: Iterable[Row], preference: Preference) -> list[Row]:
    """Pairs of rows of `content` and `summary`."""
    return [
        {
            "prompt": row["content"],
            "chosen": preference.better(row["summary"]),
            "rejected": preference.worse(row["summary"]),
        }
        for row in rows
    ]


def write_files(name: str, folder: Path, pairs: int, held_out: int) -> None:
    """Write `pairs.json`, `held_out.json` and `answers.json` (for SFT)."""
    sys.path.append(str(REPOSITORY / "tools"))
    from demo_corpus.corpus import make_adgen_rows

    rows = make_adgen_rows(pairs + held_out, seed=3)
    preference = PREFERENCES[name]
    answers = [{"prompt": row["content"], "response": row["summary"]} for row in rows[:pairs]]
    files = {"pairs": make_pairs(rows[:pairs], preference), "held_out": make_pairs(rows[pairs:], preference)}
    for file, content in {**files, "answers": answers}.items():
        (folder / f"{file}.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def run_command(*words: str | Path) -> float:
    """Run a command of glmtune; the seconds that it took."""
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": make_pythonpath()}
    command = [sys.executable, "-m", "glmtune", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 3):  # 3: the verdict of `glmtune forget` is fail
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - start


def train(folder: Path, output: str, data: str, steps: int, *options: str) -> float:
    """`glmtune train` on the base; the seconds that it took."""
    settings = [f"training.max_steps={steps}", "training.report_to=none", "lora.dropout=0", "data.max_length=512"]
    settings += ["training.learning_rate=1e-3", "training.gradient_accumulation_steps=1", *options]
    words: list[str | Path] = ["train", "--model", BASE, "--data", folder / f"{data}.json", "--output", folder / output]
    for setting in settings:
        words += ["--set", setting]
    return run_command(*words)


def measure(name: str, after_sft: bool, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Learn a preference; accuracies on held-out pairs, win rate of replies, forgetting."""
    write_files(name, folder, args.pairs, args.held_out)
    options = ["stage=dpo", f"data.eval={folder / 'held_out.json'}", "training.eval_on_start=true"]
    before = None
    if after_sft:
        train(folder, "sft", "answers", args.steps)
        before = folder / "sft" / "adapter"
        options.append(f"adapter={folder / 'sft'}")
    seconds = train(folder, "dpo", "pairs", args.steps, *options)
    metrics = [json.loads(line) for line in (folder / "dpo" / "metrics.jsonl").read_text("utf-8").splitlines()]
    evaluations = [entry for entry in metrics if "eval_accuracy" in entry]
    steps = [entry for entry in metrics if "better_logp" in entry]
    run_command("forget", folder / "dpo", "--limit", str(args.questions))
    forgetting = json.loads((folder / "dpo" / "forgetting.json").read_text("utf-8"))
    questions = [pair["prompt"] for pair in json.loads((folder / "held_out.json").read_text("utf-8"))][: args.replies]
    replies = [generate(adapter, questions) for adapter in (folder / "dpo" / "adapter", before)]
    wins = [PREFERENCES[name].wins(ours, theirs) for ours, theirs in zip(*replies, strict=True)]
    return {
        "seconds": seconds,
        "accuracy": [evaluations[0]["eval_accuracy"], evaluations[-1]["eval_accuracy"]],
        "margin": evaluations[-1]["eval_margin"],
        "better_logp": [steps[0]["better_logp"], steps[-1]["better_logp"]],
        "worse_logp": [steps[0]["worse_logp"], steps[-1]["worse_logp"]],
        "win_rate": sum(wins) / len(wins),
        "forgetting": forgetting,
        "replies": [list(pair) for pair in zip(questions, *replies, strict=True)][:5],
    }


def generate(adapter: Path | None, questions: list[str]) -> list[str]:
    """Greedy replies of the base, with an adapter on it."""
    import glmtune
    from glmtune.generation.batched import generate_batched
    from glmtune.generation.sampling import Sampling

    model = glmtune.load_model(BASE, adapter=adapter, device="cpu")
    tokenizer, family = glmtune.load_tokenizer(BASE), glmtune.detect_family(BASE)
    prompts = [family.encode_prompt([{"role": "user", "content": text}], tokenizer) for text in questions]
    replies = generate_batched(model, tokenizer, family, prompts, Sampling(max_new_tokens=96))
    return [family.parse_reply(reply.text).content for reply in replies]


def format_report(result: dict[str, Any]) -> str:
    """A row for each run."""
    head = ["preference", "pairs right before", "after", "win rate", "seconds", "forgetting", "nats per token"]
    rows = []
    for name, entry in result["runs"].items():
        before, after = entry["accuracy"]
        forgetting = entry["forgetting"]
        rows.append(
            [
                name,
                f"{before:.0%}",
                f"{after:.0%}",
                f"{entry['win_rate']:.0%}",
                f"{entry['seconds']:.0f}",
                forgetting["verdict"],
                f"{forgetting['kl']:.3f}",
            ]
        )
    return "\n".join([*format_table(head, rows), "", *format_footer(result)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preferences", nargs="+", choices=PREFERENCES, default=list(PREFERENCES))
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--replies", type=int, default=30, help="held-out questions that are answered")
    parser.add_argument("--questions", type=int, default=40, help="of the forgetting probe")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs = {}
    for name in args.preferences:
        for after_sft in (False, True):
            title = f"{name}, after SFT" if after_sft else name
            print_progress(title)
            with tempfile.TemporaryDirectory(prefix="glmtune-bench-") as folder:
                runs[title] = measure(name, after_sft, Path(folder), args)
            print_progress("pairs right {:.0%}, then {:.0%}".format(*runs[title]["accuracy"]))
    result = {**describe_environment("preference_learning.py"), "runs": runs}
    report_result(result, args.json, format_report)


if __name__ == "__main__":
    main()
