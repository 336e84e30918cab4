"""The texts in locales/: the same keys and the same placeholders in every language."""

from __future__ import annotations

import re
import string

import pytest

from glmtune.html.i18n import LANGUAGES, default_language, has_text, load_texts, text

CHINESE = re.compile("[\u3400-\u9fff]")


def placeholders(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


def test_every_language_has_every_key():
    keys = [list(load_texts(lang)) for lang in LANGUAGES]
    assert all(each == keys[0] for each in keys)
    assert len(keys[0]) == len(set(keys[0])) > 600


def test_texts_are_filled_and_have_the_same_placeholders():
    for key, chinese in load_texts("zh").items():
        english = load_texts("en")[key]
        assert chinese.strip(), key
        assert english.strip(), key
        assert placeholders(chinese) == placeholders(english), key
        assert not CHINESE.search(english) or key.startswith("ui."), key


def test_report_texts_are_in_chinese():
    for key, chinese in load_texts("zh").items():
        if key.startswith("report."):
            english = load_texts("en")[key]
            assert CHINESE.search(chinese) or chinese == english or not re.search("[a-z]{3}", chinese), key


def test_values_are_filled_in():
    assert text("report.tile.epochs", "en", n=3) == "3 epochs"
    assert text("report.tile.epochs", "en", n=1) == "1 epoch"
    assert text("report.data.left_out", "en", n="1,001").startswith("1,001 invalid lines were skipped")
    assert text("report.data.left_out", "en", n='<data value="1">1</data>').endswith("each with its reason.")
    assert ">1</data> invalid line was skipped" in text("report.data.left_out", "en", n='<data value="1">1</data>')
    assert has_text("report.tile.epochs")
    assert not has_text("report.no.such.key")
    with pytest.raises(KeyError):
        text("report.no.such.key", "en")


@pytest.mark.parametrize(
    ("variables", "lang"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en_US"}, "zh"),
    ],
)
def test_default_language_is_that_of_the_locale(monkeypatch, variables, lang):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_language() == lang
