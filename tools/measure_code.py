"""Measure the size and the naming of a source tree: `python tools/measure_code.py [SRC ...] [--trace]`.

Prints a markdown table with a column per tree, so that two checkouts can be compared:

    git worktree add /tmp/before v0.1.0
    python tools/measure_code.py /tmp/before/src src --trace

`--trace` needs the test requirements: it runs a training of one step on a tiny random checkpoint and counts the files
of `cli` and `training` whose functions run between the command and the optimiser's step.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import subprocess
import sys
from pathlib import Path

# fmt: off
PARTICIPLES = frozenset({
    "told", "said", "made", "held", "kept", "seen", "found", "known", "wanted", "asked", "given", "put", "meant",
    "done", "shown",
})
# fmt: on
# Names that a protocol, torch or transformers prescribes: nobody can choose another word.
PROTOCOL = frozenset(
    ["forward", "backward", "main", "prepare", "read", "write", "save", "load", "convert", "train", "eval"]
)


def measure_tree(root: Path) -> dict[str, str]:
    """Measure the Python files below `root`.

    Returns:
        Name of a figure -> its value as text.
    """
    sources = {path: path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    line_count = sum(len(text.splitlines()) for text in sources.values())
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    names = [node.name for node in functions if not (node.name.startswith("__") and node.name.endswith("__"))]
    one_word = [name for name in names if "_" not in name.strip("_")]
    lengths = sorted(node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno)
    bindings = [name for tree in trees.values() for name in _bound_names(tree)]
    participles = [name for name in bindings if name.strip("_").lower() in PARTICIPLES]
    return {
        "lines": f"{line_count:,}",
        "files": str(len(sources)),
        "longest file": str(max(len(text.splitlines()) for text in sources.values())),
        "functions per 1,000 lines": f"{1000 * len(functions) / line_count:.1f}",
        "function length, median / longest": f"{lengths[len(lengths) // 2]} / {lengths[-1]}",
        "function names of one word": f"{100 * len(one_word) / len(names):.0f} %",
        "the same without names that a protocol prescribes": (
            f"{100 * sum(name.strip('_') not in PROTOCOL for name in one_word) / len(names):.0f} %"
        ),
        "participles as names, per 1,000 lines": f"{1000 * len(participles) / line_count:.1f}",
        "private helpers used once": str(_count_used_once(trees)),
        "class names that occur twice": str(_count_repeated_classes(trees)),
        "module names that occur twice": str(
            sum(count > 1 for count in collections.Counter(p.name for p in sources if p.stem != "__init__").values())
        ),
    }


def _bound_names(tree: ast.AST) -> list[str]:
    """Names of variables and parameters, at every place where they are written or read."""
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return names + [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]


def _count_used_once(trees: dict[Path, ast.Module]) -> int:
    count = 0
    for tree in trees.values():
        uses = collections.Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        uses += collections.Counter(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        private = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("_")]
        count += sum(uses[name] == 1 for name in private if not name.endswith("__"))
    return count


def _count_repeated_classes(trees: dict[Path, ast.Module]) -> int:
    names = collections.Counter(
        n.name for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    )
    return sum(count > 1 for count in names.values())


# Runs in a process of its own with the tree's `src` and `tests` on its path.
_TRACE = """
import json, os, sys, tempfile
from pathlib import Path
import torch
from tiny import make_tiny
root = os.path.realpath(sys.argv[1]) + "/"
folder = Path(tempfile.mkdtemp())
os.environ["GLMTUNE_CACHE"] = str(folder / "cache")
make_tiny("chatglm3", folder / "model")
row = json.dumps({"content": "abc", "summary": "abcd"})
(folder / "rows.json").write_text("\\n".join([row] * 8))
files = set()

def profile(frame, event, _):
    path = frame.f_code.co_filename
    if event == "call" and path.startswith(root) and frame.f_code.co_name != "<module>":
        files.add(path[len(root):])

step = torch.optim.AdamW.step

def first_step(self, *args, **kwargs):
    frame = sys._getframe()
    while frame:
        if "/plan/" in frame.f_code.co_filename:  # the plan's own step on tensors without memory
            return step(self, *args, **kwargs)
        frame = frame.f_back
    sys.setprofile(None)
    read = [path for path in files if path.startswith(("cli", "training"))]
    lines = sum(len(Path(root, path).read_text("utf-8").splitlines()) for path in read)
    print("TRACE", json.dumps([len(read), lines]), flush=True)
    os._exit(0)

torch.optim.AdamW.step = first_step
from glmtune.__main__ import main
sys.argv = ["glmtune", "train", "--model", str(folder / "model"), "--data", str(folder / "rows.json"),
            "--output", str(folder / "run"), "--set", "training.max_steps=1"]
sys.setprofile(profile)
main()
"""


def trace_training(src: Path) -> str:
    """Files and lines of `cli` and `training` between the command and the first optimiser step."""
    repository = src.resolve().parent
    paths = [str(src.resolve()), str(repository / "tests"), str(repository / "tools")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _TRACE, str(src / "glmtune")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for line in result.stdout.splitlines():
        if line.startswith("TRACE "):
            files, lines = json.loads(line.removeprefix("TRACE "))
            return f"{files} files, {lines:,} lines"
    raise SystemExit(f"the training of {src} did not reach a step:\n{result.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", nargs="*", type=Path, default=[Path("src")])
    parser.add_argument("--trace", action="store_true", help="also run a step and count the files on its way")
    options = parser.parse_args()
    columns = []
    for src in options.src:
        figures = measure_tree(src)
        if options.trace:
            figures["from `glmtune train` to the optimiser's step"] = trace_training(src)
        columns.append(figures)
    print("| | " + " | ".join(str(src) for src in options.src) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(figures[name] for figures in columns) + " |")


if __name__ == "__main__":
    main()
