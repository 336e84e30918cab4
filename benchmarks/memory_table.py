"""The README's table of GPU memory: what `glmtune plan` says for each generation and method.

    GLMTUNE_ASSETS=FOLDER PYTHONPATH=src python benchmarks/memory_table.py [--json OUT]

Nothing is loaded: a plan needs `FOLDER/assets/chatglm3-6b` (and `chatglm-6b`, `chatglm2-6b`) with config.json and the
tokenizer. GLM-4-9B is planned from its published sizes, with a synthetic tokenizer of the same size. Each row has just
under 512 tokens of prompt and 512 of reply, batch 1; the batch is accumulated as the defaults say.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from models import SHAPES, published_config

import glmtune

FAMILIES = {
    "ChatGLM-6B": "chatglm-6b",
    "ChatGLM2-6B": "chatglm2-6b",
    "ChatGLM3-6B": "chatglm3-6b",
    "GLM-4-9B": "glm4-9b",
}
METHODS = {
    "P-Tuning v2, int4": ("method=ptuning", "model.quantization=packed4"),
    "QLoRA": ("method=qlora",),
    "LoRA": ("method=lora",),
    "freeze, 4 layers": ("method=freeze",),
    "full": ("method=full",),
}
CHECKPOINTING = ("training.gradient_checkpointing=true", "training.gradient_checkpointing=false")
_GLM4_TOKENS = 151329  # ordinary tokens of the published vocabulary; special ones come after them


def write_glm4_folder(folder: Path) -> Path:
    """Write GLM-4-9B's config.json with a tokenizer of the published size whose longer tokens match no text."""
    folder.mkdir(parents=True)
    special = {"eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329}
    (folder / "config.json").write_text(json.dumps(published_config(SHAPES["glm4-9b"]) | special), "utf-8")
    tokens = [bytes([i]) for i in range(256)]
    tokens += [b"\x00" + number.to_bytes(3, "big") for number in range(_GLM4_TOKENS - 256)]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def write_rows(model: Path, data: Path) -> None:
    """Write rows of 500 tokens of prompt and 500 of reply in the words of `model`'s tokenizer."""
    tokenizer = glmtune.load_tokenizer(str(model))
    repeats = 500 * 100 // len(tokenizer("问题" * 100, add_special_tokens=False).input_ids)
    row = json.dumps({"prompt": "问题" * repeats, "response": "问题" * repeats}, ensure_ascii=False)
    data.write_text("\n".join([row] * 16), "utf-8")


def plan_bytes(model: Path, data: Path, settings: tuple[str, ...]) -> int:
    """Bytes at the worst moment, as `glmtune plan --json` says."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    command = [*("-m", "glmtune", "plan", "--model", str(model), "--data", str(data)), *overrides]
    result = subprocess.run(
        [sys.executable, *command, "--gpu-memory", "320GB", "--json"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{result.stderr}")
    return int(json.loads(result.stdout)["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", default=os.environ.get("GLMTUNE_ASSETS"), help="folder that holds assets/")
    parser.add_argument("--json", type=Path, help="also write every figure")
    options = parser.parse_args()
    if not options.assets:
        parser.error("--assets or GLMTUNE_ASSETS is needed")
    figures: dict[str, dict[str, list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "rows.json")
        for title, name in FAMILIES.items():
            published = Path(options.assets, "assets", name)
            model = published if published.is_dir() else write_glm4_folder(Path(folder, name))
            write_rows(model, data)
            for method, settings in METHODS.items():
                print(f"{title}, {method}", file=sys.stderr)
                cells = [plan_bytes(model, data, (*settings, setting)) for setting in CHECKPOINTING]
                figures.setdefault(title, {})[method] = cells
    print(f"| | {' | '.join(METHODS)} |\n|---{'|---:' * len(METHODS)}|")
    for title, methods in figures.items():
        cells = [" / ".join(f"{size / 2**30:.1f}" for size in sizes) for sizes in methods.values()]
        print(f"| {title} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
