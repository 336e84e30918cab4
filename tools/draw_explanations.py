"""Draw the figures of docs/explanation from the code that they explain, in English and in Chinese.

python tools/draw_explanations.py            # masks, positions, truncation, quantization
python tools/draw_explanations.py --memory   # memory: of GLMTUNE_ASSETS/assets/chatglm3-6b, config.json and tokenizer
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

import glmtune
from glmtune.data.truncation import LengthLimits, truncate_row
from glmtune.families import get_family
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.prefix_lm import prefix_attention_mask, prefix_position_ids
from glmtune.quantization.packed import quantize

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
BASE = ROOT / "src" / "glmtune" / "demo" / "base"
BLUE, GREEN, ORANGE, GREY, PALE = "#4c78a8", "#54a24b", "#f58518", "#9aa0a6", "#eef1f5"
COLOURS = (BLUE, ORANGE, GREEN, "#b279a2", "#e45756", "#72b7b2", GREY)
TEXTS = {
    "zh": {
        "causal (ChatGLM2, ChatGLM3, GLM-4)": "因果（ChatGLM2、ChatGLM3、GLM-4）",
        "ChatGLM-6B: context and answer": "ChatGLM-6B：上文与回答",
        "two rows in one block (ChatGLM-6B)": "一个块里的两行（ChatGLM-6B）",
        "rows look at columns": "行看列",
        "token": "词元",
        "position": "位置",
        "block position": "块内位置",
        "weights": "权重",
        "scale": "比例",
        "integers": "整数",
        "bytes": "字节",
        "read back": "还原",
        "no limit": "不限",
        "prompt {source}, answer {target}": "提示 {source}，回答 {target}",
        "question {number}": "问题 {number}",
        "answer {number}": "回答 {number}",
        "{count} tokens": "{count} 个词元",
        "frame": "框架",
        "the base": "基座",
        "trained weights, gradients, optimiser": "可训练权重、梯度、优化器",
        "activations": "激活",
        "logits": "logits",
        "CUDA context, allocator": "CUDA 上下文、分配器",
        "checkpointing": "梯度检查点",
    }
}


class Drawing:
    """Pieces of an SVG with a white ground.

    Args:
        width: pixels.
        height: pixels.
        language: of `translate`.
    """

    def __init__(self, width: int, height: int, language: str):
        self.width, self.height, self.language = width, height, language
        self.pieces: list[str] = []

    def translate(self, text: str, **values: object) -> str:
        return TEXTS.get(self.language, {}).get(text, text).format(**values)

    def add_box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "#ffffff") -> None:
        self.pieces.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"/>'
        )

    def add_text(
        self,
        x: float,
        y: float,
        text: object,
        anchor: str = "middle",
        size: int = 12,
        fill: str = "#222222",
        turn: int = 0,
    ) -> None:
        turned = f' transform="rotate({turn} {x:g} {y:g})"' if turn else ""
        self.pieces.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{turned}>'
            f"{escape(str(text))}</text>"
        )

    def render(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="system-ui, sans-serif">'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, ground, *self.pieces, "</svg>\n"])


# A row of ChatGLM-6B in letters, with ids of a small vocabulary.
_CONFIG = ChatGLMConfig(vocab_size=64, bos_token_id=60, eos_token_id=61, gmask_token_id=57, mask_token_id=56)
_NAMES = {57: "[gMASK]", 60: "<sop>", 61: "<eop>"}
_ROW = [1, 2, 3, 57, 60, 11, 12, 61]


def _name_tokens(row: Sequence[int]) -> list[str]:
    return [_NAMES.get(token) or (f"q{token}" if token < 10 else f"a{token - 10}") for token in row]


def _see_row(row: Sequence[int]) -> torch.Tensor:
    """What each token of a row sees, (T, T) bool."""
    return prefix_attention_mask(torch.tensor([row]), None, _CONFIG)[0, 0]


def draw_masks(language: str) -> str:
    """Three masks side by side: causal, ChatGLM-6B's, and that of a packed block."""
    short = [4, 57, 60, 14, 61]
    block = torch.block_diag(_see_row(_ROW[2:]), _see_row(short)).bool()
    causal = ["[gMASK]", "sop", "q1", "q2", "a1", "a2", "</s>"]
    drawing = Drawing(860, 330, language)
    panels = (
        ("causal (ChatGLM2, ChatGLM3, GLM-4)", torch.ones(7, 7).tril().bool(), causal),
        ("ChatGLM-6B: context and answer", _see_row(_ROW), _name_tokens(_ROW)),
        ("two rows in one block (ChatGLM-6B)", block, _name_tokens([*_ROW[2:], *short])),
    )
    for number, (title, seen, names) in enumerate(panels):
        left, top, side = 60 + number * 278, 90, 210 / len(names)
        drawing.add_text(left + 105, 22, drawing.translate(title), size=13)
        for row, row_name in enumerate(names):
            drawing.add_text(left - 6, top + (row + 0.7) * side, row_name, "end", 10)
            drawing.add_text(left + (row + 0.6) * side, top - 6, row_name, "start", 10, turn=-50)
            for column in range(len(names)):
                is_ahead = column > row
                fill = PALE if not seen[row, column] else GREEN if is_ahead else BLUE
                drawing.add_box(left + column * side, top + row * side, side, side, fill)
    drawing.add_text(430, 322, drawing.translate("rows look at columns"), size=11, fill="#555555")
    return drawing.render()


def draw_positions(language: str) -> str:
    """The position streams of ChatGLM-6B below those of the later generations."""
    streams = prefix_position_ids(torch.tensor([_ROW]), None, _CONFIG)[0].tolist()
    names = _name_tokens(_ROW)
    later = ["[gMASK]", "sop", "q1", "q2", "a1", "a2", "</s>"]
    drawing = Drawing(700, 230, language)
    _draw_table(drawing, 10, [("token", later), ("position", list(range(len(later))))])
    _draw_table(drawing, 105, [("token", names), ("position", streams[0]), ("block position", streams[1])])
    return drawing.render()


def _draw_table(drawing: Drawing, top: float, lines: Sequence[tuple[str, Sequence[object]]]) -> None:
    for number, (title, values) in enumerate(lines):
        y = top + number * 36
        drawing.add_text(112, y + 22, drawing.translate(title), "end", 12, "#555555")
        for column, value in enumerate(values):
            drawing.add_box(124 + column * 70, y, 68, 32, PALE if number == 0 else "#dbe7f5")
            drawing.add_text(158 + column * 70, y + 21, value)


def draw_quantization(language: str) -> str:
    """A row of eight weights in packed8 and in packed4: scale, integers, bytes, and what is read back."""
    weight = torch.tensor([[0.31, -0.12, 0.07, -0.35, 0.02, 0.18, -0.25, 0.11]])
    drawing = Drawing(760, 330, language)
    _draw_table(drawing, 8, [("weights", [f"{value:.2f}" for value in weight[0].tolist()])])
    for number, bits in enumerate((8, 4)):
        packed, scale = quantize(weight, bits)
        top = 62 + number * 136
        numbers = (weight / scale[:, None]).round().int()[0].tolist()
        stored = [f"{byte & 255:02x}" for byte in packed[0].tolist()]
        drawing.add_text(112, top + 8, f"packed{bits}", "end", 13)
        drawing.add_text(124, top + 8, f"{drawing.translate('scale')} {scale.item():.5f}", "start", 12, "#555555")
        back = [f"{value * scale.item():.3f}" for value in numbers]
        _draw_table(drawing, top + 16, [("integers", numbers)])
        width = 70 * 8 // len(stored)
        drawing.add_text(112, top + 74, drawing.translate("bytes"), "end", 12, "#555555")
        for column, byte in enumerate(stored):
            drawing.add_box(124 + column * width, top + 52, width - 2, 32, "#fde3c8")
            drawing.add_text(124 + column * width + width / 2, top + 73, byte)
        _draw_table(drawing, top + 88, [("read back", back)])
    return drawing.render()


_TURNS = [
    {"role": "user", "content": "请介绍一下这件上衣的材质和颜色"},
    {"role": "assistant", "content": "这件上衣是纯棉的，颜色是白色，穿着很舒服。"},
    {"role": "user", "content": "它适合什么季节？"},
    {"role": "assistant", "content": "适合春天和秋天。"},
    {"role": "user", "content": "那么请为它写一句广告，要简洁，突出舒适与简约的风格"},
    {"role": "assistant", "content": "纯棉上衣，简约又舒适，让您轻松度过每一个春天和秋天，随时展现自己的风格。"},
]


def draw_truncation(language: str) -> str:
    """A conversation of three turns under stricter and stricter limits, as the demo's tokenizer counts."""
    family, tokenizer = get_family("chatglm3"), glmtune.load_tokenizer(BASE)

    def encode(messages):
        return family.encode(messages, tokenizer)

    whole = encode(_TURNS)
    prompt, answer = whole.prompt_length, len(whole.input_ids) - whole.prompt_length
    last_turn = encode(_TURNS[4:]).prompt_length
    limits = (
        (prompt, answer),
        (prompt - 5, answer),
        (last_turn, answer),
        (last_turn - 8, answer),
        (last_turn - 8, answer - 12),
    )
    drawing = Drawing(860, 40 + 52 * len(limits), language)
    pixels = 640 / len(whole.input_ids)
    for number, (source, target) in enumerate(limits):
        kept: list = []

        def encode_and_keep(messages, kept=kept):
            kept.append((messages, encode(messages)))
            return kept[-1][1]

        result = truncate_row(_TURNS, whole, LengthLimits(source, target), encode_and_keep)
        assert result is not None
        messages = next((m for m, row in kept if row.prompt_length == result.row.prompt_length), _TURNS)
        title = "no limit" if number == 0 else "prompt {source}, answer {target}"
        drawing.add_text(158, 42 + number * 52, drawing.translate(title, source=source, target=target), "end", 12)
        x, start = 170.0, 0
        for place in range(len(messages)):
            is_last = place == len(messages) - 1
            end = len(result.row.input_ids) if is_last else _count_prompt(messages[: place + 1], encode)
            width = (end - start) * pixels
            name = "answer {number}" if messages[place]["role"] == "assistant" else "question {number}"
            turn = 3 - (len(messages) - 1 - place) // 2
            drawing.add_box(x, 20 + number * 52, width, 34, BLUE if "question" in name else GREEN)
            if width > 50:
                drawing.add_text(x + width / 2, 34 + number * 52, drawing.translate(name, number=turn), fill="#ffffff")
                drawing.add_text(x + width / 2, 49 + number * 52, end - start, size=10, fill="#ffffff")
            x, start = x + width, end
    return drawing.render()


def _count_prompt(messages: list, encode) -> int:
    """Tokens of the first messages of a conversation."""
    if messages[-1]["role"] == "assistant":
        return len(encode(messages).input_ids) - 1  # without the end token, which is the next role's
    return encode([*messages, {"role": "assistant", "content": "。"}]).prompt_length


_METHODS = (("P-Tuning v2, packed4", "ptuning", "packed4"), ("QLoRA", "qlora", ""), ("LoRA", "lora", ""))
_PARTS = {
    "the base": ("weights",),
    "trained weights, gradients, optimiser": ("adapter", "gradients", "optimizer"),
    "activations": ("activations",),
    "logits": ("logits",),
    "CUDA context, allocator": ("own", "kept"),
}


def plan_memory(assets: Path) -> list[tuple[str, bool, dict[str, float]]]:
    """What `glmtune plan` says of ChatGLM3-6B by method, with and without checkpointing, in GiB by part.

    Rows have 500 tokens of prompt and 500 of answer, a row at a time.
    """
    model = assets / "assets" / "chatglm3-6b"
    tokenizer = glmtune.load_tokenizer(model)
    repeats = 500 * 100 // len(tokenizer("问题" * 100, add_special_tokens=False).input_ids)
    plans = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text(
            "\n".join([json.dumps({"prompt": "问题" * repeats, "response": "问题" * repeats})] * 16), "utf-8"
        )
        for title, method, quantization in _METHODS:
            for checkpointing in (True, False):
                words = ["plan", "--model", model, "--data", data, "--method", method, "--gpu-memory", "80GB", "--json"]
                words += ["--set", f"training.gradient_checkpointing={str(checkpointing).lower()}"]
                words += ["--set", f"model.quantization={quantization}"] if quantization else []
                output = subprocess.check_output([sys.executable, "-m", "glmtune", *map(str, words)], text=True)
                parts = json.loads(output)["parts"]
                sizes = {name: sum(parts.get(key, 0) for key in keys) / 2**30 for name, keys in _PARTS.items()}
                plans.append((title, checkpointing, sizes))
    return plans


def draw_memory(language: str, plans: list[tuple[str, bool, dict[str, float]]]) -> str:
    """A bar a plan, in parts."""
    drawing = Drawing(860, 90 + 34 * len(plans), language)
    for number, name in enumerate(_PARTS):
        x, y = 30 + (number % 3) * 270, 14 + number // 3 * 20
        drawing.add_box(x, y, 12, 12, COLOURS[number])
        drawing.add_text(x + 18, y + 11, drawing.translate(name), "start", 12)
    pixels = 520 / max(sum(sizes.values()) for *_, sizes in plans)
    for number, (title, checkpointing, sizes) in enumerate(plans):
        y = 66 + number * 34
        note = f"{title}, {drawing.translate('checkpointing')}" if checkpointing else title
        drawing.add_text(262, y + 16, note, "end", 12)
        x = 270.0
        for part, size in enumerate(sizes.values()):
            drawing.add_box(x, y, size * pixels, 24, COLOURS[part])
            x += size * pixels
        drawing.add_text(x + 6, y + 16, f"{sum(sizes.values()):.1f} GiB", "start", 12)
    return drawing.render()


FIGURES = {
    "masks": draw_masks,
    "positions": draw_positions,
    "truncation": draw_truncation,
    "quantization": draw_quantization,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    if parser.parse_args().memory:
        plans = plan_memory(Path(os.environ["GLMTUNE_ASSETS"]))
        figures = {"memory": lambda language: draw_memory(language, plans)}
    else:
        figures = FIGURES
    for name, draw in figures.items():
        for language, suffix in (("en", ""), ("zh", ".zh")):
            (IMAGES / f"explain-{name}{suffix}.svg").write_text(draw(language), encoding="utf-8")


if __name__ == "__main__":
    main()
