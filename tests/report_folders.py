"""Folders with made-up numbers to report on: a run, an evaluation, a comparison, a forgetting probe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

NASTY = '<script>alert("x")</script> & <b>粗</b>'
DATA = {"path": "/data/AdvertiseGen/dev.json", "digest": "ab12cd34", "rows": 3}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}


def model(name: str, adapter: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "path": "/models/chatglm3-6b",
        "family": "chatglm3",
        "fingerprint": "e165a78f3dbace3f",
        "adapter": adapter,
        "quantization": None,
        "dtype": "bf16",
    }


def metrics(name: str, rouge: float = 25.08123, adapter: str | None = None) -> dict[str, Any]:
    def score(mean: float) -> dict[str, Any]:
        return {"mean": mean, "low": mean - 1.2345, "high": mean + 2.3456, "rows": 3}

    return {
        "kind": "eval",
        "model": model(name, adapter),
        "data": DATA,
        "scores": {
            "truncated": score(2.5),
            "rouge_l": score(rouge),
            "bleu4_characters": score(8.1357),
            "length_ratio": score(1.4321),
            "a_score_of_tomorrow": score(77.25),
        },
        "variety": {"distinct_1": 14.91, "distinct_2": 36.62},
        "loss": 1.2345678,
        "perplexity": 3.4368,
        "loss_tokens": 1693,
        "counts": {"empty": 1, "truncated": 2, "repeated_tail": 0},
        "sampling": {"max_new_tokens": 64, "temperature": 0.0},
        "seconds": 83.4,
        "tokens_per_second": 1820.4,
        "device": "CPU (x86_64)",
        "versions": VERSIONS,
        "command": "glmtune eval runs/ads --data 'my dev.json'",
        "finished_at": "2026-11-22T09:10:00+0000",
    }


def predictions(count: int = 3, prompt: str = NASTY) -> list[dict[str, Any]]:
    return [
        {
            "row": i,
            "where": f"dev.json:{i + 1}",
            "prompt": [{"role": "user", "content": prompt}],
            "tools": None,
            "reference": f"参考{i}",
            "prediction": f"{NASTY} 回答{i}" if i else "",
            "scores": {"rouge_l": 10.0 * i + 0.25},
            "tokens": 9,
            "prompt_tokens": 8,
            "stop": "stop",
        }
        for i in range(count)
    ]


def comparison(rouge: float = 25.08123, p: float = 0.0009995) -> dict[str, Any]:
    difference = {"mean": 5.08123, "low": 2.5, "high": 7.75, "p": p, "wins": 2, "losses": 1, "ties": 0}
    less = {"mean": -2.125, "low": -4.5, "high": 0.5, "p": 0.0123, "wins": 0, "losses": 1, "ties": 2}
    return {
        "kind": "comparison",
        "data": DATA,
        "models": [metrics("chatglm3-6b", 20.0), metrics("ads", rouge, "/runs/ads/adapter")],
        "pairs": [
            {"a": 0, "b": 1, "score": "rouge_l", "difference": difference},
            {"a": 0, "b": 1, "score": "truncated", "difference": less},
        ],
        "changed": [
            {
                "row": 1,
                "where": "dev.json:2",
                "prompt": [{"role": "system", "content": "早先"}, {"role": "user", "content": NASTY}],
                "reference": "参考1",
                "replies": ["底座的回答", f"微调后的回答 {NASTY}"],
                "scores": [11.125, 99.5],
            }
        ],
        "forgetting": [None, None],
        "command": "glmtune compare base runs/ads --data dev.json",
        "finished_at": "2026-11-22T09:10:00+0000",
    }


def forgetting(verdict: str = "warn") -> dict[str, Any]:
    return {
        "kind": "forgetting",
        "base": model("chatglm3-6b"),
        "tuned": model("ads", "/runs/ads/adapter"),
        "items": 224,
        "loss": {"base": 1.8321, "tuned": 2.4187},
        "reply_loss": {"base": 0.3121, "tuned": 0.9187},
        "kl": 0.4412,
        "accuracy": {
            "base": 0.8123,
            "tuned": 0.6911,
            "by_category": {"code": {"base": 0.91, "tuned": 0.55}, "new kind": {"base": 0.5, "tuned": None}},
            "by_language": {"zh": {"base": 0.83, "tuned": 0.75}},
        },
        "degenerate": {"base": {"loop": 1, "unk": 0, "empty": 0}, "tuned": {"loop": 9, "unk": 3, "empty": 2}},
        "verdict": verdict,
        "reasons": [f"Accuracy fell by 12 points {NASTY}"],
        "advice": ["Mix general rows into training."],
        "thresholds": {"kl_warn": 0.3},
        "examples": [
            {"id": "zh-1", "prompt": "首都？", "base": "北京", "tuned": NASTY, "base_right": True, "tuned_right": False}
        ],
        "command": "glmtune forget runs/ads",
        "finished_at": "2026-11-22T09:30:00+0000",
    }


def log(steps: int = 40) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: an evaluation every 10 steps, one infinite norm."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "epoch": step / 20,
                "loss": 3.0 * math.exp(-step / 10) + 0.5 + (step % 3) / 10,
                "learning_rate": 1e-4 * (1 - step / steps),
                "grad_norm": None if step == 5 else 1.0 + step % 4,
                "tokens_per_second": 1000.0 + step,
            }
        )
        if step % 10 == 0:
            lines.append(
                {"step": step, "epoch": step / 20, "eval_loss": 1.0 + abs(step - 20) / 50, "eval_rouge_l": 9.5}
            )
    return lines


def summary() -> dict[str, Any]:
    counts = {"conversations": 1070, "rows": 1070, "tokens": 108838, "targets": 69877, "turns_dropped": 0}
    cuts = {"prompts_cut": 59, "answers_cut": 138, "rows_dropped": 4, "tokens_cut": 2273}
    return {
        "state": "finished",
        "model": {
            "path": "/models/chatglm3-6b",
            "family": "chatglm3",
            "fingerprint": "e165a78f3dbace3f",
            "precision": "bf16",
        },
        "method": "lora",
        "trainable_parameters": 1949696,
        "data": {
            "train_rows": 1016,
            "eval_rows": 54,
            "sources": [{"name": f"/data/{NASTY}.json", "format": "content/summary"}],
            "lines_left_out": 3,
            "train": counts | cuts,
            "eval": None,
            "blocks": 876,
        },
        "device": "NVIDIA H100 80GB HBM3",
        "versions": VERSIONS,
        "steps": 40,
        "epochs": 2.0,
        "seconds": 3891.2,
        "samples_per_second": 11.4506,
        "tokens_per_second": 1561.74,
        "peak_memory_bytes": 14_766_047_232,
        "first_loss": 3.31459,
        "last_loss": 0.65495,
        "eval_loss": 1.4,
        "best_eval_loss": 1.0,
        "finished_at": "2026-11-22T07:24:28+0000",
    }


CONFIG = """# a comment with <angle> & brackets
model: {path: /models/chatglm3-6b, quantization: nf4}
data: {train: train.json, max_source_length: 64, max_target_length: 96}
method: lora
training: {seed: 42}
"""


def write_run(folder: Path, *, whole: bool = True) -> Path:
    """A finished run; with `whole`, evaluated, compared and probed."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_lines(folder / "metrics.jsonl", log())
    write_json(folder / "summary.json", summary())
    if whole:
        write_evaluation(folder / "eval" / "dev")
        write_json(folder / "eval" / "dev" / "comparison.json", comparison())
        write_json(folder / "forgetting.json", forgetting())
    return folder


def write_evaluation(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", metrics("ads", adapter="/runs/ads/adapter"))
    write_lines(folder / "predictions.jsonl", predictions(count))
    return folder


def write_comparison(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "comparison.json", comparison() | {"forgetting": [None, forgetting()]})
    return folder


def write_forgetting(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "forgetting.json", forgetting())
    return folder


WRITERS = {
    "run": write_run,
    "eval": write_evaluation,
    "comparison": write_comparison,
    "forgetting": write_forgetting,
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
