"""Pictures of the tutorials: terminals, loss curves, reports and the web page of a recorded folder."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

_WIDTH = 1180
_COLORS = 128
_TIMEOUT_MS = 120_000
_FOLDER_SHOWN = "/mnt/workspace"
_REPLACE_TEXT = """([old, now]) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) walker.currentNode.nodeValue = walker.currentNode.nodeValue.replaceAll(old, now);
}"""


def take_pictures(name: str, folder: Path, log: str, environment: dict[str, str], images: Path) -> None:
    """Make the pictures of one page.

    Args:
        name: of the page, without `.md`.
        folder: in which its commands were run.
        log: the commands with their output, as `record_tutorials.py` keeps them.
        environment: variables of the commands.
        images: folder of the pictures.
    """
    prefix = name.split("-")[0]
    for curve in sorted(folder.glob("runs/*/loss.png"))[:1]:
        save_reduced(curve, images / f"{prefix}-loss.png")
    parts = re.split(r"^(?=\$ )", log, flags=re.MULTILINE)
    chats = [part for part in parts if part.startswith("$ glmtune chat")]
    if chats:
        draw_terminal("".join(chats[:3]), images / f"{prefix}-chat.svg")
    if prefix not in ("qlora", "web"):
        return
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if prefix == "web":
            photograph_page(browser, folder, environment, images)
        else:
            report = next(folder.glob("runs/*/eval/compare-*/report.html"))
            photograph_file(browser, report, images / f"{prefix}-report.png")
        browser.close()


def save_reduced(source: Path, target: Path) -> None:
    """Save a picture with at most `_WIDTH` columns and a palette, for a page that loads fast."""
    picture = Image.open(source).convert("RGB")
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(_COLORS, dither=Image.Dither.NONE).save(target, optimize=True)


def draw_terminal(text: str, target: Path) -> None:
    """Draw the text of a terminal, commands in bold; the fonts are the reader's own."""
    console = Console(record=True, width=82, force_terminal=True, file=io.StringIO())
    for line in text.rstrip().splitlines():
        console.print(Text(line, style="bold green" if line.startswith("$ ") else ""))
    svg = console.export_svg(title="glmtune", theme=MONOKAI)
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), "utf-8")


def photograph_file(browser: Browser, source: Path, target: Path) -> None:
    """The top of a report."""
    page = browser.new_page(viewport={"width": _WIDTH, "height": 900})
    page.goto(source.as_uri())
    page.wait_for_timeout(800)
    shoot(page.screenshot, target)
    page.close()


def shoot(screenshot: Callable[..., bytes], target: Path) -> None:
    """Save a screenshot with a palette."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        screenshot(path=file.name)
        save_reduced(Path(file.name), target)


@contextmanager
def run_server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The web page of a folder during the block; yields its address."""
    log = folder / "server.log"
    command = [sys.executable, "-u", "-m", "glmtune", "ui", "--port", "0", "--lang", "en"]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        while not (address := re.search(r"http://\S+", log.read_text())):
            time.sleep(0.2)
        yield address.group()
    finally:
        server.terminate()
        server.wait()


def photograph_page(browser: Browser, folder: Path, environment: dict[str, str], images: Path) -> None:
    """The tabs that the tutorial of the web page shows."""
    with run_server(folder, environment) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 820})
        page.set_default_timeout(_TIMEOUT_MS)
        for name, tab, fill_tab in (
            ("data", "data", _fill_data),
            ("run", "runs/show?path=runs/orange", _wait_for_curve),
            ("chat", "chat", _fill_chat),
            ("export", "export", _fill_export),
        ):
            page.goto(f"{address}/{tab}")
            fill_tab(page)
            page.wait_for_timeout(1000)
            page.evaluate(_REPLACE_TEXT, [str(folder), _FOLDER_SHOWN])
            shoot(page.screenshot, images / f"web-{name}.png")
        page.close()


def fill(page: Page, field: str, value: str) -> None:
    """Type into a field and leave it."""
    page.locator(field).fill(value)
    page.locator(field).blur()


def _fill_data(page: Page) -> None:
    fill(page, "#data-model-input", "chatglm3-6b")
    fill(page, "#data-file-input", "dataset_info.json:self_cognition")
    page.locator("#data-rows tbody tr").first.wait_for()


def _wait_for_curve(page: Page) -> None:
    page.locator("canvas").first.wait_for(state="attached")


def _fill_chat(page: Page) -> None:
    fill(page, "#chat-model-input", "runs/orange")
    fill(page, "#chat-other-input", "chatglm3-6b")
    page.locator("#chat-open button").click()
    page.locator("#chat-prompt").fill("你是谁？")
    page.locator("#chat-send").click()
    page.locator("[data-side='1'] .assistant .tools").wait_for()


def _fill_export(page: Page) -> None:
    fill(page, "#export-model-input", "runs/orange")
    page.locator("#export-start:enabled").wait_for()
