"""The page in a real browser, on the demo's base: from choosing data to the exported folder, in both languages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

from demo_corpus.corpus import make_adgen_splits
from glmtune.html.i18n import LANGUAGES
from glmtune.run_dir import RunDir
from glmtune.webui.texts import text

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
axe_core = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
expect = playwright.expect

TABS = ("data", "train", "runs", "chat", "evaluate", "export", "model", "migrate")
WIDTHS = (1440, 1280, 390)
PROMPT = "类型#裙*颜色#白色*风格#清新"
SLOW = 180_000
"""Milliseconds that a machine busy with other tests may take for a job."""
SETTINGS = {
    "training-max_steps": "40",
    "training-learning_rate": "0.005",
    "data-max_source_length": "64",
    "data-max_target_length": "64",
}
NOTIFICATIONS = """window.notified = null; window.Notification = class {
  static permission = 'granted';
  constructor(title, { body, tag }) { window.notified = [title, body, tag]; }
};"""
DRAWN = "document.querySelector('#job canvas')?.toDataURL()"
TOO_WIDE = """() => [...document.querySelectorAll('[data-chart]')].filter(place => {
  const chart = place.querySelector('.u-wrap');
  return chart && place.checkVisibility() && chart.offsetWidth > place.clientWidth + 1;
}).map(place => place.dataset.chart)"""
CUT_OFF = """() => [...document.querySelectorAll('button, input, textarea, label, h1, h3, p, svg')].filter(part => {
  const box = part.getBoundingClientRect();
  const scrolls = part.closest('.scroll, pre, .visually-hidden, .skip');
  return part.checkVisibility() && box.width && !scrolls && (box.right > innerWidth + 1 || box.left < -1);
}).map(part => part.outerHTML.slice(0, 200))"""

PRIMARIES = """() => [...document.querySelectorAll('.primary')].filter(part => part.checkVisibility())
  .map(part => part.id || part.textContent)"""


class Site:
    """A server in a folder of its own, and a page of it in a browser."""

    def __init__(self, root: Path, browser, lang: str):
        self.root, self.lang, self.browser = root, lang, browser
        self.complaints: list[str] = []
        self.start()
        self.page = self.new_page()

    def start(self) -> None:
        self.log = (self.root / "server.log").open("wb")
        self.server = subprocess.Popen(
            [sys.executable, "-m", "glmtune", "ui", "--port", "0", "--lang", self.lang, "--root", str(self.root)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd=self.root,
            env={**os.environ, "GLMTUNE_CACHE": str(self.root / ".cache"), "PYTHONUNBUFFERED": "1"},
        )
        self.address = self._read_address()

    def new_page(self):
        page = self.browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(SLOW)
        page.on("console", self._check_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._check_address)
        return page

    def _check_console(self, message) -> None:
        # htmx reports a request that a newer one of the same form replaced, the browser an error that the page shows.
        is_replaced = message.text.startswith(("htmx:sendAbort", "htmx:afterRequest"))
        is_expected = is_replaced or re.search("status of (422|404)", message.text)
        if message.type == "error" and not is_expected:
            self.complaints.append(message.text)

    def _read_address(self) -> str:
        limit = time.monotonic() + SLOW / 1000
        while time.monotonic() < limit and self.server.poll() is None:
            address = re.search(r"http://\S+", (self.root / "server.log").read_text())
            if address:
                return address.group()
            time.sleep(0.1)
        raise AssertionError((self.root / "server.log").read_text())

    def _check_address(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.complaints.append(f"leaves the machine: {request.url}")

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}/{path}")

    def speak(self, lang: str) -> None:
        self.page.get_by_role("button", name=LANGUAGES[lang], exact=True).click()
        expect(self.page.locator("html")).to_have_attribute("lang", {"zh": "zh-CN"}.get(lang, lang))
        self.lang = lang

    def fill(self, field: str, value: str) -> None:
        self.page.locator(field).fill(value)
        self.page.locator(field).blur()

    def wait_for(self, place: str, words: str | re.Pattern[str]) -> None:
        expect(self.page.locator(place)).to_contain_text(words, timeout=SLOW)

    def wait_for_job(self, *states: str) -> None:
        names = "|".join(text(f"state.{state}", self.lang) for state in states)
        self.wait_for("#job-status .state", re.compile(names))

    def text(self, key: str, **values: object) -> str:
        return text(key, self.lang, **values)


@pytest.fixture
def site(tmp_path):
    """`site(lang)`: a running server with base and rows in its root, and a page of it."""
    shutil.copytree(str(files("glmtune.demo") / "base"), tmp_path / "base")
    for name, rows in make_adgen_splits({"train": 300, "dev": 8}).items():
        lines = [json.dumps({"q": row["content"], "a": row["summary"]}, ensure_ascii=False) for row in rows]
        (tmp_path / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {"prompt": "q", "response": "a"}
    entries = {name: {"file_name": f"{name}.json", "columns": columns} for name in ("train", "dev")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    sites: list[Site] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_site(lang: str) -> Site:
            sites.append(Site(tmp_path, browser, lang))
            return sites[-1]

        yield open_site
        browser.close()
    for each in sites:
        if each.server.poll() is None:
            each.server.kill()
            each.server.wait()
    for job in _read_jobs(tmp_path):
        if job["pid"] and _is_alive(job):
            os.killpg(job["pid"], signal.SIGKILL)


def test_from_rows_to_an_exported_model(site):
    """In English, in dark colours and without a mouse: `make page`."""
    follow_flow(site("zh"), fill_by_mouse, "light")


def follow_flow(here: Site, fill: Callable[[Site], None], colours: str) -> None:
    """From rows to an exported model: what a person does on the page, with the server killed on the way.

    Args:
        here: the page, in one language.
        fill: sets up the training.
        colours: `light` or `dark`.
    """
    _map_columns_and_check(here)
    _train_with_a_killed_server(here, fill)
    _look_at_runs(here)
    _vote_in_chat(here)
    _evaluate(here, "compare")
    _evaluate(here, "forget")
    _export(here)
    here.page.emulate_media(color_scheme=colours)
    problems = _check_every_tab(here)
    assert problems == []
    here.speak("en" if here.lang == "zh" else "zh")
    assert here.complaints == []


def test_hostile_rows_and_a_model_that_disappears(site):
    here = site("en")
    row = {"content": "<script>window.hacked = 1</script>", "summary": "<img src=x onerror='hacked=1'>"}
    (here.root / "hostile.json").write_text(json.dumps(row))
    here.open("data")
    here.fill("#data-file-input", "hostile.json")
    here.wait_for("#data-rows", "<script>")
    shutil.copytree(here.root / "base", here.root / "gone")
    here.open("chat")
    here.fill("#chat-model-input", "gone")
    here.page.locator("#chat-open button").click()
    _ask(here, "<b>你好</b><img src=x onerror='hacked=1'>")
    expect(here.page.locator(".message.user .body")).to_have_text("<b>你好</b><img src=x onerror='hacked=1'>")
    shutil.rmtree(here.root / "gone")
    here.page.locator("#chat-prompt").fill("again")
    here.page.locator("#chat-send").click()
    here.wait_for("#chat-problem", "is not there any more")
    expect(here.page.locator("#chat-problem")).to_be_in_viewport(ratio=1)
    expect(here.page.locator("#chat-prompt")).to_have_value("again")
    assert here.page.evaluate("window.hacked") is None
    assert here.complaints == []


def test_eight_windows_of_a_running_job_share_one_stream(site):
    """A browser has six connections to a server of HTTP/1.1: with a stream a window the seventh never loads."""
    here = site("en")
    run = here.root / "runs" / "long"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model: base\ndata: train.json\n")
    work = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    born = psutil.Process(work.pid).create_time()
    state = {"id": "j1", "kind": "train", "arguments": ["train"], "output": str(run), "owner": "me", "state": "running"}
    state |= {"created": 1.0, "started": time.time(), "pid": work.pid, "born": born}
    try:
        (here.root / ".glmtune-ui" / "jobs" / "j1.json").write_text(json.dumps(state))
        here.page.context.add_init_script(NOTIFICATIONS)
        pages = [here.page, *(here.page.context.new_page() for _ in range(7))]
        for page in pages:
            page.set_default_timeout(20_000)
            page.goto(f"{here.address}/{'runs' if page is pages[-1] else 'train'}")
        RunDir(run).write_progress("training", step=6, max_steps=40)
        for step in range(1, 7):
            RunDir(run).append_metrics({"step": step, "loss": 3.0 / step, "eval_loss": 3.1 / step})
        for page in pages:
            expect(page).to_have_title(re.compile(r"^15 %"), timeout=20_000)
        assert all(page.evaluate("liveSource") is None for page in pages), "a window has a stream of its own"
        here.page.locator("#job canvas").first.wait_for()
        drawn = here.page.evaluate(DRAWN)
        here.page.emulate_media(color_scheme="dark")
        _wait_until(lambda: here.page.evaluate(DRAWN) != drawn)
    finally:
        work.kill()
        work.wait()
    for page in pages:  # a panel without the job's button; the window that shows something else is notified
        expect(page.locator("#job-stop")).to_have_count(0, timeout=20_000)
    _wait_until(lambda: pages[-1].evaluate("window.notified"))
    assert pages[-1].evaluate("window.notified") == ["glmtune: long", here.text("state.failed"), "j1"]
    assert here.page.evaluate("window.notified") is None
    assert here.complaints == []


def _wait_until(is_true) -> None:
    """The page's policy forbids `wait_for_function`, which evaluates text."""
    limit = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_an_error_leaves_nothing_of_the_input_before_and_takes_nothing_that_was_typed(site):
    here = site("zh")
    here.open("model")
    here.fill("#model-path-input", "base")
    here.page.locator("#model-look").click()
    here.wait_for("#model-facts", "ChatGLM")
    here.fill("#model-path-input", "gone")
    expect(here.page.locator("#model-facts")).to_be_empty()
    here.page.locator("#model-look").click()
    here.wait_for("#model-facts [role=alert]", here.text("app.problem"))
    here.open("data")
    here.fill("#data-file-input", "dataset_info.json:train")
    here.wait_for("#data-rows tbody", "类型")
    here.page.route("**/data/rows", lambda route: route.fulfill(status=500, body="a fault"))
    here.fill("#data-file-input", "dataset_info.json:dev")
    here.wait_for("#notice", "500: a fault")
    expect(here.page.locator("#data-rows")).to_be_empty()
    here.open("train")
    here.fill("#f-output", "runs/mine")
    here.page.locator("summary", has_text=here.text("train.saved_settings")).click()
    here.page.locator("#import-text").fill("pip install torch")
    here.page.get_by_role("button", name=here.text("train.import_button"), exact=True).click()
    expect(here.page.locator(".error-place [role=alert]")).to_be_visible(timeout=SLOW)
    expect(here.page.locator("#f-output")).to_have_value("runs/mine")
    assert [line for line in here.complaints if "status of 500" not in line and "500" not in line] == []


def _map_columns_and_check(here: Site) -> None:
    """Columns of unusual names are chosen by menus; then rows, one as tokens, and findings."""
    here.open("data")
    here.fill("#data-file-input", "train.json")
    here.wait_for("#data-rows [role=alert]", "train.json")
    here.page.locator("details", has_text=here.text("data.columns")).first.locator("summary").click()
    here.page.locator("#column-prompt").select_option("q")
    here.page.locator("#column-response").select_option("a")
    here.wait_for("#data-rows tbody", "类型")
    here.fill("#data-model-input", "base")
    here.page.locator("#data-rows tbody button").first.click()
    expect(here.page.frame_locator("#data-row iframe").locator("body")).to_contain_text("类型", timeout=SLOW)
    here.page.locator("#data-check").click()
    here.wait_for("#data-findings", here.text("data.longest"))


FIELDS = {
    "models-input": "base",
    "data-file-input": "dataset_info.json:train",  # an entry by its name
    "eval-data-input": "dataset_info.json:dev",
    **{f"f-{key}": value for key, value in SETTINGS.items()},
    "f-output": "runs/web",
}
FOCUS = """() => {
  const part = document.activeElement, style = getComputedStyle(part);
  const name = part.getAttribute('aria-label') || part.labels?.[0]?.textContent || part.textContent;
  const isSeen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
  return [part.id || part.name || part.tagName, isSeen && (name || '').trim() !== ''];
}"""


def fill_by_mouse(here: Site) -> None:
    """The training form: model and data, a preset, then what differs from it."""
    for place in ("models-input", "data-file-input", "eval-data-input"):
        here.fill(f"[id='{place}']", FIELDS[place])
    here.page.locator("#goal-quick").click()
    here.page.locator("#goal-lines").wait_for()
    for place, value in FIELDS.items():
        here.fill(f"[id='{place}']", value)


def fill_by_keyboard(here: Site) -> None:
    """Tab reaches every field, each is named and shows that it has the focus; a preset leaves it where it was."""
    here.page.locator("body").press("Tab")
    filled, unseen = set(), []
    for _ in range(400):
        place, is_seen = here.page.evaluate(FOCUS)
        if not is_seen and place != "BODY":
            unseen.append(place)
        if place == "train-start":
            break
        if place in FIELDS:
            here.page.keyboard.press("Control+A")
            here.page.keyboard.type(FIELDS[place])
            filled.add(place)
        if place == "goal-quick" and not here.page.locator("#goal-lines").count():
            here.page.keyboard.press("Enter")
            here.page.locator("#goal-lines").wait_for()
            assert here.page.evaluate(FOCUS)[0] == "goal-quick"
        here.page.keyboard.press("Tab")
    assert unseen == []
    assert filled == set(FIELDS)
    assert place == "train-start"


def _train_with_a_killed_server(here: Site, fill: Callable[[Site], None]) -> None:
    here.open("train")
    fill(here)
    here.wait_for("#train-plan", here.text("plan.tokens"))
    here.page.reload()  # nothing that was typed is lost
    expect(here.page.locator("#f-output")).to_have_value("runs/web")
    here.page.locator("#train-start").press("Enter")
    here.page.locator("#job canvas").first.wait_for(state="attached")
    here.server.kill()
    here.server.wait()
    here.start()
    other = here.new_page()  # a browser that knows nothing finds the training and may stop it
    other.goto(f"{here.address}/train")
    other.on("dialog", lambda dialog: dialog.accept())
    if other.locator("#job-stop").count():
        other.locator("#job-stop").click()
    states = re.compile("|".join(here.text(f"state.{state}") for state in ("stopped", "finished")))
    expect(other.locator("#job-status .state")).to_have_text(states, timeout=SLOW)
    other.close()
    here.open("runs/show?path=runs/web")
    here.page.locator("canvas").first.wait_for(state="attached")
    assert here.page.evaluate(TOO_WIDE) == []
    here.complaints.clear()  # of connections to the server that was killed
    if here.page.locator("main .state.stopped").count():
        here.page.get_by_role("button", name=here.text("train.resume"), exact=True).click()
        here.page.wait_for_url(re.compile("train"))
        here.wait_for_job("finished")
    steps = [json.loads(line)["step"] for line in (here.root / "runs/web/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 40
    assert len([step for step in steps if step == 10]) == 1


def _look_at_runs(here: Site) -> None:
    here.open("runs")
    here.page.locator("#runs-table tbody input").first.check()
    here.page.locator("#runs-compare-button").click()
    here.page.locator("#runs-compare canvas").first.wait_for(state="attached")
    here.page.get_by_role("link", name="runs/web").click()
    expect(here.page.frame_locator("iframe.frame").locator("body")).to_contain_text("dataset_info.json", timeout=SLOW)
    with here.page.expect_download() as download:
        here.page.get_by_role("link", name=here.text("runs.download")).first.click()
    assert download.value.suggested_filename == "web-adapter.zip"


def _ask(here: Site, message: str) -> None:
    expect(here.page.locator("#chat-send")).to_be_enabled(timeout=SLOW)
    here.page.locator("#chat-prompt").fill(message)
    here.page.locator("#chat-prompt").press("Enter")
    for side in here.page.locator("[data-side]").all():
        expect(side.locator(".message.assistant .tools").last).to_be_visible(timeout=SLOW)
    expect(here.page.locator("#chat-send")).to_be_enabled(timeout=SLOW)


def _vote_in_chat(here: Site) -> None:
    here.open("chat")
    here.fill("#chat-model-input", "runs/web")
    here.fill("#chat-other-input", "base")
    here.page.locator("#chat-open button").click()
    here.page.locator("#chat-prompt").wait_for()
    _ask(here, PROMPT)
    replies = [here.page.locator(f"[data-side='{side}'] .assistant .body").inner_text() for side in (0, 1)]
    assert replies[0] != replies[1]
    here.page.get_by_role("button", name=re.compile(re.escape(here.text("chat.vote.first")))).click()
    here.wait_for("#votes", f"{here.text('chat.vote.first')} · 1")
    here.page.get_by_role("button", name=here.text("chat.write_votes")).click()
    here.wait_for("#votes-result", "votes.jsonl")
    row = json.loads((here.root / "votes.jsonl").read_text(encoding="utf-8"))
    assert row["prompt"][-1]["content"] == PROMPT
    here.page.reload()  # the conversation is kept
    expect(here.page.locator("[data-side='0'] .message.user")).to_contain_text(PROMPT)


def _evaluate(here: Site, kind: str) -> None:
    here.open("evaluate?model=runs/web")
    here.page.locator(f"input[name=kind][value={kind}]").check()
    if kind == "compare":
        here.fill("#evaluate-other-input", "base")
        here.fill("#evaluate-data-input", "dataset_info.json:dev")
        here.page.locator("#tokens").fill("16")
        here.page.locator("#probe").uncheck()  # it comes alone
    here.page.locator("#limit").fill("2")
    here.page.locator("#evaluate-start").click()
    here.page.locator("#job").wait_for()
    here.wait_for_job("finished", *(["failed"] if kind == "forget" else []))  # a verdict of this tiny model
    name = here.text("evaluate.row." + {"compare": "comparison", "forget": "forgetting"}[kind])
    row = here.page.locator("#evaluate-results tbody tr", has_text=name).first
    row.locator("button").first.click()
    expect(here.page.frame_locator("#evaluate-report iframe").locator("h1").first).to_be_visible(timeout=SLOW)


def _export(here: Site) -> None:
    here.open("export?model=runs/web")
    expect(here.page.locator("#export-start")).to_be_enabled(timeout=SLOW)
    here.wait_for("#export-verdict", "exports/runs-web-hf-16bit")
    here.page.locator("#export-start").click()
    here.page.locator("#job").wait_for()
    here.wait_for_job("finished")
    assert (here.root / "exports/runs-web-hf-16bit/config.json").is_file()


def _check_every_tab(here: Site) -> list[object]:
    """What axe knows to be wrong, what is cut off at a width, and other numbers of primary buttons than one."""
    axe = axe_core.Axe()
    problems: list[object] = []
    for tab in (*TABS, "runs/show?path=runs/web", "nothing/here"):
        here.open(tab)
        here.page.wait_for_load_state("networkidle") if tab == "model" else here.page.wait_for_timeout(300)
        result = axe.run(here.page, options={"iframes": False})
        if result.violations_count:
            problems.append((tab, result.generate_report()))
        for width in WIDTHS:
            here.page.set_viewport_size({"width": width, "height": 900})
            here.page.wait_for_timeout(200)  # charts are drawn again
            excess = here.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            cut_off, primaries = here.page.evaluate(CUT_OFF), here.page.evaluate(PRIMARIES)
            if excess > 0 or cut_off or len(primaries) > 1 or (not primaries and tab not in ("runs", "chat")):
                problems.append((tab, width, excess, cut_off, primaries))
    return problems


def _read_jobs(root: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (root / ".glmtune-ui" / "jobs").glob("[!.]*.json")]


def _is_alive(job: dict) -> bool:
    try:
        process = psutil.Process(job["pid"])
        return process.create_time() == job["born"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
