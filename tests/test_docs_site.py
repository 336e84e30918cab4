"""mkdocs.yml and the pages it names; building the site is `make docs`."""

from __future__ import annotations

import re

import pytest
import yaml

from docs_pages import DOCS, REPOSITORY, name_page
from test_docs_data import Case, said_of
from tiny import FAMILIES

ENGLISH = sorted(page for page in DOCS.rglob("*.md") if not page.name.endswith(".zh.md"))


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags are mkdocs' own."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


@pytest.fixture(scope="module")
def site() -> dict:
    return yaml.load((REPOSITORY / "mkdocs.yml").read_text("utf-8"), _Loader)


def _list_paths(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [path for value in (entry if isinstance(entry, list) else entry.values()) for path in _list_paths(value)]


def _list_titles(entry) -> set[str]:
    if isinstance(entry, str):
        return set()
    if isinstance(entry, list):
        return {title for value in entry for title in _list_titles(value)}
    return set(entry) | {title for value in entry.values() for title in _list_titles(value)}


def test_the_navigation_has_every_page_once(site):
    assert sorted(_list_paths(site["nav"])) == [page.relative_to(DOCS).as_posix() for page in ENGLISH]


def test_the_navigation_is_translated(site):
    (plugin,) = (entry["i18n"] for entry in site["plugins"] if "i18n" in entry)
    chinese = plugin["languages"][1]
    assert set(chinese["nav_translations"]) == _list_titles(site["nav"])


def test_nothing_comes_from_another_host(site):
    assert site["theme"]["font"] is False
    styles = "".join((DOCS / path).read_text("utf-8") for path in site["extra_css"])
    assert "http" not in styles
    assert "extra_javascript" not in site


def test_make_docs_installs_what_the_extra_does():
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    packages = re.findall(r'"([\w-]+)', re.search(r"^docs = \[(.*)\]$", project, re.MULTILINE)[1])
    assert f"\t\t{' '.join(packages)}\n" in makefile
    pinned = (REPOSITORY / "constraints.txt").read_text("utf-8")
    assert all(re.search(f"^{name}==", pinned, re.MULTILINE) for name in packages)


@pytest.mark.parametrize("page", ENGLISH, ids=name_page)
def test_pages_are_in_both_languages(page):
    """What people read to get something done is in Chinese too."""
    english_only = {"docs/cli.md", "docs/api.md", "docs/benchmarks.md", "docs/code.md"}
    assert page.with_name(f"{page.stem}.zh.md").is_file() is (name_page(page) not in english_only)


_BLOCK = re.compile(r"<!-- (?:row|seen: (?P<family>\w+)) -->\n```(?:json|text)\n(?P<body>.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("name", ["labels.md", "labels.zh.md"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_those_of_the_encoder(name, family, tiny, tmp_path):
    import glmtune

    text = (DOCS / "explanation" / name).read_text("utf-8")
    blocks = {found["family"]: found["body"] for found in _BLOCK.finditer(text)}
    assert set(blocks) == {None, *FAMILIES}
    case = Case(blocks[None], family, blocks[family])
    assert said_of(case, glmtune.load_tokenizer(tiny(family)), tmp_path) == blocks[family]
