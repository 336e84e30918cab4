"""Links of the documentation: files, anchors and pictures exist, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs_pages import DOCS, list_anchors, list_links, list_pages, name_page

PAGES = list_pages()


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for target, line in list_links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists():
            wrong.append(f"line {line}: {target}: no such file")
        elif anchor and anchor not in list_anchors(found):
            wrong.append(f"line {line}: {target}: no such heading; there are {', '.join(sorted(list_anchors(found)))}")
    assert not wrong, "\n".join(wrong)


def test_pictures_are_used():
    used = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target, _ in list_links(page)}
    pictures = (path for path in (DOCS / "images").rglob("*") if path.is_file())
    unused = [name_page(path) for path in pictures if path.resolve() not in used]
    assert not unused


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.endswith(".zh.md")], ids=name_page)
def test_a_chinese_page_links_to_chinese_pages(page):
    """A link to an English page has an anchor (of a table that is in English only) or says so."""
    links = re.findall(r"\[([^]\[]*)\]\(([^)#\s]+)(#[^)]*)?\)", page.read_text("utf-8"))
    for text, target, anchor in links:
        chinese = (page.parent / target.removesuffix(".md")).with_suffix(".zh.md")
        if target.endswith(".md") and not target.endswith(".zh.md") and chinese.is_file():
            assert anchor or text.startswith(("English", "英文页")), f"{target} has a Chinese version"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.endswith(".zh.md")], ids=name_page)
def test_pages_name_their_other_language(page):
    english = page.with_name(page.name.replace(".zh.md", ".md"))
    assert english.name in {Path(target).name for target, _ in list_links(page)}
    assert page.name in {Path(target).name for target, _ in list_links(english)}
