"""Write the rows of `glmtune demo`, `src/glmtune/demo/data/train.jsonl` and `dev.jsonl`, from their generator.

python tools/write_demo_data.py
"""

from __future__ import annotations

import json
from pathlib import Path

from demo_corpus.corpus import make_adgen_splits

FOLDER = Path(__file__).resolve().parent.parent / "src/glmtune/demo/data"
SIZES = {"train": 3200, "dev": 64}


def render_files() -> dict[str, str]:
    """File names and contents. No training row has the prompt of an evaluation row."""
    files = {}
    for name, rows in make_adgen_splits(SIZES).items():
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
        files[f"{name}.jsonl"] = "".join(lines)
    return files


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, text in render_files().items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
