"""How this glmtune was installed: its version, and the command that installs more packages for the same Python."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from glmtune.utils.operating_system import is_windows
from glmtune.utils.shell_words import quote_program, quote_word

if TYPE_CHECKING:
    from importlib.metadata import Distribution

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
UNKNOWN_VERSION = "0+unknown"
"""Of a source tree that is not installed."""


@functools.cache
def read_version() -> str:
    """The version of the code that runs: that of its installation, made of git's tags when it was built.

    A source tree that runs without being installed (PYTHONPATH) has none, even if another copy is installed.
    """
    installed = find_installation()
    return UNKNOWN_VERSION if installed is None else installed.version


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; none of them is imported."""
    import platform
    from importlib.metadata import version

    names = ("torch", "transformers", "peft", "accelerate", "tokenizers")
    return {"python": platform.python_version(), "glmtune": read_version()} | {name: version(name) for name in names}


def describe_unknown_version(version: str) -> str | None:
    """Why a version does not say which code it is, in words; None for one that does."""
    if version == UNKNOWN_VERSION:
        return "a source tree that is not installed"
    if version == "0.0" or version.endswith(".dev0"):
        return "built from a copy without git's tags: which commit it is, is not known"
    return None


@functools.cache
def find_installation() -> Distribution | None:
    """The installed distribution whose files run now, or None for a source tree that is not installed."""
    from importlib.metadata import distributions

    for candidate in distributions(name="glmtune"):
        if Path(str(candidate.locate_file("glmtune"))).resolve() == PACKAGE_FOLDER:
            return candidate
        folder = _read_editable_folder(candidate)
        if folder is not None and PACKAGE_FOLDER.is_relative_to(folder):
            return candidate
    return None


def _read_editable_folder(candidate: Distribution) -> Path | None:
    """The checkout of `pip install -e`, None for another kind of installation."""
    import json

    try:
        read_metadata = candidate.read_text  # a file of the metadata, in UTF-8
        origin: Any = json.loads(read_metadata("direct_url.json") or "{}")
    except ValueError:
        return None
    url = urlparse(str(origin.get("url", "")))
    if url.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(url.path)).resolve()


def name_program() -> str:
    """How this glmtune is called in the user's shell: `glmtune` where PATH has it, otherwise its path from here.

    After `make demo` that is `.venv/bin/glmtune`; a Python without the script is called with `-m glmtune`.
    """
    folder = Path(sys.executable).parent
    program = shutil.which("glmtune")
    if program is not None and Path(program).parent == folder:
        return "glmtune"
    script = folder / ("glmtune.exe" if is_windows() else "glmtune")
    if not script.is_file():
        return f"{_name_python()} -m glmtune"
    with contextlib.suppress(ValueError, OSError):  # not below the current folder; that folder is gone
        script = script.relative_to(Path.cwd())
    return quote_program(str(script))


def _name_python() -> str:
    program = shutil.which("python")
    same = program is not None and Path(program).parent == Path(sys.executable).parent
    return "python" if same else quote_program(sys.executable)


def name_pip() -> str:
    """How pip is called for the Python that runs glmtune, as words for the user's shell.

    `pip` and `python` where they are those of this Python, otherwise its path; `uv pip` in an environment that uv
    made without pip.
    """
    if not has_pip() and shutil.which("uv"):
        return "uv pip"
    return f"{_name_python()} -m pip"


def has_pip() -> bool:
    """Whether this Python has pip."""
    from importlib.util import find_spec

    return find_spec("pip") is not None


def format_install(*requirements: str) -> str:
    """The command that installs packages for the Python that runs glmtune.

    Args:
        requirements: of pip, such as `bitsandbytes>=0.50` or `glmtune[qlora]`. The latter's packages are those of the
            installation that is there, a checkout too; a source tree that is not installed is named by its folder, as
            pip would fetch another glmtune.
    """
    checkout = PACKAGE_FOLDER.parent.parent
    if find_installation() is None and (checkout / "pyproject.toml").is_file():
        requirements = tuple(text.replace("glmtune[", f"{checkout}[") for text in requirements)
    words = " ".join(map(quote_requirement, requirements))
    pip = name_pip()
    if pip == "uv pip":
        python = "" if os.environ.get("VIRTUAL_ENV") == sys.prefix else f"--python {quote_word(sys.executable)} "
        return f"uv pip install {python}{words}"
    program = shutil.which("pip")
    if program is not None and Path(program).parent == Path(sys.executable).parent:
        pip = "pip"
    return f"{pip} install {words}"


def quote_requirement(text: str) -> str:
    """A requirement as a word of a command: where it needs quotes, in those that sh, cmd and PowerShell take."""
    return f'"{text}"' if set(text) & set(" []<>=!~;*") else text
