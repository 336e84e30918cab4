"""Run the demo and keep its screen and its loss curve for the README.

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


def main() -> None:
    images = Path(sys.argv[1]).absolute()
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["GLMTUNE_CACHE"] = folder  # rows that were encoded before would show their old place
        console = Console(record=True, width=104, force_terminal=True, force_interactive=False)
        run = run_demo(Path("glmtune-demo"), console)
        shutil.copy(run.curve, images / "demo-loss.png")
        svg = console.export_svg(title="glmtune demo", theme=MONOKAI).replace(f"{folder}/", "")
        os.chdir(images)
    # Fonts are the reader's own: a picture must not fetch anything.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (images / "demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
