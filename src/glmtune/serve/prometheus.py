"""Measurements of the server in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Counts of observed values up to each of some bounds.

    Args:
        name: of the metric.
        description: what is observed.
        bounds: upper bounds, ascending.
    """

    def __init__(self, name: str, description: str, bounds: tuple[float, ...] = _SECONDS):
        self._name, self._description, self._bounds = name, description, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def render(self) -> Iterable[str]:
        """The lines of the metric."""
        yield from _render_head(self._name, "histogram", self._description)
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self._sum}"
        yield f"{self._name}_count {total}"


class ServerMetrics:
    """What the server measures itself; the engine's numbers are added when they are rendered."""

    def __init__(self) -> None:
        self.first_token = Histogram(
            "glmtune_time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.token_interval = Histogram("glmtune_time_between_tokens_seconds", "Between two pieces of a reply.")
        self.request_time = Histogram("glmtune_request_seconds", "From a request's arrival to the end of its answer.")
        self._requests: Counter[tuple[str, int]] = Counter()

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            route: path of the route, not of the request: others are endless.
            status: of the answer; 499 if the client left.
            seconds: the time that it took.
        """
        self._requests[route, status] += 1
        self.request_time.observe(seconds)

    def render(self, stats: Any) -> str:
        """All metrics.

        Args:
            stats: of the engine, a dataclass of numbers: totals are counters, others gauges.
        """
        lines = list(_render_head("glmtune_http_requests_total", "counter", "Answered requests."))
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'glmtune_http_requests_total{{route="{route}",status="{status}"}} {count}')
        for name, value in vars(stats).items():
            if isinstance(value, (int, float)):
                kind = "counter" if name.endswith("_total") else "gauge"
                metric = f"glmtune_engine_{name}"
                lines += [*_render_head(metric, kind, f"Of the engine: {name.replace('_', ' ')}."), f"{metric} {value}"]
        for histogram in (self.first_token, self.token_interval, self.request_time):
            lines += histogram.render()
        return "\n".join(lines) + "\n"


def _render_head(name: str, kind: str, description: str) -> tuple[str, str]:
    return f"# HELP {name} {description}", f"# TYPE {name} {kind}"
