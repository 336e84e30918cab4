"""The page's forms and words: made from the config, complete in both languages, escaped."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from typing import Any, get_args, get_type_hints

import pytest

pytest.importorskip("fastapi")

from page_client import PageClient

from glmtune.config import TRAINING_DEFAULTS, RunConfig, config_to_dict, get_help, load_config
from glmtune.config_parsing import build_dataclass
from glmtune.data.check_fix import locate_row
from glmtune.data.sources import open_sources
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.html.i18n import LANGUAGES, has_text, load_texts
from glmtune.run_dir import RunDir
from glmtune.webui import forms
from glmtune.webui.app import make_context
from glmtune.webui.data_rows import load_model_checker, make_run, open_rows, read_page, render_row
from glmtune.webui.errors import PathError
from glmtune.webui.forms import as_yaml, check_tree, fields, find_unavailable_choices, tree_of, values_of
from glmtune.webui.jobs import Job
from glmtune.webui.model_tab import describe_checkpoint
from glmtune.webui.requests import FormData
from glmtune.webui.run_form import make_form, make_tree, parse_form, write_config
from glmtune.webui.texts import text
from glmtune.webui.training_view import find_error, list_remarks, make_curves, make_training_figures, read_training

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
        check_tree(tree_of(values, more))


def test_further_keys_reach_the_run():
    values = {**values_of({}), "model.path": "base", "data.train": "a.json"}
    run = check_tree(tree_of(values, "training.weight_decay=0.1\n\ndata.prefix=你好\n"))
    assert (run.training["weight_decay"], run.data.prefix) == (0.1, "你好")


def test_what_needs_bitsandbytes_is_refused_with_the_mend_where_it_is_not(monkeypatch):
    values = {**values_of({}), "model.path": "base", "data.train": "a.json", "method": "qlora"}
    monkeypatch.setattr("glmtune.utils.optional_packages.is_installed", lambda module: False)
    monkeypatch.setattr(forms, "is_installed", lambda module: False)
    assert set(find_unavailable_choices()) == {"qlora", "nf4", "int8"}
    with pytest.raises(ConfigError, match="nf4 needs bitsandbytes"):
        check_tree(tree_of(values))
    monkeypatch.undo()
    if importlib.util.find_spec("bitsandbytes"):
        assert check_tree(tree_of(values)).model.quantization == "nf4"


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a.json", "b.json"):
        (root / name).write_text("[]")
    (root / "base").mkdir()
    return make_context([root], "zh")


def form_for(more="", **given):
    """The form with a model and data."""
    form = make_form({"model": {"path": "base"}, "data": {"train": "a.json"}})
    form.values.update(given)
    form.more = more
    return form


def test_paths_of_the_form_are_absolute_and_other_methods_options_left_out(context):
    root = context.roots[0]
    form = form_for(method="ptuning", output="out", **{"lora.rank": 64, "ptuning.num_virtual_tokens": 4})
    form.datasets = [("a.json", ""), ("b.json", "0.5")]
    assert make_tree(context, form) == {
        "model": {"path": str(root / "base")},
        "data": {"train": [str(root / "a.json"), {"path": str(root / "b.json"), "weight": 0.5}]},
        "method": "ptuning",
        "ptuning": {"num_virtual_tokens": 4},
        "output": str(root / "out"),
    }


def test_a_form_is_what_the_browser_sends_back(context):
    """Values, data sets with shares, boxes that are not ticked, further keys: nothing is lost or made up."""
    form = form_for("training.weight_decay=0.1", **{"lora.rank": "4", "data.packing": False})
    form.datasets = [("a.json", "2"), ("b.json", "")]
    pairs = [(key, str(value)) for key, value in form.values.items() if not isinstance(value, bool)]
    pairs += [("flags", key) for key, value in form.values.items() if isinstance(value, bool)]
    pairs += [(key, "true") for key, value in form.values.items() if value is True]
    pairs += [pair for entry, weight in form.datasets for pair in (("data.train", entry), ("weight", weight))]
    again = parse_form(FormData([*pairs, ("more", form.more)]))
    assert make_tree(context, again) == make_tree(context, form)
    assert make_tree(context, again)["data"]["packing"] is False


@pytest.mark.parametrize("weight", ["half", "-1", "0"])
def test_a_share_that_is_none_is_refused(context, weight):
    form = form_for()
    form.datasets = [("a.json", weight)]
    with pytest.raises(ConfigError, match=r"share|weight"):
        open_sources(make_tree(context, form)["data"]["train"])


@pytest.mark.parametrize(
    "more",
    [
        "model=/etc",
        "model.path=/etc",
        "data=/etc/passwd",
        "data.eval=../x.json",
        "replay=/etc/passwd",
        "replay.data=/etc/passwd",
        "adapter=/etc",
        "output=/etc/run",
        "reward=/etc",
        "reward=[runs/rm, /etc]",
        "training.deepspeed=/etc/ds.json",
        "training.output_dir=/etc",
    ],
)
def test_no_way_of_naming_a_path_leads_out_of_the_roots(context, more):
    form = form_for(more)
    form.datasets = [] if more.startswith("data=") else form.datasets
    with pytest.raises(PathError, match="outside"):
        make_tree(context, form)


@pytest.mark.parametrize("reward", ["rewards.py:score", "/tmp/x.py:score", "[base, rewards.py:score]"])
def test_no_python_file_is_run_from_the_page(context, reward):
    with pytest.raises(PathError, match="does not run Python files"):
        make_tree(context, form_for(f"reward={reward}"))


@pytest.mark.parametrize("entry", ["/etc/passwd", "../x.json", "a.json/../../x"])
def test_no_data_set_leads_out_of_the_roots(context, entry):
    form = form_for()
    form.datasets = [("a.json", ""), (entry, "2")]
    with pytest.raises(PathError, match="outside"):
        make_tree(context, form)


@pytest.mark.parametrize("more", ["model=", "data=", "training=", "replay="])
def test_an_emptied_section_is_no_accident(context, more):
    assert isinstance(make_tree(context, form_for(more)), dict)


def test_runs_that_are_started_in_one_second_get_folders_of_their_own(context):
    tree = make_tree(context, form_for())
    config, output = write_config(context, tree)
    assert load_config(config).output == str(output)
    output.mkdir(parents=True)
    assert write_config(context, tree)[1] != output


def test_a_run_is_never_started_over_another(context):
    (context.roots[0] / "out").mkdir()
    (context.roots[0] / "out" / "config.yaml").write_text("")
    with pytest.raises(GlmtuneError, match="not empty"):
        write_config(context, make_tree(context, form_for(output="out")))


def test_a_model_is_described_by_its_headers(tiny):
    facts, is_local = describe_checkpoint(str(tiny("chatglm3")), None, "huggingface", "zh")
    values = dict(facts)
    assert is_local
    assert values[text("model.family", "zh")] == "ChatGLM3-6B"
    assert "指纹" in values
    assert values[text("model.precision", "zh")] == "float32"
    with pytest.raises(GlmtuneError, match=r"config\.json"):
        describe_checkpoint(str(tiny("chatglm3").parent), None, "huggingface", "zh")


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "<b>rows.json"
    lines = [{"content": EVIL, "summary": EVIL}, {"content": EVIL, "summary": ""}, {"content": "b", "summary": "c"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.mark.parametrize("lang", list(LANGUAGES))
def test_a_row_with_a_script_tag_is_text(rows, tiny, lang):
    run = make_run({"data": {"train": str(rows)}, "model": {"path": str(tiny("chatglm3"))}})
    row = locate_row(open_rows(run), 1)
    frame = render_row(row, load_model_checker(run), True, text("data.row_title", lang, row=1), lang)
    assert frame.startswith("<iframe")
    assert 'sandbox=""' in frame
    assert frame.count("<") == 2  # the frame's own tags; the page inside is an attribute
    assert "script" in frame


def test_rows_are_paged_searched_and_chosen_by_number(rows):
    sources = open_rows(make_run({"data": {"train": str(rows)}}))
    page, has_more = read_page(sources, 1)
    assert [(row.number, row.question, row.answer) for row in page][2] == (3, "b", "c")
    assert not has_more
    assert [row.number for row in read_page(sources, 1, "B")[0]] == [3]
    assert [row.number for row in read_page(sources, 1, numbers=frozenset({2}))[0]] == [2]
    assert read_page(sources, 2) == ([], False)


def test_without_a_model_no_row_is_shown_as_tokens(rows):
    run = make_run({"data": {"train": str(rows)}})
    assert render_row(locate_row(open_rows(run), 1), load_model_checker(run), False, "", "en") is None


def test_a_row_that_does_not_exist_is_named(context, rows):
    shutil.copy(rows, context.roots[0] / "rows.json")
    refused = PageClient(context).post("/data/row", {"data.train": "rows.json", "row": "9"})
    assert refused.status_code == 422
    assert "There is no row 9" in refused.text


def job_of(path, state="running", **named):
    return Job("id", "train", ["train", "<c>.yaml"], str(path), "me", state, 0.0, 100.0, **named)


def test_a_training_is_watched_through_its_progress_and_its_metrics(tmp_path):
    run = RunDir(tmp_path)
    entries = [
        {"step": 5, "loss": 2.5, "learning_rate": 1e-4, "tokens_per_second": 1234.0},
        {"step": 6, "eval_loss": 2.25},
        {"step": 8, "eval_loss": 2.5},
    ]
    for entry in entries:
        run.append_metrics(entry)
    run.write_progress("training", step=6, max_steps=40, eta_seconds=75.0)
    view = read_training(job_of(tmp_path))
    assert (view.step, view.total, view.eta, view.percent) == (8, 40, "0:01:15", 20)
    figures = make_training_figures(view, "en")
    for part in ("8 / 40", "0:01:15", "2.5000", "1,234"):
        assert part in figures
    curves = make_curves(view.entries, view.config)
    assert curves["curves"]["eval_loss"] == [[6, 8], [2.25, 2.5]]
    assert curves["best"] == 6


def test_a_run_folder_that_is_gone_is_named_and_nothing_breaks(tmp_path):
    view = read_training(job_of(tmp_path / "gone", "stopped", ended=200.0))
    assert list_remarks(view, "en") == [text("train.gone", "en", path=tmp_path / "gone")]
    assert make_curves(view.entries, view.config) == {"curves": {}, "best": None, "metric": "eval_loss"}


def test_the_errors_two_lines_are_found_in_a_log():
    assert find_error("reading\nError: a.json:3: bad.\nFix it.\nmore\n") == "a.json:3: bad.\nFix it."
    assert find_error("no error here") == ""
