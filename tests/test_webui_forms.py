"""The page's forms and words: made from the config, complete in both languages, escaped."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from typing import Any, get_args, get_type_hints

import pytest

pytest.importorskip("gradio")


from glmtune.config import TRAINING_DEFAULTS, RunConfig, config_to_dict, get_help, load_config
from glmtune.config_parsing import build_dataclass
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.html.i18n import LANGUAGES, has_text, load_texts
from glmtune.run_dir import RunDir
from glmtune.webui import forms
from glmtune.webui.app import build, make_context
from glmtune.webui.data_check import check_rows, data_run, row_frame
from glmtune.webui.errors import PathError, shown
from glmtune.webui.forms import as_yaml, checked, fields, tree_of, unavailable, values_of
from glmtune.webui.jobs import Job
from glmtune.webui.model_tab import facts_of
from glmtune.webui.texts import text
from glmtune.webui.train_form import prepared, tree_from
from glmtune.webui.train_view import curves, status, watch

FIELDS = {field.key: field for field in fields()}


def keys_of(kind: Any, prefix: str = "") -> list[str]:
    """Every dotted key of the dataclasses."""
    found = []
    for field in dataclasses.fields(kind):
        hint = get_type_hints(kind)[field.name]
        inner = dataclasses.is_dataclass(hint)
        found += keys_of(hint, f"{prefix}{field.name}.") if inner else [f"{prefix}{field.name}"]
    return found


def test_the_form_has_every_key_of_the_config_with_its_default():
    keys = set(keys_of(RunConfig)) - {"training"}
    assert set(FIELDS) >= keys
    tree = config_to_dict(RunConfig())
    for key in keys:
        node = tree
        for part in key.split("."):
            node = node[part]
        # The default dropout depends on the stage: the form leaves it empty.
        assert FIELDS[key].default == (None if key.endswith(".dropout") else node), key
    assert {f"training.{name}" for name in TRAINING_DEFAULTS} <= set(FIELDS)


def test_choices_are_those_of_the_type():
    assert FIELDS["method"].choices == get_args(get_type_hints(RunConfig)["method"])
    assert FIELDS["model.quantization"].choices == ("nf4", "int8", "packed4", "packed8")
    assert FIELDS["model.quantization"].optional
    assert not FIELDS["data.overlength"].optional


def test_every_key_has_a_name_and_help_in_both_languages():
    for key in FIELDS:
        for table in (f"name.{key}", f"help.{key}"):
            assert has_text(f"ui.{table}"), table
    for key in keys_of(RunConfig):
        if key != "training":
            assert text(f"help.{key}", "en") == get_help(key)


def test_no_text_is_there_for_a_key_that_is_gone():
    keys = load_texts("en")
    fields = {key.split(".", 2)[2] for key in keys if key.startswith(("ui.name.", "ui.help."))}
    assert fields == set(FIELDS)


def test_what_a_fresh_form_says_is_the_default_run():
    values = values_of({})
    tree = tree_of(values)
    assert tree == {"method": "lora"}
    assert build_dataclass(RunConfig, tree, "form") == RunConfig()


def test_a_config_survives_the_form(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        """
model: {path: ./base, quantization: packed4}
data: {train: [a.json, b.json], eval: c.json, columns: {prompt: 问题}, max_length: 256, packing: false}
method: ptuning
ptuning: {num_virtual_tokens: 16}
lora: {targets: [query_key_value, dense], loraplus_ratio: 16}
early_stopping: 2
training: {max_steps: 7, learning_rate: 3e-3, save_steps: 0.5, eval_strategy: "no", seed: 1, report_to: none}
""",
        encoding="utf-8",
    )
    config = load_config(file)
    again = tree_of(values_of(config_to_dict(config)))
    assert build_dataclass(RunConfig, again, "form") == config
    saved = tmp_path / "again.yaml"
    saved.write_text(as_yaml(again), encoding="utf-8")
    assert load_config(saved) == config


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("training.learning_rate", "fast", "training.learning_rate must be a number"),
        ("data.max_length", "12.5", "data.max_length must be a whole number"),
        ("lora.rank", 2.5, "lora.rank must be a whole number"),
        ("data.columns", "- a\n- b", "data.columns must be keys and values"),
        ("data.columns", "{a: [", "data.columns must be keys and values"),
    ],
)
def test_what_a_key_cannot_take_is_told(key, value, told):
    with pytest.raises(ConfigError, match=told):
        tree_of({**values_of({}), key: value})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("training.weight_dekay=0.1", "unknown key training.weight_dekay"),
        ("lora.rang=4", "unknown key lora.rang"),
        ("nonsense", "must look like key=value"),
        ("lora.rank=0", "lora.rank is 0"),
    ],
)
def test_further_keys_are_checked_before_a_run_starts(more, told):
    values = {**values_of({}), "model.path": "base", "data.train": "a.json"}
    with pytest.raises(ConfigError, match=told):
        checked(tree_of(values, more))


def test_further_keys_reach_the_run():
    values = {**values_of({}), "model.path": "base", "data.train": "a.json"}
    run = checked(tree_of(values, "training.weight_decay=0.1\n\ndata.prefix=你好\n"))
    assert (run.training["weight_decay"], run.data.prefix) == (0.1, "你好")


def test_what_needs_bitsandbytes_is_refused_with_the_mend_where_it_is_not(monkeypatch):
    values = {**values_of({}), "model.path": "base", "data.train": "a.json", "method": "qlora"}
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None)
    assert set(unavailable()) == {"qlora", "nf4", "int8"}
    with pytest.raises(ConfigError, match="nf4 needs bitsandbytes"):
        checked(tree_of(values))
    monkeypatch.undo()
    if importlib.util.find_spec("bitsandbytes"):
        assert checked(tree_of(values)).model.quantization == "nf4"


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a.json", "b.json"):
        (root / name).write_text("[]")
    (root / "base").mkdir()
    return make_context([root], "zh")


def values_for(context, **given):
    return {**values_of({}), "model.path": "base", "data.train": ["a.json"], "data.eval": "", **given}


def test_paths_of_the_form_are_absolute_and_other_methods_options_left_out(context):
    root = context.roots[0]
    values = values_for(context, method="ptuning", output="out")
    values |= {"data.train": ["a.json", "b.json"], "lora.rank": 64, "ptuning.num_virtual_tokens": 4}
    assert tree_from(context, values, "") == {
        "model": {"path": str(root / "base")},
        "data": {"train": [str(root / "a.json"), str(root / "b.json")]},
        "method": "ptuning",
        "ptuning": {"num_virtual_tokens": 4},
        "output": str(root / "out"),
    }


@pytest.mark.parametrize(
    "more",
    [
        "model=/etc",
        "model.path=/etc",
        "data=/etc/passwd",
        "data.eval=../x.json",
        "data.train=[a.json, /etc/passwd]",
        "replay=/etc/passwd",
        "replay.data=/etc/passwd",
        "adapter=/etc",
        "output=/etc/run",
        "training.deepspeed=/etc/ds.json",
        "training.output_dir=/etc",
    ],
)
def test_no_way_of_naming_a_path_leads_out_of_the_roots(context, more):
    with pytest.raises(PathError, match="outside"):
        tree_from(context, values_for(context), more)


@pytest.mark.parametrize("more", ["model=", "data=", "training=", "replay="])
def test_an_emptied_section_is_no_accident(context, more):
    assert isinstance(tree_from(context, values_for(context), more), dict)


def test_runs_that_are_started_in_one_second_get_folders_of_their_own(context):
    tree = tree_from(context, values_for(context), "")
    config, output = prepared(context, tree)
    assert load_config(config).output == str(output)
    output.mkdir(parents=True)
    assert prepared(context, tree)[1] != output


def test_a_run_is_never_started_over_another(context):
    (context.roots[0] / "out").mkdir()
    (context.roots[0] / "out" / "config.yaml").write_text("")
    tree = tree_from(context, values_for(context, output="out"), "")
    with pytest.raises(GlmtuneError, match="not empty"):
        prepared(context, tree)


def test_the_page_has_a_label_for_every_field_and_all_of_them_change_with_the_language(context):
    page = build(context)
    inputs = {"textbox", "number", "dropdown", "checkbox", "radio", "code", "slider", "file", "checkboxgroup"}
    fields = [block for block in page.blocks.values() if block.get_block_name() in inputs]
    assert len(fields) > len(FIELDS)
    assert [block for block in fields if not block.label] == []
    known = {line for key, line in load_texts("zh").items() if key.startswith("ui.")}
    assert {block.label for block in fields} <= known


def test_a_callbacks_error_becomes_a_notice_and_changes_nothing(monkeypatch):
    told = []
    monkeypatch.setattr("glmtune.webui.errors.gr.Warning", lambda said, **named: told.append(said))

    @shown
    def call(named: str) -> str:
        raise PathError(f"{named}: outside.", "Choose <another>.")

    @shown
    def stream():
        yield "first"
        raise PathError("gone.")

    assert call("<b>") == {"__type__": "update"}
    assert list(stream()) == ["first", {"__type__": "update"}]
    assert told == ["&lt;b&gt;: outside.<br>Choose &lt;another&gt;.", "gone."]

    @shown
    def broken():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        broken()


def test_a_model_is_told_from_its_headers(tiny):
    said = facts_of(str(tiny("chatglm3")), None, "huggingface", "zh")
    assert "ChatGLM3-6B" in said
    assert "指纹" in said
    assert "fp32" in said or "float32" in said
    with pytest.raises(GlmtuneError, match=r"config\.json"):
        facts_of(str(tiny("chatglm3").parent), None, "huggingface", "zh")


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "<b>rows.json"
    lines = [{"content": EVIL, "summary": EVIL}, {"content": EVIL, "summary": ""}, {"content": "b", "summary": "c"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.mark.parametrize("lang", list(LANGUAGES))
def test_a_row_with_a_script_tag_is_text(rows, tiny, lang):
    run = data_run({"data": {"train": str(rows)}, "model": {"path": str(tiny("chatglm3"))}})
    *_, (findings, last) = check_rows(run, lang)
    assert last
    assert "empty-answer" in findings
    assert text("data.lengths", lang) in findings
    frame = row_frame(run, 1, True, lang)
    assert frame.startswith('<iframe class="rowview" sandbox=""')
    for said in (findings, frame):
        assert "<script" not in said
        assert "<img" not in said
        assert "<b>" not in said
    assert "script" in frame


def test_without_a_model_characters_are_counted_and_no_row_is_shown(rows):
    run = data_run({"data": {"train": str(rows)}})
    *_, (findings, _) = check_rows(run, "en")
    assert "characters of a row" in findings
    assert row_frame(run, 1, False, "en") == f'<p class="note">{text("data.no_model", "en")}</p>'


def test_a_row_that_is_not_there_is_told(rows, tiny):
    run = data_run({"data": {"train": str(rows)}, "model": {"path": str(tiny("chatglm3"))}})
    with pytest.raises(GlmtuneError, match="no row 9"):
        row_frame(run, 9, False, "en")


def job_of(path, state="running", **named):
    return Job("id", "train", ["train", "<c>.yaml"], str(path), "me", state, 0.0, 100.0, **named)


def test_a_training_is_watched_through_its_progress_and_its_metrics(tmp_path):
    run = RunDir(tmp_path)
    entries = [
        {"step": 5, "loss": 2.5, "learning_rate": 1e-4, "tokens_per_second": 1234.0},
        {"step": 6, "eval_loss": 2.25},
    ]
    for entry in entries:
        run.append_metrics(entry)
    run.write_progress("training", step=6, max_steps=40, eta_seconds=75.0)
    watched = watch(job_of(tmp_path), "ChatGLM3-6B in x\n")
    assert (watched.step, watched.total, watched.eta) == (6, 40, "0:01:15")
    said = status(watched, "en")
    for part in ("6 / 40", "0:01:15", "2.5000", "2.2500", "1,234", 'aria-valuenow="15"', "&lt;c&gt;.yaml"):
        assert part in said
    drawn = curves(watched, "zh")
    assert text("train.loss", "zh") in drawn
    assert text("train.eval_loss", "zh") in drawn


def test_a_run_folder_that_is_gone_is_told_and_nothing_breaks(tmp_path):
    watched = watch(job_of(tmp_path / "gone", "stopped", ended=200.0), "")
    assert text("train.gone", "en", path=tmp_path / "gone") in status(watched, "en")
    assert curves(watched, "en") == ""


def test_a_failed_training_shows_the_errors_two_lines(tmp_path):
    log = "reading\nError: a.json:3: <b>bad</b>.\nMend it.\n"
    said = status(watch(job_of(tmp_path, "failed", ended=200.0), log), "en")
    assert "a.json:3: &lt;b&gt;bad&lt;/b&gt;.<br>Mend it." in said
    assert 'role="alert"' in said
