"""What stands behind the tabs Runs, Chat, Evaluate and Export, without a browser."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from filelock import FileLock

from glmtune.config import load_config
from glmtune.errors import ConfigError, DataError, GlmtuneError, ModelError, RunError
from glmtune.families import Reply
from glmtune.families.family import ToolCall
from glmtune.generation.load import load_for_generation
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.html.plots import LineChart, Series, draw_line_chart
from glmtune.webui import evaluate_tab, export_tab
from glmtune.webui.app import make_context
from glmtune.webui.chat_messages import add_message, add_reply, read_tools, remove_reply, render_messages
from glmtune.webui.chat_models import HeldModels
from glmtune.webui.chat_stream import stream_reply
from glmtune.webui.errors import PathError
from glmtune.webui.evaluations import list_evaluations
from glmtune.webui.job_view import describe_job
from glmtune.webui.jobs import Job
from glmtune.webui.lists import RootLists
from glmtune.webui.requests import FormData
from glmtune.webui.run_files import delete_run, find_differences, read_notes, read_run, write_notes, write_tags
from glmtune.webui.run_page import render_report_frame
from glmtune.webui.runs_index import PAGE_RUNS, RunQuery, find_page

HELLO = [{"role": "user", "content": "你好"}]
SHORT = Sampling(max_new_tokens=12)


@pytest.fixture
def context(tmp_path):
    """A server's settings with an empty root."""
    root = tmp_path / "root"
    root.mkdir()
    return make_context([root], "en")


@pytest.fixture
def run(context):
    """`run(name, ...)`: a run folder as a training leaves it, without weights."""

    def make(name: str, rank: int = 8, losses: tuple[float, ...] = (3.0, 2.0), state: str = "finished") -> Path:
        folder = context.roots[0] / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            f"model: {{path: base}}\ndata: {{train: t.json}}\nmethod: lora\nlora: {{rank: {rank}}}\n"
        )
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "summary.json").write_text(json.dumps({"state": state, "steps": len(losses), "seconds": 61.0}))
        return folder

    return make


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """A tiny base and a LoRA run on it whose replies differ from the base's."""
    from glmtune.training.run import train

    folder = tmp_path_factory.mktemp("tuned")
    rows = [{"content": "你好", "summary": "再见再见"}] * 8
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    settings = ["learning_rate=0.5", "max_steps=2", "report_to=none", "eval_strategy=no"]
    config = load_config(
        None,
        [
            f"model={tiny('chatglm3')}",
            f"data={folder / 'rows.json'}",
            f"output={folder / 'run'}",
            "data.eval_fraction=0",
            *(f"training.{each}" for each in settings),
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLMTUNE_CACHE", str(folder / "cache"))
        train(config)
    return str(tiny("chatglm3")), str(folder / "run")


def _reply(models: HeldModels, target: str) -> str:
    with models.answering(target) as opened:
        return generate_reply(opened.model, opened.tokenizer, opened.family, HELLO, sampling=SHORT).content


def test_runs_are_listed_with_their_numbers(context, run):
    run("good", losses=(3.0, 1.25))
    found = find_page(context, RunQuery())
    rows, count = found.rows, found.count
    assert count == 1
    assert (rows[0].name, rows[0].state, rows[0].loss, rows[0].steps) == ("runs/good", "finished", 1.25, 2)


def test_a_broken_run_does_not_hide_the_others(context, run):
    run("good")
    (run("broken") / "config.yaml").write_text("a: [1")
    states = {row.name: row.state for row in find_page(context, RunQuery(sort="name")).rows}
    assert states == {"runs/broken": "unreadable", "runs/good": "finished"}


def test_runs_are_sorted_searched_filtered_and_paged(context, run):
    for number in range(PAGE_RUNS + 3):
        run(f"r{number:03}", losses=(float(number),), state="stopped" if number % 2 else "finished")
    write_tags(run("tagged"), "keep, 重要")
    by_loss = RunQuery(sort="loss", is_descending=False)
    assert [row.loss for row in find_page(context, by_loss).rows[:3]] == [0.0, 1.0, 2.0]
    assert len(find_page(context, RunQuery(sort="loss", page=2)).rows) == 4
    assert find_page(context, RunQuery(search="重要")).rows[0].tags == ("keep", "重要")
    assert find_page(context, RunQuery(search="r00 lora")).count == 10
    assert find_page(context, RunQuery(state="stopped")).count == (PAGE_RUNS + 3) // 2
    assert find_page(context, RunQuery(page=99)).rows == []


def test_a_run_that_says_running_but_is_not_broke_off(run):
    folder = run("killed", state="running")
    assert read_run(folder).state == "interrupted"
    with FileLock(folder / ".lock"):
        assert read_run(folder).state == "running"


def test_a_single_point_can_be_drawn():
    assert "<circle" in draw_line_chart(LineChart("loss", "loss", [Series("one", [(1, 2.0)])]), lang="en")


def test_only_settings_that_differ_are_listed():
    assert find_differences([{"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}]) == [("a.c", [None, 2])]


def test_notes_stay_in_the_run(run):
    folder = run("one")
    assert read_notes(folder) == ""
    write_notes(folder, "# 好\n")
    assert (folder / "notes.md").read_text(encoding="utf-8") == "# 好\n"
    assert read_notes(folder) == "# 好\n"
    with pytest.raises(RunError, match="too many"):
        write_notes(folder, "x" * 200_000)


def test_a_run_is_deleted_unless_it_is_in_use_or_holds_the_root(context, run):
    folder, root = run("one"), context.roots[0]
    with FileLock(folder / ".lock"), pytest.raises(RunError, match="a training runs"):
        delete_run(folder, roots=[root])
    (root / "config.yaml").write_text("model: x\n")
    with pytest.raises(RunError, match="works in this folder"):
        delete_run(root, roots=[root])
    delete_run(folder, roots=[root])
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []
    with pytest.raises(RunError, match="any more"):
        delete_run(folder, roots=[root])


def test_the_report_is_framed_so_that_nothing_in_it_can_run(run):
    folder = run("one")
    (folder / "report.html").write_text("<script>alert(1)</script>")
    frame = render_report_frame(folder, "zh")
    assert 'sandbox=""' in frame
    assert "alert(1)" not in frame
    assert frame.count("<") == 2  # the frame's own tags; the page inside is an attribute


def test_runs_and_models_can_be_chosen(context, run):
    folder = run("one")
    base = context.roots[0] / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    assert RootLists(context).find_targets().choices == [("runs/one", str(folder)), ("base", str(base))]


def test_entries_of_a_catalog_are_chosen_by_name(context):
    root = context.roots[0]
    (root / "rows.json").write_text('[{"a": 1}, {"a": 2}]')
    entries = {"mine": {"file_name": "rows.json", "formatting": "sharegpt"}, "out": {"file_name": "../../x.json"}}
    (root / "dataset_info.json").write_text(json.dumps(entries))
    catalog = root / "dataset_info.json"
    datasets = RootLists(context).find_datasets().choices
    assert datasets[:2] == [
        ("mine · 2 · sharegpt", f"{catalog}:mine"),
        ("out · alpaca", f"{catalog}:out"),
    ]
    assert datasets[2:] == [("rows.json", str(root / "rows.json"))]


def test_base_and_tuned_answer_from_one_model_in_memory(tuned):
    base, run = tuned
    models = HeldModels()
    tuned_reply, base_reply = _reply(models, run), _reply(models, base)
    assert len(models._held) == 1
    alone = load_for_generation(base)
    assert base_reply == generate_reply(alone.model, alone.tokenizer, alone.family, HELLO, sampling=SHORT).content
    assert tuned_reply != base_reply
    assert _reply(models, run) == tuned_reply


def test_two_models_at_most_are_held(tiny):
    models = HeldModels(most=2)
    for family in ("chatglm", "chatglm2", "chatglm3"):
        _reply(models, str(tiny(family)))
    assert [Path(held.target) for held in models._held] == [tiny("chatglm2"), tiny("chatglm3")]


def test_a_model_that_changed_on_disk_is_loaded_anew(tiny, tmp_path):
    import shutil

    folder = Path(shutil.copytree(tiny("chatglm3"), tmp_path / "model"))
    models = HeldModels()
    with models.answering(str(folder)) as first:
        pass
    with models.answering(str(folder)) as again:
        assert again.model is first.model
    os.utime(folder / "config.json", (2e9, 2e9))
    with models.answering(str(folder)) as anew:
        assert anew.model is not first.model


def test_a_model_removed_while_chatting_is_one_line_and_a_hint(tiny, tmp_path):
    import shutil

    folder = Path(shutil.copytree(tiny("chatglm3"), tmp_path / "model"))
    models = HeldModels()
    _reply(models, str(folder))
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="is not there any more") as caught, models.answering(str(folder)):
        pass
    assert caught.value.hint
    assert models._held == []


def test_a_reply_streams_and_its_last_piece_is_the_reply(tiny):
    opened = load_for_generation(str(tiny("chatglm3")))
    pieces = list(stream_reply(opened, HELLO, SHORT, threading.Event()))
    expected = generate_reply(opened.model, opened.tokenizer, opened.family, HELLO, sampling=SHORT)
    assert pieces[-1] == expected


def test_a_stopped_reply_keeps_what_there_was(tiny):
    opened, stopped = load_for_generation(str(tiny("chatglm3"))), threading.Event()
    pieces = []
    for piece in stream_reply(opened, HELLO, Sampling(max_new_tokens=400), stopped):
        pieces.append(piece)
        stopped.set()
    assert isinstance(pieces[-1], Reply)
    assert pieces[-1].content.startswith(pieces[0])


def test_a_closed_page_ends_the_reply(tiny):
    opened = load_for_generation(str(tiny("chatglm3")))
    before = set(threading.enumerate())
    pieces = stream_reply(opened, HELLO, Sampling(max_new_tokens=400), threading.Event())
    next(pieces)
    assert set(threading.enumerate()) - before
    pieces.close()
    assert not set(threading.enumerate()) - before


def test_errors_of_the_model_reach_the_page(tiny):
    opened = load_for_generation(str(tiny("chatglm2")))
    with pytest.raises(DataError):
        list(stream_reply(opened, [{"role": "tool", "name": "x"}], SHORT, threading.Event()))


def test_a_tool_call_waits_for_its_result_and_is_rendered_as_in_training(tiny):
    opened = load_for_generation(str(tiny("chatglm3")))
    called = add_reply(add_message([], "天气？", False), Reply("", [ToolCall("weather", {"city": "北京"})]))
    with pytest.raises(ConfigError, match="has not called a tool"):
        add_message([], "晴", True)
    complete = add_message(called, "晴", True)
    assert complete[-1] == {"role": "tool", "name": "weather", "parameters": {"city": "北京"}, "observation": "晴"}
    assert opened.family.encode_prompt(complete, opened.tokenizer)
    assert [row["role"] for row in render_messages(complete)] == ["user", "tool", "tool"]


def test_answering_again_drops_the_last_reply_alone():
    talk = [*HELLO, {"role": "assistant", "content": "a"}, *HELLO]
    assert remove_reply([*talk, {"role": "assistant", "content": "b"}]) == talk
    with pytest.raises(ConfigError):
        remove_reply(talk)
    with pytest.raises(ConfigError):
        add_message([], "  ", False)


EVIL = "<img src=http://elsewhere/x.png> ![x](http://elsewhere/y.png) [z](javascript:alert(1)) <http://elsewhere/>"


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_no_message_makes_the_browser_ask_anybody(role):
    html = str(render_messages([{"role": role, "content": EVIL}])[0]["html"])
    for tag in ("<img", "<a", "<script", "<iframe"):
        assert tag not in html
    assert "&lt;img src=http://elsewhere/x.png&gt;" in html


def test_markdown_of_a_reply_is_shown():
    html = str(render_messages([{"role": "assistant", "content": "**好**\n\n- a\n\n```\n<b>\n```"}])[0]["html"])
    assert "<strong>好</strong>" in html
    assert "<li>a</li>" in html
    assert "&lt;b&gt;" in html


@pytest.mark.parametrize("typed", ["{", '{"name": "x"}', "[1]"])
def test_tools_that_are_no_list_of_objects_are_refused(typed):
    with pytest.raises(ConfigError, match="Tools"):
        read_tools(typed)


def test_tools_are_read():
    assert read_tools(" ") is None
    assert read_tools('[{"name": "x"}]') == [{"name": "x"}]


def _eval_fields(context, others=("c",), **changes):
    root = context.roots[0]
    fields = {"kind": "eval", "model": str(root / "a b"), "data": str(root / "d.json"), "limit": "4", "tokens": "0"}
    fields |= {"batch": "2", "output": ""} | changes
    return FormData([*fields.items(), *(("other", str(root / name)) for name in others)])


def test_evaluations_are_the_commands_of_the_command_line(context):
    root = context.roots[0]
    rows = ["--data", str(root / "d.json"), "--limit", "4", "--batch-size", "2"]
    assert evaluate_tab.make_arguments(context, _eval_fields(context), "zh") == ["eval", str(root / "a b"), *rows]
    compare = evaluate_tab.make_arguments(context, _eval_fields(context, kind="compare"), "zh")
    assert compare == ["compare", str(root / "a b"), str(root / "c"), *rows, "--lang", "zh", "--no-forget"]
    forget = evaluate_tab.make_arguments(context, _eval_fields(context, kind="forget", output="out"), "en")
    short = ["--limit", "4", "--batch-size", "2", "--output", str(root / "out"), "--lang", "en"]
    assert forget == ["forget", str(root / "a b"), *short]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": ""}, ConfigError),
        ({"kind": "<b>"}, ConfigError),
        ({"data": ""}, ConfigError),
        ({"kind": "compare", "others": ()}, ConfigError),
        ({"data": "/etc/passwd"}, PathError),
        ({"output": "../elsewhere"}, PathError),
    ],
)
def test_evaluations_that_make_no_sense_are_refused(context, changes, error):
    with pytest.raises(error):
        evaluate_tab.make_arguments(context, _eval_fields(context, **changes), "en")


def test_the_commands_know_every_option_of_the_page(context):
    """A renamed option would fail only after the models are loaded."""
    import typer

    from glmtune.cli.main import app

    commands = typer.main.get_command(app).commands
    asked = [_eval_fields(context, kind=kind, tokens="9", output="out") for kind in ("eval", "compare", "forget")]
    given = [evaluate_tab.make_arguments(context, each, "zh") for each in asked]
    given.append(export_tab.make_arguments(context, _export_fields(context, adapter_only=True, dtype="fp16")))
    given.append(export_tab.make_arguments(context, _export_fields(context)))
    for words in given:
        known = {
            name for parameter in commands[words[0]].params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in words if word.startswith("--")} <= known, words[0]


def test_results_are_listed_with_a_row_per_model(context, run):
    root, folder = context.roots[0], run("one")
    metrics = {"kind": "eval", "model": {"name": "<i>m</i>"}, "data": {"rows": 3}, "loss": 1.5}
    metrics["scores"] = {"rouge_l": {"mean": 25.0}, "bleu4_characters": {"mean": 8.01}}
    (folder / "eval" / "dev").mkdir(parents=True)
    (folder / "eval" / "dev" / "metrics.json").write_text(json.dumps(metrics))
    (root / "evals" / "both").mkdir(parents=True)
    comparison = {"kind": "comparison", "models": [metrics, metrics], "forgetting": [None, {"verdict": "warn"}]}
    (root / "evals" / "both" / "comparison.json").write_text(json.dumps(comparison))
    (root / "evals" / "broken").mkdir()
    (root / "evals" / "broken" / "metrics.json").write_text("{")
    rows = [row for entry in list_evaluations(context) for row in entry.rows]
    assert [row.bleu for row in rows] == [8.01] * 3
    assert sorted(row.verdict for row in rows) == ["", "", "warn"]


def _export_fields(context, **changes):
    fields = {"model": str(context.roots[0] / "base"), "layout": "hf", "bits": 16, "adapter_only": False}
    fields |= {"dtype": "", "max_shard_size": "5GB", "output": "out"}
    return export_tab.ExportChoices(**(fields | changes))


def test_an_export_that_cannot_be_done_is_refused_with_the_command_line_s_words(context, tiny):
    import shutil

    shutil.copytree(tiny("chatglm3"), context.roots[0] / "base")
    assert export_tab.estimate_size(context, _export_fields(context)) > 0
    for changes, said in (
        ({"adapter_only": True}, "no adapter"),
        ({"output": "base"}, "not an empty folder"),
        ({"output": "../out"}, "outside"),
        ({"model": ""}, "chosen"),
    ):
        with pytest.raises(GlmtuneError, match=said):
            export_tab.estimate_size(context, _export_fields(context, **changes))


def test_an_export_is_given_a_new_folder(context):
    asked = _export_fields(context, model="/somewhere/runs/a b", layout="official", bits=4)
    assert export_tab.suggest_output(context, asked) == "exports/runs-a-b-official-4bit"
    (context.roots[0] / "exports" / "runs-a-b-official-4bit").mkdir(parents=True)
    assert export_tab.suggest_output(context, asked) == "exports/runs-a-b-official-4bit-2"


def test_a_forgetting_probe_that_fails_its_model_is_no_failed_job():
    job = Job("1", "forget", ["forget", "<run>"], "", "me", "failed", started=1.0, ended=3.0, exit_code=3)
    assert "verdict of the forgetting probe: fail" in describe_job(job, "Error: x", "en")["remarks"][0]
    assert describe_job(job, "Error: x", "en")["error"] == ""


def test_the_bar_follows_the_last_count_in_the_log():
    job = Job("1", "eval", ["eval"], "", "me", "running", started=1.0)
    values = describe_job(job, "replies 8/170  ETA 0:10\nreplies 16/170  ETA 0:09\n", "en")
    assert values["share"] == 16 / 170
    assert "16 / 170" in values["figures"]
