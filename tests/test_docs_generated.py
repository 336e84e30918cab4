"""Pages and figures that are written from the code are what the code says now."""

from __future__ import annotations

import ast
import re

import pytest

import draw_explanations
import write_api_docs
import write_cli_docs
from docs_pages import DOCS, list_anchors, list_blocks, list_pages


def test_the_page_about_the_command_line_is_up_to_date():
    page = (DOCS / "cli.md").read_text("utf-8")
    assert page == write_cli_docs.render_page(), "python tools/write_cli_docs.py"
    for name, command in write_cli_docs.list_commands():
        assert f"glmtune-{name.replace(' ', '-')}" in list_anchors(DOCS / "cli.md")
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert all(f"`{option}`" in page for option in options if option != "--help")


def test_the_page_about_the_python_interface_is_up_to_date():
    assert (DOCS / "api.md").read_text("utf-8") == write_api_docs.render_page(), "python tools/write_api_docs.py"


def test_all_that_pages_import_is_in_the_python_interface():
    listed = {path for paths in write_api_docs.PUBLIC.values() for path in paths}
    imported = set()
    for page in list_pages():
        for block in list_blocks(page):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "glmtune":
                    imported |= {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {f"glmtune.{name}" for name in re.findall(r"\bglmtune\.(\w+)\(", block.text)}
    assert imported <= listed


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", list(draw_explanations.FIGURES))
def test_figures_are_up_to_date(name, language):
    path = DOCS / "images" / f"explain-{name}{'.zh' if language == 'zh' else ''}.svg"
    drawn = draw_explanations.FIGURES[name](language)
    assert path.read_text("utf-8") == drawn, "python tools/draw_explanations.py"


def test_the_figure_of_masks_shows_both_directions():
    drawn = draw_explanations.draw_masks("en")
    assert drawn.count(draw_explanations.GREEN) == 3 + 2 + 1 + 2  # six pairs in the context of four, one in each of two
