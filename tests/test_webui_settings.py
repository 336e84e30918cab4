"""Saved settings of the training form, and the tab that translates scripts of older trainers."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shutil
import time
from html import unescape

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune import migrate
from glmtune.migrate.dialect import Rule
from glmtune.webui.app import make_context
from glmtune.webui.error_texts import translate_message
from glmtune.webui.requests import FormData
from glmtune.webui.run_form import list_form_pairs, make_form, parse_form

SCRIPT = """PRE_SEQ_LEN=64
CUDA_VISIBLE_DEVICES=0 python3 main.py --do_train --train_file rows.json --prompt_column content \\
    --response_column summary --model_name_or_path base --output_dir o --pre_seq_len $PRE_SEQ_LEN \\
    --learning_rate 1e-2 --overwrite_cache
"""
COMMAND = " ".join(SCRIPT.replace("\\\n", " ").splitlines()[1].split()).replace("$PRE_SEQ_LEN", "64")


@pytest.fixture
def context(tmp_path, tiny):
    shutil.copytree(tiny("chatglm3"), tmp_path / "base")
    (tmp_path / "rows.json").write_text(json.dumps([{"content": "a", "summary": "b"}] * 3))
    return make_context([tmp_path], "en")


@pytest.fixture
def page(context):
    return PageClient(context)


def form(**fields):
    return {"model.path": "base", "data.train": "rows.json", "method": "lora", **fields}


def list_names(html: str) -> list[str]:
    return [unescape(name) for name in re.findall(r'<tr><th scope="row">([^<]*)</th>', html)]


def test_saved_settings_are_listed_with_model_method_and_date(page):
    html = page.post("/train/settings", form(settings_name="  my   settings ", method="ptuning")).text
    assert list_names(html) == ["my settings"]
    row = re.search(r'<tr><th scope="row".*?</tr>', html, re.DOTALL).group()
    for part in (">base</td>", ">ptuning</td>", time.strftime("%Y-%m-%d")):
        assert part in row
    assert list_names(page.get("/train").text) == ["my settings"]


def test_settings_of_the_same_name_are_replaced_after_a_question(page):
    page.post("/train/settings", form(settings_name="a", **{"lora.rank": "3"}))
    asked = page.post("/train/settings", form(settings_name="a", **{"lora.rank": "5"})).text
    assert "There are settings named a (base, lora," in asked
    load = {"action": "load", "saved": "a"}
    assert 'name="lora.rank" value="3"' in page.post("/train/form", load).text
    page.post("/train/settings", form(settings_name="a", overwrite="true", **{"lora.rank": "5"}))
    assert 'name="lora.rank" value="5"' in page.post("/train/form", load).text


def test_settings_are_renamed_and_deleted(page):
    for name in ("一", "b"):
        page.post("/train/settings", form(settings_name=name))
    taken = page.post("/train/settings/rename", {"saved": "一", "new_name": "b"}).text
    assert 'role="alert"' in taken
    assert sorted(list_names(taken)) == ["b", "一"], "the list stays under the error"
    assert sorted(list_names(page.post("/train/settings/rename", {"saved": "一", "new_name": "c"}).text)) == ["b", "c"]
    assert list_names(page.post("/train/settings/delete", {"saved": "b"}).text) == ["c"]
    assert 'role="alert"' in page.post("/train/settings/delete", {"saved": "b"}).text
    assert page.post("/train/form", {"action": "load", "saved": "b"}).status_code == 422


@pytest.mark.parametrize("name", ["", "../../x", "a/b", "\x00", "x" * 500])
def test_a_name_is_no_path(page, context, name):
    before = set(context.roots[0].iterdir())
    page.post("/train/settings", form(settings_name=name))
    assert set(context.roots[0].iterdir()) == before
    page.post("/train/settings/delete", {"saved": name})
    assert (context.roots[0] / "rows.json").exists()


def test_the_form_is_sent_as_it_is_read():
    tree = {
        "model": {"path": "base"},
        "data": {"train": ["a.json", {"path": "b.json", "weight": 0.5}], "packing": False},
        "training": {"weight_decay": 0.1, "gradient_checkpointing": True},
    }
    form = make_form(tree)
    again = parse_form(FormData(list_form_pairs(form)))
    assert again.datasets == form.datasets
    assert again.more == form.more
    given, read = ({k: str(v) for k, v in each.values.items() if k != "data.train"} for each in (form, again))
    assert read == given


def test_a_script_becomes_a_command_a_config_and_notes(page, context):
    html = unescape(page.post("/migrate", {"script": SCRIPT, "script_name": "train.sh"}).text)
    assert "CUDA_VISIBLE_DEVICES=0 glmtune train train.sh" in html, "the name that the user knows, not ours"
    assert "num_virtual_tokens: 64" in html
    assert re.search(r"<li>--overwrite_cache: the cache .* never out of date", html)
    assert ".glmtune-ui" not in html
    pasted = page.post("/migrate", {"script": SCRIPT}).text
    assert "CUDA_VISIBLE_DEVICES=0 glmtune train config.yaml" in pasted, "a pasted script is no file"
    assert list(context.state("files").iterdir()) == []
    assert "--pre_seq_len" in page.get("/migrate").text, "what was pasted is kept"


def test_a_migrated_training_opens_in_the_form(page):
    answer = page.post("/migrate/open", {"script": COMMAND})
    assert answer.headers["HX-Redirect"] == "/train"
    html = page.get("/train").text
    assert 'name="ptuning.num_virtual_tokens" value="64"' in html
    assert 'value="rows.json"' in html


def test_an_import_says_what_has_no_effect(page):
    html = page.post("/train/form", {"action": "import", "import_text": COMMAND}).text
    notes = re.search(r'id="import-notes".*?</div>', html, re.DOTALL).group()
    assert "--overwrite_cache" in notes
    assert 'name="training.learning_rate" value="0.01"' in html


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "model_name_or_path: base\nstage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: rows\n",
            "LLaMA-Factory",
        ),
        ("model: base\ndata: rows.json\n", "already"),
        ('{"output_dir": "o", "num_train_epochs": 2}', "train_qlora.py"),
        ("bash evaluate.sh", None),
        ("swift sft --model_type chatglm3-6b --nonsense 3", None),
        ("a: [1\n", None),
        ("say 'hello", None),
        ("", None),
    ],
)
def test_what_cannot_be_translated_is_an_error_in_its_place(page, content, words):
    answer = page.post("/migrate", {"script": content})
    assert answer.status_code == (200 if words else 422), answer.text
    assert words is None or words in answer.text
    assert ".glmtune-ui" not in answer.text


@pytest.mark.parametrize("path", ["../s.sh", "/etc/passwd", "no.sh"])
def test_only_files_of_the_roots_are_translated(page, context, path):
    (context.roots[0].parent / "s.sh").write_text(SCRIPT)
    assert page.post("/migrate", {"script_path": path}).status_code == 422
    (context.roots[0] / "s.sh").write_text(SCRIPT)
    assert "num_virtual_tokens: 64" in page.post("/migrate", {"script_path": "s.sh"}).text


def test_a_script_that_only_merges_has_commands_and_no_config(page):
    html = page.post("/migrate", {"script": "python3 merge_lora_and_quantize.py --lora_path a --output_path b"}).text
    assert "glmtune export" in html
    assert "migrate-open" not in html


def list_rule_notes() -> list[str]:
    """What is said of keys that have another effect, none, or are refused, in every dialect."""
    notes = set()
    for info in pkgutil.iter_modules(migrate.__path__):
        for value in vars(importlib.import_module(f"glmtune.migrate.{info.name}")).values():
            rules = value.values() if isinstance(value, dict) else ()
            notes |= {f"--key: {rule.note}." for rule in rules if isinstance(rule, Rule) and rule.note}
            notes |= {rule.hint for rule in rules if isinstance(rule, Rule) and rule.hint}
    return sorted(notes)


def test_notes_about_keys_are_translated_whatever_the_script():
    missing = [note for note in list_rule_notes() if translate_message(note, "zh") is None]
    assert missing == []


def test_the_notes_of_a_script_are_in_the_language_of_the_page(page):
    page.client.cookies.set("glmtune_lang", "zh")
    html = unescape(page.post("/migrate", {"script": SCRIPT, "script_name": "train.sh"}).text)
    notes = re.findall(r"<li>(.*?)</li>", html)
    assert len(notes) > 4
    assert [note for note in notes if not re.search(r"[\u4e00-\u9fff]", note)] == []
    assert "这句没有中文" not in html
