"""Lengths of rows: percentiles, bars for the terminal, and a PNG file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from glmtune.html.plots import save_histogram
from glmtune.utils.console import count_noun

PERCENTILES = (50, 90, 95, 99)
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class LengthCounts:
    """Number of rows of each length."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add_length(self, length: int) -> None:
        self.counts[length] += 1

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def longest(self) -> int:
        return max(self.counts, default=0)

    @property
    def mean(self) -> float:
        return sum(length * count for length, count in self.counts.items()) / max(1, len(self))

    def percentile(self, percent: float) -> int:
        """The smallest length that at least `percent` of the rows do not exceed; 0 without rows."""
        threshold, total = percent / 100 * len(self), 0
        for length in sorted(self.counts):
            total += self.counts[length]
            if total >= threshold:
                return length
        return 0

    def as_dict(self) -> dict[str, float]:
        """min, mean, the percentiles and max."""
        percentiles = {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
        return {"min": min(self.counts, default=0), "mean": round(self.mean, 1), **percentiles, "max": self.longest}


@dataclass(frozen=True)
class Bin:
    """Number of rows with lengths from `first` to `last`."""

    first: int
    last: int
    count: int


def make_bins(lengths: LengthCounts, max_bins: int = 15) -> list[Bin]:
    """Group lengths into bins of equal, round width.

    The longest 0.5 % share one wider bin, if needed, so that a few very long rows do not compress the others.
    """
    if not len(lengths):
        return []
    shortest, longest = min(lengths.counts), lengths.percentile(99.5)
    widths = (factor * 10**exponent for exponent in count() for factor in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < max_bins)
    low = shortest // width
    counts = [0] * (longest // width - low + 1)
    beyond = 0
    for length, rows in lengths.counts.items():
        if length // width - low < len(counts):
            counts[length // width - low] += rows
        else:
            beyond += rows
    bins = [Bin((low + i) * width, (low + i + 1) * width - 1, rows) for i, rows in enumerate(counts)]
    return [*bins, Bin(bins[-1].last + 1, lengths.longest, beyond)] if beyond else bins


def render_bars(bins: list[Bin], width: int = 40) -> list[str]:
    """A line of text per bin: its limits, a bar, its count."""
    highest = max((item.count for item in bins), default=1)
    names = [f"{item.first:,}-{item.last:,}" if item.last > item.first else f"{item.first:,}" for item in bins]
    name_width = max(map(len, names), default=0)
    lines = []
    for name, item in zip(names, bins, strict=True):
        length = item.count / highest * width
        part = _EIGHTHS[int(length % 1 * 8)].strip()
        bar = "█" * int(length) + part
        if not bar and item.count:  # a bin that is not empty must be visible
            bar = _EIGHTHS[1]
        lines.append(f"{name:>{name_width}} {bar:<{width}} {item.count:,}")
    return lines


def draw_length_histogram(lengths: LengthCounts, path: Path, unit: str, limit: int | None = None) -> None:
    """Draw the histogram as a PNG file."""
    bins = make_bins(lengths, max_bins=50)
    widths = [item.last - item.first + 1 for item in bins]
    if len(bins) > 1 and widths[-1] > widths[0]:  # draw the wider last bin as wide as the others
        widths[-1] = widths[0]
    bars = [(float(item.first), float(width), item.count) for item, width in zip(bins, widths, strict=True)]
    percentile = lengths.percentile(95)
    lines = {f"limit {limit:,}": float(limit)} if limit else {}
    lines[f"95 % up to {percentile:,}"] = float(percentile)
    title = f"{count_noun(len(lengths), 'row')}, longest {lengths.longest:,} {unit}"
    save_histogram(bars, path, f"{unit} of a row", title, lines)
