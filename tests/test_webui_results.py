"""The page's tabs Runs, Chat, Evaluate and Export through its HTTP door: votes as a comparison, tables that are
searched and paged, several runs at once, and what is removed by age."""

from __future__ import annotations

import html
import io
import json
import os
import re
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune.data.sources import open_sources
from glmtune.evaluation.votes import compute_sign_p, compute_vote_rate
from glmtune.webui import pruning, zip_stream
from glmtune.webui.app import make_context
from glmtune.webui.chat_store import change_chat, create_chat, load_chat
from glmtune.webui.evaluations import PAGE_ROWS
from glmtune.webui.job_view import describe_job
from glmtune.webui.jobs import Job
from glmtune.webui.runs_index import PAGE_RUNS

DAY = 86_400


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return make_context([root], "en")


@pytest.fixture
def page(context):
    return PageClient(context)


@pytest.fixture
def run(context):
    """`run(name, ...)`: a run folder as a training leaves it."""

    def make(name: str, loss: float = 1.0, stage: str = "sft", **last: float) -> Path:
        folder = context.roots[0] / "runs" / name
        (folder / "adapter").mkdir(parents=True)
        (folder / "config.yaml").write_text(f"model: {{path: base}}\ndata: {{train: t.json}}\nstage: {stage}\n")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss} | last) + "\n")
        (folder / "summary.json").write_text(json.dumps({"state": "finished", "steps": 1}))
        return folder

    return make


def say(context, chat, *turns: tuple[str, str, str]):
    """Turns of a conversation: a question, and the replies of both sides."""

    def change(latest):
        for side, place in zip(latest.sides, (1, 2), strict=True):
            for turn in turns:
                side.messages = [
                    *side.messages,
                    {"role": "user", "content": turn[0]},
                    {"role": "assistant", "content": turn[place]},
                ]

    return change_chat(context, chat.id, change)


def read_votes(context) -> list[dict]:
    (path,) = context.roots[0].glob("evals/votes-*/votes.json")
    return json.loads(path.read_text("utf-8"))


# --- votes ------------------------------------------------------------------------------------------------------------


def test_votes_become_a_comparison_that_is_listed_and_opened(context, page):
    for targets, better in ((["a/one", "b/two"], "first"), (["b/two", "a/one"], "second"), (["a/one", "b/two"], "tie")):
        chat = say(context, create_chat(context, targets, {}), ("问", "甲", "乙"))
        answer = page.post(f"/chat/{chat.id}/vote", {"better": better}).text
    assert "a/one wins 83 %" in answer
    votes = read_votes(context)
    assert (votes["models"], votes["wins"], votes["losses"], votes["ties"]) == (["a/one", "b/two"], 2, 0, 1)
    assert votes["rate"]["mean"] == pytest.approx(83.33, abs=0.01)
    assert votes["rate"]["low"] < 50 < votes["rate"]["high"], "three votes prove nothing"
    results = page.get("/evaluate/results?kind=votes").text
    assert "a/one · b/two" in results
    assert "wins 83.3 %" in results
    folder = re.search(r'hx-get="/evaluate/report\?folder=([^"]+)"', results)[1]
    report = html.unescape(page.get(f"/evaluate/report?folder={folder}").text)
    assert "<iframe" in report
    assert "by votes" in report
    assert folder in page.get(f"/evaluate?report={folder}").text, "a link opens the report with the page"


def test_a_vote_in_a_later_turn_has_the_history_of_the_side_that_was_voted_on(context, page):
    chat = say(context, create_chat(context, ["a", "b"], {}), ("一", "甲一", "乙一"), ("二", "甲二", "乙二"))
    answer = page.post(f"/chat/{chat.id}/vote", {"better": "second"})
    assert "answered earlier turns differently" in answer.text
    said = page.post("/chat/votes").text
    assert "1 row is of later turns" in said
    (row,) = [json.loads(line) for line in (context.roots[0] / "votes.jsonl").read_text("utf-8").splitlines()]
    assert [message["content"] for message in row["prompt"]] == ["一", "乙一", "二"]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("乙二", "甲二")
    (source,) = open_sources(str(context.roots[0] / "votes.jsonl"), preference="pairs")
    (pair,) = list(source)
    assert [message["content"] for message in pair.messages] == ["一", "乙一", "二", "乙二"]
    prompts = read_votes(context)["rows"][0]["prompts"]
    assert [prompt[1]["content"] for prompt in prompts] == ["甲一", "乙一"]


def test_a_deleted_conversation_takes_its_votes_with_it(context, page):
    chats = [say(context, create_chat(context, ["a", "b"], {}), ("问", "甲", "乙")) for _ in range(2)]
    for chat in chats:
        page.post(f"/chat/{chat.id}/vote", {"better": "first"})
    page.post(f"/chat/{chats[0].id}/delete")
    assert read_votes(context)["wins"] == 1
    page.post(f"/chat/{chats[1].id}/delete")
    assert list(context.roots[0].glob("evals/*")) == []


def test_a_damaged_comparison_does_not_close_the_chat(context, page):
    chat = say(context, create_chat(context, ["a", "b"], {}), ("问", "甲", "乙"))
    page.post(f"/chat/{chat.id}/vote", {"better": "first"})
    (path,) = context.roots[0].glob("evals/votes-*/votes.json")
    for content in ("{", '{"kind": "votes", "rows": [{"prompts": 3}], "models": [1]}'):
        path.write_text(content)
        assert page.get(f"/chat?id={chat.id}").status_code == 200
        assert page.get("/evaluate/results").status_code == 200
        assert page.get(f"/evaluate/report?folder={path.parent}").status_code in (200, 422)


def test_intervals_of_few_votes_are_wide():
    rate = compute_vote_rate(3, 0, 0)
    assert (rate.mean, rate.high) == (100, pytest.approx(100))
    assert rate.low == pytest.approx(43.85, abs=0.01)  # 3 / (3 + 1.96²)
    assert compute_sign_p(3, 0) == 0.25
    assert compute_sign_p(5, 5) == compute_sign_p(0, 0) == 1
    assert compute_sign_p(10, 0) == 2 / 2**10


# --- nothing is left out silently -------------------------------------------------------------------------------------


def test_conversations_are_searched_and_paged(context, page, monkeypatch):
    monkeypatch.setattr("glmtune.webui.chat_store.PAGE_CHATS", 3)
    monkeypatch.setattr("glmtune.webui.chat_tab.PAGE_CHATS", 3)
    chats = [create_chat(context, ["m"], {}) for _ in range(7)]
    for number, chat in enumerate(chats):
        page.post(f"/chat/{chat.id}/rename", {"name": f"name {number}"})
    assert "1–3 of 7" in page.get("/chat").text
    assert len(re.findall("<li>", page.get("/chat/list?page=3").text)) == 1
    assert chats[4].id in page.get("/chat/list?search=NAME+4").text
    long = page.post(f"/chat/{chats[0].id}/rename", {"name": "x" * 61})
    assert (long.status_code, load_chat(context, chats[0].id).name) == (422, "name 0")


@pytest.mark.parametrize("kind", ["targets", "datasets"])
def test_what_a_list_does_not_show_is_said_and_found(context, page, kind, monkeypatch):
    monkeypatch.setattr("glmtune.webui.lists.MAX_CHOICES", 5)
    root = context.roots[0]
    for number in range(12):
        if kind == "targets":
            (root / f"run{number:02}").mkdir()
            (root / f"run{number:02}" / "config.yaml").touch()
    if kind == "datasets":
        entries = {f"set{number:02}": {"file_name": "rows.json"} for number in range(10)}
        (root / "dataset_info.json").write_text(json.dumps(entries))
        (root / "rows.json").write_text("[]")
        (root / "more.json").write_text("[]")
    options = page.get(f"/choices/{kind}?field=model&id=x").text
    assert options.count("<option") == 5
    assert "5 of 12 are listed" in options
    found = page.get(f"/choices/{kind}?field=model&id=x&model={'RUN11' if kind == 'targets' else 'set09'}").text
    assert found.count("<option") == 1
    assert "are listed" not in found


def test_folders_that_were_not_searched_are_said(context, page, run, monkeypatch):
    for number in range(5):
        run(f"r{number}")
    monkeypatch.setattr("glmtune.webui.root_walk.MAX_FOLDERS", 3)
    monkeypatch.setattr("glmtune.webui.choices_view.MAX_FOLDERS", 3)
    for address in ("/runs", "/choices/targets?field=x&id=x"):
        assert "Only the first 3 folders" in page.get(address).text


def test_results_are_searched_sorted_and_paged(context, page, run):
    folders = [run("many")]
    for number in range(PAGE_ROWS + 5):
        place = folders[0] / "eval" / f"e{number:03}"
        place.mkdir(parents=True)
        metrics = {"kind": "eval", "model": {"name": f"m{number}"}, "data": {"rows": number}, "loss": number / 10}
        (place / "metrics.json").write_text(json.dumps(metrics))
    assert f"1–{PAGE_ROWS} of {PAGE_ROWS + 5}" in page.get("/evaluate/results").text
    assert page.get("/evaluate/results?page=2").text.count("<tr>") == 1 + 5
    first = re.search(r"eval/(e\d+)", page.get("/evaluate/results?sort=loss&order=up").text)[1]
    assert first == "e000"
    assert page.get("/evaluate/results?search=e007").text.count("<tr>") == 1 + 1
    assert "No result matches" in page.get("/evaluate/results?kind=votes").text
    assert "e003" in page.get(f"/runs/show?path={folders[0]}").text, "results are on the run's own page"


# --- evaluations ------------------------------------------------------------------------------------------------------


def test_a_judge_and_scores_are_the_commands_of_the_command_line(context, page):
    (context.roots[0] / "rows.json").write_text("[]")
    for name in ("rm", "one"):
        (context.roots[0] / name).mkdir()
    fields = {"kind": "compare", "model": "one", "other": "one", "judge": "rm", "data": "rows.json"}
    page.post("/evaluate/start", fields)
    page.post("/evaluate/start", {"kind": "score", "model": "rm", "data": "rows.json"})
    score, compare = context.jobs.list()
    assert compare.arguments[compare.arguments.index("--judge") + 1] == str(context.roots[0] / "rm")
    assert score.arguments[:2] == ["score", str(context.roots[0] / "rm")]
    refused = page.post("/evaluate/start", fields | {"judge": "/etc"})
    assert refused.status_code == 422
    for job in (score, compare):
        context.jobs.stop(job.id)


def test_the_result_of_a_job_is_shown_in_its_place(context, page):
    job = context.jobs.submit("eval", ["eval", "--help"], "", "me")
    while context.jobs.get(job.id).alive:
        time.sleep(0.05)
    assert "evaluate_report" not in page.get(f"/evaluate/job/{job.id}").text
    folder = context.roots[0] / "evals" / "x"
    folder.mkdir(parents=True)
    metrics = {"kind": "eval", "model": {"name": "the model"}, "command": "glmtune eval --help", "loss": 1.5}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    result = page.get(f"/evaluate/job/{job.id}").text
    assert "the model" in result
    assert "1.5000" in result
    assert "/evaluate?report=" in result
    assert f"/evaluate/job/{job.id}" in page.get("/evaluate").text


@pytest.mark.parametrize(("lang", "words"), [("en", ("Model 2 of 3", "Replies")), ("zh", ("第 2/3 个模型", "回答"))])
def test_a_comparison_says_which_model_answers_what(lang, words):
    job = Job("1", "compare", ["compare"], "", "me", "running", started=1.0)
    log = "[1/3] base\nprobe of base: answers 60/60  ETA 0:00\n[2/3] runs/my run\nreplies 8/20  ETA 0:10\n"
    values = describe_job(job, log, lang)
    assert values["share"] == 8 / 20
    assert all(word in values["figures"] for word in (*words, "runs/my run", "8 / 20"))


def test_no_time_is_left_once_a_part_is_complete():
    job = Job("1", "compare", ["compare"], "", "me", "running", started=1.0)
    complete = describe_job(job, "[1/2] base\nreplies 20/20  ETA 0:00\n", "en")
    assert "time left" not in complete["figures"]
    other_model = describe_job(job, "[1/2] base\nreplies 9/20  ETA 0:09\n[2/2] tuned\n", "en")
    assert (other_model["share"], "9 / 20" in other_model["figures"]) == (None, False)


def test_rewards_are_listed_with_their_accuracy(context, page, run):
    place = run("rm", stage="rm") / "score" / "dev"
    place.mkdir(parents=True)
    (place / "scores.jsonl").write_text("{}\n")
    numbers = {"kind": "pairs", "pairs": 40, "accuracy": 0.75, "accuracy_low": 0.6, "accuracy_high": 0.86}
    (place / "metrics.json").write_text(json.dumps(numbers | {"model": str(place.parents[1] / "adapter")}))
    results = page.get("/evaluate/results?kind=score").text
    assert "accuracy 75.0 %" in results
    assert "[60.0, 86.0]" in results
    assert "0.75" in page.get(f"/evaluate/report?folder={place}").text


def test_rewards_of_a_run_are_on_its_page(page, run):
    grpo = page.get(f"/runs/show?path={run('grpo', stage='grpo', reward=0.25, eval_reward=0.5, kl=0.01)}").text
    assert "Reward (evaluation)" in grpo
    assert "0.500" in grpo
    reward_model = page.get(f"/runs/show?path={run('rm', stage='rm', eval_accuracy=0.75)}").text
    assert "75.0%" in reward_model
    assert "kind=score" in reward_model
    assert "/chat?model" not in reward_model, "a reward model does not chat"


# --- several runs -----------------------------------------------------------------------------------------------------


def test_a_click_on_the_head_turns_the_order_on_every_page(context, page, run):
    for number in range(PAGE_RUNS + 2):
        run(f"r{number:03}")
    for number in (1, 2):
        table = html.unescape(page.get(f"/runs?sort=name&order=up&page={number}", **{"HX-Target": "runs-table"}).text)
        assert "sort=name&order=down&page=1" in table
    assert f"{PAGE_RUNS + 1}–{PAGE_RUNS + 2} of" in page.get("/runs?page=77").text, "the last page, not an empty one"


def test_selected_runs_stay_selected_on_other_pages_and_in_other_windows(context, page, run):
    one, two, three = (str(run(name)) for name in ("one", "two", "three"))
    page.post("/runs/select", [("shown", one), ("shown", two), ("run", one), ("run", two)])
    bar = page.post("/runs/select", [("shown", three), ("run", three)]).text
    assert "3 runs selected" in bar
    assert "2 runs selected" in page.post("/runs/select", [("shown", one), ("shown", two), ("run", two)]).text
    opened = page.get("/runs").text
    assert opened.count(" checked") == 2
    assert "2 runs selected" in opened
    stranger = PageClient(context)
    assert " checked" not in stranger.get("/runs").text
    assert page.post("/runs/select", {"run": "/etc"}).status_code == 422
    assert " checked" not in page.post("/runs/unselect").text
    assert " checked" not in page.get("/runs").text


def test_names_and_tags_are_not_cut_silently(context, page, run):
    folder = run("one")
    for tags in ("x" * 41, " ".join(f"t{number}" for number in range(21))):
        assert page.post("/runs/notes", {"run": str(folder), "tags": tags, "notes": ""}).status_code == 422
    assert "longer than 60" in page.post("/train/settings", {"settings_name": "x" * 61}).text
    assert list(context.state("settings").iterdir()) == []


def test_runs_that_cannot_be_deleted_are_named_and_the_others_are_gone(context, page, run):
    from filelock import FileLock

    paths = [str(run(name)) for name in ("one", "busy", "three")]
    page.post("/runs/select", [("run", path) for path in paths])
    with FileLock(Path(paths[1]) / ".lock"):
        answer = page.post("/runs/delete", [("run", path) for path in paths])
    assert answer.status_code == 200
    assert "2 runs deleted" in answer.text
    assert "1 run stayed" in answer.text
    assert "busy" in answer.text
    assert answer.headers["HX-Trigger"] == "runs-changed"
    assert [Path(path).exists() for path in paths] == [False, True, False]
    assert "1 run selected" in page.get("/runs").text
    left = page.post("/runs/delete", {"run": paths[1], "leave": "true"})
    assert left.headers["HX-Redirect"] == "/runs"


def test_several_runs_are_exported_as_queued_jobs(context, page, run, tiny):
    import shutil

    for name in ("a", "b"):
        shutil.copytree(tiny("chatglm3"), context.roots[0] / name / "model")
    broken = run("broken")
    chosen = [str(context.roots[0] / name / "model") for name in ("a", "b")]
    form = page.post("/runs/export", [("run", path) for path in chosen]).text
    assert "Queue 2 exports" in form
    fields = [("layout", "hf"), ("bits", "16"), *(("run", path) for path in [*chosen, chosen[0], str(broken)])]
    answer = page.post("/runs/export/start", fields).text
    assert "2 exports queued" in answer
    assert 'role="alert"' in answer, "what cannot be exported is said"
    jobs = context.jobs.list()
    assert len({job.output for job in jobs}) == len(jobs) == 2
    for job in jobs:
        context.jobs.stop(job.id)
    shown = page.get("/export").text
    assert all(job.id in shown for job in jobs)


def test_exports_that_wait_have_folders_of_their_own(context, page, tiny):
    import shutil

    shutil.copytree(tiny("chatglm3"), context.roots[0] / "a" / "model")
    fields = {"layout": "hf", "bits": 16, "run": "a/model"}
    for _ in range(2):
        assert "1 export queued" in page.post("/runs/export/start", fields).text
    jobs = context.jobs.list()
    assert len({job.output for job in jobs}) == 2
    for job in jobs:
        context.jobs.stop(job.id)


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 1000, 10])
def test_a_download_says_its_length_before_it_begins(page, run, limit, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    adapter = run("größe") / "adapter"
    (adapter / "sub").mkdir()
    contents = {"a.safetensors": os.urandom(5000), "sub/数.json": b"{}", "empty": b""}
    for name, content in contents.items():
        (adapter / name).write_bytes(content)
    (adapter / "link").symlink_to("/etc/hostname")
    answer = page.get(f"/runs/download?path={adapter}")
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name.removeprefix("adapter/"): archive.read(name) for name in archive.namelist()} == contents


def test_a_file_that_changes_while_it_is_sent_ends_the_download(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    entries = zip_stream.list_entries(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 9)
    with pytest.raises(zip_stream.RunError, match="changed"):
        list(zip_stream.stream_zip(entries))


# --- what is removed by age -------------------------------------------------------------------------------------------


def make_old(path: Path, days: int) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_conversations_without_a_name_and_votes_are_removed_by_age(context, page):
    chats = {}
    for name in ("old", "new", "named", "voted"):
        chats[name] = say(context, create_chat(context, ["a", "b"], {}), ("问", "甲", "乙"))
    page.post(f"/chat/{chats['named'].id}/rename", {"name": "keep"})
    page.post(f"/chat/{chats['voted'].id}/vote", {"better": "first"})
    for name in ("old", "named", "voted"):
        make_old(context.state("chats") / f"{chats[name].id}.json", pruning.CHATS.days + 1)
    assert pruning.remove_unkept(context)["conversation"] == 1
    assert {path.stem for path in context.state("chats").glob("*.json")} == {
        chats[name].id for name in ("new", "named", "voted")
    }
    assert f"{pruning.CHATS.days} days" in page.get("/chat").text


def test_the_oldest_go_first_when_there_are_too_many(context, monkeypatch):
    monkeypatch.setattr(pruning, "CHATS", pruning.KeepRule(180, 2))
    chats = [create_chat(context, ["a"], {}) for _ in range(4)]
    for age, chat in enumerate(chats):
        make_old(context.state("chats") / f"{chat.id}.json", age)
    pruning.remove_unkept(context)
    assert {path.stem for path in context.state("chats").glob("*.json")} == {chat.id for chat in chats[:2]}


def test_ended_jobs_are_removed_with_their_logs_and_running_ones_stay(context, page, run):
    page.post("/train/settings", {"settings_name": "mine"})
    page.post("/evaluate/draft", {"kind": "eval"})
    ended = context.jobs.submit("eval", ["--version"], "", "me")
    while context.jobs.get(ended.id).alive:
        time.sleep(0.05)
    config = context.state("configs") / "x.yaml"
    config.touch()
    make_old(config, pruning.JOBS.days + 1)
    alive = context.jobs.submit("eval", ["eval"], "", "me")
    folder = context.state("jobs")
    job = json.loads((folder / f"{ended.id}.json").read_text())
    (folder / f"{ended.id}.json").write_text(json.dumps(job | {"ended": time.time() - DAY * (pruning.JOBS.days + 1)}))
    (draft,) = context.state("drafts").glob("*.json")
    make_old(draft, pruning.DRAFTS.days + 1)
    (saved,) = context.state("settings").glob("*.json")
    make_old(saved, 10_000)
    removed = pruning.remove_unkept(context)
    assert saved.exists(), "a user named it"
    assert {name: number for name, number in removed.items() if number} == {
        "ended job": 1,
        "unfinished form": 1,
        "config": 1,
    }
    assert list(folder.glob(f"{ended.id}.*")) == []
    assert context.jobs.get(alive.id).id == alive.id
    context.jobs.stop(alive.id)


def send(page, name: str, content: bytes = b"[]") -> None:
    answer = page.client.put(
        f"/uploads?name={name}",
        content=content,
        headers={"X-CSRF-Token": page.token, "Origin": "http://127.0.0.1:7860"},
    )
    assert answer.status_code == 201


def test_uploads_that_nothing_names_are_removed_by_age(context, page, run, monkeypatch):
    folder = context.roots[0] / "uploads"
    for name in ("unused", "used", "drafted", "changed", "数", "listed"):
        send(page, f"{name}.json")
    (folder / "by-hand.json").write_text("[]")
    (folder / "changed.json").write_text('["more"]')
    (run("r") / "config.yaml").write_text("data: {train: uploads/used.json}\n")
    page.post("/evaluate/draft", {"kind": "eval", "data": "uploads/drafted.json"})
    (context.roots[0] / "dataset_info.json").write_text(json.dumps({"x": {"file_name": "uploads/listed.json"}}))
    assert pruning.remove_unkept(context)["upload"] == 0, "not old yet"
    monkeypatch.setattr(pruning, "UPLOADS", pruning.KeepRule(-1, 100))
    assert pruning.remove_unkept(context)["upload"] == 2
    left = {path.name for path in folder.iterdir()}
    assert left == {"used.json", "drafted.json", "changed.json", "listed.json", "by-hand.json"}


def test_a_pattern_in_a_form_keeps_all_uploads(context, page, monkeypatch):
    monkeypatch.setattr(pruning, "UPLOADS", pruning.KeepRule(-1, 100))
    send(page, "rows.json")
    page.post("/evaluate/draft", {"kind": "eval", "data": "uploads/*.json"})
    assert pruning.remove_unkept(context)["upload"] == 0
    page.post("/evaluate/draft", {"kind": "eval", "data": "other.json"})
    assert pruning.remove_unkept(context)["upload"] == 1
