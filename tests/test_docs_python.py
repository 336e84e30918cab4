"""Python in the docs: every block parses, and every name that it imports from glmtune exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch

from tiny import make_tiny

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [*sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "README.md", REPOSITORY / "README.zh.md"]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
]


def test_there_are_blocks():
    assert len(BLOCKS) > 5


@pytest.mark.parametrize("block", BLOCKS)
def test_imports_of_a_block_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "glmtune":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "glmtune":
            assert hasattr(importlib.import_module("glmtune"), node.attr)


def test_the_page_about_python_runs_from_top_to_bottom(tmp_path, monkeypatch, glmtune_command, adgen_file):
    """With tiny models in the places of the page, and `cuda()` without effect."""
    pytest.importorskip("bitsandbytes")
    for family in ("chatglm", "chatglm2", "chatglm3"):
        make_tiny(family, tmp_path / f"{family}-6b", hidden=64)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "chatglm3-6b", "--data", adgen_file(8), "--output", "runs/my-run"]
    result = glmtune_command("train", *arguments, "--set", "training.max_steps=1", "--set", "data.eval_fraction=0")
    assert result.code == 0, result.err
    checkpoint = tmp_path / "ptuning" / "output" / "checkpoint-3000"
    checkpoint.mkdir(parents=True)
    prefix = torch.randn(4, 2 * 2 * 64)
    torch.save({"transformer.prefix_encoder.embedding.weight": prefix}, checkpoint / "pytorch_model.bin")
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, *_: self)
    page = (REPOSITORY / "docs" / "python.md").read_text("utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        # Replies of untrained models end at their longest length only.
        exec(re.sub(r"(\.(?:stream_)?chat\(tokenizer[^\n]*?)(\):?\n)", r"\1, max_new_tokens=3\2", block), names)
    assert torch.equal(names["new_prefix_state_dict"]["embedding.weight"], prefix)
    assert len(names["history"]) == 2
    assert (tmp_path / "chatglm2-6b-native" / "model.safetensors").is_file()
    assert names["reply"].content == "你好！"
