"""The routes of the page, asked as its scripts ask them."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from fastapi.testclient import TestClient
from page_client import PageClient

from fake_engine import FakeEngine
from glmtune import detect_family, load_tokenizer
from glmtune.data.column_formats import COLUMN_ROLES
from glmtune.errors import ServerError
from glmtune.html.i18n import LANGUAGES, has_text, load_texts
from glmtune.serve.context import ServeContext, ServedModel, ServeLimits
from glmtune.webui.api_mount import ApiMount, make_api
from glmtune.webui.app import make_app, make_context, make_routes
from glmtune.webui.chat_answer import SETTINGS
from glmtune.webui.forms import fields
from glmtune.webui.jobs import State
from glmtune.webui.model_tab import BUTTONS
from glmtune.webui.plan_view import PART_COLOURS
from glmtune.webui.presets import GOALS
from glmtune.webui.runs_index import SORT_KEYS
from glmtune.webui.training_view import CURVE_GROUPS
from glmtune.webui.webhooks import make_message

TABS = ("data", "train", "runs", "chat", "evaluate", "export", "model", "migrate")


@pytest.fixture
def context(tmp_path, tiny):
    """A server's settings with a model and rows in its root."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(tiny("chatglm3"), root / "base")
    rows = [{"content": f"问题{number}", "summary": f"回答{number}"} for number in range(45)]
    rows.append({"content": "问题0", "summary": ""})
    (root / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return make_context([root], "zh")


@pytest.fixture
def page(context):
    return PageClient(context)


def form(**fields):
    return {"model.path": "base", "data.train": "rows.json", **fields}


@pytest.mark.parametrize("lang", list(LANGUAGES))
@pytest.mark.parametrize("tab", TABS)
def test_every_tab_speaks_one_language(page, tab, lang):
    page.client.cookies.set("glmtune_lang", lang)
    content = page.get(f"/{tab}").text
    assert f'<html lang="{"zh-CN" if lang == "zh" else lang}">' in content
    other = {"zh": "en", "en": "zh"}[lang]
    for key, line in load_texts(other).items():
        is_sentence = len(line) > 12 and line != load_texts(lang)[key] and "{" not in line
        if key.startswith("ui.") and is_sentence:
            assert line not in content, key


def test_the_language_is_kept_in_a_cookie(page):
    answer = page.post("/language", {"to": "en"})
    assert answer.headers["HX-Refresh"] == "true"
    assert "glmtune_lang=en" in answer.headers["set-cookie"]
    assert '<html lang="en">' in page.get("/train").text
    assert "set-cookie" not in page.post("/language", {"to": "<b>"}).headers


def test_a_form_is_checked_kept_and_shown_again(page):
    card = page.post("/train/check", form(method="lora", **{"lora.rank": "4", "f": ""})).text
    assert "glmtune train config.yaml" in card
    assert "rank: 4" in card
    again = page.get("/train").text
    assert re.search(r'name="lora.rank" value="4"', again)
    assert 'value="rows.json"' in again


def test_an_error_stands_in_place_of_the_result(page):
    answer = page.post("/train/check", form(**{"lora.rank": "many"}))
    assert "lora.rank must be a whole number" in answer.text
    assert "config.yaml" not in answer.text
    refused = page.post("/data/rows", {"data.train": "../x.json"})
    assert refused.status_code == 422
    assert 'role="alert"' in refused.text


def test_saved_settings_and_imports_fill_the_form(page, context):
    page.post("/train/settings", form(settings_name="mine", **{"lora.rank": "3"}))
    assert re.search(r"mine</th>.*base</td><td>lora", page.get("/train").text, re.DOTALL)
    loaded = page.post("/train/form", {"action": "load", "saved": "mine"}).text
    assert re.search(r'name="lora.rank" value="3"', loaded)
    yaml = "model: base\ndata: rows.json\nmethod: ptuning\nptuning: {num_virtual_tokens: 7}\n"
    imported = page.post("/train/form", {"action": "import", "import_text": yaml}).text
    assert re.search(r'name="ptuning.num_virtual_tokens" value="7"', imported)
    command = (
        "python main.py --do_train --pre_seq_len 64 --train_file rows.json --model_name_or_path base --output_dir o"
    )
    command += " --prompt_column content --response_column summary --max_steps 3 --learning_rate 2e-2"
    older = page.post("/train/form", {"action": "import", "import_text": command}).text
    assert re.search(r'name="ptuning.num_virtual_tokens" value="64"', older)
    proposed = page.post("/train/form", form(action="apply", proposed="model.quantization=packed4")).text
    assert re.search(r'value="packed4" selected', proposed)


def test_a_training_is_queued_and_shown_with_its_command(page, context, monkeypatch):
    monkeypatch.setattr(type(context.jobs), "_start", lambda self, job: None)  # it stays in the queue
    answer = page.post("/train/start", form(method="lora", output="runs/a"))
    place = answer.headers["HX-Redirect"]
    job = context.jobs.list()[0]
    assert job.id in place
    assert job.arguments[0] == "train"
    content = page.get(place).text
    assert f'data-live="{job.id}"' in content
    assert page.post(f"/jobs/{job.id}/stop").status_code == 200
    assert context.jobs.get(job.id).state == "stopped"


def test_rows_are_paged_and_only_those_with_findings_on_request(page):
    first = page.post("/data/rows", form()).text
    assert "问题19" in first
    assert "问题20" not in first
    assert "问题20" in page.post("/data/rows", form(page="2")).text
    check = page.post("/data/check", form()).text
    while (poll := re.search(r'hx-get="(/data/check/[^"]+)"', check)) is not None:
        check = page.get(poll.group(1)).text
    id = re.search(r'name="check" value="([^"]+)"', check).group(1)
    rows = page.post("/data/rows", form(check=id, findings_only="true")).text
    assert rows.count("<tr>") == 2  # the head, and the row with an empty answer
    assert 'value="rows-clean.jsonl"' in page.post("/data/repair", form(check=id)).text


def test_clean_rows_are_written_to_a_new_file(page, context):
    check = page.post("/data/fix", form(fix="clean.jsonl")).text
    while (poll := re.search(r'hx-get="(/data/check/[^"]+)"', check)) is not None:
        time.sleep(0.05)
        check = page.get(poll.group(1)).text
    assert "45" in check
    assert len((context.roots[0] / "clean.jsonl").read_text(encoding="utf-8").splitlines()) == 45
    assert page.post("/data/fix", form(fix="clean.jsonl")).status_code == 422
    assert page.post("/data/fix", form(fix="../clean.jsonl")).status_code == 422


def _read_lines(answer):
    return [json.loads(line) for line in answer.text.splitlines()]


def test_two_models_answer_and_a_vote_becomes_a_preference_row(page, context):
    place = page.post("/chat/new", {"model": "base", "other": "base", "max_new_tokens": "6"}).headers["HX-Redirect"]
    id = place.partition("id=")[2]
    fields = {"prompt": "你好", "max_new_tokens": "6"}
    events = _read_lines(page.post(f"/chat/{id}/send", fields))
    assert {event["side"] for event in events} == {0, 1}
    messages = [event["messages"] for event in events if "messages" in event]
    assert [[row["role"] for row in each] for each in messages] == [["user", "assistant"]] * 2
    assert "tok" in events[-1]["status"].lower() or "秒" in events[-1]["status"]
    # Sides that answer alike: their texts are set apart, as two models would.
    path = context.state("chats") / f"{id}.json"
    chat = json.loads(path.read_text(encoding="utf-8"))
    chat["sides"][1]["messages"][-1]["content"] = "另一个"
    path.write_text(json.dumps(chat), encoding="utf-8")
    page.post(f"/chat/{id}/vote", {"better": "second"})
    assert "1" in page.post("/chat/votes").text
    row = json.loads((context.roots[0] / "votes.jsonl").read_text(encoding="utf-8"))
    assert row["chosen"][0]["content"] == "另一个"
    edited = _read_lines(page.post(f"/chat/{id}/send", {**fields, "action": "edit", "index": "0", "prompt": "再见"}))
    assert edited[-1]["messages"][0]["text"] == "再见"
    assert len(edited[-1]["messages"]) == 2
    rows = page.get(f"/chat/{id}/rows")
    assert json.loads(rows.text.splitlines()[0])["messages"][0]["content"] == "再见"
    page.post(f"/chat/{id}/delete")
    assert page.get(f"/chat?id={id}").status_code == 422


def test_a_vote_file_is_read_by_preference_tuning(page, context):
    from glmtune.data.sources import open_sources
    from glmtune.webui.chat_store import Vote
    from glmtune.webui.chat_votes import make_preference_row

    vote = Vote([{"role": "user", "content": "问"}], ["好", "坏"], ["a", "b"], 0)
    (context.roots[0] / "votes.jsonl").write_text(json.dumps(make_preference_row(vote), ensure_ascii=False) + "\n")
    (source,) = open_sources(str(context.roots[0] / "votes.jsonl"), preference="pairs")
    (pair,) = list(source)
    assert pair.messages[-1]["content"] == "好"
    assert pair.rejected.messages[-1]["content"] == "坏"


def test_ten_thousand_runs_are_listed(page, context):
    """Only the runs of the page that is asked for are read."""
    for number in range(10_000):
        folder = context.roots[0] / "runs" / f"r{number:05}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "metrics.jsonl").touch()
    assert f"{10_000:,}" in page.get("/runs").text


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://oapi.dingtalk.com/robot/send?access_token=x", "msgtype"),
        ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x", "msgtype"),
        ("https://open.feishu.cn/open-apis/bot/v2/hook/x", "msg_type"),
        ("https://hooks.slack.com/services/x", "text"),
        ("http://127.0.0.1:1/x", "event"),
    ],
)
def test_webhooks_have_the_form_of_their_service(url, key, context):
    job = context.jobs.submit("eval", ["nothing"], "", "me")
    job.state = "finished"
    message = make_message(url, job)
    assert key in message
    assert "eval" in json.dumps(message)
    context.jobs.stop(job.id)


def test_every_route_is_reached_by_get_or_post_alone(context):
    app = make_routes(context)
    methods = {method for route in app.routes for method in getattr(route, "methods", None) or ()}
    assert methods <= {"GET", "HEAD", "POST", "PUT"}
    assert Path(context.roots[0]).is_dir()


def test_every_name_that_is_put_together_has_a_text():
    names = {
        "data.column": COLUMN_ROLES,
        "preset": GOALS,
        "runs": SORT_KEYS,
        "section": {item.section for item in fields()},
        "tab": TABS,
        "machine": BUTTONS,
        "chat.setting": SETTINGS,
        "state": get_args(State),
        "plan.part": PART_COLOURS,
        "chart": CURVE_GROUPS,
        "curve": [name for group in CURVE_GROUPS.values() for name in group],
    }
    missing = [
        f"{prefix}.{name}" for prefix, all_ in names.items() for name in all_ if not has_text(f"ui.{prefix}.{name}")
    ]
    assert missing == []


@pytest.mark.parametrize("root_path", ["", "/hub/7860"])
def test_the_api_answers_beside_the_page_with_a_key_of_its_own(context, tiny, root_path):
    served = ServeContext(
        FakeEngine(),
        load_tokenizer(tiny("glm4")),
        detect_family(tiny("glm4")),
        [ServedModel("base")],
        ServeLimits(4096),
    )
    api = make_api(served, "127.0.0.1", "secret", "en")
    client = TestClient(ApiMount(make_app(context), api, root_path), base_url="http://127.0.0.1:7860")
    assert client.get("/train").status_code == 200
    assert client.get(f"{root_path}/api/v1/models").status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert client.get(f"{root_path}/api/v1/models", headers=headers).json()["data"][0]["id"] == "base"
    assert client.get(f"{root_path}/api/health").status_code == 200
    assert client.get("/apiary").status_code == 404
    with pytest.raises(ServerError, match="could use the model"):
        make_api(served, "0.0.0.0", None, "en")
    with pytest.raises(ServerError, match="behind a proxy"):
        make_api(served, "127.0.0.1", None, "en", is_proxied=True)
    proxied = TestClient(
        make_api(served, "127.0.0.1", "secret", "en", is_proxied=True), base_url="http://hub.example.org"
    )
    assert proxied.get("/v1/models", headers=headers).status_code == 200


def test_errors_are_in_the_language_of_the_page_with_the_command_lines_words_folded(page):
    refused = page.post("/data/rows", {"data.train": "../x.json"}).text
    assert "不在网页可用的文件夹内" in refused
    assert "outside of the folders" in refused.partition("<details>")[2]
    page.client.cookies.set("glmtune_lang", "en")
    assert "<details>" not in page.post("/data/rows", {"data.train": "../x.json"}).text
