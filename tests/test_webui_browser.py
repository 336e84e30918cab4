"""The page in a real browser, on the demo's base: from choosing a model to the exported folder, in both languages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

from demo_corpus.corpus import make_adgen_splits
from glmtune.html.i18n import LANGUAGES
from glmtune.webui.texts import text

pytest.importorskip("gradio", reason="needs the extra `ui`: pip install 'glmtune[ui]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
expect = playwright.expect

TABS = ("model", "data", "train", "runs", "chat", "evaluate", "export")
PROMPT = "类型#裙*颜色#白色*风格#清新"
SLOW = int(__import__("os").environ.get("SLOWX", 120_000))
"""Milliseconds that a machine busy with other tests may take for a job."""
KNOBS = {
    "training.max_steps": "80",
    "training.learning_rate": "0.005",
    "data.max_source_length": "64",
    "data.max_target_length": "64",
}
NAMELESS = """() => [...document.querySelectorAll('input, textarea, select, button, iframe')].filter(field => {
  const named = field.labels?.length || field.getAttribute('aria-label') || field.getAttribute('aria-labelledby')
    || field.title || field.innerText?.trim();
  return field.checkVisibility() && field.type !== 'file' && !named;
}).map(field => field.outerHTML.slice(0, 200))"""
CUT_OFF = """() => [...document.querySelectorAll('button, input, textarea, label, h1, h3, p, svg')].filter(part => {
  const box = part.getBoundingClientRect();
  const scrolls = part.closest('.scroll, pre, .cm-editor, .visually-hidden');
  return part.checkVisibility() && box.width && !scrolls && (box.right > innerWidth + 1 || box.left < -1);
}).map(part => part.outerHTML.slice(0, 200))"""


class Site:
    """A server in a folder of its own, and a page of it in a browser."""

    def __init__(self, root: Path, browser, lang: str):
        self.root, self.lang = root, lang
        log = (root / "server.log").open("wb")
        self.server = subprocess.Popen(
            [sys.executable, "-m", "glmtune", "ui", "--port", "0", "--lang", lang, "--root", str(root)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            env={**os.environ, "GLMTUNE_CACHE": str(root / ".cache"), "PYTHONUNBUFFERED": "1"},
        )
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(SLOW)
        self.complaints: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._look_at)
        self.page.goto(self._address())
        self.page.get_by_role("tab").first.wait_for()

    def _address(self) -> str:
        limit = time.monotonic() + SLOW / 1000
        while time.monotonic() < limit and self.server.poll() is None:
            found = re.search(r"http://\S+", (self.root / "server.log").read_text())
            if found:
                return found.group()
            time.sleep(0.2)
        raise AssertionError((self.root / "server.log").read_text())

    def _look_at(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.complaints.append(f"leaves the machine: {request.url}")

    def speak(self, lang: str) -> None:
        self.lang = lang
        tab = self.page.get_by_role("tab", name=text("tab.train", lang), exact=True)
        # While it loads, a page takes on the language that the browser kept, so one click may be too early.
        for _ in range(20):
            self.page.locator("#language label", has_text=LANGUAGES[lang]).click()
            self.page.wait_for_timeout(2000)
            if tab.count():
                return
        raise AssertionError(f"the page does not speak {lang}")

    def reload(self) -> None:
        """Gradio's own client complains of the requests that a reload cuts off; all else still counts."""
        before = len(self.complaints)
        self.page.reload()
        self.page.get_by_role("tab").first.wait_for()
        self.page.wait_for_timeout(1000)
        cut_off = ("AbortError", "aborted", "errored out")
        self.complaints[before:] = [c for c in self.complaints[before:] if not any(words in c for words in cut_off)]

    def open(self, tab: str) -> None:
        name = text(f"tab.{tab}", self.lang)
        self.page.get_by_role("tab", name=name, exact=True).click()
        expect(self.page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")

    def choose(self, field: str, option: str) -> None:
        self.page.locator(f"{field} input").first.click()
        self.page.locator(field).get_by_role("option", name=option, exact=True).click()
        self.page.keyboard.press("Escape")  # a list of several stays open

    def click(self, button: str) -> None:
        expect(self.page.locator(button)).to_be_enabled(timeout=SLOW)
        self.page.locator(button).click()

    def wait_for(self, place: str, words: str | re.Pattern[str]) -> None:
        expect(self.page.locator(place)).to_contain_text(words, timeout=SLOW)

    def ask(self, message: str) -> None:
        self.page.locator("#chat-prompt textarea").fill(message)
        self.page.locator("#chat-prompt textarea").press("Enter")
        # The field is emptied by the first piece of the answer, which also replaces the status of the one before.
        expect(self.page.locator("#chat-prompt textarea")).to_have_value("", timeout=SLOW)
        done = text("chat.done", self.lang, seconds="X").replace("X", r"[\d.]+")
        self.wait_for("#chat-status", re.compile(rf"^\s*{done}\s*$"))

    def reply(self, chat: str = "#chat-first") -> str:
        return self.page.locator(f"{chat} .bot").last.inner_text().strip()

    def job_ends(self, panel: str) -> None:
        self.wait_for(
            f"{panel}-status", re.compile("|".join(text(f"job.{s}", self.lang) for s in ("finished", "failed")))
        )
        log = self.page.locator(f"{panel}-log textarea").input_value()
        assert text("job.finished", self.lang) in self.page.locator(f"{panel}-status").inner_text(), log

    def close(self) -> None:
        self.page.close()
        self.server.send_signal(signal.SIGINT)
        self.server.wait(timeout=60)


@pytest.fixture
def site(tmp_path):
    """`site(lang)`: a running server with base and rows in its root, and a page of it."""
    shutil.copytree(str(files("glmtune.demo") / "base"), tmp_path / "base")
    for name, rows in make_adgen_splits({"train": 400, "dev": 8}).items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    opened: list[Site] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_site(lang: str) -> Site:
            opened.append(Site(tmp_path, browser, lang))
            return opened[-1]

        yield open_site
        browser.close()
    for each in opened:
        if each.server.poll() is None:
            each.server.kill()
            each.server.wait()
    for job in _jobs(tmp_path):
        if job["pid"] and _is_alive(job):
            os.killpg(job["pid"], signal.SIGKILL)


def test_from_a_folder_to_a_model_in_chinese(site):
    here = site("zh")
    _look_at_model(here)
    _look_at_data(here)
    _train_stop_and_resume(here)
    _look_at_runs(here)
    _compare_in_chat(here)
    _evaluate(here)
    _export_and_reload(here)
    _check_every_tab(here)
    assert here.complaints == []


def test_english_a_vanished_model_and_what_is_left_after_closing(site):
    here = site("zh")
    here.speak("en")
    (here.root / "hostile.json").write_text(
        json.dumps({"content": "<script>window.hacked = 1</script>", "summary": "<img src=x onerror='hacked=1'>"})
    )
    _look_at_row(here, "hostile.json", "<script>")
    _lose_model_in_chat(here)
    _check_every_tab(here)
    assert here.page.evaluate("window.hacked") is None
    assert here.complaints == []
    _only_the_training_goes_on(here)


def _look_at_model(here: Site) -> None:
    # The model's tab is the one that opens first; its fields have no other name than their labels.
    field = f"input[aria-label='{text('name.model.path', here.lang)}']"
    here.page.locator(field).locator("visible=true").first.click()
    here.page.get_by_role("option", name="base", exact=True).click()
    here.page.get_by_role("button", name=text("model.look", here.lang), exact=True).click()
    here.wait_for("#model-facts", "ChatGLM3-6B")


def _look_at_data(here: Site) -> None:
    here.open("data")
    here.choose("#data-file", "train.json")
    here.click("#data-check")
    here.wait_for("#data-findings", text("data.longest", here.lang))
    _look_at_row(here, "train.json", "类型")


def _look_at_row(here: Site, file: str, words: str) -> None:
    here.open("data")
    here.choose("#data-file", file)
    here.choose("#data-model", "base")
    here.click("#data-show")
    expect(here.page.frame_locator("#data-row iframe").locator("body")).to_contain_text(words, timeout=SLOW)


def _fill_training(here: Site, output: str) -> None:
    here.open("train")
    here.choose("#train-model", "base")
    if not here.page.locator("#train-data").get_by_text("train.json").count():
        here.choose("#train-data", "train.json")
    here.choose("#train-eval", "dev.json")
    for key, value in KNOBS.items():
        field = here.page.get_by_label(text(f"name.{key}", here.lang)).locator("visible=true").first
        field.fill(value)
        field.blur()
    here.page.locator("#train-output").get_by_role("textbox").fill(output)
    here.page.locator("#train-output").get_by_role("textbox").blur()
    here.wait_for("#train-yaml", "max_steps: 80")


def _train_stop_and_resume(here: Site) -> None:
    _fill_training(here, "runs/web")
    here.click("#train-start")
    bar, curve = here.page.locator("#train-status [role=progressbar]"), here.page.locator("#train-curves path").first
    curve.wait_for(state="attached")
    before = (bar.get_attribute("aria-valuenow"), curve.get_attribute("d"))
    expect(bar).not_to_have_attribute("aria-valuenow", before[0], timeout=SLOW)
    expect(curve).not_to_have_attribute("d", before[1], timeout=SLOW)
    here.click("#train-stop")
    here.wait_for("#train-status .state", text("state.stopped", here.lang))
    here.reload()  # a page that knows nothing finds the training again
    here.page.get_by_role("tab").first.wait_for()
    here.open("train")
    here.page.locator("#train-earlier button").first.click()
    here.choose("#train-run", "runs/web")
    here.click("#train-resume")
    here.wait_for("#train-status .state", text("state.finished", here.lang))
    steps = [json.loads(line)["step"] for line in (here.root / "runs/web/metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 80
    assert len([step for step in steps if step == 10]) == 1


def _look_at_runs(here: Site) -> None:
    here.open("runs")
    here.wait_for("#runs-list tbody", "runs/web")
    here.page.locator("#runs-curves path").first.wait_for(state="attached")
    here.click("#runs-report")
    expect(here.page.frame_locator("#runs-frame iframe").locator("body")).to_contain_text("train.json", timeout=SLOW)


def _compare_in_chat(here: Site) -> None:
    here.open("chat")
    here.choose("#chat-model", "runs/web")
    here.page.locator("#chat-both input").check()
    here.choose("#chat-other", "base")
    here.ask(PROMPT)
    tuned, base = here.reply(), here.reply("#chat-second")
    assert base.startswith("*")  # the base answers with a list
    assert tuned
    assert tuned != base
    here.click("#chat-again")
    expect(here.page.locator("#chat-first .bot")).to_have_count(1)
    here.page.locator("#chat-both input").uncheck()


def _evaluate(here: Site) -> None:
    here.open("evaluate")
    here.choose("#evaluate-model", "runs/web")
    here.choose("#evaluate-data", "dev.json")
    here.page.locator("#evaluate-limit input").fill("4")
    here.page.locator("#evaluate-tokens input").fill("32")
    here.click("#evaluate-start")
    here.job_ends("#evaluate-job")
    here.wait_for("#evaluate-table tbody", "runs/web/eval/dev")
    expect(here.page.frame_locator("#evaluate-frame iframe").locator("body")).to_contain_text("ROUGE-L", timeout=SLOW)


def _export_and_reload(here: Site) -> None:
    here.open("export")
    here.choose("#export-model", "runs/web")
    expect(here.page.locator("#export-output").get_by_role("textbox")).to_have_value("exports/runs-web-hf-16bit")
    here.click("#export-start")
    here.job_ends("#export-job")
    here.open("chat")
    here.page.locator("#chat-clear").click()
    tuned = _answer_of(here, "runs/web")
    assert _answer_of(here, "exports/runs-web-hf-16bit") == tuned


def _answer_of(here: Site, model: str) -> str:
    here.choose("#chat-model", model)
    here.click("#chat-clear")
    expect(here.page.locator("#chat-first .bot")).to_have_count(0)
    here.ask(PROMPT)
    return here.reply()


def _lose_model_in_chat(here: Site) -> None:
    shutil.copytree(here.root / "base", here.root / "gone")
    here.open("chat")
    here.click("#chat-refresh")
    here.choose("#chat-model", "gone")
    here.ask("<b>你好</b>")
    expect(here.page.locator("#chat-first .user").last).to_have_text(re.compile("<b>你好</b>"))
    shutil.rmtree(here.root / "gone")
    here.page.locator("#chat-prompt textarea").fill("again")
    here.click("#chat-send")
    here.wait_for("#chat-status", "gone: is not there any more.")
    expect(here.page.locator("#chat-prompt textarea")).to_have_value("again")


def _check_every_tab(here: Site) -> None:
    """Labels for every field, and nothing cut off, wide and narrow."""
    for width in (1280, 390):
        here.page.set_viewport_size({"width": width, "height": 900})
        for tab in TABS:
            here.open(tab)
            here.page.wait_for_timeout(300)
            assert here.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (tab, width)
            assert here.page.evaluate(CUT_OFF) == [], (tab, width)
            assert here.page.evaluate(NAMELESS) == [], (tab, width)
    here.page.set_viewport_size({"width": 1280, "height": 900})


def _only_the_training_goes_on(here: Site) -> None:
    _fill_training(here, "runs/goes-on")
    here.click("#train-start")
    here.page.locator("#train-curves path").first.wait_for(state="attached")
    family = psutil.Process(here.server.pid).children(recursive=True)
    here.close()
    job = next(job for job in _jobs(here.root) if job["output"].endswith("goes-on"))
    training = {job["pid"], *(child.pid for child in psutil.Process(job["pid"]).children(recursive=True))}
    assert _is_alive(job)
    left = {process.pid for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE}
    assert left <= training
    (here.root / "runs/goes-on/stop").touch()
    psutil.Process(job["pid"]).wait(timeout=SLOW / 1000)
    assert json.loads((here.root / "runs/goes-on/summary.json").read_text())["state"] in ("stopped", "finished")


def _jobs(root: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (root / ".glmtune-ui" / "jobs").glob("[!.]*.json")]


def _is_alive(job: dict) -> bool:
    try:
        process = psutil.Process(job["pid"])
        return process.create_time() == job["born"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
