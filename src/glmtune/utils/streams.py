"""Standard streams that never end a command: characters that a terminal cannot print, readers that are gone."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys

from glmtune.utils.operating_system import is_windows

_REPLACING = "glmtune.replace"  # the name of `_replace_unencodable` among the error handlers of codecs
# What is printed for characters that a code page (cp936, cp1252, ASCII) lacks, in messages, tables and bars.
_SUBSTITUTES = str.maketrans(
    {
        **dict.fromkeys("–—−‐‑─━═╌╸╺", "-"),
        **dict.fromkeys("│┃║", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇╔╗╚╝", "+"),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        **{"…": "...", "→": "->", "←": "<-", "×": "x", "≥": ">=", "≤": "<=", "✓": "+", "✗": "x", "•": "*", "·": "."},
    }
)


def restart_in_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where file names are ASCII (`LC_ALL=C` with PYTHONUTF8=0).

    There, a file whose name has Chinese characters cannot be opened by the name that a config or a user gives.
    """
    if is_windows() or sys.flags.utf8_mode or not sys.orig_argv:
        return
    try:
        "数据".encode(sys.getfilesystemencoding())
    except UnicodeEncodeError:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts, too
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def prepare_streams() -> None:
    """Make standard input, output and error usable whatever the terminal, its code page or the shell gave.

    A character that the stream's encoding lacks is printed as its like in ASCII, or as `?` (an emoji on a GBK console);
    bytes of input that are no text become U+FFFD. A stream that is closed (`>&-`) becomes the null device: otherwise
    the next file that is opened would get its number, and what libraries print would be written into that file.
    """
    codecs.register_error(_REPLACING, _replace_unencodable)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (lives as long as the process)
        elif hasattr(stream, "reconfigure"):  # a test's replacement may have none
            # Standard error keeps the way in which Python writes tracebacks with any character.
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors={"stdin": "replace", "stderr": "backslashreplace"}.get(name, _REPLACING))


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SUBSTITUTES)
    return "".join(each if each.isascii() else "?" for each in text), error.end


def drop_output(stream_name: str = "stdout") -> None:
    """Send a standard stream whose reader is gone (`| head`) to the null device, from here to the end of the process.

    Args:
        stream_name: `stdout` or `stderr`.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = getattr(sys, stream_name).fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def flush_streams() -> None:
    """Write what is buffered; Python would complain at exit if the reader of a stream is gone."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):
            drop_output(name)
            with contextlib.suppress(OSError, ValueError, AttributeError):
                getattr(sys, name).flush()


def replace_undecodable(text: str) -> str:
    """Text without half characters: bytes of a command line that are no UTF-8 become U+FFFD, as no tokenizer takes
    them."""
    return text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "replace").decode("utf-8", "replace")


def _is_escaped(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
