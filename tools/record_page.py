"""Pictures of every tab of the web page, in both languages: `python tools/record_page.py docs/images`.

Trains on the demo's base for a minute first, so that there is something to show.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

TABS = ("data", "train", "runs", "chat", "evaluate", "export", "model", "migrate")
SCRIPT = """PRE_SEQ_LEN=128
LR=2e-2
CUDA_VISIBLE_DEVICES=0 python3 main.py --do_train --train_file AdvertiseGen/train.json \\
    --prompt_column content --response_column summary --overwrite_cache \\
    --model_name_or_path THUDM/chatglm-6b --output_dir output/adgen-chatglm-6b-pt-$PRE_SEQ_LEN-$LR \\
    --max_source_length 64 --max_target_length 64 --per_device_train_batch_size 1 \\
    --gradient_accumulation_steps 16 --max_steps 3000 --learning_rate $LR --pre_seq_len $PRE_SEQ_LEN
"""
PROMPT = "类型#裙*颜色#白色*风格#清新"
_TIMEOUT_MS = 300_000


def main(output: Path) -> None:
    """Write `ui-TAB-LANG.png` for every tab and language."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare_root(root)
        for lang in ("zh", "en"):
            server, address = start_server(root, lang)
            try:
                take_pictures(address, output, lang)
            finally:
                server.terminate()
                server.wait()


def prepare_root(root: Path) -> None:
    """A base, rows with a `dataset_info.json`, and two runs of them, one evaluated."""
    shutil.copytree(str(files("glmtune.demo") / "base"), root / "chatglm3-demo")
    for name in ("train", "dev"):
        shutil.copy(str(files("glmtune.demo") / "data" / f"{name}.jsonl"), root / f"{name}.jsonl")
    columns = {"prompt": "content", "response": "summary"}
    entries = {f"adgen_{name}": {"file_name": f"{name}.jsonl", "columns": columns} for name in ("train", "dev")}
    (root / "dataset_info.json").write_text(json.dumps(entries))
    limits = ["data.max_source_length=64", "data.max_target_length=64", "training.eval_steps=20"]
    limits += ["training.eval_strategy=steps", "training.logging_steps=2", "training.max_steps=120"]
    for rank, name in ((8, "rank-8"), (32, "rank-32")):
        settings = [f"lora.rank={rank}", "training.learning_rate=3e-3", *limits]
        command = ["train", "--model", "chatglm3-demo", "--data", "train.jsonl", "--eval-data", "dev.jsonl"]
        run_command(root, *command, "--output", f"runs/{name}", *(f"--set={setting}" for setting in settings))
    run_command(root, "eval", "runs/rank-8", "--data", "dev.jsonl", "--limit", "16", "--max-new-tokens", "48")


def run_command(root: Path, *arguments: str) -> None:
    """A command of glmtune in a folder."""
    subprocess.run([sys.executable, "-m", "glmtune", *arguments], cwd=root, check=True)


def start_server(root: Path, lang: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server of the page, and its address."""
    log = root / f"server-{lang}.log"
    command = [sys.executable, "-u", "-m", "glmtune", "ui", "--port", "0", "--lang", lang]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, cwd=root, stdout=stream, stderr=subprocess.STDOUT)
    while not (address := re.search(r"http://\S+", log.read_text())):
        time.sleep(0.2)
    return server, address.group()


def take_pictures(address: str, output: Path, lang: str) -> None:
    """Fill every tab and take its picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(_TIMEOUT_MS)
        for tab in TABS:
            page.goto(f"{address}/{tab}")
            _FILL[tab](page)
            page.wait_for_timeout(800)
            page.screenshot(path=output / f"ui-{tab}-{lang}.png")
        browser.close()


def fill(page: Page, field: str, value: str) -> None:
    """Type into a field and leave it."""
    page.locator(field).fill(value)
    page.locator(field).blur()


def _fill_data(page: Page) -> None:
    fill(page, "#data-model-input", "chatglm3-demo")
    fill(page, "#data-file-input", "dataset_info.json:adgen_train")
    page.locator("#data-rows tbody tr").first.wait_for()
    page.locator("#data-check").click()
    page.locator("#data-findings h2").wait_for()


def _fill_train(page: Page) -> None:
    fill(page, "#models-input", "chatglm3-demo")
    fill(page, "input[name='data.train']", "dataset_info.json:adgen_train")
    page.locator("#gpu-memory").select_option("8GB")
    page.locator("#goal-usual").click()
    page.locator("#goal-lines").wait_for()
    page.locator("#train-plan .callout").wait_for()


def _fill_runs(page: Page) -> None:
    for box in page.locator("#runs-table tbody input").all():
        box.check()
    page.locator("#runs-compare-button").click()
    page.locator("#runs-compare canvas").first.wait_for(state="attached")


def _fill_chat(page: Page) -> None:
    fill(page, "#chat-model-input", "runs/rank-8")
    fill(page, "#chat-other-input", "chatglm3-demo")
    with page.expect_navigation():
        page.locator("#chat-open button").click()
    page.locator("#chat-send:enabled").wait_for()  # both models are loaded
    page.locator("#chat-prompt").fill(PROMPT)
    page.locator("#chat-prompt").press("Enter")
    for side in (0, 1):
        page.locator(f"[data-side='{side}'] .message.assistant .tools").last.wait_for()
    page.locator("#votes button").first.click()
    page.locator("#votes-rate").wait_for()
    page.locator("#chats").evaluate("place => scrollTo(0, place.offsetTop - 130)")


def _fill_evaluate(page: Page) -> None:
    page.locator("#evaluate-results tbody button").first.wait_for()
    page.locator("#evaluate-results").scroll_into_view_if_needed()


def _fill_export(page: Page) -> None:
    fill(page, "#export-model-input", "runs/rank-8")
    page.locator("#export-start:enabled").wait_for()


def _fill_model(page: Page) -> None:
    fill(page, "#model-path-input", "chatglm3-demo")
    page.locator("#model-look").click()
    page.locator("#model-plan .callout").wait_for()


def _fill_migrate(page: Page) -> None:
    page.locator("#script").fill(SCRIPT)
    page.locator("#migrate-start").click()
    page.locator("#migrate-config").wait_for()


_FILL = {
    "data": _fill_data,
    "train": _fill_train,
    "runs": _fill_runs,
    "chat": _fill_chat,
    "evaluate": _fill_evaluate,
    "export": _fill_export,
    "model": _fill_model,
    "migrate": _fill_migrate,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
