"""Run the demo and save its screen and its loss curve for the README.

python tools/record_demo.py docs/images
rsvg-convert -w 1100 docs/images/demo.svg -o docs/images/demo.png
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from glmtune.demo.run_demo import run_demo
from glmtune.utils.console import use_console


def main() -> None:
    images = Path(sys.argv[1]).absolute()
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["GLMTUNE_CACHE"] = folder  # rows in the user's cache would show another path
        console = Console(record=True, width=104, force_terminal=True, force_interactive=False)
        with use_console(console):
            run = run_demo(Path("glmtune-demo"))
        shutil.copy(run.curve, images / "demo-loss.png")
        svg = console.export_svg(title="glmtune demo", theme=MONOKAI).replace(f"{folder}/", "")
        os.chdir(images)
    # The picture must not fetch fonts: the reader's own are used.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (images / "demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
