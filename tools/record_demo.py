"""Run the demo in a terminal and make the animated picture of the README of it, and the picture of its losses.

pip install pyte && python tools/record_demo.py docs/images --cast demo.cast
python tools/record_demo.py docs/images --cast demo.cast --replay      # the picture again, of the recorded terminal

The picture shows the real run in less time: waiting is shortened, and each part stays long enough to be read. The
recording is an asciicast (https://docs.asciinema.org/manual/asciicast/v2/), which `asciinema play` shows too. Fonts:
DejaVu Sans Mono and WenQuanYi Micro Hei (Debian: fonts-dejavu-core, fonts-wqy-microhei).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pexpect
import pyte
from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS = 100, 36
CELL_WIDTH, CELL_HEIGHT, FONT_SIZE, MARGIN = 8, 17, 13, 10
FONTS = Path("/usr/share/fonts/truetype")
# Seconds that a picture stays at least, that everything but the pauses below takes at most, and that the
# last picture stays.
SHORTEST_S, MOVING_S, LAST_S = 0.12, 14.0, 8.0
# Before a line that starts a part of the story.
PAUSES_S = {"2/4": 2.0, "3/4": 1.5, "The same prompts": 2.5, "Curves, scores": 4.0, "4/4": 1.0}
COLORS = {
    "default": "#d8dee9",
    "background": "#1e222a",
    "black": "#4c566a",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#eceff4",
}


class TerminalOutput(NamedTuple):
    """Text that a program wrote, and when."""

    seconds: float
    text: str


def record(command: str, folder: Path) -> list[TerminalOutput]:
    """Run a command in a terminal and return what it writes.

    Args:
        command: of glmtune, which is the one of this Python.
        folder: where it runs.

    Raises:
        SystemExit: it fails.
    """
    environment = {**os.environ, "TERM": "xterm-256color", "GLMTUNE_CACHE": str(folder / ".cache"), "LANG": "C.UTF-8"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    start = time.monotonic()
    outputs = [TerminalOutput(0.0, "$ ")]
    outputs += [TerminalOutput(0.5 + i / 20, letter) for i, letter in enumerate(command)]
    outputs.append(TerminalOutput(1.5, "\r\n"))
    terminal = pexpect.spawn(
        *("/bin/sh", ["-c", command]), cwd=folder, env=environment, encoding="utf-8", dimensions=(ROWS, COLUMNS)
    )
    while True:
        try:
            text = terminal.read_nonblocking(65536, timeout=600)
        except pexpect.EOF:
            break
        outputs.append(TerminalOutput(1.5 + time.monotonic() - start, text))
    terminal.close()
    if terminal.exitstatus:
        sys.exit(f"{command} ended with exit code {terminal.exitstatus}")
    return outputs


def write_cast(outputs: list[TerminalOutput], path: Path) -> None:
    """Write a recording as an asciicast, version 2."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "glmtune demo"}
    lines = [header, *([round(output.seconds, 3), "o", output.text] for output in outputs)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read_cast(path: Path) -> list[TerminalOutput]:
    """Read a recording that `write_cast` wrote."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]
    return [TerminalOutput(seconds, text) for seconds, _, text in lines]


def split_lines(outputs: list[TerminalOutput]) -> list[tuple[float, str]]:
    """What is written line by line, each with the seconds that the picture before it stays."""
    waits = [0.0, *(min(b.seconds - a.seconds, 1.0) for a, b in pairwise(outputs))]
    speed = max(1.0, sum(waits) / MOVING_S)
    pieces = []
    for output, wait in zip(outputs, waits, strict=True):
        wait /= speed
        for line in output.text.splitlines(keepends=True):
            pause = max((seconds for words, seconds in PAUSES_S.items() if words in line), default=0.0)
            pieces.append((max(wait, pause), line))
            wait = 0.0
    return pieces


def draw_screen(screen: pyte.Screen, fonts: dict[str, ImageFont.FreeTypeFont]) -> Image.Image:
    """The picture of a terminal's screen."""
    size = (COLUMNS * CELL_WIDTH + 2 * MARGIN, ROWS * CELL_HEIGHT + 2 * MARGIN)
    image = Image.new("RGB", size, COLORS["background"])
    draw = ImageDraw.Draw(image)
    for row in range(ROWS):
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            if cell.data.strip():
                wide = ord(cell.data[0]) >= 0x2E80
                font = fonts["wide" if wide else "bold" if cell.bold else "normal"]
                place = (MARGIN + column * CELL_WIDTH, MARGIN + row * CELL_HEIGHT)
                draw.text(place, cell.data, _find_color(cell.fg), font, anchor="la")
    return image


def _find_color(name: str) -> str:
    if name in COLORS:
        return COLORS[name]
    return f"#{name}" if len(name) == 6 else COLORS.get(name.removeprefix("bright"), COLORS["default"])


def render(outputs: list[TerminalOutput], path: Path) -> None:
    """Write a recording as an animated GIF."""
    fonts = {
        "normal": ImageFont.truetype(str(FONTS / "dejavu" / "DejaVuSansMono.ttf"), FONT_SIZE),
        "bold": ImageFont.truetype(str(FONTS / "dejavu" / "DejaVuSansMono-Bold.ttf"), FONT_SIZE),
        "wide": ImageFont.truetype(str(FONTS / "wqy" / "wqy-microhei.ttc"), FONT_SIZE),
    }
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    images: list[Image.Image] = []
    durations: list[float] = []
    pending = 0.0
    for wait, line in split_lines(outputs):
        pending += wait
        if pending >= SHORTEST_S:
            images.append(draw_screen(screen, fonts))
            durations.append(pending)
            pending = 0.0
        stream.feed(line)
    images.append(draw_screen(screen, fonts))
    durations.append(LAST_S)
    palette = _join_pictures(images).quantize(64)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    milliseconds = [round(seconds * 100) * 10 for seconds in durations]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=True)
    print(f"{path}: {len(frames)} pictures, {sum(durations):.0f} s, {path.stat().st_size / 1000:.0f} kB")


def _join_pictures(images: list[Image.Image]) -> Image.Image:
    """Ten of the pictures below each other, so that the palette has the colours of all parts."""
    chosen = images[:: max(1, len(images) // 10)]
    whole = Image.new("RGB", (chosen[0].width, chosen[0].height * len(chosen)))
    for i, image in enumerate(chosen):
        whole.paste(image, (0, i * image.height))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of the pictures")
    parser.add_argument("--cast", type=Path, required=True, help="file of the recording")
    parser.add_argument("--replay", action="store_true", help="make the picture of a recording that is there")
    arguments = parser.parse_args()
    if not arguments.replay:
        with tempfile.TemporaryDirectory() as name:
            write_cast(record("glmtune demo", Path(name)), arguments.cast)
            shutil.copyfile(Path(name) / "glmtune-demo" / "run" / "loss.png", arguments.images / "demo-loss.png")
    render(read_cast(arguments.cast), arguments.images / "demo.gif")


if __name__ == "__main__":
    main()
