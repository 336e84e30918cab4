"""What stands behind the tabs Runs, Chat, Evaluate and Export, without a browser."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

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
from glmtune.webui.chat_models import HeldModels
from glmtune.webui.conversation import answered, asked, read_tools, shown, stream, unanswered
from glmtune.webui.errors import PathError
from glmtune.webui.job_panel import status_html
from glmtune.webui.jobs import Job
from glmtune.webui.pick import renewed, targets
from glmtune.webui.results import report_frame, results
from glmtune.webui.run_files import delete_run, differences, read_notes, read_run, write_notes
from glmtune.webui.runs_tab import curves, difference_table, run_table

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


def test_runs_are_listed_with_their_numbers_and_escaped(context, run):
    run("good", losses=(3.0, 1.25))
    run("<b>bold</b>")
    table = run_table(context, "en")
    assert "1.2500" in table
    assert "<b>bold" not in table
    assert "&lt;b&gt;bold&lt;/b&gt;" in table


def test_a_broken_run_does_not_hide_the_others(context, run):
    run("good")
    (run("broken") / "config.yaml").write_text("a: [1")
    table = run_table(context, "en")
    assert "runs/good" in table
    assert "unreadable" in table


def test_a_run_that_says_running_but_is_not_broke_off(run):
    folder = run("killed", state="running")
    assert read_run(folder).state == "interrupted"
    with FileLock(folder / ".lock"):
        assert read_run(folder).state == "running"


def test_curves_of_several_runs_share_a_drawing(context, run):
    one, two = run("one"), run("two", losses=(4.0, 3.5, 3.0))
    drawing = curves(context, [one, two], "loss", "en")
    assert drawing.count("stroke-linejoin") == 2 * 2  # two curves, in the wide and in the narrow drawing
    assert "runs/one" in drawing
    assert "runs/two" in drawing
    assert curves(context, [one, two], "eval_loss", "en").startswith("<p")
    with pytest.raises(RunError, match="any more"):
        curves(context, [one.with_name("gone")], "loss", "en")


def test_a_single_point_can_be_drawn():
    assert "<circle" in draw_line_chart(LineChart("loss", "loss", [Series("one", [(1, 2.0)])]), lang="en")


def test_only_what_differs_is_in_the_difference_table(context, run):
    table = difference_table(context, [run("one", rank=8), run("two", rank=16)], "en")
    assert "lora.rank" in table
    assert "method" not in table
    assert differences([{"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}]) == [("a.c", [None, 2])]


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
    frame = report_frame(folder, "zh")
    assert 'sandbox=""' in frame
    assert "alert(1)" not in frame
    assert frame.count("<") == 2  # the frame's own tags; the page inside is an attribute


def test_a_list_keeps_what_was_chosen_and_drops_what_is_gone(tmp_path):
    found = [("a", "/a"), ("b", "/b")]
    assert "value" not in renewed(found, "/b")  # or it would undo a choice made meanwhile
    assert renewed(found, str(tmp_path / "gone"))["value"] is None
    assert "value" not in renewed(found, "THUDM/chatglm3-6b")
    assert renewed(found, None, first=True)["value"] == "/a"
    assert renewed(found, ["/b", "/gone"])["value"] == ["/b"]


def test_runs_and_models_can_be_chosen(context, run):
    folder = run("one")
    base = context.roots[0] / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    assert targets(context) == [("runs/one", str(folder)), ("base", str(base))]


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
    pieces = list(stream(opened, HELLO, SHORT, threading.Event()))
    expected = generate_reply(opened.model, opened.tokenizer, opened.family, HELLO, sampling=SHORT)
    assert pieces[-1] == expected


def test_a_stopped_reply_keeps_what_there_was(tiny):
    opened, stopped = load_for_generation(str(tiny("chatglm3"))), threading.Event()
    pieces = []
    for piece in stream(opened, HELLO, Sampling(max_new_tokens=400), stopped):
        pieces.append(piece)
        stopped.set()
    assert isinstance(pieces[-1], Reply)
    assert pieces[-1].content.startswith(pieces[0])


def test_a_closed_page_ends_the_reply(tiny):
    opened = load_for_generation(str(tiny("chatglm3")))
    before = set(threading.enumerate())
    pieces = stream(opened, HELLO, Sampling(max_new_tokens=400), threading.Event())
    next(pieces)
    assert set(threading.enumerate()) - before
    pieces.close()
    assert not set(threading.enumerate()) - before


def test_errors_of_the_model_reach_the_page(tiny):
    opened = load_for_generation(str(tiny("chatglm2")))
    with pytest.raises(DataError):
        list(stream(opened, [{"role": "tool", "name": "x"}], SHORT, threading.Event()))


def test_a_tool_call_waits_for_its_result_and_is_rendered_as_in_training(tiny):
    opened = load_for_generation(str(tiny("chatglm3")))
    called = answered(asked([], "天气？", False), Reply("", [ToolCall("weather", {"city": "北京"})]))
    with pytest.raises(ConfigError, match="has not called a tool"):
        asked([], "晴", True)
    told = asked(called, "晴", True)
    assert told[-1] == {"role": "tool", "name": "weather", "parameters": {"city": "北京"}, "observation": "晴"}
    assert opened.family.encode_prompt(told, opened.tokenizer)
    assert [row["role"] for row in shown(told)] == ["user", "assistant", "user"]


def test_regenerating_drops_the_last_reply_alone():
    talk = [*HELLO, {"role": "assistant", "content": "a"}, *HELLO]
    assert unanswered([*talk, {"role": "assistant", "content": "b"}]) == talk
    with pytest.raises(ConfigError):
        unanswered(talk)
    with pytest.raises(ConfigError):
        asked([], "  ", False)


def test_markup_in_a_message_is_text():
    rows = shown([{"role": "user", "content": "<img src=http://elsewhere/x.png>"}], "<script>")
    assert [row["content"] for row in rows] == ["&lt;img src=http://elsewhere/x.png&gt;", "&lt;script&gt;"]


@pytest.mark.parametrize("typed", ["{", '{"name": "x"}', "[1]"])
def test_tools_that_are_no_list_of_objects_are_refused(typed):
    with pytest.raises(ConfigError, match="Tools"):
        read_tools(typed)


def test_tools_are_read():
    assert read_tools(" ") is None
    assert read_tools('[{"name": "x"}]') == [{"name": "x"}]


def _eval_fields(context, **changes):
    root = context.roots[0]
    fields = {"kind": "eval", "model": str(root / "a b"), "others": [str(root / "c")], "data": str(root / "d.json")}
    fields |= {"limit": 4, "tokens": 0, "batch": 2, "probe": False, "output": ""}
    return evaluate_tab.EvaluationChoices(**(fields | changes))


def test_evaluations_are_the_commands_of_the_command_line(context):
    root = context.roots[0]
    rows = ["--data", str(root / "d.json"), "--limit", "4", "--batch-size", "2"]
    assert evaluate_tab.arguments(context, _eval_fields(context), "zh") == ["eval", str(root / "a b"), *rows]
    compare = evaluate_tab.arguments(context, _eval_fields(context, kind="compare"), "zh")
    assert compare == ["compare", str(root / "a b"), str(root / "c"), *rows, "--lang", "zh", "--no-forget"]
    forget = evaluate_tab.arguments(context, _eval_fields(context, kind="forget", output="out"), "en")
    short = ["--limit", "4", "--batch-size", "2", "--output", str(root / "out"), "--lang", "en"]
    assert forget == ["forget", str(root / "a b"), *short]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": None}, ConfigError),
        ({"data": ""}, ConfigError),
        ({"kind": "compare", "others": []}, ConfigError),
        ({"data": "/etc/passwd"}, PathError),
        ({"output": "../elsewhere"}, PathError),
    ],
)
def test_evaluations_that_make_no_sense_are_refused(context, changes, error):
    with pytest.raises(error):
        evaluate_tab.arguments(context, _eval_fields(context, **changes), "en")


def test_the_commands_know_every_option_of_the_page(context):
    """A renamed option would fail only after the models are loaded."""
    import typer

    from glmtune.cli.main import app

    commands = typer.main.get_command(app).commands
    asked = [_eval_fields(context, kind=kind, tokens=9, output="out") for kind in ("eval", "compare", "forget")]
    given = [evaluate_tab.arguments(context, each, "zh") for each in asked]
    given.append(export_tab.arguments(context, _export_fields(context, adapter_only=True, dtype="fp16")))
    given.append(export_tab.arguments(context, _export_fields(context)))
    for words in given:
        known = {
            name for parameter in commands[words[0]].params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in words if word.startswith("--")} <= known, words[0]


def test_results_are_listed_with_a_row_per_model_and_escaped(context, run):
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
    table = evaluate_tab.result_table(context, results(context), "en")
    assert table.count("8.01") == 3
    assert "warn" in table
    assert "&lt;i&gt;m" in table
    assert "<i>" not in table


def _export_fields(context, **changes):
    fields = {"model": str(context.roots[0] / "base"), "layout": "hf", "bits": 16, "adapter_only": False}
    fields |= {"dtype": "", "max_shard_size": "5GB", "output": "out"}
    return export_tab.ExportChoices(**(fields | changes))


def test_an_export_that_cannot_be_done_is_refused_with_the_command_line_s_words(context, tiny):
    import shutil

    shutil.copytree(tiny("chatglm3"), context.roots[0] / "base")
    assert export_tab.needed(context, _export_fields(context)) > 0
    for changes, said in (
        ({"adapter_only": True}, "no adapter"),
        ({"output": "base"}, "not an empty folder"),
        ({"output": "../out"}, "outside"),
        ({"model": None}, "chosen"),
    ):
        with pytest.raises(GlmtuneError, match=said):
            export_tab.needed(context, _export_fields(context, **changes))


def test_an_export_is_given_a_new_folder(context):
    asked = _export_fields(context, model="/somewhere/runs/a b", layout="official", bits=4)
    assert export_tab.suggested_output(context, asked) == "exports/runs-a-b-official-4bit"
    (context.roots[0] / "exports" / "runs-a-b-official-4bit").mkdir(parents=True)
    assert export_tab.suggested_output(context, asked) == "exports/runs-a-b-official-4bit-2"


def test_a_forgetting_probe_that_fails_its_model_is_no_failed_job():
    job = Job("1", "forget", ["forget", "<run>"], "", "me", "failed", started=1.0, ended=3.0, exit_code=3)
    said = status_html(job, "", "en")
    assert "verdict of the forgetting probe: fail" in said
    assert "<run>" not in said


def test_the_bar_follows_the_last_count_in_the_log():
    job = Job("1", "eval", ["eval"], "", "me", "running", started=1.0)
    said = status_html(job, "replies 8/170  ETA 0:10\nreplies 16/170  ETA 0:09\n", "en")
    assert '<progress value="16" max="170"' in said
    assert "16 of 170" in said
