"""What happens on the page at the same time, and what nobody expects in a field or a file."""

from __future__ import annotations

import json
import shutil
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError
from glmtune.utils.console import ProgressBar
from glmtune.webui import chat_store, gpu_memory, plan_view, root_walk
from glmtune.webui.app import make_context
from glmtune.webui.chat_answer import SETTINGS, parse_sampling
from glmtune.webui.chat_store import Chat, Side, Vote, add_vote, change_chat, create_chat, load_chat, make_rows
from glmtune.webui.chat_votes import make_vote
from glmtune.webui.commands import CommandOutput
from glmtune.webui.data_tab import make_train_draft
from glmtune.webui.job_view import describe_job
from glmtune.webui.jobs import Job
from glmtune.webui.requests import FormData
from glmtune.webui.run_files import TAGS, read_tags
from glmtune.webui.run_form import make_form, parse_form
from glmtune.webui.runs_index import RunQuery, find_page
from glmtune.webui.webhooks import find_refusal

QUESTION = {"role": "user", "content": "问"}


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    rows = [{"content": f"问题{number}", "summary": "" if number == 2 else "答"} for number in range(5)]
    (root / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return make_context([root], "zh")


@pytest.fixture
def page(context):
    return PageClient(context)


@pytest.fixture
def run(context):
    """A run that has begun."""
    folder = context.roots[0] / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {path: base}\ndata: {train: rows.json}\n", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"state": "finished", "steps": 3}), encoding="utf-8")
    return folder


def ask_twice(context):
    """A conversation of two models that have answered."""
    chat = create_chat(context, ["a", "b"], {})

    def change(chat: Chat) -> None:
        for side, reply in zip(chat.sides, ("好", "坏"), strict=True):
            side.messages = [QUESTION, {"role": "assistant", "content": reply}]

    return change_chat(context, chat.id, change)


def test_a_name_and_a_vote_given_while_a_model_answers_stay(context, page, monkeypatch):
    chat = ask_twice(context)

    class Models:
        def answering(self, target):
            page.post(f"/chat/{chat.id}/rename", {"name": "新名"})
            page.post(f"/chat/{chat.id}/vote", {"better": "first"})
            raise ConfigError("not here")

        def list_targets(self):
            return []

    context.models = Models()
    answer = page.post(f"/chat/{chat.id}/send", {"prompt": "再问"})
    assert 'role="alert"' in json.loads(answer.text.splitlines()[-1])["error"]
    latest = load_chat(context, chat.id)
    assert (latest.name, len(latest.votes)) == ("新名", 1)


def test_a_failure_of_the_model_reaches_the_page(context, page):
    class Models:
        def answering(self, target):
            raise RuntimeError("CUDA out of memory")

    context.models = Models()
    chat = create_chat(context, ["a"], {})
    answer = page.post(f"/chat/{chat.id}/send", {"prompt": "问"})
    assert "CUDA out of memory" in json.loads(answer.text.splitlines()[-1])["error"]
    assert page.post(f"/chat/{chat.id}/send", {"prompt": "问"}).status_code == 200, "no reply is under way any more"


def test_votes_of_conversations_that_are_not_listed_are_written(context, page, monkeypatch):
    monkeypatch.setattr(chat_store, "PAGE_CHATS", 1)
    for _ in range(3):
        chat = ask_twice(context)
        page.post(f"/chat/{chat.id}/vote", {"better": "first"})
    (context.state("chats") / f"{'0' * 32}.json").write_text("{}", encoding="utf-8")
    page.post("/chat/votes")
    assert len((context.roots[0] / "votes.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_a_change_of_mind_replaces_the_vote():
    chat = Chat("x")
    for better in (0, 1):
        add_vote(chat, Vote([QUESTION], ["好", "坏"], ["a", "b"], better))
    assert [vote.better for vote in chat.votes] == [1]


def test_replies_to_different_questions_are_not_compared():
    replied = {"role": "assistant", "content": "答"}
    other = {"role": "user", "content": "别的"}
    sides = [Side("a", [QUESTION, replied]), Side("b", [QUESTION, replied, other, replied])]
    with pytest.raises(ConfigError, match="no two replies"):
        make_vote(Chat("x", sides=sides), "first")


def test_tools_go_into_the_rows_of_a_conversation():
    tools = [{"name": "weather"}]
    side = Side("a", [QUESTION, {"role": "assistant", "content": "答"}])
    (row,) = make_rows(Chat("x", sides=[side], settings={"tools": json.dumps(tools)}))
    assert row["tools"] == tools


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "inf"), ("seed", "1e300"), ("max_new_tokens", "nan"), ("temperature", "9"), ("top_p", "nan")],
)
def test_numbers_out_of_their_range_are_refused(name, value):
    assert name in SETTINGS
    with pytest.raises(ConfigError, match=name):
        parse_sampling({name: value})


@pytest.mark.parametrize(
    "content",
    [
        *("train 'abc", "model: [", "a: [", "model: 5\ntraining: 5", "model: x\nlora: 3", "model: x\nfoo: 1"),
        *("model: x\ndata: [5]", "model: x\ndata: {train: [{path: a, split: train}]}"),
    ],
)
def test_a_paste_that_is_no_config_is_said_to_be_none(page, content):
    answer = page.post("/train/form", {"action": "import", "import_text": content})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text


def test_short_forms_of_a_config_fill_the_form():
    form = make_form({"model": "THUDM/chatglm3-6b", "data": "rows.json", "replay": "general.json"})
    assert form.values["model.path"] == "THUDM/chatglm3-6b"
    assert form.datasets == [("rows.json", "")]
    assert form.values["replay.data"] == "general.json"


def test_rows_and_columns_go_to_the_training_form(context, page):
    page.post("/train/check", {"training.learning_rate": "1e-3", "data.train": "old.json", "weight": "2"})
    fields = {"data.train": "rows.json", "column.prompt": "content", "column.response": "summary"}
    answer = page.post("/data/train", {**fields, "data.max_source_length": "77", "model.path": "THUDM/chatglm3-6b"})
    assert answer.headers["HX-Redirect"] == "/train"
    shown = page.get("/train").text
    for value in ("rows.json", "77", "THUDM/chatglm3-6b", "1e-3"):
        assert f'value="{value}"' in shown
    assert "old.json" not in shown
    form = parse_form(make_train_draft(FormData(), FormData(fields.items())))
    assert form.values["data.columns"].splitlines() == ['prompt: "content"', 'response: "summary"']


def test_columns_are_kept_across_a_reload(page):
    page.post("/data/rows", {"data.train": "rows.json", "column.prompt": "content", "column.response": "summary"})
    assert 'name="column.prompt" value="content"' in page.get("/data").text


def test_forms_of_export_and_evaluate_are_kept(page):
    page.post("/export/check", {"model": "gone", "layout": "official", "bits": "8", "output": "exports/mine"})
    shown = page.get("/export").text
    assert 'value="official" checked' in shown
    assert 'value="8" checked' in shown
    assert 'value="exports/mine"' in shown
    assert 'value="exports/mine"' not in page.get("/export?model=other").text, "a folder belongs to its model"
    assert page.post("/evaluate/draft", [("kind", "compare"), ("other", "b"), ("limit", "9")]).status_code == 204
    shown = page.get("/evaluate").text
    assert 'value="compare" checked' in shown
    assert 'value="b"' in shown
    assert 'name="limit" type="number" min="0" value="9"' in shown
    assert 'name="probe" value="true">' in shown, "the box was not ticked"


def test_a_form_with_values_that_are_not_offered_any_more_opens(page):
    page.post("/export/check", {"layout": "none", "bits": "x"})
    assert page.get("/export").status_code == 200


def test_a_training_outside_of_the_roots_does_not_close_the_tab(context, page):
    context.jobs._write(Job("j1", "train", ["train"], "/elsewhere/run", "me", "finished", 1.0))
    answer = page.get("/train")
    assert answer.status_code == 200
    assert 'id="train-form"' in answer.text
    assert 'role="alert"' in answer.text


def test_saved_settings_can_be_loaded_at_once(page):
    answer = page.post("/train/settings", {"settings_name": "mine", "data.train": "rows.json"}).text
    assert '{"action": "load", "saved": "mine"}' in answer


def test_findings_of_other_rows_do_not_filter_these(context, page):
    fields = {"data.train": "rows.json", "data.format": "", "findings_only": "true"}
    assert "请先检查数据" in page.post("/data/rows", fields).text
    answer = page.post("/data/check", fields).text
    for _ in range(200):
        if 'name="check"' in answer:
            break
        time.sleep(0.02)
        answer = page.get(answer.partition('hx-get="')[2].partition('"')[0]).text
    id = answer.partition('name="check" value="')[2].partition('"')[0]
    filtered = page.post("/data/rows", {**fields, "check": id}).text
    assert "请先检查数据" not in filtered
    assert filtered.count("<tr>") == 2, "the head and the row without an answer"
    shutil.copy(context.roots[0] / "rows.json", context.roots[0] / "other.json")
    other = page.post("/data/rows", {**fields, "data.train": "other.json", "check": id}).text
    assert "请先检查数据" in other
    assert other.count("<tr>") == 6


@pytest.mark.parametrize("content", [{"tags": 5}, {"tags": "abc"}, {"tags": [1, None]}, []])
def test_damaged_tags_hide_no_run(context, page, run, content):
    (run / TAGS).write_text(json.dumps(content), encoding="utf-8")
    assert read_tags(run) == ()
    assert page.get("/runs").status_code == 200
    assert page.get(f"/runs/show?path={run}").status_code == 200


def test_a_run_of_an_unknown_state_hides_no_other(context, page, run):
    (run / "summary.json").write_text(json.dumps({"state": "hibernating"}), encoding="utf-8")
    found = find_page(context, RunQuery())
    rows, count = found.rows, found.count
    assert (rows[0].state, count) == ("unreadable", 1)
    assert page.get("/runs").status_code == 200


def test_a_link_to_what_is_gone_opens_a_whole_page(page):
    for path in ("/runs/show?path=gone", f"/chat?id={'0' * 32}", "/jobs/gone"):
        answer = page.get(path, Accept="text/html")
        assert answer.status_code == 422
        assert '<html lang="zh-CN">' in answer.text
        assert 'role="alert"' in answer.text
        assert "<html" not in page.get(path, Accept="text/html", **{"HX-Request": "true"}).text


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"errcode":310000,"errmsg":"keywords not in content"}', "keywords not in content"),
        (b'{"code":19024,"msg":"Key Words Not Found"}', "Key Words Not Found"),
        (b'{"errcode":0,"errmsg":"ok"}', ""),
        (b"ok", ""),
    ],
)
def test_a_message_that_a_group_refuses_is_noticed(body, problem):
    assert find_refusal(body) == problem


def test_a_plan_is_made_again_when_memory_may_have_changed(context, monkeypatch):
    import asyncio

    calls = []

    async def run_command(arguments, root, **limits):
        calls.append(arguments)
        return CommandOutput(0, '{"bytes": 1}', "")

    monkeypatch.setattr(plan_view, "run_command", run_command)
    tree = {"model": {"path": str(context.roots[0])}}
    for _ in range(2):
        asyncio.run(plan_view.make_plan(tree, "", context.roots[0], "en"))
    assert len(calls) == 1
    monkeypatch.setattr(plan_view, "_PLAN_SECONDS", 0.0)
    asyncio.run(plan_view.make_plan(tree, "", context.roots[0], "en"))
    assert len(calls) == 2


def test_the_driver_is_asked_once_for_all_browsers(monkeypatch):
    readings = []
    monkeypatch.setattr(gpu_memory, "_readings", [])
    gpu = gpu_memory.Gpu("T4", 2**30, 2**31)
    monkeypatch.setattr(gpu_memory, "_read_gpus", lambda: readings.append(1) or (gpu,))
    assert [gpu_memory.describe_gpu_memory() for _ in range(3)] == ["1.0 / 2.0 GiB"] * 3
    assert len(readings) == 1


def test_what_a_run_was_started_with_fills_the_form(page, run):
    assert read_config_file(run / "config.yaml")["data"]["train"] == "rows.json"
    answer = page.post("/train/form", {"action": "repeat", "run": str(run)})
    assert 'value="rows.json"' in answer.text


def test_an_old_training_is_shown_by_its_id(context, page):
    for number in range(40):
        output = str(context.roots[0] / f"r{number}")
        context.jobs._write(Job(f"j{number}", "train", ["train"], output, "me", "finished", float(number)))
    shown = page.get("/train?job=j1").text
    assert 'data-live="j1"' in shown
    assert '<option value="j1" selected>' in shown


def test_a_download_shows_bytes_speed_and_the_time_left(capsys):
    with ProgressBar("Fetch", 4 * 2**30, unit="bytes") as progress:
        progress._start -= 10
        progress._last_line -= 1000
        progress.add(2**30)
    job = Job("j", "fetch", ["fetch"], "", "me", "running", started=1.0)
    values = describe_job(job, "".join(capsys.readouterr()), "en")
    assert abs(values["share"] - 0.25) < 0.01
    for words in ("1.0", "4.0", "/s", "0:30"):
        assert words in str(values["figures"])


def test_jobs_that_ended_are_read_once(context, monkeypatch):
    jobs = context.jobs
    for number in range(3):
        jobs._write(Job(f"j{number}", "train", ["a"], "", "me", "finished", float(number)))
    assert [job.id for job in jobs.list()] == ["j2", "j1", "j0"]
    reads = []
    read = jobs._read
    monkeypatch.setattr(jobs, "_read", lambda id: reads.append(id) or read(id))
    assert len(jobs.list()) == 3
    assert not reads
    (context.state("jobs") / "j1.json").unlink()
    assert [job.id for job in jobs.list()] == ["j2", "j0"]


def test_what_runs_hold_does_not_hide_other_runs(tmp_path, monkeypatch):
    for number in range(6):
        for name in ("adapter", "checkpoints/checkpoint-1", "eval/first"):
            (tmp_path / f"run{number}" / name).mkdir(parents=True)
        (tmp_path / f"run{number}" / "config.yaml").touch()
    monkeypatch.setattr(root_walk, "MAX_FOLDERS", 10)
    assert len(root_walk.find_runs([tmp_path])) == 6
