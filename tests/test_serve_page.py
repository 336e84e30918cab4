"""The page of `glmtune serve` in a real browser, with an engine that answers what the test says."""

from __future__ import annotations

import json
import shutil
import threading
import time

import pytest

from fake_engine import FakeEngine
from glmtune import detect_family, load_tokenizer
from glmtune.html.i18n import load_texts
from glmtune.utils.network import listen

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra: serve)")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from glmtune.serve.app import make_app  # noqa: E402
from glmtune.serve.context import ServeContext, ServedModel, ServeLimits  # noqa: E402
from glmtune.serve.request_guard import AccessRules  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
NAMELESS = """() => [...document.querySelectorAll('input, textarea, select, button')].filter(field =>
  field.checkVisibility() && !field.labels?.length && !field.getAttribute('aria-label') && !field.innerText.trim()
).map(field => field.outerHTML)"""
CUT_OFF = """() => [...document.querySelectorAll('button, input, textarea, select, .message, .bar')].filter(part => {
  const box = part.getBoundingClientRect();
  return part.checkVisibility() && (box.right > innerWidth + 1 || box.left < -1);
}).map(part => part.outerHTML)"""


@pytest.fixture
def site(tiny):
    """The engine, and a page that asks for the key `k`."""
    folder, engine = tiny("glm4"), FakeEngine(["<b>你", "好", "</b>"])
    context = ServeContext(
        engine, load_tokenizer(folder), detect_family(folder), [ServedModel("mine")], ServeLimits(8192)
    )
    app = make_app(context, AccessRules("k", is_local=False))
    with listen("127.0.0.1", 0, "serve") as listener, playwright.sync_playwright() as drivers:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        browser = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.complaints, page.hosts = [], set()
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
        page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        yield engine, page
        browser.close()
        server.should_exit = True
        thread.join()


def test_a_conversation_with_tools_in_both_languages(site):
    engine, page = site
    english, chinese = load_texts("en"), load_texts("zh")
    playwright.expect(page.locator("#problem")).to_have_text(english["serve.chat.need_key"])
    page.fill("#key", "k")
    page.dispatch_event("#key", "change")
    playwright.expect(page.locator("#model")).to_have_value("mine")
    playwright.expect(page.locator("#problem")).to_be_hidden()

    # What a model writes is text.
    page.fill("#prompt", "你好")
    page.press("#prompt", "Enter")
    playwright.expect(page.locator(".message.assistant .text")).to_have_text("<b>你好</b>")
    playwright.expect(page.locator(".message.assistant .meta")).to_contain_text("3")

    page.fill("#tools", json.dumps([WEATHER]))
    engine.pieces = ['get_weather\n{"city": "北京"}']
    page.fill("#prompt", "天气？")
    page.click("#send")
    playwright.expect(page.locator(".call pre")).to_have_text('get_weather({"city": "北京"})')
    engine.pieces = ["晴"]
    page.fill(".call textarea", "31 度")
    page.click(".call button")
    playwright.expect(page.locator(".message.assistant .text").last).to_have_text("晴")

    page.click("label[for=lang-zh]")
    playwright.expect(page.locator("#send")).to_have_text(chinese["serve.chat.send"], use_inner_text=True)
    playwright.expect(page.locator(".message.user b").first).to_have_text(chinese["serve.chat.you"])
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(CUT_OFF) == []

    # Stopped: the engine is told.
    engine.is_waiting = True
    page.fill("#prompt", "再说")
    page.press("#prompt", "Enter")
    page.click("#stop")
    playwright.expect(page.locator("#send")).to_be_visible()
    end = time.monotonic() + 10
    while not engine.cancelled and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.cancelled == engine.requests[-1:]
    page.click("#clear")
    playwright.expect(page.locator(".message")).to_have_count(0)
    assert page.complaints == []
    assert len(page.hosts) == 1
