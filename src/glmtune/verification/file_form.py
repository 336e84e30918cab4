"""The form of a weight file: whether its header, its directory and its size agree. Values are not read."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmtune.utils.console import format_bytes

_MAX_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors format
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
_HEAD_BYTES = 512
_BLOCK_BYTES = 4 * 2**20


def find_form_problem(path: Path) -> str:
    """What is wrong with the form of a file, as the end of a sentence; empty if nothing is.

    Args:
        path: a `.safetensors` or `.bin` file.
    """
    size = path.stat().st_size
    if size == 0:
        return "empty"
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: what a browser's address gives instead of the file"
    if start.startswith(
        (b'{"error', b'{"code', b'{"detail', b"entry not found", b"invalid username", b"access to model")
    ):
        return f"an error message of a server, not weights ({head[:80].decode('utf-8', 'replace').strip()})"
    if not any(head):
        return "filled with zeros: a download manager reserved the space and did not finish"
    return _check_safetensors(path, size) if path.suffix == ".safetensors" else _check_bin(path, size, head)


def _check_safetensors(path: Path, size: int) -> str:
    if size < 8:
        return f"cut short: it ends after {size} bytes"
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(_MAX_HEADER_BYTES, 2**63):
            return "not a safetensors file (its header would be larger than the format allows)"
        if length + 8 > size:
            return f"cut short: the header takes {length + 8:,} bytes, the file has {size:,}"
        text = stream.read(length)
    pairs: list[str] = []

    def collect(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        pairs.extend(name for name in set(names) if names.count(name) > 1)
        return dict(items)

    try:
        header = json.loads(text, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return "not a safetensors file (its header is no JSON)"
    if not isinstance(header, dict):
        return "not a safetensors file (its header is no JSON object)"
    if pairs:
        return f"its header names {pairs[0]} twice"
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        span = _read_span(entry)
        if span is None:
            return f"the header's entry of {name} does not fit itself (dtype, shape and offsets)"
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            return f"the header's tensors leave a gap or overlap at byte {min(first, end):,}"
        end = last
    expected = 8 + length + end
    if size < expected:
        return f"cut short: {format_bytes(size)} of {format_bytes(expected)}, {expected - size:,} bytes are missing"
    return "" if size == expected else f"{size - expected:,} bytes longer than its header says"


def _read_span(entry: Any) -> tuple[int, int] | None:
    """First and last byte of a tensor; None if its entry contradicts itself."""
    if not isinstance(entry, dict):
        return None
    offsets, shape, bits = entry.get("data_offsets"), entry.get("shape"), _BITS.get(str(entry.get("dtype")))
    if not (isinstance(offsets, list) and len(offsets) == 2 and isinstance(shape, list)):
        return None
    if not all(type(number) is int and number >= 0 for number in (*offsets, *shape)):
        return None
    first, last = offsets
    if last < first or (bits and (last - first) * 8 != math.prod(shape) * bits):
        return None
    return first, last


def _check_bin(path: Path, size: int, head: bytes) -> str:
    if not head.startswith(b"PK"):
        return ""  # torch's older form has no directory: loading it says whether it is whole
    if not zipfile.is_zipfile(path):
        return f"cut short: it begins as a zip archive and its directory is not at its end ({size:,} bytes are there)"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                return "its zip directory names an entry twice"
            if any(entry.header_offset + entry.compress_size > size for entry in entries):
                return "its zip directory points behind its end"
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "a compressed archive, which torch.save does not write"
            if not any(name.endswith("data.pkl") for name in names):
                return "a zip archive without data.pkl, so not written by torch.save"
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        return f"its zip directory cannot be read ({error})"
    return ""


def find_wrong_entries(path: Path, on_bytes: Callable[[int], None]) -> tuple[list[str], int]:
    """Compare the CRC-32 of every entry of a zip archive with its directory.

    Args:
        path: of a `.bin` file in zip form.
        on_bytes: called with the number of bytes after each block.

    Returns:
        Names of entries whose bytes differ, and the number of entries. All of them differ in a file that was written
        without sums (`torch.serialization.set_crc32_options(False)`).
    """
    wrong = []
    with zipfile.ZipFile(path) as archive, path.open("rb", buffering=0) as stream:
        for entry in archive.infolist():
            stream.seek(entry.header_offset)
            local = stream.read(30)
            if len(local) < 30 or not local.startswith(b"PK\3\4"):
                wrong.append(entry.filename)
                continue
            name_length, extra_length = struct.unpack("<HH", local[26:30])
            stream.seek(entry.header_offset + 30 + name_length + extra_length)
            sum_, left = 0, entry.compress_size
            while left and (block := stream.read(min(left, _BLOCK_BYTES))):
                sum_ = zlib.crc32(block, sum_)
                left -= len(block)
                on_bytes(len(block))
            if left or sum_ != entry.CRC:
                wrong.append(entry.filename)
        return wrong, len(archive.namelist())
