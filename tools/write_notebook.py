"""Write notebooks/glmtune.ipynb, the notebook for Colab, ModelScope and DSW, from the cells below.

    python tools/write_notebook.py

A notebook is JSON whose differences nobody reads; here the cells are text. `tests/test_notebook.py` compares the file
with this and runs it from top to bottom.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "notebooks" / "glmtune.ipynb"

TEXT, CODE = "markdown", "code"
CELLS: list[tuple[str, str]] = [
    (
        TEXT,
        """\
# Fine-tune ChatGLM and GLM-4 with glmtune · 用 glmtune 微调 ChatGLM 与 GLM-4

Run the cells from top to bottom. With a GPU it tunes ChatGLM3-6B; without one, a tiny base that comes with glmtune, in
a few minutes. 从上到下依次运行。有 GPU 时微调 ChatGLM3-6B；没有 GPU 时微调 glmtune 自带的小模型，几分钟完成。

On Colab choose a GPU first: Runtime, Change runtime type. 在 Colab 上请先选择 GPU：代码执行程序，更改运行时类型。""",
    ),
    (TEXT, "## 1. Install · 安装"),
    (
        CODE,
        """\
import importlib.util

if importlib.util.find_spec("glmtune") is None:
    %pip install --quiet "glmtune[qlora,modelscope]\"""",
    ),
    (CODE, "!glmtune doctor"),
    (
        TEXT,
        """\
## 2. Model and data · 模型与数据

A machine in China reads `modelscope` faster. Your own data: upload a JSON file and name it in `DATA`.
在中国的机器上，`modelscope` 更快。使用自己的数据：上传 JSON 文件，把文件名写入 `DATA`。""",
    ),
    (
        CODE,
        """\
from importlib.resources import files

import torch

HAS_GPU = torch.cuda.is_available()
HUB = "huggingface"  # or "modelscope"
DATA = "train.json"
RUN = "runs/notebook"
QUANTIZATION = "nf4" if HAS_GPU else None

if HAS_GPU:
    MODEL = "chatglm3-6b"
    repository = {"huggingface": "THUDM/chatglm3-6b", "modelscope": "ZhipuAI/chatglm3-6b"}[HUB]
    !glmtune fetch {repository} --hub {HUB}
else:
    MODEL = str(files("glmtune.demo") / "base")""",
    ),
    (
        CODE,
        """\
import json
from pathlib import Path

# Replace these rows by your own. 把这些数据换成自己的。
rows = [
    {"instruction": "类型#上衣*风格#简约", "output": "这件上衣版型简约，怎么搭配都好看。"},
    {"instruction": "类型#裤*颜色#米色", "output": "这条米色的裤子清爽耐看，日常穿着很舒适。"},
    {"instruction": "类型#裙*图案#碎花", "output": "这条碎花裙图案清新，走动间轻盈灵动。"},
    {"instruction": "类型#上衣*图案#刺绣", "output": "这件上衣加入刺绣元素，精巧细腻。"},
]
if not Path(DATA).exists():
    Path(DATA).write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")""",
    ),
    (CODE, "!glmtune data check {DATA} --model {MODEL}"),
    (CODE, "!glmtune data preview {DATA} --model {MODEL}"),
    (
        TEXT,
        """\
## 3. Train · 训练

QLoRA fits a card of 16 GB (a T4). The plan says so before anything is loaded.
QLoRA 适合 16 GB 的显卡（T4）；训练之前先给出显存估计。""",
    ),
    (
        CODE,
        """\
config = f\"\"\"
model: {{path: {json.dumps(MODEL)}, quantization: {QUANTIZATION or "null"}}}
data: {{train: {json.dumps(DATA)}, max_source_length: 256, max_target_length: 256}}
method: lora
lora: {{rank: 8, alpha: 32}}
training: {{max_steps: {300 if HAS_GPU else 20}, learning_rate: {1.0e-4 if HAS_GPU else 5.0e-3}, save_steps: 50}}
output: {RUN}
\"\"\"
Path("train.yaml").write_text(config, encoding="utf-8")
!glmtune plan train.yaml""",
    ),
    (
        CODE,
        """\
# A cell that was interrupted goes on from its newest checkpoint. 中断后再次运行，会从最新的检查点继续。
resume = "--resume" if Path(RUN, "checkpoints").exists() else ""
!glmtune train train.yaml {resume}""",
    ),
    (
        CODE,
        """\
from IPython.display import Image

Image(filename=f"{RUN}/loss.png")""",
    ),
    (TEXT, "## 4. Before and after · 微调前后"),
    (
        CODE,
        """\
import glmtune

tokenizer = glmtune.load_tokenizer(MODEL)
question = rows[0]["instruction"]
replies = {}
for name in (MODEL, RUN):
    model = glmtune.load_model(name, quantization=QUANTIZATION)
    replies[name], _ = model.chat(tokenizer, question, history=[], do_sample=False, max_new_tokens=64)
    print(name, ":", replies[name])
    del model
    torch.cuda.empty_cache()""",
    ),
    (
        CODE,
        """\
quantization = f"--quantization {QUANTIZATION}" if QUANTIZATION else ""
!glmtune compare {MODEL} {RUN} --data {DATA} {quantization} --max-new-tokens 64 --no-forget""",
    ),
    (
        TEXT,
        """\
## 5. Take it home · 保存结果

The adapter is a few megabytes of plain peft. `glmtune export` merges it into a folder for transformers and vLLM.
适配器是普通的 peft 文件，只有几 MB；`glmtune export` 把它合并为 transformers 和 vLLM 可用的模型。""",
    ),
    (
        CODE,
        """\
import shutil

archive = shutil.make_archive("adapter", "zip", f"{RUN}/adapter")
if importlib.util.find_spec("google.colab"):
    from google.colab import files as colab_files

    colab_files.download(archive)
archive""",
    ),
]


def make_notebook() -> dict[str, Any]:
    """The notebook as nbformat 4.5 has it: https://nbformat.readthedocs.io/en/latest/format_description.html"""
    cells = []
    for number, (kind, text) in enumerate(CELLS):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == CODE:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    metadata = {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def format_notebook() -> str:
    """The text of the file."""
    return json.dumps(make_notebook(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(format_notebook(), encoding="utf-8")
    print(TARGET)
