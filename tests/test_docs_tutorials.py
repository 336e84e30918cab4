"""Tutorials, troubleshooting and "coming from other tools": their files are read, their texts are those of the code."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from glmtune.config import load_config
from glmtune.data.conversation import Conversation
from glmtune.data.sources import open_sources
from glmtune.errors import RunError
from glmtune.methods.tuned_model import resolve_target

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
TUTORIALS = sorted(path for path in (DOCS / "tutorials").glob("*.md") if not path.name.endswith(".zh.md"))
PAGES = [*TUTORIALS, DOCS / "troubleshooting.md", DOCS / "coming-from.md"]
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
_COMMANDS = re.compile(r"```(?:bash|powershell)\n(.*?)```", re.DOTALL)
# The first of the titles below a mark; `…` stands for what differs from case to case.
_OWN_TEXT = re.compile(r"<!-- ours -->\n### `([^`]+)`")
_SHORTEST_FRAGMENT = 8


def by_name(path: Path) -> str:
    return path.name


@cache
def read_texts() -> str:
    """All texts of the package, in one: constants that Python joins are joined, and values are `…`."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (REPOSITORY / "src" / "glmtune").rglob("*.py")]
    named = dict(pair for tree in trees for pair in iter_text_constants(tree))
    texts = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(read_part(part, named) for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return "\n".join(texts)


def iter_text_constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in node.targets if isinstance(target, ast.Name))


def read_part(part: ast.expr, named: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    value = part.value if isinstance(part, ast.FormattedValue) else part
    return named.get(value.id, "…") if isinstance(value, ast.Name) else "…"


@pytest.mark.parametrize("name", ["troubleshooting.md", "troubleshooting.zh.md"])
def test_our_own_texts_are_in_the_code(name):
    page = (DOCS / name).read_text("utf-8")
    titles = _OWN_TEXT.findall(page)
    assert len(titles) == page.count("<!-- ours -->") > 15
    for title in titles:
        fragments = [part.strip(" .;:,") for part in title.split("…")]
        fragments = [part for part in fragments if len(part) >= _SHORTEST_FRAGMENT]
        assert fragments, f"{title} has no fragment that can be searched"
        for fragment in fragments:
            assert fragment in read_texts(), f"{title}: {fragment!r} is nowhere in the code"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_both_languages_have_the_same_commands_and_files(page):
    chinese = page.with_name(f"{page.stem}.zh.md").read_text("utf-8")
    english = page.read_text("utf-8")

    def read_commands(text: str) -> list[str]:
        lines = "\n".join(_COMMANDS.findall(text)).splitlines()
        return [re.sub(r"\s*# .*| --lang \w+", "", line).strip() for line in lines]

    def read_files(text: str) -> list[tuple[str, str]]:
        return [(name, re.sub(r"\s*#.*", "", body) if "yaml" in name else body) for name, body in _FILE.findall(text)]

    assert read_commands(chinese) == read_commands(english)
    assert read_files(chinese) == read_files(english)
    assert re.findall(r"^#+ `.*", chinese, re.MULTILINE) == re.findall(r"^#+ `.*", english, re.MULTILINE)


@pytest.mark.parametrize("page", TUTORIALS, ids=by_name)
def test_files_of_a_tutorial_are_read_without_a_fault(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = dict(_FILE.findall(page.read_text("utf-8")))
    assert files
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, "utf-8")
    for name in files:
        if name.endswith((".json", ".jsonl")) and name != "dataset_info.json":
            rows = [row for source in open_sources(name) for row in source]
            assert rows, name
            assert all(isinstance(row, Conversation) for row in rows), name
        elif name.endswith(".yaml") and "/" not in name:  # configs/ has those of other tools
            load_config(name)


def test_a_checkpoint_of_all_weights_is_refused_with_the_way_to_a_model(tmp_path):
    run = tmp_path / "my run"
    checkpoint = run / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (run / "config.yaml").write_text("model: x\ndata: y\n", "utf-8")
    (checkpoint / "trained-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="holds the trained weights alone") as caught:
        resolve_target(checkpoint)
    assert f"glmtune train --resume --output '{os.path.relpath(run)}'" in str(caught.value)


def test_the_recorder_of_tutorials_fits_the_pages():
    """Every page is recorded, and everything that is shortened for the small models is on its page."""
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
    pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    from record_tutorials import FAMILIES, SUBSTITUTIONS, iter_steps

    assert sorted(FAMILIES) == [page.stem for page in TUTORIALS]
    for page in TUTORIALS:
        text = page.read_text("utf-8")
        steps = [step for kind, _, step in iter_steps(text) if kind == "command"]
        assert any(step.startswith("glmtune train ") for step in steps)
        for pattern, _ in SUBSTITUTIONS[page.stem]:
            parts = [content for kind, _, content in iter_steps(text)]
            assert any(re.search(pattern, part, re.MULTILINE) for part in parts), f"{page.name}: {pattern}"


def test_pictures_of_tutorials_load_fast():
    pictures = list((DOCS / "images" / "tutorials").iterdir())
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []
