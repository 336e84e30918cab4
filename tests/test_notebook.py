"""The notebook: the file is what its tool writes, and it runs from top to bottom on a CPU."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat

import write_notebook

FORMATS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def read_output(cell):
    """What a cell has printed or returned, without colours."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return FORMATS.sub("", "".join(texts))


def test_the_file_is_what_the_tool_writes():
    """If not: python tools/write_notebook.py"""
    assert write_notebook.TARGET.read_text(encoding="utf-8") == write_notebook.format_notebook()


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """As on a machine without a GPU and with glmtune installed. A cell that raises fails the test."""
    notebook = nbformat.reads(write_notebook.format_notebook(), as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "100")
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = {cell.source: read_output(cell) for cell in notebook.cells if cell.cell_type == "code"}
    failures = [(source, text) for source, text in outputs.items() if re.search(r"^(Error|Traceback)", text, re.M)]
    assert not failures
    assert "4 rows" in next(text for source, text in outputs.items() if "data check" in source)
    assert (tmp_path / "runs/notebook/adapter/adapter_model.safetensors").is_file()
    assert (tmp_path / "adapter.zip").is_file()
    replies = next(text for source, text in outputs.items() if "model.chat" in source)
    assert re.search(r"^runs/notebook : \S", replies, re.MULTILINE)
    assert "BLEU-4" in next(text for source, text in outputs.items() if "compare" in source)
