"""Lengths of rows: percentiles, bars for the terminal, a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PERCENTILES = (50, 90, 95, 99)
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Lengths:
    """How often each length occurred: as much memory as there are different lengths, not rows."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self.counts[length] += 1

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def longest(self) -> int:
        return max(self.counts, default=0)

    @property
    def mean(self) -> float:
        return sum(length * count for length, count in self.counts.items()) / max(1, len(self))

    def percentile(self, share: float) -> int:
        """The smallest length that at least `share` percent of the rows do not exceed; 0 without rows."""
        wanted, seen = share / 100 * len(self), 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen >= wanted:
                return length
        return 0

    def as_dict(self) -> dict[str, float]:
        """min, mean, the percentiles and max."""
        shares = {f"p{share}": self.percentile(share) for share in PERCENTILES}
        return {"min": min(self.counts, default=0), "mean": round(self.mean, 1), **shares, "max": self.longest}


@dataclass(frozen=True)
class Bin:
    """Rows of `first` to `last` units."""

    first: int
    last: int
    count: int


def bins(lengths: Lengths, most: int = 15) -> list[Bin]:
    """Bins of one round width. The longest half percent shares the last one: a few giants must not squeeze the rest."""
    if not len(lengths):
        return []
    shortest, reach = min(lengths.counts), lengths.percentile(99.5)
    width = next(w for w in _widths() if reach // w - shortest // w < most)
    low = shortest // width
    counted = [0] * (reach // width - low + 1)
    beyond = 0
    for length, count in lengths.counts.items():
        if length // width - low < len(counted):
            counted[length // width - low] += count
        else:
            beyond += count
    found = [Bin((low + i) * width, (low + i + 1) * width - 1, count) for i, count in enumerate(counted)]
    return [*found, Bin(found[-1].last + 1, lengths.longest, beyond)] if beyond else found


def bars(found: list[Bin], width: int = 40) -> list[str]:
    """A line per bin: its borders, a bar, its count."""
    most = max((item.count for item in found), default=1)
    names = [f"{item.first:,}-{item.last:,}" if item.last > item.first else f"{item.first:,}" for item in found]
    room = max(map(len, names), default=0)
    return [
        f"{name:>{room}} {_bar(item.count / most * width):<{width}} {item.count:,}"
        for name, item in zip(names, found, strict=True)
    ]


def draw(lengths: Lengths, path: Path, unit: str, limit: int | None = None) -> None:
    """The histogram as a PNG file. Its words are Latin: a machine without Chinese fonts would draw boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    found = bins(lengths, most=50)
    widths = [item.last - item.first + 1 for item in found]
    if len(found) > 1 and widths[-1] > widths[0]:  # the open last bin is drawn as wide as the others
        widths[-1] = widths[0]
    axes.bar([item.first for item in found], [item.count for item in found], widths, align="edge", edgecolor="white")
    if limit:
        axes.axvline(limit, color="tab:red", linestyle="--", label=f"limit {limit:,}")
    axes.axvline(
        lengths.percentile(95), color="tab:gray", linestyle=":", label=f"95 % up to {lengths.percentile(95):,}"
    )
    axes.set(
        xlabel=f"{unit} of a row", ylabel="rows", title=f"{len(lengths):,} rows, longest {lengths.longest:,} {unit}"
    )
    axes.legend()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _widths() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def _bar(length: float) -> str:
    whole = int(length)
    part = _EIGHTHS[int((length - whole) * 8)].strip()
    return "█" * whole + part if whole or part or length == 0 else _EIGHTHS[1]  # what is not empty shows
